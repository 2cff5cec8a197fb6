"""The pool of worker processes: forks them, watches their deadlines, ends them, and says why each one died.

How many there shall be, and what follows from a death, the supervisor decides. Reads no clock: `now` is `time.monotonic()`.
"""

import contextlib
import math
import os
import signal
import socket
from collections.abc import Callable, Iterable
from typing import Final

from .. import cgroup, log
from ..config.options import MAX_WORKERS, Config
from ..net.loop import IN, Loop
from ..scoreboard import (
    ABORTED,
    ACCEPTED,
    ACTIVE,
    DRAINING,
    FREE,
    HEARTBEAT,
    READY,
    REJECTED,
    REQUESTS,
    SHARED,
    STATE,
    WIDTH,
    Scoreboard,
    WorkerEnds,
)
from .recycling import memory
from .slots import Process, Slot

# Seconds after a worker became ready. Who dies sooner does so by habit, not by accident, and is replaced ever more slowly.
EARLY: Final = 5.0
# Seconds between the wish for a worker's stacks and its end. It needs no more than a few ms for them, unless it is stopped.
DUMP_GRACE: Final = 0.5
# Seconds for a worker that has used up its time, and is told to drop everything: for its application to hear of the end
# (ASGI's lifespan, atexit).
DROP_GRACE: Final = 1.0
# Seconds between the stacks of one worker and of the next: faulthandler writes in pieces, and two at once would be mixed.
DUMP_SPACING: Final = 0.1
# A worker says once a second that it lives (loop.TICK), so a shorter silence means nothing, whatever was configured.
LEAST_SILENCE: Final = 2.0
# If we ourselves were not on for so many seconds (SIGSTOP, `docker pause`), the workers' silence is not their fault.
PAUSE: Final = 3.0
# Bytes of a worker's report that are kept: the end of a traceback says most.
REPORT_LIMIT: Final = 65536
# Records: each slot may have a worker, its replacement, and some that drain. Pages never touched cost nothing.
RECORDS: Final = 4 * MAX_WORKERS
# What is counted of workers beyond their end.
COUNTED: Final = (ACCEPTED, REQUESTS, REJECTED, ABORTED)


class Pool:
    """The processes that there are, and what is remembered of those that are gone."""

    def __init__(self, loop: Loop) -> None:
        self.processes: dict[int, Process] = {}  # by pid
        self.proven = 0  # the last generation of which a worker has been ready
        self.past = [0] * WIDTH  # the sums of the records of workers that are gone
        self.next_look = 0.0
        self._loop = loop
        self._scoreboard = Scoreboard(RECORDS)
        self._doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.watch(self._doorbell, IN, self._on_doorbell)
        self._lifeline, self._lifeline_writer = os.pipe()
        self._dumps: list[Process] = []  # whose stacks are wanted
        self._next_dump = 0.0
        self._looked = math.inf  # when we last did
        self._resumed = 0.0
        self._oom_kills = cgroup.oom_kills() or 0
        self._shown = b""

    # Birth.

    def fork(self, now: float, slot: Slot, generation: int, shared: bool) -> WorkerEnds | None:
        """Fork a worker for `slot`, whose listeners are a predecessor's too if `shared`. Returns, in the child, its ends.

        `LookupError` where there is no record, `OSError` where there is no descriptor, no process, no memory.
        """
        with contextlib.ExitStack() as undo:
            record = self._scoreboard.claim()
            undo.callback(record.__setitem__, STATE, FREE)
            record[HEARTBEAT] = int(now * 1e9)
            record[SHARED] = shared
            report, writer = os.pipe()
            undo.callback(os.close, report)
            undo.callback(os.close, writer)
            channel, its_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(channel.close)
            undo.callback(its_channel.close)
            # Until the child has its own handlers, a signal to it would be written to the wakeup socket, which is ours as well.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            try:
                pid = os.fork()
                undo.pop_all()
                if not pid:
                    os.close(report)
                    channel.close()
                    self._disown()
                    os.environ["EPOLLARD_WORKER_ID"] = str(slot.index)
                    os.environ["EPOLLARD_GENERATION"] = str(generation)
                    return WorkerEnds(record, self._lifeline, self._doorbell, writer, its_channel)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
        os.set_blocking(report, False)
        its_channel.close()
        channel.setblocking(False)
        process = Process(pid, slot, generation, record, report, channel, now)
        self._loop.watch(report, IN, lambda events: self._on_report(process))
        self.processes[pid] = process
        slot.processes.append(process)
        log.debug(f"{process} started, generation {generation}")
        return None

    def _disown(self) -> None:
        """In the child: let go of our handlers, and of what leads to its siblings."""
        signal.set_wakeup_fd(-1)
        # The other signals go on doing nothing here. Not SIG_IGN, which the programs that an application runs would inherit.
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._lifeline_writer)
        for process in self.processes.values():
            process.channel.close()
            if process.report >= 0:
                os.close(process.report)

    def _on_doorbell(self, events: int) -> None:
        os.eventfd_read(self._doorbell)

    def _on_report(self, process: Process) -> None:
        """Take what there is of a report; close the pipe at its end."""
        try:
            while piece := os.read(process.report, REPORT_LIMIT):
                process.told = (process.told + piece)[-REPORT_LIMIT:]
        except BlockingIOError:
            return
        self._close_report(process)

    def _close_report(self, process: Process) -> None:
        if process.report >= 0:
            self._loop.unwatch(process.report)
            os.close(process.report)
            process.report = -1

    # Life.

    def look(self, now: float, config: Config) -> list[Process]:
        """Note what has become of each worker, and kill whose time is over. Returns those that are ready now."""
        if now - self._looked > PAUSE:
            self._resumed = now
        self._looked = now
        self.next_look = math.inf
        ready = [process for process in self.processes.values() if self._advance(process, now, config)]
        for process in self.processes.values():
            self._judge(process, now, config)
        self._dump(now)
        return ready

    def _advance(self, process: Process, now: float, config: Config) -> bool:
        """Follow the state that a worker has written. Whether it has become ready."""
        state = process.record[STATE]
        if state == DRAINING and not process.leaving:  # somebody has asked it behind our back
            process.leave(now, config.graceful_timeout)
        if state < READY or process.ready:
            return False
        process.ready_since = now
        self.proven = max(self.proven, process.generation)
        return True

    def _judge(self, process: Process, now: float, config: Config) -> None:
        """Whether it is to be killed, or when."""
        if process.doom:
            if now >= process.kill_at:
                self._end(process, now)
            self.next_look = min(self.next_look, process.kill_at)
            return
        heard = process.record[HEARTBEAT] / 1e9 if process.ready else process.started
        patience = max(config.stuck_timeout, LEAST_SILENCE) if process.ready else config.boot_timeout
        overdue_at = max(heard, self._resumed) + patience
        if now >= process.deadline:
            self._condemn(process, f"still busy {process.grace:g} s after it was asked to go")
        elif now >= overdue_at:
            self._condemn(process, f"silent for {patience:g} s" if process.ready else f"not ready after {patience:g} s")
        else:
            self.next_look = min(self.next_look, process.deadline, overdue_at)

    def _condemn(self, process: Process, doom: str) -> None:
        """End it, but first let it show what it is doing."""
        process.doom = doom
        log.error(f"{process} was {doom}: its stacks follow, then its end")
        self._dumps.append(process)

    def _end(self, process: Process, now: float) -> None:
        """Its time is over: kill it, but who was asked to go is told first to drop everything."""
        if now >= process.deadline and process.ready and not process.dropped:
            self._drop(process)
            process.kill_at = now + DROP_GRACE
        else:
            os.kill(process.pid, signal.SIGKILL)
            process.kill_at = math.inf

    def dump(self) -> None:
        """Have every worker write its stacks."""
        self._dumps += self.processes.values()

    def _dump(self, now: float) -> None:
        """Let the next worker write its stacks."""
        while self._dumps and now >= self._next_dump:
            process = self._dumps.pop(0)
            if process.pid in self.processes:
                log.info(f"the stacks of {process}:")
                os.kill(process.pid, signal.SIGUSR1)
                self._next_dump = now + DUMP_SPACING
                if process.doom:
                    process.kill_at = min(process.kill_at, now + DUMP_GRACE)
                    self.next_look = min(self.next_look, process.kill_at)
        if self._dumps:
            self.next_look = min(self.next_look, self._next_dump)

    def retire(self, process: Process, now: float, grace: float, quick: bool) -> None:
        """Ask it to go within `grace` seconds: to drain or, if `quick`, to drop everything."""
        process.leave(now, grace)
        if quick and process.ready:
            self._drop(process)
        else:  # before it is ready it has nothing to lose, and QUIT would leave a core file
            os.kill(process.pid, signal.SIGTERM)

    def _drop(self, process: Process) -> None:
        process.dropped = True
        os.kill(process.pid, signal.SIGQUIT)

    @property
    def lingering(self) -> list[Process]:
        """Those that were asked to go and may take their time."""
        return [process for process in self.processes.values() if process.lingering]

    def hurry(self, processes: Iterable[Process], now: float, grace: float, why: str) -> None:
        """Give these, which linger, `grace` seconds."""
        for process in processes:
            process.leave(now, grace)
            log.info(f"{why}: {process}, which drains, may finish what it has begun within {grace:g} s")

    def memory(self) -> int:
        """Bytes that a worker uses, on an average."""
        used = [memory(process.pid) for process in self.processes.values() if process.ready]
        return sum(used) // max(len(used), 1)

    # Death.

    def reap(self, now: float, other: Callable[[int, int], bool]) -> list[tuple[Process, int]]:
        """Bury the dead. Returns as `bury`, with exit codes. `other` is asked whether it knows those that are not ours."""
        early: list[tuple[Process, int]] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return early
            if not pid:
                return early
            code = os.waitstatus_to_exitcode(status)
            if pid in self.processes:
                process = self.bury(pid, code, now)
                if process is not None:
                    early.append((process, code))
            elif not other(pid, code):  # an orphan that came to us because we are PID 1
                log.debug(f"reaped process {pid}, which is not ours")

    def bury(self, pid: int, code: int, now: float) -> Process | None:
        """Say why it died. Returns it where that was early, its own doing, and nobody had asked it to go."""
        process = self.processes.pop(pid)
        slot, record = process.slot, process.record
        slot.processes.remove(process)
        process.channel.close()
        if process.report >= 0:
            self._on_report(process)
            self._close_report(process)  # a child of its own may still hold the other end
        for column in COUNTED:
            self.past[column] += record[column]
        oom_kills = self._oom_kills
        told = f"{process} {self._cause(process, code)} after {now - process.started:.1f} s"
        told += f"; {record[REQUESTS]} requests answered, {record[ACTIVE]} connections open"
        record[STATE] = FREE
        if process.leaving:
            asked = code in (0, -signal.SIGTERM, -signal.SIGQUIT) and not process.doom
            (log.info if asked else log.warning)(told)
            return None
        log.error(told)
        if now - process.ready_since >= EARLY:
            slot.failures = 0
            return None
        # A kill from outside says nothing of the application.
        outside = code == -signal.SIGKILL and process.ready and not process.doom and oom_kills == self._oom_kills
        return None if outside else process

    def _cause(self, process: Process, code: int) -> str:
        if code == 0 and process.doom:
            return f"was ended by us because it was {process.doom}"
        if code >= 0:
            return f"exited with {code}"
        if code == -signal.SIGKILL:
            if process.doom:
                return f"was killed by us because it was {process.doom}"
            kills = cgroup.oom_kills() or 0
            if kills > self._oom_kills:
                self._oom_kills += 1  # not `kills`: it may have taken another worker as well
                limit = cgroup.memory_limit()
                return "was killed by the kernel for memory" + (f" (limit {limit >> 20} MiB)" if limit else "")
        try:
            return f"was killed by signal {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal has no name
            return f"was killed by signal {-code}"

    def show(self, process: Process) -> None:
        """Print its report, if it is not the same as the last one."""
        if process.told and process.told != self._shown:
            self._shown = process.told
            print_report(process.told)


def print_report(told: bytes) -> None:
    """The application's own words, as they are."""
    try:
        os.write(2, told if told.endswith(b"\n") else told + b"\n")
    except OSError:
        pass  # nobody listens
