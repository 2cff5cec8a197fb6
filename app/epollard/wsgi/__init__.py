"""The application interface WSGI (PEP 3333): one call, its thread, its response."""
