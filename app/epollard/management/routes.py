"""What the management listener serves: pages made of the supervisor's facts, and commands that change its wish."""

import os
from typing import Final, Protocol

from .. import log
from ..config.options import Config, ConfigError, parse
from ..net import sockets
from ..net.loop import Loop
from ..supervision import status
from .server import Admin, Page, Refused

METRICS: Final = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus' text format
COMMAND: Final = "command"  # what the log calls whoever has come this way


class Managed(Protocol):
    """The supervisor, as it is seen from here."""

    def facts(self) -> status.Facts:
        """Its state now."""

    def scale(self, least: int, most: int, why: str) -> str:
        """Want so many workers. Returns why not, where it cannot be."""

    def reload(self, why: str) -> str:
        """Want all workers replaced. Returns why not, where it cannot be."""

    def upgrade(self, why: str) -> str:
        """Want a new supervisor, from the code on disk. Returns why not, where it cannot be."""

    def drain(self, why: str) -> None:
        """Want everything to end, once what has begun is finished."""


class Management:
    """The listener with its pages and commands."""

    def __init__(self, loop: Loop, managed: Managed) -> None:
        self._managed = managed
        self._last: Page | None = None  # what `readyz` says when a successor leads
        pages = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics}
        commands = {"/scale": self._scale, "/reload": self._reload, "/upgrade": self._upgrade, "/drain": self._drain}
        self._admin = Admin(loop, pages, commands)
        self.tick = self._admin.tick
        self.close = self._admin.close
        self.disown = self._admin.disown
        self.start = self._admin.start
        self.wills = self._admin.wills

    @property
    def groups(self) -> list[sockets.Group]:
        """Where it listens."""
        return self._admin.groups

    def listen(self, config: Config, wills: list[sockets.Will]) -> bool:
        """Listen, unless that is switched off. False: the address was asked for, and cannot be had."""
        if config.admin == "off":
            return True
        try:
            self._admin.listen(config.admin, wills)
        except sockets.BindError as error:
            if config.admin_asked:
                log.error(f"management: {error}")
                return False
            log.warning(f"management: {error}; the server goes on without it (--admin chooses another address, or off)")
        return True

    def leave(self) -> None:
        """A successor is ready, and answers from now on. Who has come already is told what was true until now."""
        self._last = self._readyz()
        self._admin.leave()

    # Pages.

    def _livez(self) -> Page:
        """Whoever answers is alive. That nobody can be served is no reason to start it anew: see `readyz`."""
        return Page(200, status.as_json({"alive": True, "pid": os.getpid()}))

    def _readyz(self) -> Page:
        if self._last is not None:
            return self._last
        ready, told = status.readiness(self._managed.facts())
        return Page(200 if ready else 503, status.as_json(told))

    def _metrics(self) -> Page:
        return Page(200, status.metrics(self._managed.facts()), METRICS)

    # Commands.

    def _scale(self, parameters: dict[str, str]) -> str:
        self._refuse_at_the_end()
        try:
            workers = parse("workers", parameters.get("workers", ""), "workers")
        except ConfigError as error:
            raise Refused(400, str(error)) from None
        least, most = workers if isinstance(workers, tuple) else (workers, workers)
        if not isinstance(least, int) or not isinstance(most, int):
            raise Refused(400, "workers: auto is for the start; a number is needed here")
        if why := self._managed.scale(least, most, COMMAND):
            raise Refused(409, why)
        return f"{least} workers wanted" if least == most else f"{least} to {most} workers wanted"

    def _reload(self, parameters: dict[str, str]) -> str:
        self._refuse_at_the_end()
        if why := self._managed.reload(COMMAND):
            raise Refused(409, why)
        return f"replacing all workers by generation {self._managed.facts().generation}"

    def _upgrade(self, parameters: dict[str, str]) -> str:
        self._refuse_at_the_end()
        if why := self._managed.upgrade(COMMAND):
            raise Refused(409, why)
        return "a new supervisor is started from the code on disk"

    def _drain(self, parameters: dict[str, str]) -> str:
        self._refuse_at_the_end()
        self._managed.drain(COMMAND)
        return f"the server is {self._managed.facts().going}"

    def _refuse_at_the_end(self) -> None:
        if going := self._managed.facts().going:
            raise Refused(409, f"the server is {going}")
