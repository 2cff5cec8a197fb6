"""Listeners: one group per address, options that connections inherit, and no address that another server has."""

import contextlib
import os
import socket
import stat

import pytest

from epollard.net import sockets
from epollard.net.sockets import BindError, UnixGroup
from harness import HAS_V6, wait_for

needs_v6 = pytest.mark.skipif(not HAS_V6, reason="this machine has no IPv6 loopback")


@pytest.fixture
def bind():
    """`sockets.bind`, undone after the test."""
    with contextlib.ExitStack() as stack:

        def bind(*addresses, slots=1, backlog=16, tcp="nodelay"):
            groups, listeners = sockets.bind(addresses, slots, backlog, tcp)
            stack.callback(sockets.unlink, groups)
            stack.callback(sockets.close, groups, listeners)
            return groups, listeners

        yield bind


@pytest.fixture
def other():
    """`other(address)`: a listener of another server."""
    with contextlib.ExitStack() as stack:

        def other(address, family=socket.AF_INET, shared=False):
            listener = stack.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(address)
            listener.listen()
            return listener

        yield other


def free_port(family=socket.AF_INET):
    with socket.socket(family) as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def test_each_slot_has_a_listener_of_one_group(bind):
    """Port 0 becomes one port for all; each listener has its own queue, and connections are spread over them."""
    (group,), listeners = bind("127.0.0.1:0", slots=4)
    names = {own[0].getsockname() for own in listeners}
    assert names == {group.address}
    assert group.address[1] != 0
    assert group.url == f"http://127.0.0.1:{group.address[1]}"
    with contextlib.ExitStack() as stack:
        for _ in range(16):  # one listener's backlog: none is full, however the hash spreads them
            stack.enter_context(socket.create_connection(group.address)).send(b"G")  # a silent client is not accepted
        accepted = [accept_all(own[0], stack) for own in listeners]
        assert sum(accepted) == 16
        assert max(accepted) < 16  # the chance that all went to one is 4 ** -15


def accept_all(listener, stack):
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            stack.enter_context(listener.accept()[0])
            count += 1
    return count


def test_another_slot_joins_the_group(bind):
    """A listener that is made later shares the port that the first one was given."""
    (group,), _ = bind("127.0.0.1:0")
    address = group.address
    with group.join() as late:
        assert late.getsockname() == address == group.address


@pytest.mark.parametrize(
    ("tcp", "nodelay", "cork"), [("nodelay", True, False), ("cork", False, True), ("default", False, False)]
)
@pytest.mark.parametrize("address", ["127.0.0.1:0", pytest.param("[::1]:0", marks=needs_v6)])
def test_accepted_connections_inherit_the_option(bind, address, tcp, nodelay, cork):
    """The accepted socket has the option, although it was set only on the listener."""
    (group,), ((listener,),) = bind(address, tcp=tcp)
    listener.setblocking(True)
    with socket.create_connection(group.address[:2]), listener.accept()[0] as accepted:
        assert bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is nodelay
        assert bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)) is cork


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:it"])
def test_listeners_do_not_block_and_are_not_inherited(bind, address, tmp_path, monkeypatch):
    """A worker whose queue is empty is not blocked, and a program that an application runs does not hold the port."""
    monkeypatch.chdir(tmp_path)
    groups, listeners = bind(address, slots=2)
    held = [own[0] for own in listeners] + [group._listener for group in groups if isinstance(group, UnixGroup)]
    for listener in held:
        assert not listener.get_inheritable()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_the_backlog_bounds_each_queue(bind):
    """A backlog of 1 holds two connections (the kernel counts from 0); the next one is not established."""
    (group,), _ = bind("127.0.0.1:0", backlog=1)
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(group.address, timeout=5)).send(b"G")
        with pytest.raises(TimeoutError):
            stack.enter_context(socket.create_connection(group.address, timeout=0.2))


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "reuseport"])
@pytest.mark.parametrize("theirs", ["127.0.0.1", "0.0.0.0"])
def test_an_address_in_use_is_refused(bind, other, shared, theirs):
    """Even if the other server would let us share it: two servers on one port are a mistake."""
    port = other((theirs, 0), shared=shared).getsockname()[1]
    with pytest.raises(BindError) as caught:
        bind("127.0.0.1:0", f"127.0.0.1:{port}", slots=2)
    assert str(caught.value) == f"cannot listen on 127.0.0.1:{port}: another server listens there"


def test_an_address_is_free_as_soon_as_it_is_given_up(bind):
    """A restart does not wait for the old server's connections, neither those in TIME-WAIT nor those that are still open."""
    (group,), ((listener,),) = bind("127.0.0.1:0")
    listener.setblocking(True)
    with socket.create_connection(group.address) as client, listener.accept()[0] as open_still:
        with socket.create_connection(group.address) as brief:
            listener.accept()[0].close()  # we close first: TIME-WAIT is on our side
            assert brief.recv(1) == b""
        listener.close()
        (again,), _ = bind(f"127.0.0.1:{group.address[1]}")
        assert again.address == group.address
        assert client.getpeername() == open_still.getsockname()


def test_our_own_addresses_may_overlap(bind):
    """A wildcard and a single address on the same port: both are ours, so they are no conflict."""
    port = free_port()
    groups, _ = bind(f"0.0.0.0:{port}", f"127.0.0.1:{port}")
    assert [group.url for group in groups] == [f"http://0.0.0.0:{port}", f"http://127.0.0.1:{port}"]


@needs_v6
def test_ipv6_and_ipv4_on_one_port(bind):
    """Both wildcards with one port: each family reaches its own listener."""
    port = free_port(socket.AF_INET6)
    _, ((six, four),) = bind(f"[::]:{port}", f"0.0.0.0:{port}")
    assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    for host, listener in ("::1", six), ("127.0.0.1", four):
        listener.setblocking(True)
        listener.settimeout(5)
        with socket.create_connection((host, port)), listener.accept()[0] as accepted:
            assert accepted.getsockname()[0] == host


@needs_v6
def test_ipv6_alone_follows_the_system_default(bind):
    """`[::]` takes IPv4 as well unless net.ipv6.bindv6only is set, also if there is an IPv4 address with another port."""
    (group, _), ((listener, _),) = bind("[::]:0", "127.0.0.1:0")
    assert group.url == f"http://[::]:{group.address[1]}"
    with open("/proc/sys/net/ipv6/bindv6only", encoding="ascii") as file:
        assert bool(listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)) is bool(int(file.read()))


def resolves_to(monkeypatch, *found):
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **_: [(family, 1, 6, "", (*name, port)[:2]) for family, *name in found]
    )


def test_a_name_is_listened_on_at_all_its_addresses(bind, monkeypatch):
    """All of them have the same port, even if port 0 was asked for."""
    resolves_to(monkeypatch, (socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.2"))
    groups, listeners = bind("both.example:0", slots=2)
    assert [group.address[0] for group in groups] == ["127.0.0.1", "127.0.0.2"]
    assert len({group.address[1] for group in groups}) == 1
    assert [len(own) for own in listeners] == [2, 2]


def test_an_address_that_this_machine_lacks_is_skipped_if_the_name_has_another(bind, monkeypatch):
    """No machine has 192.0.2.0/24 (RFC 5737): as one of a name's addresses it is skipped, as the only one it is an error."""
    resolves_to(monkeypatch, (socket.AF_INET, "192.0.2.1"), (socket.AF_INET, "127.0.0.1"))
    groups, _ = bind("both.example:0")
    assert [group.address[0] for group in groups] == ["127.0.0.1"]
    resolves_to(monkeypatch, (socket.AF_INET, "192.0.2.1"))
    with pytest.raises(BindError, match=r"^cannot listen on none\.example:0: Cannot assign requested address$"):
        bind("none.example:0")


def test_a_name_and_its_address_are_one_group(bind, monkeypatch):
    """`localhost:8000` and `127.0.0.1:8000` together are one address, not a conflict."""
    resolves_to(monkeypatch, (socket.AF_INET, "127.0.0.1"))
    port = free_port()
    groups, _ = bind(f"one.example:{port}", f"127.0.0.1:{port}")
    assert len(groups) == 1


def test_a_name_that_does_not_resolve_is_an_error_of_one_line(bind):
    """Names in .invalid never resolve (RFC 6761)."""
    with pytest.raises(BindError) as caught:
        bind("nowhere.invalid:8000")
    assert str(caught.value).startswith("cannot listen on nowhere.invalid:8000: ")
    assert "\n" not in str(caught.value)


def test_nothing_is_held_after_an_error(bind, other, tmp_path):
    """If the last address fails, the first ones are released, files included."""
    taken = other(("127.0.0.1", 0)).getsockname()[1]
    port = free_port()
    with pytest.raises(BindError):
        bind(f"127.0.0.1:{port}", f"unix:{tmp_path}/it", f"127.0.0.1:{taken}")
    assert list(tmp_path.iterdir()) == []
    other(("127.0.0.1", port))


def test_a_unix_socket_is_one_queue_for_all_slots(bind, tmp_path):
    """A connection is accepted by the slot that asks first."""
    path = f"{tmp_path}/it"
    (group,), listeners = bind(f"unix:{path}", slots=2)
    assert group.url == f"unix:{path}"
    for own in listeners:
        own[0].setblocking(True)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            own[0].accept()[0].close()


def test_a_stale_unix_socket_is_replaced(bind, tmp_path):
    """A server that was killed leaves its file behind; no process listens on it, so it is not in use."""
    path = f"{tmp_path}/it"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    bind(f"unix:{path}")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_unix_socket_in_use_is_left_alone(bind, other, tmp_path):
    """Another server's socket stays where it is, whether there is room in its queue or not."""
    path = f"{tmp_path}/it"
    listener = other(path, socket.AF_UNIX)
    listener.listen(0)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            with pytest.raises(BindError, match=r"it: another server listens there$"):
                bind(f"unix:{path}")
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect_ex(path)
    assert stat.S_ISSOCK(os.stat(path).st_mode)


def test_a_file_that_is_not_a_socket_is_left_alone(bind, tmp_path):
    """A wrong path never costs a file."""
    (tmp_path / "it").write_text("precious")
    with pytest.raises(BindError, match=r"it: there is a file which is not a socket$"):
        bind(f"unix:{tmp_path}/it")
    assert (tmp_path / "it").read_text() == "precious"


def test_only_our_own_unix_socket_is_removed(tmp_path):
    """At the end the file is removed, unless another server has put its own in its place."""
    path = f"{tmp_path}/it"
    groups, listeners = sockets.bind([f"unix:{path}"], 1, 1, "nodelay")
    sockets.close(groups, listeners)
    assert os.path.exists(path)
    sockets.unlink(groups)
    assert not os.path.exists(path)
    groups, listeners = sockets.bind([f"unix:{path}"], 1, 1, "nodelay")
    os.rename(path, f"{path}.old")  # keeps the inode number from being used again
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(path)
        sockets.close(groups, listeners)
        sockets.unlink(groups)
        assert os.path.exists(path)


@pytest.mark.parametrize("clients", [0, 1, 5])
def test_the_length_of_a_queue(bind, clients):
    """Connections that wait to be accepted are counted, without accepting one."""
    (group,), ((listener,),) = bind("127.0.0.1:0")
    with contextlib.ExitStack() as stack:
        for _ in range(clients):
            stack.enter_context(socket.create_connection(group.address)).send(b"G")
        wait_for(lambda: sockets.queue_length(listener) == clients)


def test_the_queue_of_a_unix_socket_has_no_length(bind, tmp_path):
    """The kernel does not report it: 0, without a system call that would fail."""
    _, ((listener,),) = bind(f"unix:{tmp_path}/it")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"{tmp_path}/it")
        assert sockets.queue_length(listener) == 0
