"""A worker: one process, one loop, one application. Signals ask it to exit; the scoreboard shows its state to the supervisor.

Over a channel the supervisor lends it the listeners of siblings that cannot serve them. A message is the number of a slot: with
descriptors the listeners are lent, without any they are to be given back.

Its states: starting (the application is being imported), ready, draining (no new connections; requests in flight finish), gone.
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
from .net.contracts import AccessLogger, Interface
from .net.loop import IN, Loop
from .scoreboard import WorkerEnds
from .wsgi.threads import LeaderFollowers

# Seconds that an idle client still has for a request before its connection is closed because the worker is to exit. The
# response then says `Connection: close`. As deadlines are checked once a second, it may be a second longer.
IDLE_GRACE: Final = 0.5
# The same, if siblings keep serving and the end of this worker is not urgent.
LONG_IDLE_GRACE: Final = 5.0
# Seconds that a worker without a supervisor has beyond the graceful timeout, as it first drops SYNs, and then waits for a tick.
ORPHAN_GRACE: Final = 2.0
# Seconds that a thread may keep the interpreter while others want it. With the default of 5 ms, quick requests would wait that
# long for a slow one that computes: there were 20,000 requests a second with the default, and 38,000 with this value, which
# made the slow request 7 % slower.
SWITCH_INTERVAL: Final = 0.001
SLOT_BYTES: Final = 8  # of a message on the channel: the number of a slot
MAX_FDS: Final = 253  # descriptors that one message may carry: SCM_MAX_FD, unix(7)
REPORT_BYTES: Final = 60_000  # of a traceback. They fit into a pipe's buffer (pipe(7)), so writing them never blocks
# The signals that have a handler here, the worker's own or one inherited from the supervisor.
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
        self._borrowed: dict[bytes, list[socket.socket]] = {}  # by the number of their slot
        self._deadline = float("inf")  # of a worker whose supervisor is gone
        self._orphaned = 0.0  # time.monotonic() when the supervisor was found to be gone; 0: it is not
        self._on_drain: list[Callable[[], object]] = []  # called once a second while draining, when the queues are empty

    def run(self) -> int:
        """Boot, serve, drain. Returns the process's exit status."""
        slot = os.environ.get("EPOLLARD_WORKER_ID", "?")
        log.configure(self._config.log_level, f"worker {slot}")
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        os.register_at_fork(after_in_child=self._disown_listeners)
        sys.setswitchinterval(SWITCH_INTERVAL)  # before the import of the application, which may set its own
        try:
            self._serve(load(self._config.app))
        except (importer.ApplicationError, StartupError) as error:
            os.write(self._report, str(error).encode("utf-8", "backslashreplace")[-REPORT_BYTES:])
            os.close(self._report)
            return exits.LOAD_FAILED
        # When the interpreter ends it removes our handlers, and a second SIGTERM would then kill us.
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        return exits.OK

    def _serve(self, app: Callable[..., Any]) -> None:
        config = self._config
        self._loop = loop = Loop()
        access = AccessLog(config.access_log) if config.access_log != "off" else None
        self._flush = access.flush if access else None
        loop.on_turn = self._flush
        loop.on_error = partial(log.exception, "internal error, please report it")
        self._make_interface(app, access.add if access else None)
        counts = self._record[scoreboard.ACCEPTED : scoreboard.ACTIVE + 1]
        self._acceptor = Acceptor(loop, partial(accept, self._context), self._context.connections, counts)
        loop.on_tick = self._tick
        self._sums = self._sum(time.monotonic())
        self._tick()
        self._interface.run(self._begin)
        if self._flush is not None:
            self._flush()
        self._tick()

    def _make_interface(self, app: Callable[..., Any], access: AccessLogger | None) -> None:
        """Make the application's interface, and what the connections share. After this, WSGI and ASGI make no difference."""
        config, loop = self._config, self._loop
        kind = importer.interface(app) if config.interface == "auto" else config.interface
        report = log.info if os.environ.get("EPOLLARD_WORKER_ID") == "0" else log.debug  # one line for all workers
        report(f"the interface of {config.app or 'the demo'} is {kind.upper()}")
        self._interface: Interface[Any]
        if kind == "asgi":
            self._interface = runner = AsgiRunner(
                loop, app, max_message=config.ws_max_size, deflate=config.ws_deflate == "on", access=access
            )
            self._on_drain.append(runner.dismiss)
        else:
            name = server_name(self._listeners[0])
            self._interface = LeaderFollowers(
                loop, app, threads=config.threads, processes=config.most_workers, access=access, local=name
            )
        self._context = WorkerContext(
            loop,
            self._interface,
            limits=_limits(config),
            timeouts=_timeouts(config),
            trigger=config.trigger,
            corked=config.tcp == "cork",
            notify_disconnects=kind == "asgi",
        )

    def _begin(self) -> None:
        """The application is ready: serve."""
        loop = self._loop
        for listener in self._listeners:
            self._acceptor.add(listener)
        loop.watch(self._lifeline, IN, self._on_orphaned)
        loop.watch(self._channel.fileno(), IN, self._on_channel)
        self._interface.watch_signals((signal.SIGTERM, signal.SIGQUIT), self._on_signal)
        os.register_at_fork(after_in_child=self._disown_clients)
        # What the application's import has made lives as long as the worker: no garbage collection need visit it again.
        gc.collect()
        gc.freeze()
        self._set_state(scoreboard.READY)
        os.close(self._report)

    def _set_state(self, state: int) -> None:
        self._record[scoreboard.STATE] = state
        os.eventfd_write(self._doorbell, 1)

    # Signals, and processes that the application forks.

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGQUIT:
            self._interface.stop()
        elif number == signal.SIGTERM:
            self._drain("SIGTERM")

    def _disown_listeners(self) -> None:
        """In a process that the application has forked, perhaps while it was imported: close the copies of the listeners.

        They would keep the addresses in use after the server has ended.
        """
        for listener in self._listeners:
            listener.close()
        for borrowed in self._borrowed.values():
            for listener in borrowed:
                listener.close()
        self._channel.close()

    def _disown_clients(self) -> None:
        """In a process that the ready application has forked: let go of the worker's clients and signals as well.

        Copies of the sockets would keep connections open that the worker has closed, and epoll would still report their
        events; and a signal to the child would reach the worker.
        """
        self._interface.unwatch_signals()
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._context.disown()
        self._loop.close()

    # Once a second.

    def _tick(self) -> None:
        now = time.monotonic()
        self._context.tick(now, time.time())
        interface, record, context = self._interface, self._record, self._context
        record[scoreboard.HEARTBEAT] = int(interface.alive(now) * 1e9)
        self._acceptor.count()
        record[scoreboard.REQUESTS] = interface.answered
        record[scoreboard.REJECTED] = context.rejected
        record[scoreboard.ABORTED] = context.aborted
        record[scoreboard.BUSY] = self._busy(now)
        self._acceptor.resume()
        if self._orphaned and now - self._orphaned >= syn_filter.SYN_DROP_TIME:
            self._drain("the supervisor is gone")
        if context.draining and not self._listeners:
            for hook in self._on_drain:
                hook()
        if now > self._deadline:
            log.error("not drained in time: closing the remaining connections")
            os._exit(1)  # application threads may never return

    def _busy(self, now: float) -> int:
        """Thousandths of the time since the last tick: the busiest of the loop, the other threads and one CPU."""
        before, self._sums = self._sums, self._sum(now)
        elapsed, *busy = (after - before for after, before in zip(self._sums, before, strict=True))
        return round(1000 * min(max(*busy, 0) / elapsed, 1)) if elapsed else 0

    def _sum(self, now: float) -> tuple[float, ...]:
        """Sums of seconds until now: the time itself, then the busy time of loop, other threads and one CPU."""
        return now, *self._interface.busy_seconds(now), time.process_time()

    # Listeners borrowed from a sibling that cannot serve them.

    def _on_channel(self, events: int) -> None:
        message, descriptors, _, _ = socket.recv_fds(self._channel, SLOT_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
        if not message:  # the supervisor is gone, as the lifeline shows too
            self._loop.unwatch(self._channel.fileno())
            return
        self._give_back(message)
        borrowed = [socket.socket(fileno=fd) for fd in descriptors]
        for listener in borrowed:
            listener.setblocking(False)
            if self._context.draining:  # no other process is going to empty its queue
                self._listeners.append(listener)
                self._loop.post(self._empty_queues)
            else:
                self._acceptor.add(listener)
                self._borrowed.setdefault(message, []).append(listener)

    def _give_back(self, slot: bytes) -> None:
        for listener in self._borrowed.pop(slot, ()):
            self._acceptor.remove(listener)
            listener.close()

    # The end.

    def _on_orphaned(self, events: int) -> None:
        """The supervisor is gone: do its part of a graceful stop."""
        self._loop.unwatch(self._lifeline)
        self._deadline = time.monotonic() + self._config.graceful_timeout + ORPHAN_GRACE
        if self._context.draining:
            return
        if self._record[scoreboard.SHARED]:
            self._drain("the supervisor is gone, and its predecessor carries on")
            return
        for listener in self._listeners:
            syn_filter.attach(listener)
        self._orphaned = time.monotonic()

    def _drain(self, why: str) -> None:
        """Empty the queues, then accept no more; finish the requests in flight; end when the last connection is closed."""
        if self._context.draining:
            self._expire_idle()  # again: the siblings may be draining as well by now
            return
        log.debug(f"draining: {why}")
        self._context.drain()
        for borrowed in self._borrowed.values():
            self._listeners += borrowed
        self._borrowed.clear()
        self._set_state(scoreboard.DRAINING)
        for listener in self._listeners:
            self._acceptor.remove(listener)
        self._loop.post(self._empty_queues)

    def _empty_queues(self) -> None:
        if not self._listeners:
            # Only now: a client that is sent away, and connects again at once, would otherwise reach this worker again.
            for hook in self._on_drain:
                hook()
            self._expire_idle()
            self._loop.on_turn = self._stop_when_idle
            return
        self._loop.post(self._empty_queues)  # before serving a connection, in which this thread may lose the loop
        if not self._acceptor.accept_one(self._listeners[-1]):
            self._listeners.pop().close()

    def _expire_idle(self) -> None:
        grace = IDLE_GRACE
        if self._record[scoreboard.STAYS]:
            grace = max(grace, min(LONG_IDLE_GRACE, self._config.graceful_timeout / 2 - 1))
        self._context.expire_idle(time.monotonic() + grace)

    def _stop_when_idle(self) -> None:
        if self._flush is not None:
            self._flush()
        if not self._context.connections and self._interface.stop_if_idle():
            self._loop.on_turn = self._flush
            # The supervisor may let us take our time. But what can delay the exit now (the lifespan's shutdown, a thread that
            # is not a daemon, atexit) serves no client. So it has a deadline, at which all stacks go to the log.
            faulthandler.dump_traceback_later(self._config.graceful_timeout + ORPHAN_GRACE, file=2, exit=True)


def _limits(config: Config) -> Limits:
    return Limits(
        max_line=config.max_line,
        max_headers=config.max_headers,
        max_header_bytes=config.max_header_bytes,
        max_body=config.max_body,
    )


def _timeouts(config: Config) -> Timeouts:
    return Timeouts(
        header=config.header_timeout,
        body=config.body_timeout,
        write=config.write_timeout,
        keep_alive=config.keep_alive,
        ping_interval=config.ws_ping_interval,
        ping_timeout=config.ws_ping_timeout,
    )


def load(spec: str | None) -> Callable[..., Any]:
    """The application, or the demo if none is named. Raises `importer.ApplicationError`."""
    return demo.application if spec is None else importer.load(spec)
