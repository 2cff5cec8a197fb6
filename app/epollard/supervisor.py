"""The supervisor: forks workers, watches them, replaces them. Imports no application, starts no thread.

There is a *wish* (how many workers, which generation of them, stopping or not) and there is the *fact* (slots and their
processes). A signal changes the wish. `_step` reads the facts, compares, and does what is next; it runs after every turn of the
loop, may run at any time, and does nothing where there is nothing to do.
"""

import contextlib
import dataclasses
import faulthandler
import math
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from . import cgroup, doors, log, report, sockets
from .balance import Balance
from .config import MAX_WORKERS, Config, ConfigError, flag
from .elastic import Elastic
from .loop import IN, Loop
from .management import Management
from .recycling import memory, worn_out
from .scoreboard import (
    ABORTED,
    ACCEPTED,
    ACTIVE,
    DRAINING,
    FREE,
    GENERATION,
    HEARTBEAT,
    PID,
    READY,
    REJECTED,
    REQUESTS,
    SHARED,
    SLOT,
    STATE,
    STAYS,
    WIDTH,
    Scoreboard,
)
from .slots import Process, Slot
from .steering import waiting
from .upgrade import HandoverError, Upgrade
from .worker import EXIT_LOAD, Worker

# Seconds after a worker became ready. Who dies sooner does so by habit, not by accident, and is replaced ever more slowly.
EARLY: Final = 5.0
# Seconds before the second replacement of those, doubled for each one more; the first comes at once. The bound is for the
# clients that the kernel sends to this slot meanwhile: they wait in its queue.
BACKOFF_FIRST: Final = 0.5
BACKOFF_LAST: Final = 10.0
# If no worker has ever been ready, so many tries in one slot are enough: who started us should hear of it.
ATTEMPTS: Final = 3
# A quick stop gives each worker this many seconds; half of the least that init systems give us.
QUICK_GRACE: Final = 2.0
# Seconds between the wish for a worker's stacks and its end. It needs no more than a few ms for them, unless it is stopped.
DUMP_GRACE: Final = 0.5
# Seconds between the stacks of one worker and of the next: faulthandler writes in pieces, and two at once would be mixed.
DUMP_SPACING: Final = 0.1
# A worker says once a second that it lives (loop.TICK), so a shorter silence means nothing, whatever was configured.
LEAST_SILENCE: Final = 2.0
# If we ourselves were not on for so many seconds (SIGSTOP, `docker pause`), the workers' silence is not their fault.
PAUSE: Final = 3.0
# Seconds between the last connection that is steered to a slot and its end. Handshakes under way are over by then: who has said
# nothing is kept from us for a second (sockets.DEFER), and a packet that was lost is sent again after one.
HANDSHAKE: Final = 1.25
# Seconds between two looks for handshakes under way, when we stop.
ARRIVAL: Final = 0.05
# Bytes of a worker's report that are kept: the end of a traceback says most.
REPORT_LIMIT: Final = 65536
# Records: each slot may have a worker, its replacement, and some that drain. Pages never touched cost nothing.
RECORDS: Final = 4 * MAX_WORKERS

# Seconds that a successor which does not end has beyond its own deadlines.
LAST_GRACE: Final = 5.0

# What cannot change while the listeners are there: a successor can change it.
FIXED: Final = ("bind", "backlog", "tcp", "steer", "admin", "chdir")
# What is counted of workers beyond their end.
COUNTED: Final = (ACCEPTED, REQUESTS, REJECTED, ABORTED)

EXIT_STOPPED: Final = 0
EXIT_FAILED: Final = 1

NO, GRACEFUL, QUICK = range(3)  # is the server stopping?

_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_SIGNALS: Final = (
    *_STOPS,
    signal.SIGHUP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCHLD,
)


class Supervisor:
    """Serve as `config` says: `run` is all there is to it."""

    def __init__(self, config: Config, reread: Callable[[], Config], start: str) -> None:
        self._config = config
        self._reread = reread  # the configuration as it is now; `ConfigError`
        self._loop = Loop()
        self._upgrade = Upgrade(self._loop, start, self._obey)
        self._scoreboard = Scoreboard(RECORDS)
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._lifeline, self._lifeline_writer = os.pipe()
        self._signals, self._wakeup = socket.socketpair()
        # The wish.
        self._workers = config.workers
        self._elastic = Elastic(config.workers, config.most_workers) if config.most_workers > config.workers else None
        self._generation = 1
        self._configs = {1: config}  # of generations that may yet be needed
        self._stopping = NO
        self._drains_at = math.inf  # when the stop is to begin, where that has been put off
        self._closes_at = math.inf  # when the listeners are closed, at the latest
        self._heard: set[int] = set()  # signals that want an end
        # The fact.
        self._leads = True  # no predecessor does
        self._slots: list[Slot] = []
        self._fading: list[Slot] = []  # of too many workers
        self._processes: dict[int, Process] = {}
        self._proven = 0  # the last generation of which a worker has been ready
        # What is to be remembered.
        self._groups: list[sockets.Group] = []
        self._balance = Balance(self._loop, (), False)
        self._generations = 1
        self._announced = (0, 0)
        self._status = EXIT_STOPPED
        self._stopped = False  # and has said so
        self._last_words = b""
        self._printed = b""
        self._dumps: list[Process] = []  # whose stacks are wanted
        self._next_dump = 0.0
        self._past = [0] * WIDTH  # the sums of the records of workers that are gone
        self._management = Management(self._loop, self)
        self._loop.on_tick = self._management.tick
        self._oom_kills = cgroup.oom_kills() or 0
        self._now = self._resumed = time.monotonic()
        self._wake_at = math.inf

    def run(self) -> int | Worker:
        """Serve until told to stop; return the exit status. In each forked child return its worker, which is then to be run."""
        self._watch()
        config = self._config
        log.info(config.workers_reason)
        try:
            if self._upgrade.inherit():
                self._leads = False
                self._workers, self._elastic = self._upgrade.slots, None  # until we lead
                self._generation = self._generations = self._upgrade.generation + 1
                self._configs = {self._generation: config}
            self._groups, listeners = sockets.bind(config.bind, self._workers, config.backlog, config.tcp, self._upgrade.wills)
        except (HandoverError, sockets.BindError) as error:
            log.error(str(error))
            return EXIT_FAILED
        self._slots = [Slot(index, own) for index, own in enumerate(listeners)]
        self._balance = Balance(self._loop, self._groups, config.steer == "on")
        for group in self._groups:
            log.info(f"listening on {group.url}")
        if not self._management.listen(config, self._upgrade.admin_wills):
            sockets.close(self._groups, listeners)
            sockets.unlink(self._groups)
            return EXIT_FAILED
        if self._leads:
            self._management.start()
        self._upgrade.begun()
        while True:
            worker = self._step()
            if worker is not None:
                return worker
            if self._stopping and not self._processes:
                self._say_stopped()
                if not self._upgrade.awaited:
                    return self._end()
            self._loop.turn(self._wake_at - time.monotonic())

    def _say_stopped(self) -> None:
        if not self._stopped:
            self._stopped = True
            accepted, answered, aborted = (self._past[column] for column in (ACCEPTED, REQUESTS, ABORTED))
            log.info(f"stopped: {accepted} connections accepted, {answered} requests answered, {aborted} cut short")

    def _end(self) -> int:
        if not self._upgrade.over:
            sockets.unlink(self._groups)
        self._management.close()
        if self._last_words:
            log.error("the application could not be loaded:")
            _print(self._last_words)  # and nothing after it
        return self._upgrade.end(self._status)

    # Events: they change the wish, or only end a wait.

    def _watch(self) -> None:
        for end in (self._signals, self._wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, _do_nothing)
        # In C, so that it works when nothing else does; workers inherit both. `chain` lets us hear of it too.
        faulthandler.enable(file=2)
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=True)
        self._loop.watch(self._signals.fileno(), IN, self._on_signals)
        self._loop.watch(self._bell, IN, self._on_bell)

    def _on_bell(self, events: int) -> None:
        os.eventfd_read(self._bell)

    def _on_signals(self, events: int) -> None:
        for number in self._signals.recv(4096):
            self._upgrade.pass_on(number)
            self._obey(number, self._heard)

    def _obey(self, number: int, heard: set[int]) -> None:
        """Do as a signal says. `heard` is what its sender has said before: the same TERM may come from two (upgrade.py)."""
        if number in _STOPS:
            name = signal.Signals(number).name
            if number == signal.SIGTERM and number not in heard:
                self.drain(name)
            elif self._stopping < QUICK:  # a second TERM is one that lost its patience
                self._stop(QUICK, f"{name}: ")
            heard.add(number)
        elif self._going:
            return
        elif number == signal.SIGHUP:
            self.reload("SIGHUP")
        elif number == signal.SIGTTIN:
            self.scale(self._workers + 1, self._workers + 1, "SIGTTIN")
        elif number == signal.SIGTTOU:
            self.scale(self._workers - 1, self._workers - 1, "SIGTTOU")
        elif number == signal.SIGUSR1:
            log.info("SIGUSR1: the supervisor's stack stands above, those of its workers follow")
            self._dumps += self._processes.values()
        elif number == signal.SIGUSR2:
            self.upgrade("SIGUSR2")

    # The wish, for signals and commands alike; `why` is theirs. Each of them may be called at any time.
    # What they return is why not, where it cannot be.

    def scale(self, least: int, most: int, why: str) -> str:
        """Want so many workers, at least one; within these bounds as many as they are busy."""
        if busy := self._upgrade.under_way:
            log.warning(f"{why}: {busy}; ignored")
            return busy
        least, most = min(max(least, 1), MAX_WORKERS), min(max(most, 1), MAX_WORKERS)
        was, self._elastic = self._elastic, Elastic(least, most) if most > least else None
        self._workers = min(max(self._workers, least), most)
        wanted = self._elastic or f"{self._workers}"
        log.info(f"{why}: {wanted} workers wanted" + (f"; no longer {was}" if was else ""))
        return ""

    def reload(self, why: str) -> str:
        """Want all workers replaced by ones that import the application anew."""
        if busy := self._upgrade.under_way or self._unproven:
            log.warning(f"{why}: {busy}; ignored")
            return busy
        try:
            config = self._reread()
        except ConfigError as error:
            log.error(f"{why}: nothing is reloaded: {error}")
            return f"nothing is reloaded: {error}"
        fixed = {key: getattr(self._config, key) for key in FIXED if getattr(config, key) != getattr(self._config, key)}
        for key in fixed:
            log.warning(f"{why}: {flag(key)} has changed; that takes an upgrade (SIGUSR2)")
        if (config.workers, config.most_workers) != (self._config.workers, self._config.most_workers):
            self.scale(config.workers, config.most_workers, why)
        self._generations += 1
        self._generation = self._generations
        self._config = self._configs[self._generation] = dataclasses.replace(config, **fixed)
        log.configure(self._config.log_level, "supervisor")
        for slot in self._slots:
            slot.failures = 0  # of the old code
            slot.next_attempt = 0.0
        log.info(f"{why}: replacing all workers by generation {self._generation}")
        return ""

    def upgrade(self, why: str) -> str:
        """Want another supervisor in our place, from the code on disk."""
        if busy := self._upgrade.under_way or self._unproven:
            log.warning(f"{why}: {busy}; ignored")
            return busy
        self._upgrade.wanted = why
        log.info(f"{why}: a new supervisor is started from the code on disk")
        return ""

    @property
    def _unproven(self) -> str:
        return "" if self._proven else "no worker has been ready yet"

    def drain(self, why: str) -> None:
        """Want everything to end, once what has begun is finished; after `--drain-delay`, during which all goes on."""
        if self._going:
            return
        delay = self._config.drain_delay
        if delay and self._leads:
            self._upgrade.stop(signal.SIGTERM, self._now + self._config.graceful_timeout + LAST_GRACE)
            log.info(f"{why}: not ready any more; serves on for {delay:g} s, then drains")
            self._drains_at = time.monotonic() + delay
        else:
            self._stop(GRACEFUL, f"{why}: ")

    @property
    def _going(self) -> str:
        """What is said of a server that is about to end."""
        return "stopping" if self._stopping else "draining" if self._drains_at < math.inf else ""

    def _stop(self, level: int, why: str) -> None:
        if level == GRACEFUL:
            log.info(f"{why}stopping; what has begun may finish within {self._config.graceful_timeout:g} s")
        else:
            log.info(f"{why}stopping at once")
        self._stopping = level
        if level == GRACEFUL:
            self._upgrade.stop(signal.SIGTERM, self._now + self._config.graceful_timeout + LAST_GRACE)
            # Not `doors.SHUT`: who has connected and said nothing comes in after a second, and no listener is left for it then.
            self._closes_at = time.monotonic() + HANDSHAKE
            for slot in (*self._slots, *self._fading):
                self._shut(slot)
        else:
            self._upgrade.stop(signal.SIGQUIT, self._now + QUICK_GRACE + LAST_GRACE)
        if level != GRACEFUL or not self._arriving():
            self._close()

    def _shut(self, slot: Slot) -> None:
        for listener in slot.listeners if not self._upgrade.shared else ():
            if listener.family != socket.AF_UNIX:  # which needs no time for it, and which all slots share
                doors.shut(listener)

    def _close(self) -> None:
        """Close all listeners and ask all workers to go."""
        self._closes_at = math.inf
        if self._stopping == GRACEFUL:
            self._balance.bequeath(self._slots, self._fading)
        # First our copies, then the workers': whoever closes last must have emptied the queue.
        self._balance.disarm()
        for slot in self._slots[:1]:
            for listener in slot.listeners if not self._upgrade.shared else ():
                if listener.family == socket.AF_UNIX:
                    doors.shut(listener)
        sockets.close(self._groups, [slot.listeners for slot in (*self._slots, *self._fading)])
        for process in self._processes.values():
            self._retire(process)

    def facts(self) -> report.Facts:
        """What there is to tell."""
        return report.Facts(
            now=time.monotonic(),
            going=self._going,
            wanted=self._workers,
            known=self._announced[1],
            generation=self._generation,
            slots=self._slots,
            fading=self._fading,
            past=self._past,
        )

    # The next step.

    def _step(self) -> Worker | None:
        """Do what the facts and the wish call for. In a forked child: its worker."""
        now = time.monotonic()
        if now - self._now > PAUSE:
            self._resumed = now
        self._now = now
        self._wake_at = math.inf
        self._reap()
        for process in self._processes.values():
            self._judge(process)
        self._dump()
        if not self._stopping and self._due(self._drains_at):
            self._stop(GRACEFUL, "")
        self._succeed()
        if self._stopping:
            if self._closes_at < math.inf:
                if self._due(self._closes_at) or not self._arriving():
                    self._close()
                else:
                    self._look()
            return None
        self._stretch()
        self._resize()
        self._fade()
        self._recycle()
        for slot in self._slots:
            if not self._stopping and self._lacks(slot):
                worker = self._start(slot)
                if worker is not None:
                    return worker
        self._look()
        self._announce()
        return None

    def _arriving(self) -> bool:
        """Whether we shall look again, because somebody is in the middle of a handshake."""
        found = doors.arriving(group.address[1] for group in self._groups if isinstance(group, sockets.TcpGroup))
        if found:
            self._wake_at = min(self._wake_at, self._now + ARRIVAL)
        return found

    def _due(self, when: float) -> bool:
        """Whether that time has come; if not, the loop will wait no longer than until then."""
        if self._now >= when:
            return True
        self._wake_at = min(self._wake_at, when)
        return False

    def _look(self) -> None:
        if not self._upgrade.shared and self._due(self._balance.next_look):
            self._balance.look(self._now, self._slots, self._fading)
            self._due(self._balance.next_look)

    def _stretch(self) -> None:
        """Want as many workers as they are busy, where that is wanted."""
        if self._elastic and not self._upgrade.under_way and self._due(self._elastic.next_look):
            wish, why = self._elastic.look(self.facts(), cgroup.memory_room, self._memory)
            self._due(self._elastic.next_look)
            self._workers = wish
            if why:
                log.info(f"{why}: {wish} workers wanted")

    def _memory(self) -> int:
        """Bytes that a worker uses, on an average."""
        used = [memory(process.pid) for process in self._processes.values() if process.ready]
        return sum(used) // max(len(used), 1)

    def _succeed(self) -> None:
        """Take the next step of an upgrade, as the new one or as the old one."""
        upgrade = self._upgrade
        if self._due(upgrade.deadline):
            upgrade.kill()
        if self._stopping:
            return
        if upgrade.lost:
            log.error("the supervisor that was to be replaced is gone: so this one ends too")
            self._fail(EXIT_FAILED)
        elif upgrade.leads and not self._leads:
            self._leads = True
            for process in self._processes.values():
                process.record[SHARED] = 0
            upgrade.lead([*self._groups, *self._management.groups])
            self._management.start()
            log.info("this supervisor leads")
            config = self._config
            least, most = upgrade.bounds  # as TTIN, TTOU and commands have made them
            if (config.workers, config.most_workers) != upgrade.configured:
                least, most = config.workers, config.most_workers
            if not least == most == self._workers:
                self.scale(least, most, "upgrade")
        elif upgrade.ready:
            self._management.leave()
            upgrade.hand_over()
            self._stop(GRACEFUL, f"the new supervisor (pid {upgrade.pid}) is ready: ")
        elif upgrade.wanted and not upgrade.pid and not self._fading and len(self._slots) == self._workers:
            try:
                wills = [group.will([slot.listeners[at] for slot in self._slots]) for at, group in enumerate(self._groups)]
                upgrade.spawn(wills, self._management.wills(), self._handover())
                upgrade.deadline = self._now + self._config.boot_timeout
            except OSError as error:
                log.error(f"{upgrade.wanted}: no new supervisor can be started: {error}")
                upgrade.wanted = ""

    def _handover(self) -> dict[str, Any]:
        """What a successor has to know of our workers."""
        config, elastic = self._config, self._elastic
        return {
            "generation": self._generation,
            "slots": len(self._slots),
            "configured": (config.workers, config.most_workers),
            "bounds": (elastic.least, elastic.most) if elastic else (self._workers, self._workers),
        }

    def _resize(self) -> None:
        while len(self._slots) > self._workers:
            slot = self._slots.pop()
            slot.fades_at = self._now + (HANDSHAKE if self._balance.steering.groups else doors.SHUT)
            if not self._balance.steering.groups:
                self._shut(slot)
            self._fading.append(slot)
            self._balance.soon()
        while len(self._slots) < self._workers:
            if self._fading and self._now < self._fading[-1].fades_at:
                slot = self._fading.pop()
                for listener in slot.listeners:
                    doors.reopen(listener)
                self._slots.append(slot)
                self._balance.soon()
                continue
            listeners: list[socket.socket] = []
            try:
                for group in self._groups:
                    listeners.append(group.join())
            except OSError as error:
                self._leave(listeners)
                self._workers = len(self._slots)
                log.error(f"no worker more: another listener cannot be had: {error.strerror}")
                return
            self._slots.append(Slot(len(self._slots), listeners))
            self._balance.disarm()

    def _fade(self) -> None:
        """Close the listeners of slots that are too many, when nobody waits in their queues any more."""
        for slot in tuple(self._fading):
            if not self._due(slot.fades_at):
                continue
            # Where nothing is steered our copies go first, as when we stop: the worker's look at the queue is the last one.
            late = not self._balance.steering.groups or self._now > slot.fades_at + self._config.graceful_timeout
            if late or not any(map(waiting, slot.listeners)):
                self._fading.remove(slot)
                self._balance.disarm()
                self._leave(slot.listeners)
            for process in slot.processes:
                if not process.leaving:
                    self._retire(process)

    def _leave(self, listeners: list[socket.socket]) -> None:
        for group, listener in zip(self._groups, listeners, strict=False):
            group.leave(listener)
        self._balance.soon()

    def _lacks(self, slot: Slot) -> bool:
        """Whether a worker is to be started for `slot` now. Retires those that have been replaced."""
        staying = [process for process in slot.processes if not process.leaving]
        serving = max((process.generation for process in staying if process.ready and not process.worn), default=0)
        for process in staying:
            # Replaced by one that is ready; or about to replace one that is, but with code that is no longer wanted.
            replaced = process.generation < serving or (process.worn and process.generation <= serving)
            if replaced or (serving and not process.ready and process.generation < self._generation):
                self._retire(process)
        if any(process.generation >= self._generation and not process.worn for process in staying):
            return False
        # A replacement of one that lives: one slot at a time, so that the first shows whether the others may follow.
        if staying and any(not process.ready and not process.leaving for process in self._processes.values()):
            return False
        return self._due(slot.next_attempt)

    def _recycle(self) -> None:
        """Have the next worker replaced that is worn out: one at a time, and none while others start."""
        if any(process.worn or not process.ready for process in self._processes.values() if not process.leaving):
            return
        for process in self._processes.values():
            if not process.leaving and (why := worn_out(process, self._config, self._now)):
                process.worn = why
                log.info(f"{process} {why}: it is replaced")
                return

    def _announce(self) -> None:
        complete = self._generation, self._workers
        if complete != self._announced and all(
            any(process.ready and not process.leaving and process.generation >= self._generation for process in slot.processes)
            for slot in self._slots
        ):
            self._announced = complete
            generation = f" of generation {self._generation}" if self._generation > 1 else ""
            log.info(f"{self._workers} worker{'s' * (self._workers != 1)}{generation} ready")
            self._upgrade.report()

    # Birth.

    def _start(self, slot: Slot) -> Worker | None:
        """Fork a worker for `slot`. In the child: the worker."""
        try:
            return self._fork(slot)
        except (LookupError, OSError) as error:  # no record, no descriptor, no process (a limit on pids), no memory
            log.error(f"worker {slot.index} cannot be started: {error}")
            self._failed(slot)
            return None

    def _fork(self, slot: Slot) -> Worker | None:
        with contextlib.ExitStack() as undo:
            record = self._scoreboard.claim()
            undo.callback(record.__setitem__, STATE, FREE)
            record[SLOT] = slot.index
            record[GENERATION] = self._generation
            record[HEARTBEAT] = time.monotonic_ns()
            record[SHARED] = self._upgrade.shared
            report, writer = os.pipe()
            undo.callback(os.close, report)
            undo.callback(os.close, writer)
            channel, its_channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(channel.close)
            undo.callback(its_channel.close)
            # Until the child has its own handlers, a signal to it would be written to the wakeup socket, which is ours as well.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                pid = os.fork()
                undo.pop_all()
                if not pid:
                    channel.close()
                    return self._become_worker(slot, record, report, writer, its_channel)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.close(writer)
        os.set_blocking(report, False)
        its_channel.close()
        channel.setblocking(False)
        process = Process(pid, slot, self._generation, record, report, channel, self._now)
        self._loop.watch(report, IN, lambda events: self._on_report(process))
        self._processes[pid] = process
        slot.processes.append(process)
        log.debug(f"{process} started, generation {process.generation}")
        return None

    def _become_worker(self, slot: Slot, record: memoryview, report: int, writer: int, channel: socket.socket) -> Worker:
        """In the child: let go of all that is the supervisor's."""
        signal.set_wakeup_fd(-1)
        # The other signals go on doing nothing here. Not SIG_IGN, which the programs that an application runs would inherit.
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        self._loop.close()
        self._signals.close()
        self._wakeup.close()
        os.close(self._lifeline_writer)
        for fd in (report, *(process.report for process in self._processes.values())):
            if fd >= 0:
                os.close(fd)
        for process in self._processes.values():
            process.channel.close()
        self._management.disown()
        self._upgrade.disown()
        sockets.close(self._groups, [other.listeners for other in (*self._slots, *self._fading) if other is not slot])
        record[PID] = os.getpid()
        os.environ["EPOLLARD_WORKER_ID"] = str(slot.index)
        os.environ["EPOLLARD_GENERATION"] = str(self._generation)
        log.configure(self._config.log_level, f"worker {slot.index}")
        return Worker(self._config, slot.listeners, record, self._lifeline, self._bell, writer, channel)

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

    def _judge(self, process: Process) -> None:
        """Note what has become of a worker, and whether it is to be killed."""
        config, state = self._config, process.record[STATE]
        if not process.ready and state >= READY:
            process.ready_since = self._now
            self._proven = max(self._proven, process.generation)
            self._configs = {number: config for number, config in self._configs.items() if number >= self._proven}
            self._balance.soon()
            (log.info if self._announced[0] else log.debug)(f"{process} is ready")
        if state == DRAINING and not process.leaving:  # somebody has asked it behind our back
            process.leaving = True
            process.deadline = self._now + config.graceful_timeout
            self._balance.soon()
        if process.doom:
            if self._due(process.kill_at):
                os.kill(process.pid, signal.SIGKILL)
                process.kill_at = math.inf
            return
        stuck = max(config.stuck_timeout, LEAST_SILENCE)
        heard = max(process.record[HEARTBEAT] / 1e9, self._resumed)
        if self._due(process.deadline):
            quick = self._stopping == QUICK
            grace = QUICK_GRACE if quick else config.graceful_timeout
            self._condemn(process, f"still busy {grace:g} s after it was asked to go")
        elif not process.ready and self._due(max(process.started, self._resumed) + config.boot_timeout):
            self._condemn(process, f"not ready after {config.boot_timeout:g} s")
        elif process.ready and self._due(heard + stuck):
            self._condemn(process, f"silent for {stuck:g} s")

    def _condemn(self, process: Process, doom: str) -> None:
        """Kill it, but first let it show what it is doing."""
        process.doom = doom
        log.error(f"{process} was {doom}: its stacks follow, then it is killed")
        self._dumps.append(process)

    def _dump(self) -> None:
        """Let the next worker write its stacks."""
        while self._dumps and self._due(self._next_dump):
            process = self._dumps.pop(0)
            if process.pid in self._processes:
                log.info(f"the stacks of {process}:")
                os.kill(process.pid, signal.SIGUSR1)
                self._next_dump = self._now + DUMP_SPACING
                if process.doom:
                    process.kill_at = min(process.kill_at, self._now + DUMP_GRACE)
                    self._due(process.kill_at)

    def _retire(self, process: Process) -> None:
        """Ask it to go: to drain or, where the server stops quickly, to drop everything."""
        quick = self._stopping == QUICK
        process.leaving = True
        process.record[STAYS] = not self._stopping or self._upgrade.over
        self._balance.soon()
        process.deadline = min(process.deadline, self._now + (QUICK_GRACE if quick else self._config.graceful_timeout))
        # Before it is ready it has nothing to lose, and QUIT would leave a core file.
        os.kill(process.pid, signal.SIGQUIT if quick and process.ready else signal.SIGTERM)

    # Death.

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            process = self._processes.pop(pid, None)
            code = os.waitstatus_to_exitcode(status)
            if process is not None:
                self._bury(process, code)
            elif not self._upgrade.buried(pid, code):  # an orphan that came to us because we are PID 1
                log.debug(f"reaped process {pid}, which is not ours")

    def _bury(self, process: Process, code: int) -> None:
        """Say why it died, and draw the consequence."""
        slot, record = process.slot, process.record
        slot.processes.remove(process)
        process.channel.close()
        for other in (*self._slots, *self._fading):
            if other.rescuer is process:
                other.rescuer = None
        self._balance.soon()
        if process.report >= 0:
            self._on_report(process)
            self._close_report(process)  # a child of its own may still hold the other end
        for column in COUNTED:
            self._past[column] += record[column]
        oom_kills = self._oom_kills
        told = f"{process} {self._cause(process, code)} after {self._now - process.started:.1f} s"
        told += f"; {record[REQUESTS]} requests answered, {record[ACTIVE]} connections open"
        record[STATE] = FREE
        if process.leaving:
            asked = code in (0, -signal.SIGTERM, -signal.SIGQUIT)
            (log.info if asked else log.warning)(told)
            return
        log.error(told)
        if not self._proven and code == EXIT_LOAD:
            self._last_words = process.told or b"it did not say why\n"
            self._fail(EXIT_LOAD)
        elif 0 < self._proven < process.generation:
            log.error(f"generation {process.generation} does not boot: the workers of generation {self._proven} stay")
            self._print_once(process.told)
            self._generation = self._proven
            self._config = self._configs[self._proven]
        elif self._now - process.ready_since >= EARLY:
            slot.failures = 0
        elif code == -signal.SIGKILL and process.ready and not process.doom and oom_kills == self._oom_kills:
            pass  # it was somebody else's will, and says nothing of the application
        else:
            self._print_once(process.told)
            self._failed(slot)

    def _cause(self, process: Process, code: int) -> str:
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

    def _failed(self, slot: Slot) -> None:
        """An early death: the next attempt waits, or there is none."""
        slot.failures += 1
        if not self._leads:
            log.error(f"worker {slot.index} does not become ready")
            self._fail(EXIT_FAILED)
        elif not self._proven and slot.failures >= ATTEMPTS:
            log.error(f"no worker has become ready in {slot.failures} attempts")
            self._fail(EXIT_FAILED)
        elif slot.failures > 1:
            delay = min(BACKOFF_FIRST * 2.0 ** min(slot.failures - 2, 60), BACKOFF_LAST)
            slot.next_attempt = self._now + delay
            log.warning(f"worker {slot.index} has died early {slot.failures} times in a row: the next starts in {delay:g} s")

    def _fail(self, status: int) -> None:
        if not self._stopping:
            self._status = status
            # Where we do not lead yet some workers may serve already.
            self._stop(QUICK if self._leads else GRACEFUL, "")

    def _print_once(self, told: bytes) -> None:
        """A report that is not the same as the last one."""
        if told and told != self._printed:
            self._printed = told
            _print(told)


def _do_nothing(*_: object) -> None:
    """What handlers of signals do: the byte in the wakeup socket is all that is wanted."""


def _print(text: bytes) -> None:
    """The application's own words, as they are."""
    try:
        os.write(2, text if text.endswith(b"\n") else text + b"\n")
    except OSError:
        pass  # nobody listens
