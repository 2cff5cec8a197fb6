"""The management listener: its HTTP server, its pages and commands, and `epollardctl`, which talks to it."""
