"""Listening sockets: from a checked address to listeners. Accepts no connection and knows no HTTP.

Each TCP address is a group of listeners that share it by SO_REUSEPORT, one for each slot, so that every worker has a queue of
its own. Unix sockets have no SO_REUSEPORT: their group is one listener, of which every slot has a duplicate.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

# Set on the listener: on Linux what it accepts inherits both, and no connection pays a system call for it.
_TCP_OPTIONS: Final = {"nodelay": socket.TCP_NODELAY, "cork": socket.TCP_CORK, "default": None}

# Seconds for which the kernel holds back a client that connects and sends nothing (TCP_DEFER_ACCEPT, tcp(7)). A client is
# accepted when its first bytes are there, with one wake-up and no epoll_ctl: `ab -c 100` 21,300 requests a second, with this
# 25,700.
DEFER: Final = 1

# Where a name has several addresses, those that this machine lacks are skipped: a container without IPv6 has `::1 localhost`.
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

# A queue's length in what TCP_INFO reports of a listener: tcpi_unacked of struct tcp_info (linux/tcp.h).
_INFO_BYTES: Final = 28
_UNACKED: Final = 24


class BindError(Exception):
    """One line: which address cannot be listened on, and why."""


class Inheritance(NamedTuple):
    """A group as one supervisor leaves it to the next (see upgrade.py): plain values, and descriptors by their numbers.

    It travels as a JSON array, so the order of the fields is part of the handover's format.
    """

    names: list[str]  # by which the successor recognizes the address
    port: int  # 0 for a Unix socket
    path: str  # "" for TCP
    listeners: list[int]  # of slot 0, 1, ...; of a Unix socket the only one
    order: list[int]  # the slots in the kernel's order


class TcpGroup:
    """A TCP address that a group of listeners shares. Port 0 becomes the port that the first of them is given."""

    def __init__(self, family: int, address: tuple[Any, ...], only_v6: bool, backlog: int, tcp: str) -> None:
        self.family = family
        self.address = address
        self._requested = address
        self._only_v6 = only_v6
        self._backlog = backlog
        self._option = _TCP_OPTIONS[tcp]
        self.members: list[socket.socket] = []  # our listeners, in the kernel's order
        self._inherited: list[socket.socket] = []  # those of them that `join` has not yet given to a slot

    @property
    def url(self) -> str:
        """The URL for a browser; a wildcard address is shown as it is."""
        host, port = self.address[:2]
        return f"http://[{host}]:{port}" if self.family == socket.AF_INET6 else f"http://{host}:{port}"

    def probe(self) -> None:
        """`OSError` where another server listens on the address.

        With SO_REUSEPORT we would silently share the address with another server of the same user, and the kernel would give it
        half of the connections; so the probe does without.
        """
        self._bound(shared=False).close()

    def inheritance(self, listeners: Sequence[socket.socket]) -> Inheritance:
        """The group for a successor; `listeners` are those of slot 0, 1, ..."""
        order = [listeners.index(member) for member in self.members]
        fds = [listener.fileno() for listener in listeners]
        return Inheritance(sorted(self._names()), self.address[1], "", fds, order)

    def adopt(self, inheritance: Inheritance) -> bool:
        """Use these listeners if they are of this address. Nothing is changed on them before `take_over`."""
        if self._names().isdisjoint(inheritance.names):
            return False
        for fd in inheritance.listeners:
            listener = socket.socket(fileno=fd)
            listener.setblocking(False)
            self._inherited.append(listener)
        self.members = [self._inherited[slot] for slot in inheritance.order]
        self.address = self.members[0].getsockname()
        return True

    @property
    def adopted(self) -> bool:
        """Whether there are listeners of a predecessor, or some have joined since."""
        return bool(self.members)

    def take_over(self) -> None:
        """Apply our configuration to adopted listeners, which from now on are ours alone."""
        for member in self.members:
            member.listen(self._backlog)
            for option in filter(None, _TCP_OPTIONS.values()):
                member.setsockopt(socket.IPPROTO_TCP, option, option == self._option)

    def join(self) -> socket.socket:
        """One more listener, non-blocking. `OSError`."""
        if self._inherited:
            return self._inherited.pop(0)
        listener = self._bound(shared=True)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER)
        listener.listen(self._backlog)
        self.address = listener.getsockname()
        self.members.append(listener)  # the kernel's order is that of `listen`, not of `bind`
        return listener

    def leave(self, listener: socket.socket) -> None:
        """Take a listener out of the group and close it, even if other processes hold it open. Its queue is reset."""
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RD)
        listener.close()
        # As in the kernel's reuseport_detach_sock: the last member moves into the hole.
        hole = self.members.index(listener)
        self.members[hole] = self.members[-1]
        self.members.pop()

    def _names(self) -> set[str]:
        return {str((self.family, *address)) for address in (self._requested, self.address)}

    def _bound(self, shared: bool) -> socket.socket:
        bound = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            bound.setblocking(False)
            # Remains of connections of a server that has ended are no obstacle; a server that listens still is (socket(7)).
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if self._only_v6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if self._option is not None:
                bound.setsockopt(socket.IPPROTO_TCP, self._option, 1)
            bound.bind(self.address)
        except BaseException:
            bound.close()
            raise
        return bound


class UnixGroup:
    """A socket in the file system. Its file is ours to remove, unless another process has put its own in its place."""

    def __init__(self, path: str, backlog: int) -> None:
        self._path = path
        self._backlog = backlog
        self._listener: socket.socket | None = None
        self._file = (0, 0)
        self._adopted = (0, 0)  # the file of an adopted listener, before it is ours

    @property
    def url(self) -> str:
        """The address as `--bind` takes it, as browsers have no URL for it."""
        return f"unix:{self._path}"

    def probe(self) -> None:
        """Remove a file that a server left behind when it was killed. `OSError` where the file is in use, or no socket."""
        try:
            mode = os.lstat(self._path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise FileExistsError(errno.EEXIST, "there is a file which is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            error = caller.connect_ex(self._path)
        if error != errno.ECONNREFUSED:  # connected, or the queue is full (EAGAIN), or we may not connect
            raise OSError(errno.EADDRINUSE if error in (0, errno.EAGAIN) else error, os.strerror(error))
        os.unlink(self._path)

    def inheritance(self, listeners: Sequence[socket.socket]) -> Inheritance:
        """The listener for a successor, and how to recognize its file."""
        assert self._listener is not None
        path = os.path.abspath(self._path)
        return Inheritance([_unix_name(path, self._file)], 0, path, [self._listener.fileno()], [])

    def adopt(self, inheritance: Inheritance) -> bool:
        """Use the listener if it is the one that the file leads to. The file is not ours before `take_over`."""
        try:
            found = _identity(self._path)
        except OSError:
            return False
        if _unix_name(os.path.abspath(self._path), found) not in inheritance.names:
            return False
        self._listener = socket.socket(fileno=inheritance.listeners[0])
        self._listener.setblocking(False)
        self._adopted = found
        return True

    @property
    def adopted(self) -> bool:
        """Whether the listener is a predecessor's."""
        return self._adopted != (0, 0)

    def take_over(self) -> None:
        """Apply our configuration to an adopted listener, which from now on is ours alone, and so is its file."""
        if self._listener is not None and self.adopted:
            self._listener.listen(self._backlog)
            self._file = self._adopted

    def join(self) -> socket.socket:
        """A duplicate of the one listener. `OSError`."""
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.setblocking(False)
            self._listener.bind(self._path)
            self._file = _identity(self._path)
            self._listener.listen(self._backlog)
        return self._listener.dup()

    def leave(self, listener: socket.socket) -> None:
        """Close a duplicate."""
        listener.close()

    def close(self) -> None:
        """Close our listener. Its duplicates and the file remain."""
        if self._listener is not None:
            self._listener.close()

    def unlink(self) -> None:
        """Remove the file."""
        try:
            if _identity(self._path) == self._file:
                os.unlink(self._path)
        except OSError:
            pass  # gone already, or no longer ours to remove


Group = TcpGroup | UnixGroup


def bind(
    addresses: Sequence[str], slots: int, backlog: int, tcp: str, inheritances: list[Inheritance] | None = None
) -> tuple[list[Group], list[list[socket.socket]]]:
    """Listen on each `HOST:PORT`, `[IPV6]:PORT`, `unix:PATH`. Returns the groups, and each slot's listeners, one of each group.

    A name is listened on at all its addresses, and port 0 becomes the same port at all of them. `BindError`.
    What is wanted of a predecessor's `inheritances`, made for as many slots, is adopted and taken out of the list.
    """
    groups: list[Group] = []
    listeners: list[list[socket.socket]] = [[] for _ in range(slots)]
    try:
        resolved = []
        for text in addresses:
            with _bind_errors(text):
                resolved.append((text, [] if text.startswith("unix:") else _resolve(text)))
        plan = list(_plan(resolved, backlog, tcp))
        inherited_ports = {inheritance.port for inheritance in inheritances or ()}
        for _, planned in plan:
            _adopt(planned, inheritances or [])
        # All are probed before the first one listens, because our own may overlap: 0.0.0.0:80 and 127.0.0.1:80.
        for text, planned in plan:
            with _bind_errors(text):
                _probe(planned, inherited_ports)
        for text, planned in plan:
            with _bind_errors(text):
                _listen(planned, groups, listeners)
    except BindError:
        close(groups, listeners)
        unlink(groups)
        raise
    return groups, listeners


def close(groups: Sequence[Group], listeners: Sequence[Sequence[socket.socket]]) -> None:
    """Close our copies. Where no worker has its own, the kernel resets the connections that are still queued."""
    for own in listeners:
        for listener in own:
            listener.close()
    for group in groups:
        if isinstance(group, UnixGroup):
            group.close()


def unlink(groups: Sequence[Group]) -> None:
    """Remove the files of Unix sockets."""
    for group in groups:
        if isinstance(group, UnixGroup):
            group.unlink()


def unlink_inherited(inheritance: Inheritance) -> None:
    """Remove the file of a Unix socket that a predecessor left and our configuration no longer has."""
    with contextlib.suppress(OSError):
        if inheritance.path and _unix_name(inheritance.path, _identity(inheritance.path)) in inheritance.names:
            os.unlink(inheritance.path)


def queue_length(listener: socket.socket) -> int:
    """How many connections wait to be accepted. Unix sockets do not report it: 0."""
    if listener.family == socket.AF_UNIX:
        return 0
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    count: int = struct.unpack_from("I", info, _UNACKED)[0]
    return count


def _resolve(text: str) -> list[tuple[int, tuple[Any, ...]]]:
    host, _, port = text.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, address) for family, _, _, _, address in found]


def _plan(
    resolved: Sequence[tuple[str, Sequence[tuple[int, tuple[Any, ...]]]]], backlog: int, tcp: str
) -> Iterator[tuple[str, list[Group]]]:
    """The groups of each address that was given. Binds nothing."""
    v4_ports = {address[1] for _, found in resolved for family, address in found if family == socket.AF_INET} - {0}
    seen = set()
    for text, found in resolved:
        if text.startswith("unix:"):
            yield text, [UnixGroup(text.removeprefix("unix:"), backlog)]
            continue
        groups: list[Group] = []
        for family, address in found:
            if address not in seen or not address[1]:  # a name may stand for an address that is given as well
                seen.add(address)
                # [::] must not claim a port that an IPv4 address has as well; otherwise the system's default holds (ipv6(7)).
                only_v6 = family == socket.AF_INET6 and address[1] in v4_ports
                groups.append(TcpGroup(family, address, only_v6, backlog, tcp))
        yield text, groups


def _adopt(groups: list[Group], inheritances: list[Inheritance]) -> None:
    for group in groups:
        adopted = next((inheritance for inheritance in inheritances if group.adopt(inheritance)), None)
        if adopted is not None:
            inheritances.remove(adopted)


def _probe(groups: list[Group], inherited_ports: set[int]) -> None:
    """Probe each group; take out those that this machine does not have, as long as another is left.

    A port of our predecessor is not probed: even where the address is another, the two may overlap, and the port is ours.
    """
    for group in tuple(groups):
        if group.adopted or (isinstance(group, TcpGroup) and group.address[1] in inherited_ports - {0}):
            continue
        try:
            group.probe()
        except OSError as error:
            if error.errno not in _NOT_HERE or len(groups) == 1:
                raise
            groups.remove(group)


def _listen(planned: Sequence[Group], groups: list[Group], listeners: Sequence[list[socket.socket]]) -> None:
    port = 0
    for group in planned:
        if isinstance(group, TcpGroup) and port:
            group.address = (group.address[0], port, *group.address[2:])
        groups.append(group)
        for own in listeners:
            own.append(group.join())
        port = group.address[1] if isinstance(group, TcpGroup) else 0


@contextlib.contextmanager
def _bind_errors(text: str) -> Iterator[None]:
    """Raise what goes wrong as a `BindError` that names the address."""
    try:
        yield
    except OSError as error:
        why = "another server listens there" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
        raise BindError(f"cannot listen on {text}: {why}") from None


def _unix_name(path: str, file: tuple[int, int]) -> str:
    return str((path, *file))


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino
