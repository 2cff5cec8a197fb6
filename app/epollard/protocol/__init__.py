"""HTTP/1.1 and WebSocket as bytes: no socket, no clock, no config."""
