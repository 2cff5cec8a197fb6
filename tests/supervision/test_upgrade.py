"""What a supervisor leaves to the next, and what it makes of a will that it cannot read."""

import json
import os
import socket

import pytest

from epollard.net import sockets
from epollard.net.loop import Loop
from epollard.supervision import upgrade
from epollard.supervision.upgrade import VARIABLE, HandoverError, Upgrade


@pytest.fixture
def side():
    """A supervisor's side of an upgrade."""
    loop = Loop()
    yield Upgrade(loop, ".", lambda number, heard: None)
    loop.close()


@pytest.mark.parametrize(
    "text",
    [
        "3",
        "[]",
        "{}",
        "no JSON",
        json.dumps({"format": upgrade.FORMAT + 1}),
        json.dumps({"format": upgrade.FORMAT, "wills": [[1, 2]], "admin": []}),
        json.dumps(
            {
                "format": upgrade.FORMAT,
                "wills": [],
                "admin": [],
                "generation": 1,
                "slots": 1,
                "configured": [1, 1],
                "bounds": [1, 1],
            }
            | {"elder": 10**6, "lead": 10**6}
        ),
    ],
)
def test_what_cannot_be_read_is_no_will(side, monkeypatch, text):
    """Another version's, or somebody's own: one line, and the variable is gone."""
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(HandoverError, match="EPOLLARD_HANDOVER: this version cannot take over from the one that is running"):
        side.inherit()
    assert VARIABLE not in os.environ


def test_without_a_will_we_are_the_first(side, monkeypatch):
    """And lead at once."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not side.inherit()
    assert side.leads
    assert not side.under_way


def inherited(will):
    """The will as a successor gets it: with descriptors of its own."""
    return will._replace(listeners=[os.dup(fd) for fd in will.listeners])


@pytest.fixture
def old():
    """`old("127.0.0.1:0", slots=3)`: what a predecessor listens with."""
    bound = []

    def bind(*addresses, slots=1, **options):
        bound.append(sockets.bind(addresses, slots, options.get("backlog", 16), options.get("tcp", "nodelay")))
        return bound[-1]

    yield bind
    for groups, listeners in bound:
        sockets.close(groups, listeners)
        sockets.unlink(groups)


def wills_of(groups, listeners):
    return [inherited(group.inheritance([own[at] for own in listeners])) for at, group in enumerate(groups)]


def test_the_kernels_order_is_handed_over(old):
    """After one listener has left, the last one is in its place: the successor knows, though slots are counted otherwise."""
    (group,), listeners = old("127.0.0.1:0", slots=4)
    group.leave(listeners[1][0])
    listeners.pop(1)
    wills = wills_of([group], listeners)
    (found,), mine = sockets.bind(["127.0.0.1:0"], 3, 16, "nodelay", wills)
    assert wills == []
    inodes = [os.fstat(own[0].fileno()).st_ino for own in listeners]
    assert [os.fstat(own[0].fileno()).st_ino for own in mine] == inodes
    assert [os.fstat(member.fileno()).st_ino for member in found.members] == [inodes[0], inodes[2], inodes[1]]
    assert found.url == group.url
    sockets.close([found], mine)


def test_nothing_is_changed_before_it_is_ours(old):
    """TCP options and backlog are the predecessor's until `settle`."""
    (group,), listeners = old("127.0.0.1:0", backlog=7, tcp="nodelay")
    wills = wills_of([group], listeners)
    (found,), ((mine,),) = sockets.bind(["127.0.0.1:0"], 1, 5, "cork", wills)

    def options():
        return [mine.getsockopt(socket.IPPROTO_TCP, option) for option in (socket.TCP_NODELAY, socket.TCP_CORK)]

    assert options() == [1, 0]
    found.take_over()
    assert options() == [0, 1]
    mine.close()


def test_a_unix_socket_is_known_by_its_file(old, tmp_path):
    """The same file: it is adopted, and not removed by who does not own it yet. Another file: it is not."""
    path = tmp_path / "it"
    groups, listeners = old(f"unix:{path}")
    (found,), mine = sockets.bind([f"unix:{path}"], 1, 16, "nodelay", wills_of(groups, listeners))
    sockets.unlink([found])
    assert path.exists()
    found.take_over()
    sockets.unlink([found])
    assert not path.exists()
    sockets.close([found], mine)
    path.write_text("so that the number of the inode is not given again")
    path.rename(tmp_path / "other")
    wills = wills_of(groups, listeners)
    (found,), mine = sockets.bind([f"unix:{path}"], 1, 16, "nodelay", wills)
    assert len(wills) == 1
    sockets.unlink_inherited(wills[0])
    assert path.exists()
    os.close(wills[0].listeners[0])
    sockets.close([found], mine)
    sockets.unlink([found])


def test_an_address_that_is_not_wanted_stays_in_the_list(old):
    """And is not ours to shut yet: who connects to it is still heard."""
    groups, listeners = old("127.0.0.1:0", "127.0.0.1:0")
    wanted, spare = (f"127.0.0.1:{group.address[1]}" for group in groups)
    wills = wills_of(groups, listeners)
    found, mine = sockets.bind([wanted], 1, 16, "nodelay", wills)
    assert [f"127.0.0.1:{will.port}" for will in wills] == [spare]
    with socket.create_connection(groups[1].address):
        pass
    os.close(wills[0].listeners[0])
    sockets.close(found, mine)
