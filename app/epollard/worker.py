"""A worker: one process, one loop, one application. Hears the supervisor by signals, its say is a row of the scoreboard.

Through a channel it is lent the listeners of siblings that cannot serve them: a slot's number comes with descriptors, and
without them when they are to be given back.

Its states: starting (the application is being imported), ready, draining (no new connections; what runs may finish), gone.
"""

import faulthandler
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from . import demo, exits, importer, log, scoreboard
from .access_log import AccessLog
from .asgi.lifespan import StartupError
from .asgi.runner import AsgiRunner
from .config.options import Config
from .net import syn_filter
from .net.acceptor import Acceptor, server_name
from .net.connection import accept
from .net.context import Limits, Timeouts, WorkerContext
from .net.loop import IN, Loop
from .net.signals import Signals
from .scoreboard import WorkerEnds
from .wsgi.threads import LeaderFollowers

# Seconds that an idle client has to ask once more, before its connection is closed because the worker goes. The answer says
# `Connection: close`. As deadlines are looked at once a second, it may be a second more.
LAST_CHANCE: Final = 0.5
# ... where others serve on, and nobody waits for our end.
LONGER_CHANCE: Final = 5.0
# Seconds that a worker for which nobody waits has beyond the graceful timeout: until the doors are shut and a tick has come.
ORPHAN_GRACE: Final = 2.0
# Seconds that a thread may keep the interpreter to itself while others want it. The default of 5 ms is what quick requests
# would wait for beside a slow one that computes: 20,000 requests a second with it, 38,000 with this, the slow one 7 % slower.
SWITCH_INTERVAL: Final = 0.001
SLOT_BYTES: Final = 8  # of a slot's number, which is what comes through the channel
MOST_FDS: Final = 253  # SCM_MAX_FD, unix(7)
REPORT_BYTES: Final = 60_000  # of a traceback; fits a pipe's buffer (pipe(7)), so that nobody has to read for us to go on
# What the supervisor or we gave a handler.
_SIGNALS: Final = (
    signal.SIGTERM,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR2,
)


class Worker:
    """One worker process, from its first line to its exit status."""

    def __init__(self, config: Config, listeners: Sequence[socket.socket], ends: WorkerEnds) -> None:
        self._config = config
        self._listeners = list(listeners)
        self._record, self._lifeline, self._doorbell, self._report, self._channel = ends
        self._foreign: dict[bytes, list[socket.socket]] = {}  # by the number of their slot
        self._deadline = float("inf")  # where no supervisor has an eye on it
        self._orphaned = 0.0  # since when the supervisor is gone

    def run(self) -> int:
        """Boot, serve, drain. Returns the process's exit status."""
        slot = os.environ.get("EPOLLARD_WORKER_ID", "?")
        log.configure(self._config.log_level, f"worker {slot}")
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        os.register_at_fork(after_in_child=self._disown)
        sys.setswitchinterval(SWITCH_INTERVAL)  # before the application's import: it may know better
        try:
            app = load(self._config.app)
        except importer.ApplicationError as error:
            os.write(self._report, str(error).encode("utf-8", "backslashreplace")[-REPORT_BYTES:])
            os.close(self._report)
            return exits.LOAD_FAILED
        try:
            self._serve(app)
        except StartupError as error:
            told = f"the application could not start: {error}"
            os.write(self._report, told.encode("utf-8", "backslashreplace")[-REPORT_BYTES:])
            os.close(self._report)
            return exits.LOAD_FAILED
        # At its end the interpreter takes our handlers away, and a second SIGTERM would look like a violent death.
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        return exits.OK

    def _serve(self, app: Callable[..., Any]) -> None:
        config = self._config
        self._loop = loop = Loop()
        access = AccessLog(config.access_log) if config.access_log != "off" else None
        self._flush = access.flush if access else None
        loop.on_turn = self._flush
        loop.on_error = partial(log.exception, "a fault of epollard itself")
        kind = importer.interface(app) if config.interface == "auto" else config.interface
        tell = log.info if os.environ.get("EPOLLARD_WORKER_ID") == "0" else log.debug  # one voice for all
        tell(f"{config.app or 'the demo'} is {kind.upper()}")
        add = access.add if access else None
        self._interface: LeaderFollowers | AsgiRunner
        if kind == "asgi":
            self._interface = AsgiRunner(
                loop, app, max_message=config.ws_max_size, deflate=config.ws_deflate == "on", access=add
            )
        else:
            self._interface = LeaderFollowers(
                loop,
                app,
                threads=config.threads,
                processes=config.most_workers,
                access=add,
                local=server_name(self._listeners[0]),
            )
        self._server = WorkerContext(
            loop,
            self._interface,
            limits=Limits(
                max_line=config.max_line,
                max_headers=config.max_headers,
                max_header_bytes=config.max_header_bytes,
                max_body=config.max_body,
            ),
            timeouts=Timeouts(
                header=config.header_timeout,
                body=config.body_timeout,
                write=config.write_timeout,
                keep_alive=config.keep_alive,
                ping_interval=config.ws_ping_interval,
                ping_timeout=config.ws_ping_timeout,
            ),
            trigger=config.trigger,
            corked=config.tcp == "cork",
            notify_disconnects=kind == "asgi",
        )
        self._acceptor = Acceptor(loop, partial(accept, self._server), self._server.connections, self._report_connections)
        loop.on_tick = self._tick
        self._sums = (time.monotonic(), loop.waited, 0.0, time.process_time())
        self._tick()
        self._interface.run(self._begin)
        if kind == "wsgi":
            self._signals.close()
        if self._flush is not None:
            self._flush()
        self._tick()

    def _begin(self) -> None:
        """The application is ready: so are we."""
        loop = self._loop
        for listener in self._listeners:
            self._acceptor.add(listener)
        loop.watch(self._lifeline, IN, self._on_orphaned)
        loop.watch(self._channel.fileno(), IN, self._on_channel)
        self._watch_signals()
        os.register_at_fork(after_in_child=self._disown_clients)
        # What the application's import made will live as long as the worker: no collection need look at it again.
        gc.collect()
        gc.freeze()
        self._set_state(scoreboard.READY)
        os.close(self._report)

    def _set_state(self, state: int) -> None:
        self._record[scoreboard.STATE] = state
        os.eventfd_write(self._doorbell, 1)

    # Signals.

    def _watch_signals(self) -> None:
        if isinstance(self._interface, AsgiRunner):  # asyncio has such a pair of sockets itself
            for number in (signal.SIGTERM, signal.SIGQUIT):
                self._interface.aio.add_signal_handler(number, self._on_signal, number)
            self._interface.aio.add_signal_handler(signal.SIGUSR1, self._interface.tell)
            faulthandler.unregister(signal.SIGUSR1)  # asyncio has taken its place; now it comes first again
            faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=True)
            return
        self._signals = Signals(self._loop, (signal.SIGTERM, signal.SIGQUIT), self._on_signal)

    def _disown(self) -> None:
        """In a process that the application forked, be it by its import: the listeners are not its own.

        Its copies would keep the addresses taken when the server has ended.
        """
        for listener in self._listeners:
            listener.close()
        for borrowed in self._foreign.values():
            for listener in borrowed:
                listener.close()
        self._channel.close()

    def _disown_clients(self) -> None:
        """There: nor are the worker's clients and signals.

        Its copies would keep connections open that the worker closed, epoll would go on telling of them, and a signal to the
        child would be one to the worker.
        """
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._server.disown()
        if isinstance(self._interface, LeaderFollowers):
            self._signals.close()
        self._loop.close()

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGQUIT:
            self._interface.stop()
        elif number == signal.SIGTERM:
            self._drain("asked to")

    # Once a second.

    def _tick(self) -> None:
        now = time.monotonic()
        self._server.tick(now, time.time())
        interface, record, server = self._interface, self._record, self._server
        record[scoreboard.HEARTBEAT] = int(interface.alive(now) * 1e9)
        self._report_connections()
        record[scoreboard.REQUESTS] = interface.answered
        record[scoreboard.REJECTED] = server.rejected
        record[scoreboard.ABORTED] = server.aborted
        record[scoreboard.BUSY] = self._busy(now)
        self._acceptor.resume()
        if self._orphaned and now - self._orphaned >= syn_filter.SYN_DROP_TIME:
            self._drain("the supervisor is gone")
        if server.draining and not self._listeners:
            interface.dismiss()
        if now > self._deadline:
            log.error("not drained in time: connections are cut")
            os._exit(1)  # application threads may never return

    def _busy(self, now: float) -> int:
        """Thousandths of the time since the last tick: of the loop, of the threads, or of one CPU, whichever had less rest."""
        sums = (now, self._loop.waited, self._interface.spent(now), time.process_time())
        elapsed, waited, spent, computed = (after - before for after, before in zip(sums, self._sums, strict=True))
        self._sums = sums
        if not elapsed:
            return 0
        return round(1000 * min(max(1 - waited / elapsed, spent / elapsed, computed / elapsed, 0), 1))

    def _report_connections(self) -> None:
        """For steering and rescue, so not only once a second but also before and after connections are accepted."""
        self._record[scoreboard.ACCEPTED] = self._server.accepted
        self._record[scoreboard.ACTIVE] = len(self._server.connections)

    # Listeners of a sibling that cannot serve them: borrowed from the supervisor.

    def _on_channel(self, events: int) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._channel, SLOT_BYTES, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        if not message:  # the supervisor is gone, as the lifeline will say
            self._loop.unwatch(self._channel.fileno())
            return
        self._give_back(message)
        borrowed = [socket.socket(fileno=fd) for fd in descriptors]
        for listener in borrowed:
            listener.setblocking(False)
            if self._server.draining:  # nobody else will empty it
                self._listeners.append(listener)
                self._loop.post(self._empty_queues)
            else:
                self._acceptor.add(listener)
                self._foreign.setdefault(message, []).append(listener)

    def _give_back(self, slot: bytes) -> None:
        for listener in self._foreign.pop(slot, ()):
            self._acceptor.remove(listener)
            listener.close()

    # The end.

    def _on_orphaned(self, events: int) -> None:
        """The supervisor is gone: what it does for a graceful stop is ours to do."""
        self._loop.unwatch(self._lifeline)
        self._deadline = time.monotonic() + self._config.graceful_timeout + ORPHAN_GRACE
        if self._server.draining:
            return
        if self._record[scoreboard.SHARED]:
            self._drain("the supervisor is gone, and its predecessor goes on")
            return
        for listener in self._listeners:
            syn_filter.attach(listener)
        self._orphaned = time.monotonic()

    def _drain(self, why: str) -> None:
        """Take what waits in the queues, then no more; let what runs finish; end when the last connection is closed."""
        if self._server.draining:
            self._dismiss_idle()  # the others go as well, now
            return
        log.debug(f"draining: {why}")
        self._server.drain()
        for borrowed in self._foreign.values():
            self._listeners += borrowed
        self._foreign.clear()
        self._set_state(scoreboard.DRAINING)
        for listener in self._listeners:
            self._acceptor.remove(listener)
        self._loop.post(self._empty_queues)

    def _empty_queues(self) -> None:
        if not self._listeners:
            # Not before: who is sent away and comes back at once would find us again.
            self._interface.dismiss()
            self._dismiss_idle()
            self._loop.on_turn = self._stop_when_idle
            return
        self._loop.post(self._empty_queues)  # first: serving a connection may cost this thread the loop
        if not self._acceptor.accept_one(self._listeners[-1]):
            self._listeners.pop().close()

    def _dismiss_idle(self) -> None:
        chance = LAST_CHANCE
        if self._record[scoreboard.STAYS]:
            chance = max(chance, min(LONGER_CHANCE, self._config.graceful_timeout / 2 - 1))
        self._server.expire_idle(time.monotonic() + chance)

    def _stop_when_idle(self) -> None:
        if self._flush is not None:
            self._flush()
        if not self._server.connections and self._interface.idle:
            # Nobody may wait for our end, but what could hold it up now (the lifespan's shutdown, a thread that is no daemon,
            # atexit) serves no client: so it has a deadline, and then every stack goes to the log.
            faulthandler.dump_traceback_later(self._config.graceful_timeout + ORPHAN_GRACE, file=2, exit=True)
            self._loop.on_turn = self._flush
            self._interface.stop()


def load(spec: str | None) -> Callable[..., Any]:
    """The application, or the demo where none is named. Raises `importer.ApplicationError`."""
    return demo.application if spec is None else importer.load(spec)
