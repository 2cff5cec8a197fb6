"""The lease of the loop: one thread's right to turn it, which the watcher may revoke while the application's code runs.

Two threads have to agree which of them turns the loop. That must not cost a lock in the normal case, in which the watcher wants
nothing. So each of the two first writes its own flag and then reads the other's (Dekker's algorithm):

    the thread that holds the lease                 the watcher, in `revoke`
    -------------------------------                 ------------------------
    running = None     the code is over             contested = True    it wants the loop
    read contested                                  read running

The interpreter lock puts the four steps into one order, the same for both threads. The thread that reads last sees what the
other one wrote, so it is impossible that neither notices the other. That leaves three outcomes:

* Only the watcher notices. It finds that the code is over and withdraws; the thread keeps the loop, and has touched no lock.
* Only the thread notices. The watcher read `running` while the code ran, so the lease is revoked.
* Both notice. Now `contested` is True and the watcher is about to withdraw, so the flag alone decides nothing. The thread calls
  `revoked`, which waits for the mutex: the watcher holds it from its write until it has decided.

From then on the flag keeps the value that was decided, until the thread is given the loop again (`renew`). The order of the two
steps is the whole argument: if they are swapped on either side, or if `contested` is trusted without `revoked`, two threads may
turn one loop.
"""

import threading
from typing import Generic, TypeVar

Call = TypeVar("Call")


class LoopLease(Generic[Call]):
    """One thread's right to turn the loop. `Call` is the call of the application that it runs; only its identity matters here.

    The lease also measures the time that its thread spends with requests while it has no right to the loop.
    """

    __slots__ = ("_mutex", "contested", "off_loop_seconds", "off_loop_since", "running")

    def __init__(self) -> None:
        self.running: Call | None = None  # written by the thread: the application's code runs, so the loop may be taken
        self.contested = True  # a new lease gives no right yet: `renew` does
        self.off_loop_since = 0.0  # time.monotonic() when it began to run a request without the loop; 0: it runs none
        self.off_loop_seconds = 0.0  # spent with such requests that are over
        self._mutex = threading.Lock()

    # The thread that the lease belongs to.

    def renew(self) -> None:
        """The thread has the loop, again or for the first time."""
        self.contested = False

    def revoked(self) -> bool:
        """Whether the loop was lost. To be called once `running` is cleared and `contested` is then found set."""
        with self._mutex:
            return self.contested

    def surrender(self, now: float) -> None:
        """The thread gives the loop away by itself. To be called once `running` is cleared and `revoked` ruled out."""
        with self._mutex:
            self.contested = True
            self.off_loop_since = now

    def begin_request(self, now: float) -> None:
        """A thread without the loop begins to run a request."""
        self.off_loop_since = now

    def end_request(self, now: float) -> None:
        """The thread has nothing to run. If it had the loop all the time, there is nothing to add up."""
        if self.off_loop_since:
            self.off_loop_seconds += now - self.off_loop_since
            self.off_loop_since = 0.0

    # The watcher, and the thread that turns the loop.

    def revoke(self, call: Call, now: float) -> bool:
        """Take the loop from the thread. False: `call` is over, or waits, and has surrendered the loop already."""
        with self._mutex:
            if self.contested:
                return False
            self.off_loop_since = now  # first: the thread that loses the loop may end its request in a moment
            self.contested = True
            if self.running is call:
                return True
            self.contested = False
            self.off_loop_since = 0.0
            return False

    def seconds(self, now: float) -> float:
        """Seconds that the thread has spent with requests without the loop, including the request that it runs now."""
        since = self.off_loop_since
        return self.off_loop_seconds + (now - since if since else 0.0)
