"""Clients and the kernel: the loop, sockets, connections."""
