"""Serves `hello:NAME` with bjoern, which has no command line. Usage: serve_bjoern.py PORT NAME"""

import sys

import bjoern
import hello  # type: ignore[import-not-found]  # it is next to this file

bjoern.run(getattr(hello, sys.argv[2]), "127.0.0.1", int(sys.argv[1]))
