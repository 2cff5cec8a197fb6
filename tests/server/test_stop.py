"""How it ends: TERM loses nothing, INT and QUIT lose no time, and the exit status is 0 either way."""

import contextlib
import os
import re
import signal
import socket
import sys
import time

import pytest

from harness import SCALE, Client, wait_for

BOOTS = "apps.boots:app"


@pytest.fixture(params=["app", "asgi"], ids=["wsgi", "asgi"])
def control(request):
    """The application that does what it is told, with each interface."""
    return f"apps.control:{request.param}"


@pytest.fixture
def running(tmp_path):
    """A client whose request is running; it is done as soon as `finish()` is called."""
    with contextlib.ExitStack() as stack:

        def running(server):
            client = stack.enter_context(server.connect()).request(f"/until?{tmp_path}/go")
            wait_for((tmp_path / "go.running").exists)
            return client

        running.finish = (tmp_path / "go").touch  # type: ignore[attr-defined]
        yield running


def seconds_to_end(server, number):
    """From a signal to the end, which must be a good one."""
    asked = time.monotonic()
    server.signal(number)
    assert server.ended() == 0
    return time.monotonic() - asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("options", [{"workers": 4}, {"workers": 1, "threads": 1}], ids=["many", "one"])
def test_an_idle_server_stops_at_once(start, control, number, options):
    """Under a second, with status 0."""

    def stop():
        server = start(control, **options)
        assert server.get("/").text == "hello"
        return seconds_to_end(server, number)

    assert any(stop() < 1 * SCALE for _ in range(3))  # a busy machine only adds


def test_a_stop_is_heard_though_who_started_us_heard_none(start):
    """A signal mask is inherited: the server has one of its own."""
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    server = start(launcher=[sys.executable, "-c", f"import os, signal, sys; {block}; os.execv(sys.argv[1], sys.argv[1:])"])
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGTERM, 5), (signal.SIGINT, 1), (signal.SIGQUIT, 1)])
def test_idle_clients_do_not_hold_up_the_end(start, control, number, seconds):
    """A connection without a request is closed at once, or, where there is time, after a last chance to ask."""
    server = start(control, workers=2)
    with server.connect() as client:
        client.get("/")
        server.signal(number)
        assert server.ended(seconds * SCALE) == 0
        assert client.closed()


def test_term_finishes_what_has_begun(start, control, running):
    """The request that runs is answered; meanwhile nobody listens any more."""
    server = start(control, workers=2)
    client = running(server)
    server.signal(signal.SIGTERM)
    wait_for(lambda: refuses(server.address))
    running.finish()
    assert client.response().text == "done"
    assert server.ended() == 0
    assert re.search(r"stopped: \d+ connections accepted, 1 requests answered, 0 cut short", server.log)  # `refuses` connects


def test_term_waits_for_a_body_and_says_that_the_connection_ends(start):
    """A request whose body is on its way is answered, and its client told that it is the last one."""
    server = start("apps.control:app", workers=2)
    with server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhe")
        server.signal(signal.SIGTERM)
        wait_for(lambda: refuses(server.address))
        answer = client.send(b"llo").response()
        assert (answer.text, answer.header("connection")) == ("hello", "close")
        assert client.closed()
    assert server.ended() == 0


def refuses(address):
    try:
        Client(address, timeout=2 * SCALE).close()  # while the server closes, a client is let wait for a second
    except ConnectionRefusedError:
        return True
    except TimeoutError:  # not heard: the doors are shut while those who are on the way come in
        pass
    return False


def test_term_answers_what_waits_in_the_queues(start, control):
    """Connections that the kernel had accepted before the stop are answered after it, all of them."""
    server = start(control, workers=2)
    for pid in server.workers():
        os.kill(pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()).request("/") for _ in range(50)]
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down")
        for pid in server.workers():
            os.kill(pid, signal.SIGCONT)
        assert [client.response().text for client in clients] == ["hello"] * 50
    assert server.ended() == 0


def test_term_answers_who_is_on_the_way(start, control):
    """A client that has connected and speaks only after the stop has begun is answered; who comes meanwhile is not let in."""
    server = start(control, workers=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(50)]
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down")
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            socket.create_connection(server.address, 0.2)
        assert [client.get("/").text for client in clients] == ["hello"] * 50
        assert server.ended() == 0


def test_term_answers_who_came_to_a_slot_without_a_worker(start, tmp_path):
    """Its worker is dead and the replacement still boots: whoever is on the way to it is answered by a sibling."""
    server = start(BOOTS, workers=2, steer="off", env={"BOOTS": str(tmp_path)})
    (tmp_path / "hang").touch()
    os.kill(server.workers()[0], signal.SIGKILL)
    wait_for((tmp_path / "hanging").exists)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(40)]
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down")
        for client in clients:
            client.request("/")
        assert [client.response().text for client in clients] == ["1"] * 40
        assert server.ended() == 0


def test_term_answers_who_waits_in_a_unix_socket(start, control, tmp_path):
    """Connecting is one step there: all who have connected are answered, and nobody connects any more."""
    server = start(control, workers=2, bind=f"unix:{tmp_path}/it")
    for pid in server.workers():
        os.kill(pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(f"{tmp_path}/it")).request("/") for _ in range(50)]
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down")
        wait_for(lambda: refuses(f"{tmp_path}/it"))  # the word comes a moment before the deed
        for pid in server.workers():
            os.kill(pid, signal.SIGCONT)
        assert [client.response().text for client in clients] == ["hello"] * 50
        assert server.ended() == 0


def test_term_waits_no_longer_than_the_graceful_timeout(start, control, running):
    """What still runs then is shown in the log and cut; the server was asked to stop, so the status is 0."""
    server = start(control, graceful_timeout=1)
    client = running(server)
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "was still busy 1 s after it was asked to exit: its stacks follow" in server.log
    server.wait_log(r" in until(_asgi)?\n")
    server.wait_log("was (ended|killed) by the supervisor because it was still busy 1 s after it was asked to exit")
    if control.endswith("asgi"):  # its calls can be cancelled
        assert client.response().status == 500
    assert client.closed()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_makes_it_quick(start, control, running, second):
    """Who asks again does not want to wait for the request that runs."""
    server = start(control, graceful_timeout=60)
    running(server)
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM: shutting down")
    server.signal(second)
    assert server.ended(5 * SCALE) == 0
    assert f"{second.name}: shutting down at once" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_to_who_is_about_to_be_gone_changes_no_status(start, number):
    """However late it comes: the server stopped as asked."""
    server = start()
    server.signal(signal.SIGTERM)
    while server.process.poll() is None:
        server.signal(number)
    assert server.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("threads", [1, 8])
def test_a_quick_stop_does_not_wait(start, control, running, number, threads):
    """A request that runs is given two seconds and no more."""
    server = start(control, workers=2, threads=threads, graceful_timeout=60)
    running(server)
    server.signal(number)
    assert server.ended(5 * SCALE) == 0


def test_control_c_in_a_terminal(start, control, running):
    """The terminal sends INT to every process: no traceback, status 0."""
    server = start(control, workers=2, graceful_timeout=60)
    running(server)
    os.killpg(server.pid, signal.SIGINT)
    assert server.ended(5 * SCALE) == 0
    assert "Traceback" not in server.log
    assert "KeyboardInterrupt" not in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_booting_server_stops_at_once(start, tmp_path, number):
    """An application that is still being imported has nothing to finish."""
    (tmp_path / "hang").touch()

    def stop():
        server = start(BOOTS, workers=2, env={"BOOTS": str(tmp_path)}, wait=False)
        wait_for((tmp_path / "hanging").exists)
        wait_for(lambda: len(server.workers()) == 2)
        return seconds_to_end(server, number)

    assert any(stop() < 1 * SCALE for _ in range(3))  # a busy machine only adds


def test_a_worker_that_is_stopped_does_not_hold_up_the_end(start, control):
    """A worker that cannot hear us is killed when its time is over."""
    server = start(control, workers=2, graceful_timeout=1)
    os.kill(server.workers()[0], signal.SIGSTOP)
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "was killed by the supervisor because it was still busy 1 s after it was asked to exit" in server.log


def test_the_file_of_a_unix_socket_is_removed(start, control, tmp_path):
    """At the end only, and by the supervisor only: a dying worker leaves it to its replacement."""
    path = tmp_path / "it.sock"
    server = start(control, bind=f"unix:{path}", workers=2)
    os.kill(server.workers()[0], signal.SIGTERM)
    server.wait_log("is ready")
    assert path.is_socket()
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert not path.exists()
