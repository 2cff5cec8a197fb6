"""bjoern has no command line: serve `hello:NAME` on a port. Usage: serve_bjoern.py PORT NAME"""

import sys

import bjoern
import hello  # type: ignore[import-not-found]  # beside this file

bjoern.run(getattr(hello, sys.argv[2]), "127.0.0.1", int(sys.argv[1]))
