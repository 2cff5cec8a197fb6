"""The lifespan of an ASGI application (ASGI 3, lifespan 2.0): one call that lasts as long as the worker."""

import asyncio
from collections.abc import MutableMapping
from typing import Any, Final

from .. import log

EXIT_SECONDS: Final = 1.0  # for the application to return after its last message


class StartupError(Exception):
    """The application reported that it cannot start. The text gives its reason."""


class Lifespan:
    """Startup, then shutdown. An application that raises before it sends a message has no lifespan, which is not an error."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._task: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[MutableMapping[str, Any]] = asyncio.Queue()
        self._started = asyncio.Event()
        self._stopped = asyncio.Event()
        self._failure: str | None = None
        self.state: dict[str, Any] = {}
        self.supported = False

    async def startup(self) -> None:
        """Returns when the application is ready, or has turned out to have no lifespan. Raises `StartupError`."""
        self._task = asyncio.create_task(self._run(), name="lifespan")
        self._events.put_nowait({"type": "lifespan.startup"})
        await self._started.wait()
        if self._failure is not None:
            raise StartupError(f"the application could not start: {self._failure}")

    async def shutdown(self) -> None:
        """Returns when the application has cleaned up."""
        if self.supported and self._task is not None and not self._task.done():
            self._events.put_nowait({"type": "lifespan.shutdown"})
            await self._stopped.wait()
        if self._task is not None:
            # Code after the last message (the end of an `async with`, a generator's `finally`) may finish, within a bound.
            await asyncio.wait([self._task], timeout=EXIT_SECONDS)
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._events.get, self._send)
        except asyncio.CancelledError:
            pass
        except BaseException as error:
            if self.supported:
                log.exception("application failed in its lifespan", error)
            elif self._failure is None:
                log.debug(f"application has no lifespan: {type(error).__name__}")
        finally:
            self._started.set()
            self._stopped.set()

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.complete" and not self._started.is_set():
            self.supported = True
            self._started.set()
        elif kind == "lifespan.startup.failed" and not self._started.is_set():
            self._failure = str(message.get("message", ""))
            self._started.set()
        elif kind == "lifespan.shutdown.complete":
            self._stopped.set()
        elif kind == "lifespan.shutdown.failed":
            log.error(f"application failed to shut down: {log.escape(str(message.get('message', '')))}")
            self._stopped.set()
        else:
            raise RuntimeError(f"unexpected in a lifespan: {kind!r}")
