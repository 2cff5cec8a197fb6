"""One supervisor hands over to the next, which is started from the code on disk and takes the same listeners.

The predecessor spawns its successor, which inherits the listeners and one end of a channel. When the successor's workers are
ready it says so; the predecessor lets go of steering, answers that the successor leads now, and drains. A successor that dies
before that has changed nothing.

The first supervisor of all has been started by somebody who waits for its end and signals to its number: a container, a
service manager, a shell. So it never goes before its last successor. It stays as a *stump*: passes signals on to whoever
leads, and ends with its status. Leading is to hold the other end of the stump's channel, which each hands to the next.
"""

import contextlib
import json
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from .. import directory, exits, log
from ..net import sockets, syn_filter
from ..net.loop import IN, Loop

VARIABLE: Final = "EPOLLARD_HANDOVER"
FORMAT: Final = 1  # of what stands in it: another version of us may read it

# On the channel between the two.
_BEGUN: Final = b"begun"  # its configuration is good, its addresses are bound; from now on its own deadlines hold
_READY: Final = b"ready"
_LEAD: Final = b"lead"


class HandoverError(Exception):
    """One line: what cannot be taken over, and why."""


class Upgrade:
    """Where a handover stands: from a predecessor, and to a successor."""

    def __init__(self, loop: Loop, start: str, obey: Callable[[int, set[int]], object]) -> None:
        """`start` is the directory in which we were started; `obey` takes the signals that a stump passes on."""
        self._loop = loop
        self._start = start
        self._obey = obey
        self._heard: set[int] = set()  # by `obey`, from the stump
        # From a predecessor.
        self.first = True  # there is none
        self.leads = True  # nobody else steers these listeners
        self.lost = False  # the predecessor has gone before it let us lead
        self.inheritances: list[sockets.Inheritance] = []  # of which those remain that are no longer wanted
        self.management_inheritances: list[sockets.Inheritance] = []  # for the management listener
        self.generation = 0  # of the predecessor's workers
        self.slots = 0  # that it had
        self.configured = (0, 0)  # how many workers it was told to have, at least and at most
        self.bounds = (0, 0)  # what that was when it ended
        self._elder: socket.socket | None = None
        self._lead: socket.socket | None = None  # to the stump
        # To a successor.
        self.wanted = ""  # why
        self.pid = 0
        self.deadline = math.inf  # for it to have begun
        self.ready = False
        self.over = False  # it leads
        self._heir: socket.socket | None = None
        self._stump: socket.socket | None = None  # we are it: to whoever leads
        self.status = 1  # of the last who led

    # From a predecessor.

    def inherit(self) -> bool:
        """Whether there is one: read what it left. `HandoverError`."""
        text = os.environ.pop(VARIABLE, "")
        if not text:
            return False
        try:
            told = json.loads(text)
            if told["format"] != FORMAT:
                raise ValueError
            self.inheritances, self.management_inheritances = (
                [sockets.Inheritance(*will) for will in told[key]] for key in ("wills", "admin")
            )
            self.generation, self.slots = told["generation"], told["slots"]
            self.configured, self.bounds = tuple(told["configured"]), tuple(told["bounds"])
            for fd in (told["elder"], told["lead"], *(fd for will in self._wills for fd in will.listeners)):
                os.set_inheritable(fd, False)
            elder, self._lead = socket.socket(fileno=told["elder"]), socket.socket(fileno=told["lead"])
        except (ValueError, LookupError, TypeError, OSError):
            raise HandoverError(f"{VARIABLE}: this version cannot take over from the one that is running") from None
        self._elder = elder
        for channel in elder, self._lead:
            channel.setblocking(False)
        self.first = self.leads = False
        self._loop.watch(elder.fileno(), IN, self._on_elder)
        return True

    @property
    def _wills(self) -> list[sockets.Inheritance]:
        return self.inheritances + self.management_inheritances

    def begun(self) -> None:
        """Tell the predecessor that we have all we need."""
        self._tell_elder(_BEGUN)

    def report(self) -> None:
        """Tell the predecessor that our workers are ready."""
        self._tell_elder(_READY)

    def _tell_elder(self, word: bytes) -> None:
        if self._elder is not None:
            with contextlib.suppress(OSError):  # it has gone, as `_on_elder` will find
                self._elder.send(word)

    def _on_elder(self, events: int) -> None:
        assert self._elder is not None
        try:
            self.leads = self._elder.recv(16) == _LEAD
        except OSError:
            pass
        self.lost = not self.leads
        self._loop.unwatch(self._elder.fileno())
        self._elder.close()
        self._elder = None

    def lead(self, groups: Sequence[sockets.Group]) -> None:
        """Make our own what was our predecessor's, and let go of what nobody wants any more."""
        assert self._lead is not None
        for group in groups:
            group.take_over()
        for will in self._wills:
            for fd in will.listeners:
                with socket.socket(fileno=fd) as listener:
                    syn_filter.attach(listener)  # the predecessor empties its queue
            sockets.unlink_inherited(will)
        self.inheritances.clear()
        self.management_inheritances.clear()
        self._loop.watch(self._lead.fileno(), IN, self._on_stump)

    def _on_stump(self, events: int) -> None:
        assert self._lead is not None
        try:
            numbers = self._lead.recv(64)
        except OSError:
            numbers = b""
        if not numbers:  # who started us sees that it has gone, and may start another: so go as well
            log.error("the first supervisor is gone")
            self._close_lead()
            self._obey(signal.SIGTERM, set())
        for number in numbers:
            if number == signal.SIGUSR1:
                os.kill(os.getpid(), number)  # the handler is in C
            else:
                self._obey(number, self._heard)

    def _close_lead(self) -> None:
        if self._lead is not None:
            with contextlib.suppress(KeyError):
                self._loop.unwatch(self._lead.fileno())
            self._lead.close()
            self._lead = None

    def end(self, status: int) -> int:
        """The exit status of this process, whose own would be `status`."""
        if self._lead is not None and self.leads:
            with contextlib.suppress(OSError):
                self._lead.send(bytes([status]))
        return self.status if self.stump else status

    # To a successor.

    @property
    def under_way(self) -> str:
        """Why the wish cannot change now; "" where it can."""
        if not self.leads:
            return "this supervisor does not lead yet"
        return "an upgrade is under way" if self.wanted or self.pid else ""

    @property
    def shared(self) -> bool:
        """Whether our listeners are another's as well, who needs them longer."""
        return self.over or not self.leads

    @property
    def awaited(self) -> bool:
        """Whether we cannot end yet, because of a successor."""
        return self._stump is not None if self.over else self.pid != 0

    @property
    def stump(self) -> bool:
        """Whether we have handed over, and nobody is to notice."""
        return self.over and self.first

    def spawn(self, wills: Sequence[sockets.Inheritance], admin: Sequence[sockets.Inheritance], about: dict[str, Any]) -> None:
        """Start it, and let it know `about` our workers. `OSError`."""
        with contextlib.ExitStack() as undo:
            heir, its_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(heir.close)
            undo.callback(its_end.close)
            if self._lead is not None:
                stump, lead = None, self._lead.dup()
            else:
                stump, lead = socket.socketpair()
                undo.callback(stump.close)
            undo.callback(lead.close)
            told = {"format": FORMAT, "wills": wills, "admin": admin, "elder": its_end.fileno(), "lead": lead.fileno()} | about
            left = [its_end.fileno(), lead.fileno(), *(fd for will in (*wills, *admin) for fd in will.listeners)]
            self.pid = self._exec(told, left)
            undo.pop_all()
        its_end.close()
        lead.close()
        heir.setblocking(False)
        self._loop.watch(heir.fileno(), IN, self._on_heir)
        self._heir, self._stump = heir, stump
        self.ready = False

    def _exec(self, told: dict[str, Any], left: Sequence[int]) -> int:
        """Run our own command line again, as it is on disk now, where we were started. Returns the process."""
        with directory.entered(self._start):
            try:
                for fd in left:
                    os.set_inheritable(fd, True)
                # Not `fork`: until the new program runs, a signal to the child would be one to us (see pool.py).
                return os.posix_spawn(
                    sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, VARIABLE: json.dumps(told)}
                )
            finally:
                for fd in left:
                    os.set_inheritable(fd, False)

    def _on_heir(self, events: int) -> None:
        assert self._heir is not None
        try:
            word = self._heir.recv(16)
        except OSError:
            word = b""
        if word == _BEGUN:
            self.deadline = math.inf
        elif word == _READY:
            self.ready = True
        else:  # it is dying: `buried` says so
            self._loop.unwatch(self._heir.fileno())

    def hand_over(self) -> None:
        """Let the successor lead."""
        assert self._heir is not None
        with contextlib.suppress(OSError):
            self._heir.send(_LEAD)
        self.over, self.wanted = True, ""
        self._close_heir()
        self._close_lead()
        if self._stump is not None:
            self._stump.setblocking(False)
            self._loop.watch(self._stump.fileno(), IN, self._on_leader)

    def _close_heir(self) -> None:
        if self._heir is not None:
            with contextlib.suppress(KeyError):
                self._loop.unwatch(self._heir.fileno())
            self._heir.close()
            self._heir = None

    def _on_leader(self, events: int) -> None:
        """Who leads says its status, then it goes. Who does not say it has died."""
        assert self._stump is not None
        try:
            told = self._stump.recv(16)
        except OSError:
            told = b""
        if told:
            self.status = told[-1]
            return
        self._loop.unwatch(self._stump.fileno())
        self._stump.close()
        self._stump = None

    def pass_on(self, number: int) -> None:
        """As a stump: let whoever leads have this signal."""
        if self.over and self._stump is not None and number != signal.SIGCHLD:
            with contextlib.suppress(OSError):
                self._stump.send(bytes([number]))

    def stop(self, number: int, deadline: float) -> None:
        """We are to stop, so a successor that does not lead yet is to stop as well, and be gone by then."""
        self.wanted = ""
        if self.pid and not self.over:
            self.deadline = deadline
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Its time is over."""
        self.deadline = math.inf
        log.error(f"the new supervisor (pid {self.pid}) has not {'begun' if self.wanted else 'ended'} in time: it is killed")
        os.kill(self.pid, signal.SIGKILL)

    def buried(self, pid: int, code: int) -> bool:
        """Whether the process that has ended was the successor. Where it did not lead, we go on."""
        if pid != self.pid:
            return False
        self.pid = 0
        self.deadline = math.inf
        if not self.over:
            if self.wanted:
                cause = f" ({exits.CAUSES[code]})" if code in exits.CAUSES else ""
                how = f"exited with {code}{cause}" if code >= 0 else f"was killed by signal {-code}"
                log.error(f"the new supervisor (pid {pid}) {how}: nothing is upgraded, this one goes on")
            self.wanted = ""
            self.ready = False
            self._close_heir()
            if self._stump is not None:
                self._stump.close()
                self._stump = None
        return True

    def disown(self) -> None:
        """In a forked worker: let go of all this."""
        for channel in (self._elder, self._lead, self._heir, self._stump):
            if channel is not None:
                channel.close()
        for will in self._wills:
            for fd in will.listeners:
                os.close(fd)
