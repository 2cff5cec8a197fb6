"""epollard: an application server for Python web apps in Linux containers."""

__version__ = "0.1.0"
