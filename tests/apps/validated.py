"""`apps.routes` between two `wsgiref.validate`: what it or the server does against PEP 3333 raises, and is a 500."""

import warnings
from wsgiref.validate import WSGIWarning, validator

from apps.routes import app as routes

warnings.simplefilter("error", WSGIWarning)


def calls(environ, start_response):
    """All that PEP 3333 lets an application do with `wsgi.errors` and the second call of `start_response`."""
    errors = environ["wsgi.errors"]
    errors.write("errors.write\n")
    errors.writelines(["errors.writelines\n"])
    errors.flush()
    return routes(environ, start_response)


app = validator(calls)
