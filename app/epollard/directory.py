"""The directory in which the server was started: how the shell calls it, and how to go back there for a moment."""

import contextlib
import os
from collections.abc import Iterator


def current() -> str:
    """The current directory under the name that the shell has for it (`PWD`). Raises `OSError`.

    The name may lead through a link, such as `current`, that points to another release tomorrow.
    """
    real, name = os.getcwd(), os.environ.get("PWD", "")
    try:
        return name if os.path.isabs(name) and os.path.samefile(name, real) else real
    except OSError:
        return real


@contextlib.contextmanager
def entered(path: str) -> Iterator[None]:
    """Change into `path`, and back at the end. Raises `OSError`.

    Unlike `contextlib.chdir` this finds the way back even if the directory has been renamed or removed meanwhile.
    """
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    try:
        os.chdir(path)
        yield
    finally:
        os.fchdir(before)
        os.close(before)
