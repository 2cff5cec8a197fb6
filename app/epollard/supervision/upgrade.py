"""One supervisor hands over to the next, which is started from the code on disk and uses the same listeners.

The predecessor spawns its successor, which inherits the listeners and one end of a channel. Once its workers are ready, the
successor reports this; the predecessor stops steering, replies that the successor leads now, and drains. A successor that dies
before that has changed nothing.

The first supervisor was started by a process that waits for its end and sends signals to its pid: a container runtime, a
service manager, a shell. So it never exits before its last successor. It stays as a *relay*: it passes signals on to the
supervisor that leads, and exits with the status of the last one. The leader is the supervisor that holds the other end of the
relay's channel, and leaves this end to its successor.

    Role of this process      until                               then it is
    SUCCESSOR                 its predecessor lets it lead        LEADER
                              its predecessor dies before that    ORPHAN, which stops
    LEADER                    its own successor is ready          PREDECESSOR, which drains; the first one is the relay as well
"""

import contextlib
import json
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from .. import directory, exits, log
from ..net import sockets, syn_filter
from ..net.loop import IN, Loop

VARIABLE: Final = "EPOLLARD_HANDOVER"
FORMAT: Final = 1  # of its value, which another version of epollard may have to read

# Messages between predecessor and successor, which may be of different versions.
_STARTED: Final = b"begun"  # its configuration is good and its addresses are bound; from now on its own deadlines apply
_READY: Final = b"ready"
_LEAD: Final = b"lead"


class HandoverError(Exception):
    """One line: what cannot be taken over, and why."""


class Role(Enum):
    """The part that this process plays. The table above shows what leads from one role to the next."""

    SUCCESSOR = "successor"
    ORPHAN = "orphan"
    LEADER = "leader"
    PREDECESSOR = "predecessor"


class Handover(NamedTuple):
    """What a supervisor leaves to its successor, except the channels."""

    listeners: list[sockets.Inheritance]  # `Listeners.bind` removes those that it adopts
    management: list[sockets.Inheritance]  # so does `Management.listen`
    generation: int  # of the predecessor's workers
    slots: int  # that it had
    configured: tuple[int, int]  # how many workers its configuration asked for, at least and at most
    bounds: tuple[int, int]  # the same, as signals and commands have changed it

    @property
    def inheritances(self) -> list[sockets.Inheritance]:
        """The listeners that have not been adopted."""
        return self.listeners + self.management

    def encode(self, predecessor: int, relay: int) -> str:
        """The variable's value; the channels are given by their descriptors. Older versions read these keys, too."""
        return json.dumps(
            {
                "format": FORMAT,
                "wills": self.listeners,
                "admin": self.management,
                "elder": predecessor,
                "lead": relay,
                "generation": self.generation,
                "slots": self.slots,
                "configured": self.configured,
                "bounds": self.bounds,
            }
        )


def decode(text: str) -> tuple[Handover, socket.socket, socket.socket]:
    """The handover in the variable's value, with the channels to the predecessor and to the relay. `HandoverError`."""
    try:
        value = json.loads(text)
        if value["format"] != FORMAT:
            raise ValueError
        handover = Handover(
            [sockets.Inheritance(*fields) for fields in value["wills"]],
            [sockets.Inheritance(*fields) for fields in value["admin"]],
            value["generation"],
            value["slots"],
            tuple(value["configured"]),
            tuple(value["bounds"]),
        )
        listeners = [fd for inheritance in handover.inheritances for fd in inheritance.listeners]
        for fd in (value["elder"], value["lead"], *listeners):
            os.set_inheritable(fd, False)
        return handover, socket.socket(fileno=value["elder"]), socket.socket(fileno=value["lead"])
    except (ValueError, LookupError, TypeError, OSError):
        raise HandoverError(f"{VARIABLE}: this version cannot take over from the one that is running") from None


class Channel:
    """Our end of a socket pair; another supervisor has the other end. Never blocks. When the peer dies, b"" comes, once."""

    def __init__(self, loop: Loop, end: socket.socket, on_message: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._end = end
        self._on_message = on_message
        self._watched = False
        end.setblocking(False)

    def watch(self) -> None:
        """Have `on_message` called from now on."""
        self._watched = True
        self._loop.watch(self._end.fileno(), IN, self._on_readable)

    def _on_readable(self, events: int) -> None:
        try:
            message = self._end.recv(64)
        except OSError:
            message = b""
        if not message:
            self._unwatch()
        self._on_message(message)

    def send(self, message: bytes) -> None:
        """Send a message, unless the peer is gone or does not read."""
        with contextlib.suppress(OSError):
            self._end.send(message)

    def duplicate(self) -> socket.socket:
        """Another descriptor of our end."""
        return self._end.dup()

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.unwatch(self._end.fileno())

    def close(self) -> None:
        """Stop watching, and close our end."""
        self._unwatch()
        self._end.close()

    def disown(self) -> None:
        """In a forked worker: close its copy, and leave the supervisor's loop alone."""
        self._end.close()


class SuccessorState(Enum):
    """How far our successor is."""

    STARTING = "starting"  # its deadline is ours to watch
    BOOTING = "booting"  # it has started its workers, and watches their deadlines itself
    READY = "ready"
    LEADING = "leading"
    STOPPING = "stopping"  # because we stop before it leads


class Successor:
    """The supervisor that is to replace us, as we see it."""

    def __init__(self, loop: Loop, pid: int, end: socket.socket, deadline: float) -> None:
        self.pid = pid
        self.state = SuccessorState.STARTING
        self.deadline = deadline
        self.channel = Channel(loop, end, self._on_message)
        self.channel.watch()

    def _on_message(self, message: bytes) -> None:
        if self.state is SuccessorState.STOPPING:
            pass  # it is not to lead, whatever it reports
        elif message == _STARTED:
            self.state = SuccessorState.BOOTING
            self.deadline = math.inf
        elif message == _READY:
            self.state = SuccessorState.READY
        # Otherwise it is dying, and its exit will be reported.

    def let_lead(self) -> None:
        """From now on it leads."""
        self.state = SuccessorState.LEADING
        self.channel.send(_LEAD)
        self.channel.close()

    def stop(self, number: int, deadline: float) -> None:
        """End it by this signal; it has until `deadline`."""
        self.state = SuccessorState.STOPPING
        self.deadline = deadline
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Its time is over."""
        missed = "exit" if self.state is SuccessorState.STOPPING else "start"
        log.error(f"the new supervisor (pid {self.pid}) did not {missed} in time: killing it")
        self.deadline = math.inf
        os.kill(self.pid, signal.SIGKILL)

    def log_exit(self, code: int) -> None:
        """Log why it never led, unless we have stopped it."""
        if self.state is not SuccessorState.STOPPING:
            cause = f" ({exits.CAUSES[code]})" if code in exits.CAUSES else ""
            how = f"exited with {code}{cause}" if code >= 0 else f"was killed by signal {-code}"
            log.error(f"the new supervisor (pid {self.pid}) {how}: upgrade abandoned, this supervisor keeps running")


class Relay:
    """The first supervisor's side of the channel to the leader: signals go there, the exit status comes back."""

    def __init__(self, loop: Loop, end: socket.socket) -> None:
        self.status = 1  # of the last leader, which has died if it reports none
        self.leader_gone = False
        self.channel = Channel(loop, end, self._on_message)

    def _on_message(self, message: bytes) -> None:
        if message:
            self.status = message[-1]
        else:
            self.leader_gone = True
            self.channel.close()

    def pass_on(self, number: int) -> None:
        """Have the leader act upon this signal."""
        if number != signal.SIGCHLD and not self.leader_gone:
            self.channel.send(bytes([number]))


class Upgrade:
    """This process's role, and its channels to the supervisors before and after it."""

    def __init__(self, loop: Loop, start: str, obey: Callable[[int, set[int]], object]) -> None:
        """`start` is the directory in which we were started; `obey` acts upon signals that the relay passes on."""
        self._loop = loop
        self._start = start
        self._obey = obey
        self._obeyed: set[int] = set()  # signals that the relay has passed on (see `Supervisor._obey`)
        self.role = Role.LEADER
        self.handover = Handover([], [], 0, 0, (0, 0), (0, 0))  # what a predecessor has left to us
        self.requested = ""  # the source of a request (SIGUSR2, a command) that has not been carried out yet
        self.successor: Successor | None = None
        self._to_predecessor: Channel | None = None
        self._to_relay: Channel | None = None  # None while we are the first supervisor
        self._relay: Relay | None = None  # in the first supervisor, once it has spawned a successor

    @property
    def shared(self) -> bool:
        """Whether another supervisor has our listeners as well, and needs them longer."""
        return self.role is not Role.LEADER

    @property
    def handed_over(self) -> bool:
        """Whether a successor leads."""
        return self.role is Role.PREDECESSOR

    @property
    def under_way(self) -> str:
        """Why nothing else can be changed at the moment; "" if it can."""
        if self.role in (Role.SUCCESSOR, Role.ORPHAN):
            return "this supervisor does not lead yet"
        return "an upgrade is under way" if self.requested or self.successor else ""

    @property
    def must_wait(self) -> bool:
        """Whether it is too early to exit: the leader, or a successor that is to stop, has not exited yet."""
        if self.handed_over:
            return self._relay is not None and not self._relay.leader_gone
        return self.successor is not None

    # As a successor.

    def inherit(self) -> bool:
        """Read what a predecessor has left. False: there is none. `HandoverError`."""
        text = os.environ.pop(VARIABLE, "")
        if not text:
            return False
        self.handover, predecessor, relay = decode(text)
        self.role = Role.SUCCESSOR
        self._to_predecessor = Channel(self._loop, predecessor, self._on_predecessor)
        self._to_predecessor.watch()
        self._to_relay = Channel(self._loop, relay, self._on_relay)  # watched only once we lead
        return True

    def report_started(self) -> None:
        """Report to the predecessor, if there is one, that our configuration is good and our addresses are bound."""
        if self._to_predecessor is not None:
            self._to_predecessor.send(_STARTED)

    def report_ready(self) -> None:
        """Report to the predecessor, if there is one, that our workers are ready."""
        if self._to_predecessor is not None:
            self._to_predecessor.send(_READY)

    def _on_predecessor(self, message: bytes) -> None:
        assert self._to_predecessor is not None
        self.role = Role.LEADER if message == _LEAD else Role.ORPHAN
        self._to_predecessor.close()
        self._to_predecessor = None

    def take_over(self, groups: Sequence[sockets.Group]) -> None:
        """We lead now: apply our configuration to the inherited listeners, and close those that it no longer names."""
        assert self._to_relay is not None
        for group in groups:
            group.take_over()
        for inheritance in self.handover.inheritances:
            for fd in inheritance.listeners:
                with socket.socket(fileno=fd) as listener:
                    syn_filter.attach(listener)  # the predecessor empties its queue
            sockets.unlink_inherited(inheritance)
        self.handover.listeners.clear()
        self.handover.management.clear()
        self._to_relay.watch()

    # As the leader.

    def _on_relay(self, numbers: bytes) -> None:
        if not numbers:  # the process that started it may now start another server, so we stop as well
            log.error("the first supervisor is gone")
            self._leave_relay()
            self._obey(signal.SIGTERM, set())
        for number in numbers:
            if number == signal.SIGUSR1:
                os.kill(os.getpid(), number)  # its handler is in C
            else:
                self._obey(number, self._obeyed)

    def _leave_relay(self) -> None:
        if self._to_relay is not None:
            self._to_relay.close()
            self._to_relay = None

    def spawn(self, handover: Handover, deadline: float) -> None:
        """Start the requested successor, which must have started by `deadline`. `OSError`."""
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(ours.close)
            if self._to_relay is None:
                relay_end, leader_end = socket.socketpair()
                undo.callback(relay_end.close)
            else:
                relay_end, leader_end = None, self._to_relay.duplicate()
            with theirs, leader_end:
                pid = self._exec(handover, theirs.fileno(), leader_end.fileno())
            undo.pop_all()
        self.successor = Successor(self._loop, pid, ours, deadline)
        self._relay = Relay(self._loop, relay_end) if relay_end is not None else None
        self.requested = ""

    def _exec(self, handover: Handover, predecessor: int, relay: int) -> int:
        """Run our own command line again, as it is on disk now, in the directory in which we were started. Returns the pid."""
        inherited = [predecessor, relay, *(fd for inheritance in handover.inheritances for fd in inheritance.listeners)]
        environ = {**os.environ, VARIABLE: handover.encode(predecessor, relay)}
        with directory.entered(self._start):
            try:
                for fd in inherited:
                    os.set_inheritable(fd, True)
                # Not `fork`: until the new program runs, a signal to the child would be one to us (see pool.py).
                return os.posix_spawn(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
            finally:
                for fd in inherited:
                    os.set_inheritable(fd, False)

    @property
    def deadline(self) -> float:
        """When `kill` is due."""
        return self.successor.deadline if self.successor is not None else math.inf

    def kill(self) -> None:
        """Kill a successor whose time is over."""
        if self.successor is not None:
            self.successor.kill()

    @property
    def successor_ready(self) -> bool:
        """Whether it is time to hand over."""
        return self.successor is not None and self.successor.state is SuccessorState.READY

    def hand_over(self) -> int:
        """Let the successor lead. Returns its pid."""
        assert self.successor is not None
        self.successor.let_lead()
        self.role = Role.PREDECESSOR
        self._leave_relay()
        if self._relay is not None:
            self._relay.channel.watch()
        return self.successor.pid

    def stop(self, number: int, deadline: float) -> None:
        """We are to stop. So send this signal to a successor that does not lead yet: it has to stop by `deadline` as well."""
        self.requested = ""
        if self.successor is not None and not self.handed_over:
            self.successor.stop(number, deadline)

    def on_exit(self, pid: int, code: int) -> bool:
        """A process has exited. Returns whether it was the successor; if that did not lead yet, we carry on."""
        if self.successor is None or pid != self.successor.pid:
            return False
        if not self.handed_over:
            self.successor.log_exit(code)
            self.successor.channel.close()
            if self._relay is not None:
                self._relay.channel.close()
                self._relay = None
        self.successor = None
        return True

    # As a predecessor, and at the end.

    def pass_on(self, number: int) -> None:
        """If we are the relay: have the leader act upon this signal."""
        if self.handed_over and self._relay is not None:
            self._relay.pass_on(number)

    def end(self, status: int) -> int:
        """Report our `status` to the relay if we lead. Returns the status to exit with: in the relay, the last leader's."""
        if self._to_relay is not None and self.role is Role.LEADER:
            self._to_relay.send(bytes([status]))
        return self._relay.status if self.handed_over and self._relay is not None else status

    def disown(self) -> None:
        """In a forked worker: close all of this."""
        for channel in self._to_predecessor, self._to_relay:
            if channel is not None:
                channel.disown()
        for peer in self.successor, self._relay:
            if peer is not None:
                peer.channel.disown()
        for inheritance in self.handover.inheritances:
            for fd in inheritance.listeners:
                os.close(fd)
