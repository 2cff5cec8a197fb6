"""`python -m epollard` is the same as `epollard`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
