"""`apps.routes` inside of `wsgiref.validate`: any violation of PEP 3333, by the application or the server, is a 500."""

import warnings
from wsgiref.validate import WSGIWarning, validator

from apps.routes import app as routes

warnings.simplefilter("error", WSGIWarning)


def calls(environ, start_response):
    """Write to `wsgi.errors` in every way, then answer as `apps.routes`."""
    errors = environ["wsgi.errors"]
    errors.write("errors.write\n")
    errors.writelines(["errors.writelines\n"])
    errors.flush()
    return routes(environ, start_response)


app = validator(calls)
