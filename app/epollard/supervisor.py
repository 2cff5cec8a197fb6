"""The supervisor compares the desired state of the workers with the actual one and takes the next step. Runs no application.

The *desired* state is how many workers there are to be, of which generation, and whether the server is stopping. The *actual*
state is the slots and their processes. A signal or a command changes the desired state. `_reconcile` compares the two and takes
the next step; it runs after every turn of the loop, may run at any time, and does nothing if there is nothing to do. There is
one thread.

Long: all that changes the desired state, and all that acts on it, is best read in one place.
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
from .supervision.recycling import due_for_recycling, over_memory_limit
from .supervision.rollout import Exit, Rollout, Verdict
from .supervision.slots import Process, Slot
from .supervision.upgrade import Handover, HandoverError, Role, Upgrade
from .worker import Worker

# Seconds that each worker has in a quick stop: half of the shortest time that init systems give us.
QUICK_GRACE: Final = 2.0
# Seconds between two checks for handshakes in progress, when we stop.
HANDSHAKE_INTERVAL: Final = 0.05
# Seconds that a successor has beyond its own deadlines before it is killed.
SUCCESSOR_GRACE: Final = 5.0

# Options that cannot change while the listeners are open: they need an upgrade.
FIXED: Final = ("bind", "backlog", "tcp", "steer", "admin", "chdir")

NO, GRACEFUL, QUICK = range(3)  # is the server stopping?

_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_SIGNALS: Final = (
    *(*_STOPS, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2),
    signal.SIGCHLD,  # only ends a wait
)


class Supervisor:
    """Serves as `config` says. `run` does all of it."""

    def __init__(self, config: Config, reread: Callable[[], Config], start: str) -> None:
        self._config = config
        self._reread = reread  # reads the configuration again; `ConfigError`
        self._loop = Loop()
        self._upgrade = Upgrade(self._loop, start, self._obey)
        # The desired state.
        self._workers = config.workers
        self._autoscaler = Autoscaler(config.workers, config.most_workers) if config.most_workers > config.workers else None
        self._rollout = Rollout()
        self._configs = {1: config}  # of the generations that may still be needed
        self._stopping = NO
        self._drains_at = math.inf  # when the stop begins, if it has been delayed
        self._closes_at = math.inf  # when the listeners are closed, at the latest
        self._obeyed: set[int] = set()  # signals to stop that have been acted upon
        # The actual state.
        self._leads = True  # no predecessor leads any longer
        self._listeners = Listeners(self._loop)
        self._pool = Pool(self._loop)
        # The history.
        self._announced = (0, 0)  # the generation and the number of workers that the log last reported as ready
        self._status = exits.OK
        self._stopped = False  # all workers are gone, and the log says so
        self._load_error = b""  # why the application cannot be loaded
        self._management = Management(self._loop, self)
        self._loop.on_tick = self._tick
        self._now = time.monotonic()
        self._wake_at = math.inf

    def run(self) -> int | Worker:
        """Serve until asked to stop. Returns the exit status or, in each forked child, the worker that is to be run there."""
        self._watch()
        config = self._config
        log.info(config.workers_reason)
        try:
            if self._upgrade.inherit():
                self._leads = False
                self._workers, self._autoscaler = self._upgrade.handover.slots, None  # until we lead
                self._rollout = Rollout(self._upgrade.handover.generation + 1, successor=True)
                self._configs = {self._rollout.generation: config}
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
            worker = self._reconcile()
            if worker is not None:
                return worker
            if self._stopping and not self._pool.processes:
                self._log_stopped()
                if not self._upgrade.must_wait:
                    return self._end()
            self._loop.turn(self._wake_at - time.monotonic())

    def _log_stopped(self) -> None:
        if not self._stopped:
            self._stopped = True
            accepted, answered, aborted = (self._pool.past[column] for column in (ACCEPTED, REQUESTS, ABORTED))
            log.info(f"stopped: {accepted} connections accepted, {answered} requests answered, {aborted} cut short")

    def _end(self) -> int:
        # When the interpreter ends it removes our handlers, and another TERM would then kill us.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if not self._upgrade.handed_over:
            self._listeners.unlink()
        self._management.close()
        if self._load_error:
            log.error("the application could not be loaded:")
            print_report(self._load_error)  # last, so that nothing follows it
        return self._upgrade.end(self._status)

    # Signals change the desired state.

    def _watch(self) -> None:
        self._signals = Signals(self._loop, _SIGNALS, self._on_signal)
        # In C, so that it works when nothing else does; workers inherit both. `chain` calls our handler as well.
        faulthandler.enable(file=2)
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True, chain=True)

    def _on_signal(self, number: int) -> None:
        self._upgrade.pass_on(number)
        self._obey(number, self._obeyed)

    def _obey(self, number: int, obeyed: set[int]) -> None:
        """Act upon a signal. `obeyed`: its sender's earlier signals, as one TERM may come from two senders (upgrade.py)."""
        if number in _STOPS:
            name = signal.Signals(number).name
            if number == signal.SIGTERM and number not in obeyed:
                self.drain(name)
            elif self._stopping < QUICK:  # also at a second TERM: its sender has lost patience
                self._stop(QUICK, f"{name}: ")
            obeyed.add(number)
        elif self._ending:
            return
        elif number == signal.SIGHUP:
            self.reload("SIGHUP")
        elif number == signal.SIGTTIN:
            self.scale(self._workers + 1, self._workers + 1, "SIGTTIN")
        elif number == signal.SIGTTOU:
            self.scale(self._workers - 1, self._workers - 1, "SIGTTOU")
        elif number == signal.SIGUSR1:
            log.info("SIGUSR1: the supervisor's stack is above, those of its workers follow")
            self._pool.dump()
        elif number == signal.SIGUSR2:
            self.upgrade("SIGUSR2")

    # The desired state, for signals and commands alike: `why` names the one that changes it. Each of these methods may be
    # called at any time, and returns why nothing is changed, or "".

    def scale(self, least: int, most: int, why: str) -> str:
        """Have between `least` and `most` workers, and never none: within these bounds, as many as the load requires."""
        if busy := self._upgrade.under_way:
            log.warning(f"{why}: {busy}; ignored")
            return busy
        least, most = min(max(least, 1), MAX_WORKERS), min(max(most, 1), MAX_WORKERS)
        before, self._autoscaler = self._autoscaler, Autoscaler(least, most) if most > least else None
        self._workers = min(max(self._workers, least), most)
        log.info(f"{why}: scaling to {_count(self._autoscaler or self._workers)}" + (f", no longer {before}" if before else ""))
        self._hurry(why)
        return ""

    def reload(self, why: str) -> str:
        """Replace all workers by ones that import the application anew."""
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
            log.warning(f"{why}: {flag(key)} has changed, which needs an upgrade (SIGUSR2)")
        if (config.workers, config.most_workers) != (self._config.workers, self._config.most_workers):
            self.scale(config.workers, config.most_workers, why)
        generation = self._rollout.begin(self._listeners.slots)
        self._configs = {number: old for number, old in self._configs.items() if number >= self._rollout.proven}
        self._config = self._configs[generation] = dataclasses.replace(config, **fixed)
        log.configure(self._config.log_level, "supervisor")
        log.info(f"{why}: replacing all workers by generation {generation}")
        self._hurry(why)
        return ""

    def upgrade(self, why: str) -> str:
        """Have a new supervisor take our place, started from the code on disk."""
        if busy := self._upgrade.under_way or self._unproven:
            log.warning(f"{why}: {busy}; ignored")
            return busy
        self._upgrade.requested = why
        log.info(f"{why}: starting a new supervisor from the code on disk")
        return ""

    @property
    def _unproven(self) -> str:
        return "" if self._rollout.proven else "no worker has been ready yet"

    def drain(self, why: str) -> None:
        """Finish the requests in flight, then stop. Until `--drain-delay` is over, everything goes on as usual."""
        if self._ending:
            return
        delay = self._config.drain_delay
        if delay and self._leads:
            self._upgrade.stop(signal.SIGTERM, self._now + self._config.graceful_timeout + SUCCESSOR_GRACE)
            log.info(f"{why}: /readyz fails from now on; draining begins in {delay:g} s")
            self._drains_at = time.monotonic() + delay
        else:
            self._stop(GRACEFUL, f"{why}: ")

    @property
    def _ending(self) -> str:
        """How the server is about to end; "" if it is not."""
        return "stopping" if self._stopping else "draining" if self._drains_at < math.inf else ""

    def _stop(self, level: int, why: str) -> None:
        self._stopping = level
        if level == GRACEFUL:
            grace = self._config.graceful_timeout
            log.info(f"{why}shutting down; in-flight requests have {grace:g} s to finish")
            self._upgrade.stop(signal.SIGTERM, self._now + grace + SUCCESSOR_GRACE)
            # Longer than `syn_filter.SYN_DROP_TIME`: the kernel hands us a client that has connected and sent nothing after a
            # second, and by then there is no other listener for it.
            self._closes_at = time.monotonic() + HANDSHAKE
            if not self._upgrade.shared:
                self._listeners.refuse_handshakes()
        else:
            log.info(f"{why}shutting down at once")
            self._upgrade.stop(signal.SIGQUIT, self._now + QUICK_GRACE + SUCCESSOR_GRACE)
        if level == QUICK or not self._handshakes_in_progress():
            self._close()

    def _close(self) -> None:
        """Close all listeners and ask all workers to exit."""
        self._closes_at = math.inf
        if self._stopping == GRACEFUL:
            self._listeners.lend_unserved()
        self._listeners.close(self._upgrade.shared)
        for process in self._pool.processes.values():
            self._retire(process)

    def facts(self) -> status.Facts:
        """The actual state, for the pages of the management listener and for the autoscaler."""
        return status.Facts(
            now=time.monotonic(),
            ending=self._ending,
            desired=self._workers,
            known=self._announced[1],
            generation=self._rollout.generation,
            slots=self._listeners.slots,
            processes=tuple(self._pool.processes.values()),
            past=self._pool.past,
        )

    # The next step.

    def _reconcile(self) -> Worker | None:
        """Take the step from the actual towards the desired state. Returns, in a forked child, its worker."""
        self._now = time.monotonic()
        self._wake_at = math.inf
        self._follow_workers()
        if not self._stopping and self._due(self._drains_at):
            self._stop(GRACEFUL, "")
        self._follow_upgrade()
        if self._stopping:
            self._await_handshakes()
            return None
        self._autoscale()
        self._workers = self._listeners.resize(self._now, self._workers)
        self._retire_slots()
        if process := self._rollout.choose_for_recycling(self._pool.processes.values(), self._due_for_recycling):
            log.info(f"{process} {process.recycle_reason}: replacing it")
        for slot in self._listeners.slots:
            if self._replace(slot):
                worker = self._start(slot)
                if worker is not None or self._stopping:  # because that was the last attempt
                    return worker
        self._steer()
        self._announce()
        return None

    def _follow_workers(self) -> None:
        """Find out which workers have exited or become ready, and end those whose time is up."""
        for exit in self._pool.reap(self._now, self._upgrade.on_exit):
            self._on_worker_exit(exit)
        for process in self._pool.follow_states(self._now, self._config):
            self._rollout.on_ready(process)
            (log.info if self._announced[0] else log.debug)(f"{process} is ready")
        self._pool.check_deadlines(self._now, self._config)
        self._due(self._pool.due_at)

    def _await_handshakes(self) -> None:
        """In a stop: close the listeners once no client is in the middle of a handshake."""
        if self._closes_at < math.inf:
            if self._due(self._closes_at) or not self._handshakes_in_progress():
                self._close()
            else:
                self._steer()

    def _handshakes_in_progress(self) -> bool:
        """Whether a client is in the middle of a handshake. If so, the loop wakes up soon to check again."""
        found = self._listeners.handshakes_in_progress()
        if found:
            self._wake_at = min(self._wake_at, self._now + HANDSHAKE_INTERVAL)
        return found

    def _due(self, when: float) -> bool:
        """Whether this time has come. If not, the loop waits until then at most."""
        if self._now >= when:
            return True
        self._wake_at = min(self._wake_at, when)
        return False

    def _steer(self) -> None:
        if not self._upgrade.shared:
            self._due(self._listeners.steer(self._now))

    def _autoscale(self) -> None:
        """Have as many workers as their load requires, if that is configured."""
        if self._autoscaler and not self._upgrade.under_way and self._due(self._autoscaler.due_at):
            desired, why = self._autoscaler.decide(self.facts(), cgroup.memory_headroom, self._pool.memory)
            self._due(self._autoscaler.due_at)
            if why:
                log.info(f"{why}: scaling to {_count(desired)}")
            self._workers = self._listeners.resize(self._now, desired, patient=True)

    def _follow_upgrade(self) -> None:
        """Take the next step of an upgrade, as the successor or as the predecessor."""
        upgrade = self._upgrade
        if self._due(upgrade.deadline):
            upgrade.kill()
        if self._stopping:
            return
        if upgrade.role is Role.ORPHAN:
            log.error("the supervisor that this one was to replace is gone: stopping as well")
            self._fail(exits.FAILED)
        elif upgrade.role is Role.LEADER and not self._leads:
            self._take_over()
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

    def _take_over(self) -> None:
        """The predecessor lets us lead: do so."""
        self._leads = True
        self._rollout.successor = False
        for process in self._pool.processes.values():
            process.record[SHARED] = 0
        self._upgrade.take_over([*self._listeners.groups, *self._management.groups])
        self._management.start()
        log.info("this supervisor leads")
        config = self._config
        least, most = self._upgrade.handover.bounds  # as signals and commands have changed them
        if (config.workers, config.most_workers) != self._upgrade.handover.configured:
            least, most = config.workers, config.most_workers
        if not least == most == self._workers:
            self.scale(least, most, "upgrade")

    def _handover(self) -> Handover:
        """What a successor needs to serve in our place."""
        config, autoscaler = self._config, self._autoscaler
        return Handover(
            listeners=self._listeners.inheritances(),
            management=self._management.inheritances(),
            generation=self._rollout.generation,
            slots=len(self._listeners.slots),
            configured=(config.workers, config.most_workers),
            bounds=(autoscaler.least, autoscaler.most) if autoscaler else (self._workers, self._workers),
        )

    def _retire_slots(self) -> None:
        """Retire the slots that are no longer wanted, and their workers."""
        for slot in tuple(self._listeners.retiring):
            if self._due(slot.retires_at):
                self._listeners.retire(slot, late=self._now > slot.retires_at + self._config.graceful_timeout)
                for process in slot.processes:
                    if not process.retiring:
                        self._retire(process, slot.patient)

    def _due_for_recycling(self, process: Process) -> str:
        return due_for_recycling(process, self._config, self._now)

    def _replace(self, slot: Slot) -> bool:
        """Retire the workers of `slot` that have been replaced. Returns whether to start one there now."""
        plan = self._rollout.plan(slot, self._pool.processes.values())
        for process in plan.retire:
            self._retire(process)
        if plan.recycle:
            # Its end is not urgent, but in each slot only one worker may take its time.
            self._give_grace([other for other in slot.processes if other.lingering], f"{plan.recycle} retires as well")
            self._retire(plan.recycle, patient=True)
        return self._due(plan.start_at)

    def _announce(self) -> None:
        complete = self._rollout.generation, self._workers
        if complete != self._announced and self._rollout.complete(self._listeners.slots):
            self._announced = complete
            generation = f" of generation {self._rollout.generation}" if self._rollout.generation > 1 else ""
            log.info(f"{_count(self._workers)}{generation} ready")
            self._upgrade.report_ready()

    # Workers.

    def _start(self, slot: Slot) -> Worker | None:
        """Fork a worker for `slot`. Returns, in the child, the worker."""
        try:
            ends = self._pool.fork(self._now, slot, self._rollout.generation, self._upgrade.shared)
        except (LookupError, OSError) as error:  # no record, no descriptor, no process (a limit on pids), no memory
            log.error(f"cannot start worker {slot.index}: {error}")
            self._on_failure(slot, self._rollout.on_failure(slot, self._now))
            return None
        if ends is None:
            return None
        self._disown(slot)
        return Worker(self._config, slot.listeners, ends)

    def _disown(self, slot: Slot) -> None:
        """In the child: close all that belongs to the supervisor."""
        self._loop.close()
        self._signals.close()
        self._management.disown()
        self._upgrade.disown()
        self._listeners.disown(slot)

    def _retire(self, process: Process, patient: bool = False) -> None:
        """Ask a worker to exit: to drain or, if the server stops quickly, to drop everything."""
        quick = self._stopping == QUICK
        process.record[STAYS] = not self._stopping or self._upgrade.handed_over
        grace = QUICK_GRACE if quick else math.inf if patient else self._config.graceful_timeout
        self._pool.retire(process, self._now, grace, quick)

    def _hurry(self, why: str) -> None:
        """Give a deadline to the workers that may take their time: something now waits for their exit."""
        for slot in self._listeners.retiring:
            slot.patient = False
        self._give_grace(self._pool.lingering, why)

    def _give_grace(self, lingering: Iterable[Process], why: str) -> None:
        self._pool.hurry(lingering, self._now, self._config.graceful_timeout, why)

    def _tick(self) -> None:
        """Once a second: let no worker take its time while it holds memory that others need."""
        self._management.tick()
        if self._pool.lingering:
            greedy = [process for process in self._pool.lingering if over_memory_limit(process, self._config, self._now)]
            self._give_grace(greedy, flag("max_worker_memory"))
            if (cgroup.memory_headroom() or 0) < 0:
                self._hurry("memory is short")

    def _on_worker_exit(self, exit: Exit) -> None:
        """A worker has exited: do what follows from that."""
        process = exit.process
        verdict = self._rollout.on_exit(exit, self._now)
        if verdict is Verdict.LOAD_ERROR:
            self._load_error = process.report or b"no reason was reported\n"
            self._fail(exits.LOAD_FAILED)
        elif verdict is Verdict.ROLL_BACK:
            proven = self._rollout.generation
            log.error(f"generation {process.generation} does not boot: the workers of generation {proven} stay")
            self._pool.print_report(process)
            self._config = self._configs[proven]
        elif verdict is not Verdict.REPLACE:
            self._pool.print_report(process)
            self._on_failure(process.slot, verdict)

    def _on_failure(self, slot: Slot, verdict: Verdict) -> None:
        """A worker has exited early, or could not be started: log when the next attempt is, or stop."""
        delay = slot.next_attempt - self._now
        if verdict is Verdict.GIVE_UP:
            if self._leads:
                log.error(f"no worker has become ready in {slot.failures} attempts")
            else:
                log.error(f"worker {slot.index} does not become ready")
            self._fail(exits.FAILED)
        elif delay > 0:
            log.warning(
                f"worker {slot.index} has exited early {slot.failures} times in a row: the next one starts in {delay:g} s"
            )

    def _fail(self, status: int) -> None:
        if not self._stopping:
            self._status = status
            # Workers of a successor may have clients already.
            self._stop(QUICK if self._leads else GRACEFUL, "")


def _count(workers: object) -> str:
    """Like "1 worker" or "2 to 4 workers"."""
    return f"{workers} worker" + "s" * (workers != 1)
