"""Pages and commands of the management listener, with real sockets and a supervisor that only takes notes."""

import contextlib
import dataclasses
import json
import threading

import pytest

from epollard.management.routes import COMMAND, Management
from epollard.net.loop import Loop
from facts import facts
from harness import Client
from staff import settings


class Supervisor:
    """Has facts that a test sets, and remembers its commands."""

    def __init__(self):
        self.state = facts("ready")
        self.refusal = ""
        self.commands = []

    def facts(self):
        return self.state

    def scale(self, least, most, why):
        self.commands.append(("scale", least, most, why))
        return self.refusal

    def reload(self, why):
        self.commands.append(("reload", why))
        return self.refusal

    def upgrade(self, why):
        self.commands.append(("upgrade", why))
        return self.refusal

    def drain(self, why):
        self.commands.append(("drain", why))
        self.state = self.state._replace(ending="stopping")


@pytest.fixture
def supervisor():
    """What the pages show, and what the commands command."""
    return Supervisor()


@contextlib.contextmanager
def turning(management, loop):
    """Serve the listener meanwhile, in a thread of its own."""
    done = threading.Event()

    def turn():
        while not done.is_set():
            loop.turn(0.01)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield management
    finally:
        done.set()
        thread.join()


@pytest.fixture
def management(supervisor):
    """A management listener on a free port of 127.0.0.1."""
    loop = Loop()
    made = Management(loop, supervisor)
    assert made.listen(settings("--admin", "127.0.0.1:0"), [])
    made.start()
    with turning(made, loop):
        yield made
    made.close()
    loop.close()


def ask(management, target, method="GET", **headers):
    (group,) = management.groups
    with Client(group.address) as client:
        return client.request(target, method, **{"host": "localhost", **headers}).response(method)


def test_pages(management, supervisor):
    """Alive is any response; ready is the status; both are JSON of one line, and HEAD has no body."""
    assert json.loads(ask(management, "/livez").body)["alive"] is True
    assert ask(management, "/readyz").status == 200
    supervisor.state = facts("booting", "booting")
    response = ask(management, "/readyz")
    assert response.status == 503
    assert response.header("content-type") == "application/json"
    assert response.header("cache-control") == "no-store"
    assert json.loads(response.body)["reasons"][0] == "0 of 2 workers ready, 1 needed"
    assert response.body.count(b"\n") == 1
    assert ask(management, "/readyz", "HEAD").status == 503
    assert b"epollard_workers_wanted 2\n" in ask(management, "/metrics").body


@pytest.mark.parametrize(
    ("target", "done", "command"),
    [
        ("/scale?workers=3", "3 workers wanted", ("scale", 3, 3)),
        ("/scale?workers=2..5", "2 to 5 workers wanted", ("scale", 2, 5)),
        ("/reload", "replacing all workers by generation 1", ("reload",)),
        ("/upgrade", "a new supervisor is being started from the code on disk", ("upgrade",)),
        ("/drain", "the server is stopping", ("drain",)),
    ],
)
def test_commands(management, supervisor, target, done, command):
    """Each is passed on once, and the response says what happens."""
    response = ask(management, target, "POST")
    assert (response.status, json.loads(response.body)) == (202, {"done": done})
    assert supervisor.commands == [(*command, COMMAND)]


@pytest.mark.parametrize("target", ["/scale?workers=3", "/reload", "/upgrade"])
def test_commands_that_the_supervisor_refuses(management, supervisor, target):
    """409, with its reason."""
    supervisor.refusal = "an upgrade is under way"
    response = ask(management, target, "POST")
    assert (response.status, json.loads(response.body)) == (409, {"error": "an upgrade is under way"})


@pytest.mark.parametrize("target", ["/scale?workers=3", "/reload", "/upgrade", "/drain"])
@pytest.mark.parametrize("ending", ["draining", "stopping"])
def test_commands_come_too_late(management, supervisor, target, ending):
    """A server that ends takes no command."""
    supervisor.state = facts("ready", ending=ending)
    response = ask(management, target, "POST")
    assert (response.status, json.loads(response.body)) == (409, {"error": f"the server is {ending}"})
    assert supervisor.commands == []


@pytest.mark.parametrize(
    ("target", "method", "headers", "status"),
    [
        ("/scale", "POST", {}, 400),
        ("/scale?workers=0", "POST", {}, 400),
        ("/scale?workers=9999", "POST", {}, 400),
        ("/scale?workers=%31", "GET", {}, 405),
        ("/scale?workers=\u00b2".encode().decode("latin-1"), "POST", {}, 400),
        ("/scale?workers=auto", "POST", {}, 400),
        ("/scale?" + "&".join("a=1" for _ in range(50)), "POST", {}, 400),
        ("/scale?workers", "POST", {}, 400),
        ("/reload", "GET", {}, 405),
        ("/drain", "PUT", {}, 405),
        ("/drain", "HEAD", {}, 405),
        ("/drain", "POST", {"origin": "http://evil.example"}, 403),
        ("/drain", "POST", {"origin": "null"}, 403),
        ("/drain", "POST", {"origin": "http://localhost"}, 403),
        ("/drain", "POST", {"sec_fetch_site": "cross-site"}, 403),
        ("/drain", "POST", {"host": "evil.example:8001"}, 421),
        ("/drain", "POST", {"host": "127.0.0.1.evil.example"}, 421),
        ("/readyz", "GET", {"host": "evil.example"}, 421),
        ("/readyz", "GET", {"host": "[::1]:8001"}, 200),
        ("/readyz", "GET", {"host": "127.0.0.1:1"}, 200),
        ("/readyz", "GET", {"host": "LOCALHOST:8001"}, 200),
        ("http://evil.example/readyz", "GET", {}, 421),
        ("/readyz/", "GET", {}, 404),
        ("/readyz?verbose", "GET", {}, 200),
        ("*", "OPTIONS", {}, 404),
    ],
)
def test_requests_that_are_refused(management, supervisor, target, method, headers, status):
    """Bad values, other methods, anything from a browser, and on loopback a Host that a web page may have chosen."""
    if not target.isascii():
        (group,) = management.groups
        with Client(group.address) as client:
            line = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
            assert client.send(line.encode("latin-1")).response().status == status
    else:
        assert ask(management, target, method, **headers).status == status
    assert supervisor.commands == []


def test_a_successor_leads(management):
    """New clients get no connection; one that is connected already gets the state as it was."""
    (group,) = management.groups
    with Client(group.address) as client:
        client.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n")
        assert ask(management, "/livez").status == 200  # so the other one was accepted before
        management.leave()
        with pytest.raises(ConnectionRefusedError):
            Client(group.address)
        assert client.send(b"\r\n").response().status == 200


@pytest.mark.parametrize("asked", [True, False])
def test_an_address_that_is_taken(supervisor, management, capfd, asked):
    """If it was asked for, that is an error; the server runs without the default one."""
    address = "{}:{}".format(*management.groups[0].address)
    loop = Loop()
    other = Management(loop, supervisor)
    config = settings("--admin", address) if asked else dataclasses.replace(settings(), admin=address)
    assert other.listen(config, []) is not asked
    assert f"management: cannot listen on {address}: another server listens there" in capfd.readouterr().err
    assert other.groups == []
    other.close()
    loop.close()


def test_off(supervisor):
    """There is no listener, and that is no error."""
    loop = Loop()
    management = Management(loop, supervisor)
    assert management.listen(settings("--admin", "off"), [])
    assert management.groups == []
    loop.close()
