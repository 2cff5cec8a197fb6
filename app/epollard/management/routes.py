"""What the management listener serves: pages made of the supervisor's facts, and commands that change what it aims at."""

import os
from typing import Final, Protocol

from .. import log
from ..config.options import Config
from ..config.sources import ConfigError, parse
from ..net import sockets
from ..net.loop import Loop
from ..supervision import status
from . import metrics
from .server import Page, Refused, Server, json_text

COMMAND: Final = "command"  # what the log calls the source of these requests


class Supervisor(Protocol):
    """What the routes need of the supervisor. Commands return why they were refused, or "" if they were not."""

    def facts(self) -> status.Facts:
        """Its state now."""

    def scale(self, least: int, most: int, why: str) -> str:
        """Aim at that many workers."""

    def reload(self, why: str) -> str:
        """Replace all workers."""

    def upgrade(self, why: str) -> str:
        """Start a new supervisor from the code on disk."""

    def drain(self, why: str) -> None:
        """Stop, after in-flight requests have finished."""


class Management:
    """The listener with its pages and commands."""

    def __init__(self, loop: Loop, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._last: Page | None = None  # the response of `/readyz` once a successor leads
        pages = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics}
        commands = {"/scale": self._scale, "/reload": self._reload, "/upgrade": self._upgrade, "/drain": self._drain}
        self._server = Server(loop, pages, commands)
        self.tick = self._server.tick
        self.close = self._server.close
        self.disown = self._server.disown
        self.start = self._server.start
        self.inheritances = self._server.inheritances

    @property
    def groups(self) -> list[sockets.Group]:
        """Where it listens."""
        return self._server.groups

    def listen(self, config: Config, inheritances: list[sockets.Inheritance]) -> bool:
        """Listen, unless that is switched off. False: the address was asked for explicitly, and is not available."""
        if config.admin == "off":
            return True
        try:
            self._server.listen(config.admin, inheritances)
        except sockets.BindError as error:
            if config.admin_explicit:
                log.error(f"management: {error}")
                return False
            log.warning(f"management: {error}; the server runs without it (--admin sets another address, or off)")
        return True

    def leave(self) -> None:
        """A successor is ready, and takes the next clients. Those that are here already get the state as it is now."""
        self._last = self._readyz()
        self._server.leave()

    # Pages.

    def _livez(self) -> Page:
        """Any response means alive. That no client can be served is no reason for a restart: that is what `/readyz` is for."""
        return Page(200, json_text({"alive": True, "pid": os.getpid()}))

    def _readyz(self) -> Page:
        if self._last is not None:
            return self._last
        ready, report = status.readiness(self._supervisor.facts())
        return Page(200 if ready else 503, json_text(report))

    def _metrics(self) -> Page:
        return Page(200, metrics.text(self._supervisor.facts()), metrics.CONTENT_TYPE)

    # Commands.

    def _scale(self, parameters: dict[str, str]) -> str:
        self._refuse_when_ending()
        try:
            workers = parse("workers", parameters.get("workers", ""), "workers")
        except ConfigError as error:
            raise Refused(400, str(error)) from None
        least, most = workers if isinstance(workers, tuple) else (workers, workers)
        if not isinstance(least, int) or not isinstance(most, int):
            raise Refused(400, "workers: auto is only for the start; this command needs a number")
        if why := self._supervisor.scale(least, most, COMMAND):
            raise Refused(409, why)
        return f"{least} workers wanted" if least == most else f"{least} to {most} workers wanted"

    def _reload(self, parameters: dict[str, str]) -> str:
        self._refuse_when_ending()
        if why := self._supervisor.reload(COMMAND):
            raise Refused(409, why)
        return f"replacing all workers by generation {self._supervisor.facts().generation}"

    def _upgrade(self, parameters: dict[str, str]) -> str:
        self._refuse_when_ending()
        if why := self._supervisor.upgrade(COMMAND):
            raise Refused(409, why)
        return "a new supervisor is being started from the code on disk"

    def _drain(self, parameters: dict[str, str]) -> str:
        self._refuse_when_ending()
        self._supervisor.drain(COMMAND)
        return f"the server is {self._supervisor.facts().ending}"

    def _refuse_when_ending(self) -> None:
        if ending := self._supervisor.facts().ending:
            raise Refused(409, f"the server is {ending}")
