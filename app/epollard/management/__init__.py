"""The management listener, its pages and commands, and the command that speaks to it."""
