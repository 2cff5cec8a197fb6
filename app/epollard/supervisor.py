"""The supervisor compares what is wanted of the workers with what is there, and does what is next. Imports no application.

There is a *wish* (how many workers, which generation of them, stopping or not) and there is the *fact* (slots and their
processes). A signal changes the wish. `_step` reads the facts, compares, and does what is next; it runs after every turn of the
loop, may run at any time, and does nothing where there is nothing to do. It starts no thread.
"""

import dataclasses
import faulthandler
import math
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final

from . import cgroup, exits, log
from .config.options import MAX_WORKERS, Config, flag
from .config.sources import ConfigError
from .management.routes import Management
from .net import sockets
from .net.loop import Loop
from .net.signals import Signals
from .scoreboard import ABORTED, ACCEPTED, REQUESTS, SHARED, STAYS
from .supervision import status
from .supervision.autoscaler import Autoscaler
from .supervision.listeners import HANDSHAKE, Listeners
from .supervision.pool import Pool, print_report
from .supervision.recycling import next_worn, too_heavy
from .supervision.slots import Process, Slot
from .supervision.upgrade import Handover, HandoverError, Role, Upgrade
from .worker import Worker

# If no worker has ever been ready, so many tries in one slot are enough: who started us should hear of it.
ATTEMPTS: Final = 3
# A quick stop gives each worker this many seconds; half of the least that init systems give us.
QUICK_GRACE: Final = 2.0
# Seconds between two looks for handshakes under way, when we stop.
ARRIVAL: Final = 0.05
# Seconds that a successor which does not end has beyond its own deadlines.
LAST_GRACE: Final = 5.0

# What cannot change while the listeners are there: a successor can change it.
FIXED: Final = ("bind", "backlog", "tcp", "steer", "admin", "chdir")

NO, GRACEFUL, QUICK = range(3)  # is the server stopping?

_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_SIGNALS: Final = (
    *(*_STOPS, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2),
    signal.SIGCHLD,  # only ends a wait
)


class Supervisor:
    """Serve as `config` says: `run` is all there is to it."""

    def __init__(self, config: Config, reread: Callable[[], Config], start: str) -> None:
        self._config = config
        self._reread = reread  # the configuration as it is now; `ConfigError`
        self._loop = Loop()
        self._upgrade = Upgrade(self._loop, start, self._obey)
        # The wish.
        self._workers = config.workers
        self._elastic = Autoscaler(config.workers, config.most_workers) if config.most_workers > config.workers else None
        self._generation = 1
        self._configs = {1: config}  # of generations that may yet be needed
        self._stopping = NO
        self._drains_at = math.inf  # when the stop is to begin, where that has been put off
        self._closes_at = math.inf  # when the listeners are closed, at the latest
        self._heard: set[int] = set()  # signals that want an end
        # The fact.
        self._leads = True  # no predecessor does
        self._listeners = Listeners(self._loop)
        self._pool = Pool(self._loop)
        # What is to be remembered.
        self._generations = 1
        self._announced = (0, 0)
        self._status = exits.OK
        self._stopped = False  # and has said so
        self._last_words = b""
        self._management = Management(self._loop, self)
        self._loop.on_tick = self._tick
        self._now = time.monotonic()
        self._wake_at = math.inf

    def run(self) -> int | Worker:
        """Serve until told to stop; return the exit status. In each forked child return its worker, which is then to be run."""
        self._watch()
        config = self._config
        log.info(config.workers_reason)
        try:
            if self._upgrade.inherit():
                self._leads = False
                self._workers, self._elastic = self._upgrade.handover.slots, None  # until we lead
                self._generation = self._generations = self._upgrade.handover.generation + 1
                self._configs = {self._generation: config}
            self._listeners.bind(config, self._workers, self._upgrade.handover.listeners)
        except (HandoverError, sockets.BindError) as error:
            log.error(str(error))
            return exits.FAILED
        if not self._management.listen(config, self._upgrade.handover.management):
            self._listeners.close(self._upgrade.shared)
            self._listeners.unlink()
            return exits.FAILED
        if self._leads:
            self._management.start()
        self._upgrade.report_started()
        while True:
            worker = self._step()
            if worker is not None:
                return worker
            if self._stopping and not self._pool.processes:
                self._say_stopped()
                if not self._upgrade.must_wait:
                    return self._end()
            self._loop.turn(self._wake_at - time.monotonic())

    def _say_stopped(self) -> None:
        if not self._stopped:
            self._stopped = True
            accepted, answered, aborted = (self._pool.past[column] for column in (ACCEPTED, REQUESTS, ABORTED))
            log.info(f"stopped: {accepted} connections accepted, {answered} requests answered, {aborted} cut short")

    def _end(self) -> int:
        # The interpreter's end takes our handlers away, and one TERM more would make a violent death of it.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if not self._upgrade.handed_over:
            self._listeners.unlink()
        self._management.close()
        if self._last_words:
            log.error("the application could not be loaded:")
            print_report(self._last_words)  # and nothing after it
        return self._upgrade.end(self._status)

    # Signals change the wish.

    def _watch(self) -> None:
        self._signals = Signals(self._loop, _SIGNALS, self._on_signal)
        # In C, so that it works when nothing else does; workers inherit both. `chain` lets us hear of it too.
        faulthandler.enable(file=2)
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=True)

    def _on_signal(self, number: int) -> None:
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
            self._pool.dump()
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
        was, self._elastic = self._elastic, Autoscaler(least, most) if most > least else None
        self._workers = min(max(self._workers, least), most)
        wanted = self._elastic or f"{self._workers}"
        log.info(f"{why}: {wanted} workers wanted" + (f"; no longer {was}" if was else ""))
        self._hurry(why)
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
        self._configs = {number: old for number, old in self._configs.items() if number >= self._pool.proven}
        self._config = self._configs[self._generation] = dataclasses.replace(config, **fixed)
        log.configure(self._config.log_level, "supervisor")
        for slot in self._listeners.slots:
            slot.failures = 0  # of the old code
            slot.next_attempt = 0.0
        log.info(f"{why}: replacing all workers by generation {self._generation}")
        self._hurry(why)
        return ""

    def upgrade(self, why: str) -> str:
        """Want another supervisor in our place, from the code on disk."""
        if busy := self._upgrade.under_way or self._unproven:
            log.warning(f"{why}: {busy}; ignored")
            return busy
        self._upgrade.requested = why
        log.info(f"{why}: starting a new supervisor from the code on disk")
        return ""

    @property
    def _unproven(self) -> str:
        return "" if self._pool.proven else "no worker has been ready yet"

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
        self._stopping = level
        if level == GRACEFUL:
            grace = self._config.graceful_timeout
            log.info(f"{why}stopping; what has begun may finish within {grace:g} s")
            self._upgrade.stop(signal.SIGTERM, self._now + grace + LAST_GRACE)
            # Longer than `syn_filter.SYN_DROP_TIME`: a client that has connected and sent nothing is handed to us after a
            # second, and no other listener will be left for it.
            self._closes_at = time.monotonic() + HANDSHAKE
            if not self._upgrade.shared:
                self._listeners.refuse_handshakes()
        else:
            log.info(f"{why}stopping at once")
            self._upgrade.stop(signal.SIGQUIT, self._now + QUICK_GRACE + LAST_GRACE)
        if level == QUICK or not self._handshakes_in_progress():
            self._close()

    def _close(self) -> None:
        """Close all listeners and ask all workers to go."""
        self._closes_at = math.inf
        if self._stopping == GRACEFUL:
            self._listeners.lend_unserved()
        self._listeners.close(self._upgrade.shared)
        for process in self._pool.processes.values():
            self._retire(process)

    def facts(self) -> status.Facts:
        """What there is to tell."""
        return status.Facts(
            now=time.monotonic(),
            ending=self._going,
            desired=self._workers,
            known=self._announced[1],
            generation=self._generation,
            slots=self._listeners.slots,
            processes=tuple(self._pool.processes.values()),
            past=self._pool.past,
        )

    # The next step.

    def _step(self) -> Worker | None:
        """Do what the facts and the wish call for. In a forked child: its worker."""
        self._now = time.monotonic()
        self._wake_at = math.inf
        for dead, code in self._pool.reap(self._now, self._upgrade.on_exit):
            self._bereaved(dead, code)
        for process in self._pool.look(self._now, self._config):
            (log.info if self._announced[0] else log.debug)(f"{process} is ready")
        self._due(self._pool.next_look)
        if not self._stopping and self._due(self._drains_at):
            self._stop(GRACEFUL, "")
        self._succeed()
        if self._stopping:
            if self._closes_at < math.inf:
                if self._due(self._closes_at) or not self._handshakes_in_progress():
                    self._close()
                else:
                    self._steer()
            return None
        self._stretch()
        self._workers = self._listeners.resize(self._now, self._workers)
        self._retire_slots()
        if worn := next_worn(self._pool.processes.values(), self._config, self._now):
            log.info(f"{worn} {worn.worn}: it is replaced")
        for slot in self._listeners.slots:
            if self._lacks(slot):
                worker = self._start(slot)
                if worker is not None or self._stopping:  # that was the last attempt
                    return worker
        self._steer()
        self._announce()
        return None

    def _handshakes_in_progress(self) -> bool:
        """Whether we shall look again, because somebody is in the middle of a handshake."""
        found = self._listeners.handshakes_in_progress()
        if found:
            self._wake_at = min(self._wake_at, self._now + ARRIVAL)
        return found

    def _due(self, when: float) -> bool:
        """Whether that time has come; if not, the loop will wait no longer than until then."""
        if self._now >= when:
            return True
        self._wake_at = min(self._wake_at, when)
        return False

    def _steer(self) -> None:
        if not self._upgrade.shared:
            self._due(self._listeners.steer(self._now))

    def _stretch(self) -> None:
        """Want as many workers as they are busy, where that is wanted."""
        if self._elastic and not self._upgrade.under_way and self._due(self._elastic.next_look):
            wish, why = self._elastic.look(self.facts(), cgroup.memory_room, self._pool.memory)
            self._due(self._elastic.next_look)
            if why:
                log.info(f"{why}: {wish} workers wanted")
            self._workers = self._listeners.resize(self._now, wish, patient=True)

    def _succeed(self) -> None:
        """Take the next step of an upgrade, as the new one or as the old one."""
        upgrade = self._upgrade
        if self._due(upgrade.deadline):
            upgrade.kill()
        if self._stopping:
            return
        if upgrade.role is Role.ORPHAN:
            log.error("the supervisor that this one was to replace is gone: stopping as well")
            self._fail(exits.FAILED)
        elif upgrade.role is Role.LEADER and not self._leads:
            self._leads = True
            for process in self._pool.processes.values():
                process.record[SHARED] = 0
            upgrade.take_over([*self._listeners.groups, *self._management.groups])
            self._management.start()
            log.info("this supervisor leads")
            config = self._config
            least, most = upgrade.handover.bounds  # as TTIN, TTOU and commands have made them
            if (config.workers, config.most_workers) != upgrade.handover.configured:
                least, most = config.workers, config.most_workers
            if not least == most == self._workers:
                self.scale(least, most, "upgrade")
        elif upgrade.successor_ready:
            self._management.leave()
            pid = upgrade.hand_over()
            self._stop(GRACEFUL, f"the new supervisor (pid {pid}) is ready: ")
        elif upgrade.requested and not self._listeners.retiring and len(self._listeners.slots) == self._workers:
            try:
                upgrade.spawn(self._handover(), self._now + self._config.boot_timeout)
            except OSError as error:
                log.error(f"{upgrade.requested}: cannot start a new supervisor: {error}")
                upgrade.requested = ""

    def _handover(self) -> Handover:
        """What a successor needs to serve in our place."""
        config, elastic = self._config, self._elastic
        return Handover(
            listeners=self._listeners.inheritances(),
            management=self._management.inheritances(),
            generation=self._generation,
            slots=len(self._listeners.slots),
            configured=(config.workers, config.most_workers),
            bounds=(elastic.least, elastic.most) if elastic else (self._workers, self._workers),
        )

    def _retire_slots(self) -> None:
        """Let go of slots that are too many, and of their workers."""
        for slot in tuple(self._listeners.retiring):
            if self._due(slot.retires_at):
                self._listeners.retire(slot, late=self._now > slot.retires_at + self._config.graceful_timeout)
                for process in slot.processes:
                    if not process.leaving:
                        self._retire(process, slot.patient)

    def _lacks(self, slot: Slot) -> bool:
        """Whether a worker is to be started for `slot` now. Retires those that have been replaced."""
        staying = [process for process in slot.processes if not process.leaving]
        serving = max((process.generation for process in staying if process.ready and not process.worn), default=0)
        for process in staying:
            # Replaced by one that is ready; or about to replace one that is, but with code that is no longer wanted.
            if process.generation < serving or (serving and not process.ready and process.generation < self._generation):
                self._retire(process)
            elif process.worn and process.generation == serving:
                # Nobody waits for it. But of one slot no more than one lingers.
                self._give_grace([other for other in slot.processes if other.lingering], f"{process} goes as well")
                self._retire(process, patient=True)
        if any(process.generation >= self._generation and not process.worn for process in staying):
            return False
        # A replacement of one that lives: one slot at a time, so that the first shows whether the others may follow.
        if staying and any(not process.ready and not process.leaving for process in self._pool.processes.values()):
            return False
        return self._due(slot.next_attempt)

    def _announce(self) -> None:
        complete = self._generation, self._workers
        if complete != self._announced and all(
            any(process.generation >= self._generation for process in slot.serving) for slot in self._listeners.slots
        ):
            self._announced = complete
            generation = f" of generation {self._generation}" if self._generation > 1 else ""
            log.info(f"{self._workers} worker{'s' * (self._workers != 1)}{generation} ready")
            self._upgrade.report_ready()

    # Workers come and go.

    def _start(self, slot: Slot) -> Worker | None:
        """Fork a worker for `slot`. In the child: the worker."""
        try:
            ends = self._pool.fork(self._now, slot, self._generation, self._upgrade.shared)
        except (LookupError, OSError) as error:  # no record, no descriptor, no process (a limit on pids), no memory
            log.error(f"worker {slot.index} cannot be started: {error}")
            self._failed(slot)
            return None
        if ends is None:
            return None
        self._disown(slot)
        return Worker(self._config, slot.listeners, ends)

    def _disown(self, slot: Slot) -> None:
        """In the child: let go of all that is the supervisor's."""
        self._loop.close()
        self._signals.close()
        self._management.disown()
        self._upgrade.disown()
        self._listeners.disown(slot)

    def _retire(self, process: Process, patient: bool = False) -> None:
        """Ask it to go: to drain or, where the server stops quickly, to drop everything."""
        quick = self._stopping == QUICK
        process.record[STAYS] = not self._stopping or self._upgrade.handed_over
        grace = QUICK_GRACE if quick else math.inf if patient else self._config.graceful_timeout
        self._pool.retire(process, self._now, grace, quick)

    def _hurry(self, why: str) -> None:
        """Nobody has waited for the end of those who may take their time. Now somebody does."""
        for slot in self._listeners.retiring:
            slot.patient = False
        self._give_grace(self._pool.lingering, why)

    def _give_grace(self, lingering: Iterable[Process], why: str) -> None:
        self._pool.hurry(lingering, self._now, self._config.graceful_timeout, why)

    def _tick(self) -> None:
        """Once a second: who lingers is not to do so with memory that others need."""
        self._management.tick()
        if self._pool.lingering:
            heavy = [process for process in self._pool.lingering if too_heavy(process, self._config, self._now)]
            self._give_grace(heavy, flag("max_worker_memory"))
            if (cgroup.memory_room() or 0) < 0:
                self._hurry("memory is short")

    def _bereaved(self, process: Process, code: int) -> None:
        """Draw the consequence of an early death."""
        proven = self._pool.proven
        if not proven and code == exits.LOAD_FAILED:
            self._last_words = process.told or b"it did not say why\n"
            self._fail(exits.LOAD_FAILED)
        elif 0 < proven < process.generation:
            log.error(f"generation {process.generation} does not boot: the workers of generation {proven} stay")
            self._pool.show(process)
            self._generation = proven
            self._config = self._configs[proven]
        else:
            self._pool.show(process)
            self._failed(process.slot)

    def _failed(self, slot: Slot) -> None:
        """An early death: the next attempt waits, or there is none."""
        delay = slot.back_off(self._now)
        if not self._leads:
            log.error(f"worker {slot.index} does not become ready")
            self._fail(exits.FAILED)
        elif not self._pool.proven and slot.failures >= ATTEMPTS:
            log.error(f"no worker has become ready in {slot.failures} attempts")
            self._fail(exits.FAILED)
        elif delay:
            log.warning(f"worker {slot.index} has died early {slot.failures} times in a row: the next starts in {delay:g} s")

    def _fail(self, status: int) -> None:
        if not self._stopping:
            self._status = status
            # Where we do not lead yet some workers may serve already.
            self._stop(QUICK if self._leads else GRACEFUL, "")
