"""Listening sockets: from a checked address to listeners. Accepts nothing, knows no HTTP, and nothing of who will use them.

Each TCP address is a group of listeners that share it by SO_REUSEPORT, one for each slot, so that every worker has a queue of
its own. Unix sockets know no SO_REUSEPORT: their group is one listener, of which every slot has a duplicate.
"""

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

# Set on the listener: on Linux what it accepts inherits both, and no connection pays a system call for it.
_TCP_OPTIONS: Final = {"nodelay": socket.TCP_NODELAY, "cork": socket.TCP_CORK, "default": None}

# Seconds that a client which connects and says nothing is kept from us (TCP_DEFER_ACCEPT, tcp(7)). Who speaks is accepted when
# its first bytes are there, and one wake-up without epoll_ctl does: `ab -c 100` 21,300 requests a second, with this 25,700.
DEFER: Final = 1

# Of a name's several addresses, those that this machine lacks are passed over: a container without IPv6 knows `::1 localhost`.
_NOT_HERE: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class BindError(Exception):
    """One line: which address cannot be listened on, and why."""


class Will(NamedTuple):
    """A group as one supervisor leaves it to the next (see upgrade.py): plain values, and descriptors by their numbers."""

    names: list[str]  # by which the next one knows that it is the same address
    port: int  # 0 for a Unix socket
    path: str  # "" for TCP
    listeners: list[int]  # of slot 0, 1, ...; of a Unix socket the one that there is
    order: list[int]  # the slots in the kernel's order


class TcpGroup:
    """An address that a group of listeners shares. Port 0 becomes the port that the first of them is given."""

    def __init__(self, family: int, address: tuple[Any, ...], only_v6: bool, backlog: int, tcp: str) -> None:
        self.family = family
        self.address = address
        self._asked = address
        self._only_v6 = only_v6
        self._backlog = backlog
        self._option = _TCP_OPTIONS[tcp]
        self.members: list[socket.socket] = []  # our listeners, in the kernel's order
        self._inherited: list[socket.socket] = []  # those of them that `join` has yet to give away

    @property
    def url(self) -> str:
        """Where a browser finds it; a wildcard address is shown as it is."""
        host, port = self.address[:2]
        return f"http://[{host}]:{port}" if self.family == socket.AF_INET6 else f"http://{host}:{port}"

    def probe(self) -> None:
        """`OSError` where somebody else listens there.

        SO_REUSEPORT would silently share the address with another server of the same user, and the kernel give it half of the
        connections; so we ask without.
        """
        self._bound(shared=False).close()

    def will(self, listeners: Sequence[socket.socket]) -> Will:
        """What a successor needs to have the same listeners, which are those of slot 0, 1, ..."""
        order = [listeners.index(member) for member in self.members]
        return Will(sorted(self._names()), self.address[1], "", [listener.fileno() for listener in listeners], order)

    def adopt(self, will: Will) -> bool:
        """Take these listeners, if they are of this address. Nothing is changed on them before `settle`."""
        if self._names().isdisjoint(will.names):
            return False
        for fd in will.listeners:
            listener = socket.socket(fileno=fd)
            listener.setblocking(False)
            self._inherited.append(listener)
        self.members = [self._inherited[slot] for slot in will.order]
        self.address = self.members[0].getsockname()
        return True

    @property
    def adopted(self) -> bool:
        """Whether it was left to us, or has been joined since."""
        return bool(self.members)

    def settle(self) -> None:
        """Have what was adopted be as our configuration wants it, now that it is ours alone."""
        for member in self.members:
            member.listen(self._backlog)
            for option in filter(None, _TCP_OPTIONS.values()):
                member.setsockopt(socket.IPPROTO_TCP, option, option == self._option)

    def join(self) -> socket.socket:
        """One listener more, nonblocking. `OSError`."""
        if self._inherited:
            return self._inherited.pop(0)
        listener = self._bound(shared=True)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER)
        listener.listen(self._backlog)
        self.address = listener.getsockname()
        self.members.append(listener)  # by `listen`, not by `bind`
        return listener

    def leave(self, listener: socket.socket) -> None:
        """Take a listener out of the group and close it, whoever else holds it open. What waits in it is turned away."""
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RD)
        listener.close()
        # As reuseport_detach_sock of the kernel does it: the last one moves into the hole.
        hole = self.members.index(listener)
        self.members[hole] = self.members[-1]
        self.members.pop()

    def close(self) -> None:
        """Nothing to do: who joined holds all there is."""

    def _names(self) -> set[str]:
        return {str((self.family, *address)) for address in (self._asked, self.address)}

    def _bound(self, shared: bool) -> socket.socket:
        bound = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            bound.setblocking(False)
            # What is left of connections of a server that has just ended does not count; one that listens does (socket(7)).
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
    """A socket in the file system. Its file is ours to remove, unless somebody has put another in its place."""

    def __init__(self, path: str, backlog: int) -> None:
        self._path = path
        self._backlog = backlog
        self._listener: socket.socket | None = None
        self._file = (0, 0)
        self._adopted = (0, 0)  # the file, before it is ours

    @property
    def url(self) -> str:
        """No URL that a browser knows, but the address as `--bind` takes it."""
        return f"unix:{self._path}"

    def probe(self) -> None:
        """Remove what a server left behind that ended without doing so. `OSError` where the file is anybody else's."""
        try:
            mode = os.lstat(self._path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise FileExistsError(errno.EEXIST, "there is a file which is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.setblocking(False)
            answer = caller.connect_ex(self._path)
        if answer != errno.ECONNREFUSED:  # connected, or the queue is full (EAGAIN), or we may not ask
            raise OSError(errno.EADDRINUSE if answer in (0, errno.EAGAIN) else answer, os.strerror(answer))
        os.unlink(self._path)

    def will(self, listeners: Sequence[socket.socket]) -> Will:
        """What a successor needs to have the same listener and to know the file again."""
        assert self._listener is not None
        path = os.path.abspath(self._path)
        return Will([_unix_name(path, self._file)], 0, path, [self._listener.fileno()], [])

    def adopt(self, will: Will) -> bool:
        """Take the listener, if it is the one that the file leads to. The file is not ours before `settle`."""
        try:
            found = _identity(self._path)
        except OSError:
            return False
        if _unix_name(os.path.abspath(self._path), found) not in will.names:
            return False
        self._listener = socket.socket(fileno=will.listeners[0])
        self._listener.setblocking(False)
        self._adopted = found
        return True

    @property
    def adopted(self) -> bool:
        """Whether it was left to us."""
        return self._adopted != (0, 0)

    def settle(self) -> None:
        """Have what was adopted be as our configuration wants it, file included, now that it is ours alone."""
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
        """Close the one listener. Its duplicates, and the file, are still there."""
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
    addresses: Sequence[str], slots: int, backlog: int, tcp: str, wills: list[Will] | None = None
) -> tuple[list[Group], list[list[socket.socket]]]:
    """Listen on each `HOST:PORT`, `[IPV6]:PORT` and `unix:PATH`: the groups, and of each slot one listener from each group.

    A name is listened on at all its addresses, and port 0 becomes the same port at all of them. `BindError`.
    Of the `wills` of a predecessor, which has as many slots, those that are wanted are adopted; the others stay in the list.
    """
    groups: list[Group] = []
    listeners: list[list[socket.socket]] = [[] for _ in range(slots)]
    try:
        resolved = []
        for text in addresses:
            with _telling(text):
                resolved.append((text, [] if text.startswith("unix:") else _resolve(text)))
        plan = list(_plan(resolved, backlog, tcp))
        ours = {will.port for will in wills or ()}
        for _, found in plan:
            _adopt(found, wills or [])
        # All are probed before the first one listens, for our own may overlap: 0.0.0.0:80 and 127.0.0.1:80.
        for text, found in plan:
            with _telling(text):
                _probe(found, ours)
        for text, found in plan:
            with _telling(text):
                _listen(found, groups, listeners)
    except BindError:
        close(groups, listeners)
        unlink(groups)
        raise
    return groups, listeners


def close(groups: Sequence[Group], listeners: Sequence[Sequence[socket.socket]]) -> None:
    """Close our copies. Where no worker has its own, whoever is still in a queue is turned away by the kernel."""
    for own in listeners:
        for listener in own:
            listener.close()
    for group in groups:
        group.close()


def unlink(groups: Sequence[Group]) -> None:
    """Remove the files of unix sockets."""
    for group in groups:
        if isinstance(group, UnixGroup):
            group.unlink()


def unlink_left(will: Will) -> None:
    """Remove the file of a Unix socket that was left to us and is not wanted."""
    with contextlib.suppress(OSError):
        if will.path and _unix_name(will.path, _identity(will.path)) in will.names:
            os.unlink(will.path)


def _resolve(text: str) -> list[tuple[int, tuple[Any, ...]]]:
    host, _, port = text.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(family, address) for family, _, _, _, address in found]


def _plan(
    resolved: Sequence[tuple[str, Sequence[tuple[int, tuple[Any, ...]]]]], backlog: int, tcp: str
) -> Iterator[tuple[str, list[Group]]]:
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
                # Where an IPv4 address has the same port, [::] must not claim it too; else it is as the system says (ipv6(7)).
                only_v6 = family == socket.AF_INET6 and address[1] in v4_ports
                groups.append(TcpGroup(family, address, only_v6, backlog, tcp))
        yield text, groups


def _adopt(groups: list[Group], wills: list[Will]) -> None:
    for group in groups:
        adopted = next((will for will in wills if group.adopt(will)), None)
        if adopted is not None:
            wills.remove(adopted)


def _probe(groups: list[Group], ours: set[int]) -> None:
    """Probe each; take out those that this machine does not have, while another is left.

    Not on a port that our predecessor has: where the address is not the same it may yet overlap, and the port is ours.
    """
    for group in tuple(groups):
        if group.adopted or (isinstance(group, TcpGroup) and group.address[1] in ours - {0}):
            continue
        try:
            group.probe()
        except OSError as error:
            if error.errno not in _NOT_HERE or len(groups) == 1:
                raise
            groups.remove(group)


def _listen(found: Sequence[Group], groups: list[Group], listeners: Sequence[list[socket.socket]]) -> None:
    port = 0
    for group in found:
        if isinstance(group, TcpGroup) and port:
            group.address = (group.address[0], port, *group.address[2:])
        groups.append(group)
        for own in listeners:
            own.append(group.join())
        port = group.address[1] if isinstance(group, TcpGroup) else 0


@contextlib.contextmanager
def _telling(text: str) -> Iterator[None]:
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
