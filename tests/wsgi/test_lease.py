"""The lease of the loop alone: for every order in which its two threads can take their steps, one of them has the loop."""

import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from epollard.wsgi import lease as lease_module
from epollard.wsgi.lease import LoopLease


def leading(call: str = "call") -> LoopLease[str]:
    """The lease of a thread that turns the loop and runs this call."""
    lease: LoopLease[str] = LoopLease()
    lease.renew()
    lease.running = call
    return lease


def end_of_call(lease: LoopLease[str]) -> bool:
    """What the lease's thread does when the application's code is over. Whether it still has the loop."""
    lease.running = None
    if lease.contested:
        return not lease.revoked()
    return True


def test_a_new_lease_gives_no_right():
    """A thread has the loop from `renew` on, and until then the watcher has nothing to take."""
    lease: LoopLease[str] = LoopLease()
    assert lease.revoked()
    lease.running = "call"
    assert not lease.revoke("call", 1.0)
    lease.renew()
    assert not lease.revoked()
    assert lease.revoke("call", 1.0)


def test_an_uncontested_call_keeps_the_loop():
    """Call after call, as long as the watcher wants nothing."""
    lease = leading()
    for number in range(3):
        lease.running = f"call {number}"
        assert end_of_call(lease)


def test_a_revoked_lease_is_noticed_and_can_be_renewed():
    """The watcher takes the loop from the call that runs; its thread learns that afterwards, and may lead again later."""
    lease = leading()
    assert lease.revoke("call", 1.0)
    assert not lease.revoke("call", 2.0)  # it has been taken
    assert not end_of_call(lease)
    lease.renew()
    lease.running = "next"
    assert end_of_call(lease)


def test_only_the_call_that_was_seen_can_lose_the_loop():
    """A watcher that comes when the call is over, or another one runs, leaves the lease as it was."""
    lease = leading("next")
    assert not lease.revoke("call", 1.0)
    assert not lease.contested
    assert end_of_call(lease)
    assert not lease.revoke("next", 2.0)
    assert not lease.contested


def test_a_surrendered_lease_cannot_be_revoked_nor_comes_back_by_that():
    """A watcher that saw the code run, and comes too late to take the loop, does not give it back by that."""
    lease = leading()
    assert end_of_call(lease)
    lease.surrender(1.0)
    lease.running = "call"
    assert not lease.revoke("call", 2.0)
    assert lease.contested
    assert lease.revoked()
    assert lease.off_loop_since == 1.0


# --- The time without the loop


def test_time_without_the_loop():
    """Requests that run without the loop add up, the one under way included; time with the loop counts for nothing."""
    lease = leading()
    lease.end_request(5.0)
    assert lease.seconds(6.0) == 0.0
    assert lease.revoke("call", 10.0)
    assert lease.seconds(12.0) == 2.0
    lease.end_request(13.0)
    assert lease.seconds(20.0) == 3.0
    lease.begin_request(20.0)
    assert lease.seconds(20.5) == 3.5
    lease.end_request(21.0)
    lease.renew()
    lease.surrender(30.0)
    assert lease.seconds(31.0) == 5.0


def test_a_watcher_that_withdraws_leaves_no_time_behind():
    """The clock that `revoke` started is stopped again: the thread has kept the loop."""
    lease = leading()
    assert not lease.revoke("another", 10.0)
    assert lease.off_loop_since == 0.0
    lease.end_request(20.0)
    assert lease.seconds(20.0) == 0.0


# --- Every order of steps


class Interleaving:
    """Two functions, each on a thread of its own, one traced line at a time, in a given order. Also the mutex between them."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}  # by the thread's identifier
        self.turns = (threading.Semaphore(0), threading.Semaphore(0))
        self.stopped = threading.Semaphore(0)
        self.alive = [True, True]
        self.blocked = [False, False]
        self.owned = False

    def run(self, order: Iterator[int], *functions: Callable[[], bool]) -> list[bool]:
        """What the functions return. `order` says whose line is next, by number; a function that cannot run is skipped."""
        results = [False, False]

        def work(number: int) -> None:
            self.numbers[threading.get_ident()] = number
            self.turns[number].acquire()
            sys.settrace(self.trace)
            try:
                results[number] = functions[number]()
            finally:
                sys.settrace(None)
                self.alive[number] = False
                self.stopped.release()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for number in order:
            if not any(self.alive):
                break
            if self.alive[number] and not self.blocked[number]:
                self.turns[number].release()
                self.stopped.acquire()
        for thread in threads:
            thread.join()
        return results

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.stop()
        return self.trace if frame.f_code.co_filename == lease_module.__file__ or "end_of" in frame.f_code.co_name else None

    def stop(self) -> None:
        self.stopped.release()
        self.turns[self.numbers[threading.get_ident()]].acquire()

    def __enter__(self) -> None:
        while self.owned:
            self.blocked[self.numbers[threading.get_ident()]] = True
            self.stop()
        self.owned = True

    def __exit__(self, *error: object) -> None:
        self.owned = False
        self.blocked = [False, False]


def outcomes(end: Callable[[LoopLease[str]], bool]) -> Iterator[tuple[LoopLease[str], bool, bool]]:
    """For every order of the steps: the lease, whether its thread thinks that it has the loop, whether the watcher does."""
    for before in itertools.combinations_with_replacement(range(10), 4):
        # Step i of the thread comes after `before[i]` steps of the watcher; then they take turns.
        order = [1] * 10
        for place in reversed(before):
            order.insert(place, 0)
        lease = leading()
        interleaving = Interleaving()
        lease._mutex = interleaving  # type: ignore[assignment]
        turns = itertools.chain(order, itertools.cycle((0, 1)))
        kept, taken = interleaving.run(turns, partial(end, lease), partial(lease.revoke, "call", 1.0))
        yield lease, kept, taken


def test_one_thread_has_the_loop_whatever_the_order():
    """The thread ends its call while the watcher wants the loop: never both of them have it, and never neither."""
    seen = set()
    for lease, kept, taken in outcomes(end_of_call):
        assert kept != taken
        assert lease.contested == taken
        assert lease.off_loop_since == (1.0 if taken else 0.0)
        seen.add(kept)
    assert seen == {True, False}


def test_the_order_of_the_two_steps_is_the_whole_argument():
    """If a thread read before it wrote, there would be an order in which both have the loop: the test above would notice."""

    def wrong_end_of_call(lease: LoopLease[str]) -> bool:
        contested = lease.contested
        lease.running = None
        return not (contested and lease.revoked())

    assert any(kept and taken for _, kept, taken in outcomes(wrong_end_of_call))


def test_a_contested_flag_alone_decides_nothing():
    """If a thread did not wait for the watcher's decision, there would be an order in which neither has the loop."""

    def wrong_end_of_call(lease: LoopLease[str]) -> bool:
        lease.running = None
        return not lease.contested

    assert any(not kept and not taken for _, kept, taken in outcomes(wrong_end_of_call))


def test_a_worker_and_its_watcher_at_full_speed():
    """Two real threads run until the watcher has taken the loop a hundred times: the worker notices exactly these losses."""
    lease: LoopLease[int] = LoopLease()
    lease.renew()
    over = threading.Event()
    taken: list[int] = []

    def watch() -> None:
        while not over.is_set():
            running = lease.running
            if running is not None and lease.revoke(running, 1.0):
                taken.append(running)

    watcher = threading.Thread(target=watch)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    lost = []
    try:
        watcher.start()
        for number in itertools.count():
            lease.running = number
            sum(range(100))
            lease.running = None
            if lease.contested and lease.revoked():
                lost.append(number)
                lease.renew()
                if len(lost) == 100:
                    break
    finally:
        sys.setswitchinterval(interval)
        over.set()
        watcher.join()
    assert lost == taken
