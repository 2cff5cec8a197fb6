"""The pool of worker processes: forks them, watches their deadlines, ends them, and says why each one exited.

How many there are to be, and what follows from an exit, the supervisor decides. Reads no clock: `now` is `time.monotonic()`.
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
from .rollout import Exit
from .slots import Process, Slot

# Seconds between the request for a worker's stacks and its end. It needs no more than a few ms for them, unless it is stopped.
DUMP_GRACE: Final = 0.5
# Seconds for a worker that has used up its time and is then told to drop everything. The application is notified of the end
# (ASGI's lifespan, atexit).
QUIT_GRACE: Final = 1.0
# Seconds between the stacks of one worker and of the next: faulthandler writes in pieces, and two at once would be mixed.
DUMP_SPACING: Final = 0.1
# A worker's heartbeat comes once a second (loop.TICK), so a shorter silence means nothing, whatever was configured.
MIN_STUCK_TIMEOUT: Final = 2.0
# If the supervisor itself did not run for that many seconds (SIGSTOP, `docker pause`), the workers' silence is not their fault.
SUSPENDED_AFTER: Final = 3.0
# Bytes of a worker's report that are kept: the end of a traceback says most.
REPORT_LIMIT: Final = 65536
# Records: each slot may have a worker, its replacement, and some that drain. Pages never touched cost nothing.
RECORDS: Final = 4 * MAX_WORKERS
# The columns that are summed up over workers that have exited.
COUNTED: Final = (ACCEPTED, REQUESTS, REJECTED, ABORTED)


class Pool:
    """The processes that there are, and what is remembered of those that have exited."""

    def __init__(self, loop: Loop) -> None:
        self.processes: dict[int, Process] = {}  # by pid
        self.past = [0] * WIDTH  # the sums of the records of workers that have exited
        self.due_at = 0.0  # when to call `check_deadlines` next
        self._loop = loop
        self._scoreboard = Scoreboard(RECORDS)
        self._doorbell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.watch(self._doorbell, IN, self._on_doorbell)
        self._lifeline, self._lifeline_writer = os.pipe()
        self._dumps: list[Process] = []  # whose stacks are wanted
        self._next_dump = 0.0
        self._checked = math.inf  # when the deadlines were last checked
        self._resumed = 0.0  # when the supervisor last went on after it had been suspended
        self._oom_kills = cgroup.oom_kills() or 0
        self._printed = b""  # the last report

    # Starting workers.

    def fork(self, now: float, slot: Slot, generation: int, shared: bool) -> WorkerEnds | None:
        """Fork a worker for `slot`, whose listeners are a predecessor's too if `shared`. Returns, in the child, its ends.

        `LookupError` if there is no free record, `OSError` if there is no descriptor, process or memory left.

        Long: all that must be undone if a step fails stands in one `ExitStack`.
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
        # The other signals still do nothing here. Not SIG_IGN, which the programs that an application runs would inherit.
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._lifeline_writer)
        for process in self.processes.values():
            process.channel.close()
            if process.report_pipe >= 0:
                os.close(process.report_pipe)

    def _on_doorbell(self, events: int) -> None:
        os.eventfd_read(self._doorbell)

    def _on_report(self, process: Process) -> None:
        """Read what there is of a report; close the pipe at its end."""
        try:
            while piece := os.read(process.report_pipe, REPORT_LIMIT):
                process.report = (process.report + piece)[-REPORT_LIMIT:]
        except BlockingIOError:
            return
        self._close_report(process)

    def _close_report(self, process: Process) -> None:
        if process.report_pipe >= 0:
            self._loop.unwatch(process.report_pipe)
            os.close(process.report_pipe)
            process.report_pipe = -1

    # States and deadlines.

    def follow_states(self, now: float, config: Config) -> list[Process]:
        """Read the states that workers have written to the scoreboard. Returns those that have become ready."""
        ready = []
        for process in self.processes.values():
            state = process.record[STATE]
            if state == DRAINING and not process.retiring:  # someone else has sent it SIGTERM
                process.retire(now, config.graceful_timeout)
            if state >= READY and not process.ready:
                process.ready_since = now
                ready.append(process)
        return ready

    def check_deadlines(self, now: float, config: Config) -> None:
        """End the workers whose time is up: they write their stacks, then they are killed."""
        if now - self._checked > SUSPENDED_AFTER:
            self._resumed = now
        self._checked = now
        self.due_at = math.inf
        for process in self.processes.values():
            self._check_deadline(process, now, config)
        self._dump_next(now)

    def _check_deadline(self, process: Process, now: float, config: Config) -> None:
        if process.kill_reason:
            if now >= process.kill_at:
                self._kill(process, now)
            self.due_at = min(self.due_at, process.kill_at)
            return
        last_sign = process.record[HEARTBEAT] / 1e9 if process.ready else process.started
        timeout = max(config.stuck_timeout, MIN_STUCK_TIMEOUT) if process.ready else config.boot_timeout
        overdue_at = max(last_sign, self._resumed) + timeout
        if now >= process.deadline:
            self._schedule_kill(process, f"still busy {process.grace:g} s after it was asked to exit")
        elif now >= overdue_at:
            self._schedule_kill(process, f"silent for {timeout:g} s" if process.ready else f"not ready after {timeout:g} s")
        else:
            self.due_at = min(self.due_at, process.deadline, overdue_at)

    def _schedule_kill(self, process: Process, reason: str) -> None:
        """End it, but first let it show what it is doing."""
        process.kill_reason = reason
        log.error(f"{process} was {reason}: its stacks follow, then it is ended")
        self._dumps.append(process)

    def _kill(self, process: Process, now: float) -> None:
        """Its time is up. A worker that was asked to exit is first told to drop everything, if it was not before."""
        if now >= process.deadline and process.ready and not process.quit_sent:
            self._send_quit(process)
            process.kill_at = now + QUIT_GRACE
        else:
            os.kill(process.pid, signal.SIGKILL)
            process.kill_at = math.inf

    def dump(self) -> None:
        """Have every worker write its stacks."""
        self._dumps += self.processes.values()

    def _dump_next(self, now: float) -> None:
        """Let the next worker write its stacks, unless the last one may still be writing."""
        while self._dumps and now >= self._next_dump:
            process = self._dumps.pop(0)
            if process.pid in self.processes:
                log.info(f"the stacks of {process}:")
                os.kill(process.pid, signal.SIGUSR1)
                self._next_dump = now + DUMP_SPACING
                if process.kill_reason:
                    process.kill_at = min(process.kill_at, now + DUMP_GRACE)
                    self.due_at = min(self.due_at, process.kill_at)
        if self._dumps:
            self.due_at = min(self.due_at, self._next_dump)

    def retire(self, process: Process, now: float, grace: float, quick: bool) -> None:
        """Ask it to exit within `grace` seconds: to drain or, if `quick`, to drop everything."""
        process.retire(now, grace)
        if quick and process.ready:
            self._send_quit(process)
        else:  # before it is ready it has nothing to lose, and QUIT would leave a core file
            os.kill(process.pid, signal.SIGTERM)

    def _send_quit(self, process: Process) -> None:
        process.quit_sent = True
        os.kill(process.pid, signal.SIGQUIT)

    @property
    def lingering(self) -> list[Process]:
        """The workers that were asked to exit and may take their time."""
        return [process for process in self.processes.values() if process.lingering]

    def hurry(self, processes: Iterable[Process], now: float, grace: float, why: str) -> None:
        """Give these workers, which linger, `grace` seconds."""
        for process in processes:
            process.retire(now, grace)
            log.info(f"{why}: {process} is draining and now has {grace:g} s to finish")

    def memory(self) -> int:
        """Bytes that a worker uses, on average."""
        used = [memory(process.pid) for process in self.processes.values() if process.ready]
        return sum(used) // max(len(used), 1)

    # Exits.

    def reap(self, now: float, other: Callable[[int, int], bool]) -> list[Exit]:
        """Reap all children that have exited. Returns the workers; of others, `other(pid, code)` says whether it knows them."""
        found: list[Exit] = []
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if not pid:
                return found
            code = os.waitstatus_to_exitcode(status)
            if pid in self.processes:
                found.append(self.remove(pid, code, now))
            elif not other(pid, code):  # an orphan that became our child because we are PID 1
                log.debug(f"reaped process {pid}, which is not ours")

    def remove(self, pid: int, code: int, now: float) -> Exit:
        """Forget a worker that has exited, and log why it did."""
        process = self.processes.pop(pid)
        record = process.record
        process.slot.processes.remove(process)
        process.channel.close()
        if process.report_pipe >= 0:
            self._on_report(process)
            self._close_report(process)  # a child of its own may still hold the other end
        for column in COUNTED:
            self.past[column] += record[column]
        oom_kills = self._oom_kills
        message = f"{process} {self._cause(process, code)} after {now - process.started:.1f} s"
        message += f"; {record[REQUESTS]} requests answered, {record[ACTIVE]} connections open"
        record[STATE] = FREE
        as_asked = process.retiring and code in (0, -signal.SIGTERM, -signal.SIGQUIT) and not process.kill_reason
        (log.info if as_asked else log.warning if process.retiring else log.error)(message)
        by_others = code == -signal.SIGKILL and not process.kill_reason and oom_kills == self._oom_kills
        return Exit(process, code, by_others)

    def _cause(self, process: Process, code: int) -> str:
        if code == 0 and process.kill_reason:
            return f"was ended by the supervisor because it was {process.kill_reason}"
        if code >= 0:
            return f"exited with {code}"
        if code == -signal.SIGKILL:
            if process.kill_reason:
                return f"was killed by the supervisor because it was {process.kill_reason}"
            kills = cgroup.oom_kills() or 0
            if kills > self._oom_kills:
                self._oom_kills += 1  # not `kills`: it may have taken another worker as well
                limit = cgroup.memory_limit()
                return "was killed by the kernel for lack of memory" + (f" (limit {limit >> 20} MiB)" if limit else "")
        try:
            return f"was killed by signal {signal.Signals(-code).name}"
        except ValueError:  # a real-time signal has no name
            return f"was killed by signal {-code}"

    def print_report(self, process: Process) -> None:
        """Print its report, unless it is the same as the last one."""
        if process.report and process.report != self._printed:
            self._printed = process.report
            print_report(process.report)


def print_report(report: bytes) -> None:
    """The application's own words, unchanged."""
    try:
        os.write(2, report if report.endswith(b"\n") else report + b"\n")
    except OSError:
        pass  # no one reads it
