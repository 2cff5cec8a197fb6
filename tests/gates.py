"""How a test holds an application up, and reads what it has noted. Only through files: no test code runs in the server."""

import os
from pathlib import Path
from typing import Self

from harness import WAIT, wait_for


class Gate:
    """A FIFO on which the application waits (`apps.routes.wait`) until the test opens it, or leaves the `with` block."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer = -1
        self.opened = False
        os.mkfifo(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.opened and self.arrived():
            self.open()

    def wait(self, seconds: float = WAIT) -> Self:
        """Wait until the application has reached the gate."""
        wait_for(self.arrived, f"the application has not reached {self.path.name}", seconds)
        return self

    def arrived(self) -> bool:
        """Whether the application is waiting at the gate."""
        if self._writer >= 0:
            return True
        try:
            self._writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # ENXIO: there is no reader (fifo(7))
            return False
        return True

    def open(self) -> None:
        """Let the application continue."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
            self.opened = True


class Notes:
    """The lines that the application has noted (`apps.routes.note`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def wait(self, count: int) -> list[str]:
        """Wait for exactly `count` lines."""
        wait_for(lambda: len(self.lines) >= count, lambda: f"{count} lines, not {self.lines}")
        assert len(self.lines) == count, self.lines
        return self.lines
