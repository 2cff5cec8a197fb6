"""How the server stops: TERM loses nothing, INT and QUIT lose no time, and the exit status is 0 either way."""

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
    """The application that its requests control, for each interface."""
    return f"apps.control:{request.param}"


@pytest.fixture
def running(tmp_path):
    """A client whose request is in flight; it is done as soon as `finish()` is called."""
    with contextlib.ExitStack() as stack:

        def running(server):
            client = stack.enter_context(server.connect()).request(f"/until?{tmp_path}/go")
            wait_for((tmp_path / "go.running").exists)
            return client

        running.finish = (tmp_path / "go").touch  # type: ignore[attr-defined]
        yield running


def seconds_to_end(server, number):
    """From a signal to the exit, whose status must be 0."""
    asked = time.monotonic()
    server.signal(number)
    assert server.ended() == 0
    return time.monotonic() - asked


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("options", [{"workers": 4}, {"workers": 1, "threads": 1}], ids=["many", "one"])
def test_an_idle_server_stops_at_once(start, control, number, options):
    """In less than a second, with status 0."""

    def stop():
        server = start(control, **options)
        assert server.get("/").text == "hello"
        return seconds_to_end(server, number)

    assert any(stop() < 1 * SCALE for _ in range(3))  # a busy machine only adds


def test_a_stop_works_though_signals_were_blocked_at_the_start(start):
    """A signal mask is inherited: the server unblocks its signals."""
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    server = start(launcher=[sys.executable, "-c", f"import os, signal, sys; {block}; os.execv(sys.argv[1], sys.argv[1:])"])
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


@pytest.mark.parametrize(("number", "seconds"), [(signal.SIGTERM, 5), (signal.SIGINT, 1), (signal.SIGQUIT, 1)])
def test_idle_clients_do_not_delay_the_stop(start, control, number, seconds):
    """A connection without a request is closed at once, or, if there is time, after a last chance for a request."""
    server = start(control, workers=2)
    with server.connect() as client:
        client.get("/")
        server.signal(number)
        assert server.ended(seconds * SCALE) == 0
        assert client.closed()


def test_term_finishes_requests_in_flight(start, control, running):
    """The request in flight is answered; meanwhile new connections are refused."""
    server = start(control, workers=2)
    client = running(server)
    server.signal(signal.SIGTERM)
    wait_for(lambda: refuses(server.address))
    running.finish()
    assert client.response().text == "done"
    assert server.ended() == 0
    assert re.search(r"stopped: \d+ connections accepted, 1 requests answered, 0 cut short", server.log)  # `refuses` connects


def test_term_waits_for_a_body_and_announces_the_close(start):
    """A request whose body is on its way is answered, and the response says that the connection closes."""
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
        Client(address, timeout=2 * SCALE).close()  # while the server closes, a client may have to wait for a second
    except ConnectionRefusedError:
        return True
    except TimeoutError:  # the SYN was dropped, while earlier handshakes complete
        pass
    return False


def test_term_answers_connections_in_the_queues(start, control):
    """All connections that the kernel had accepted before the stop are answered after it."""
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


def test_term_answers_clients_whose_handshake_is_in_progress(start, control):
    """A client that connected before the stop and sends its request after it is answered; a new client is not let in."""
    server = start(control, workers=2)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(50)]
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down")
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            socket.create_connection(server.address, 0.2)
        assert [client.get("/").text for client in clients] == ["hello"] * 50
        assert server.ended() == 0


def test_term_answers_clients_of_a_slot_without_a_worker(start, tmp_path):
    """Its worker is dead and the replacement still boots: a sibling answers the clients that connected to it."""
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


def test_term_answers_clients_in_the_queue_of_a_unix_socket(start, control, tmp_path):
    """Connecting is one step there: all clients that have connected are answered, and new ones are refused."""
    server = start(control, workers=2, bind=f"unix:{tmp_path}/it")
    for pid in server.workers():
        os.kill(pid, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(Client(f"{tmp_path}/it")).request("/") for _ in range(50)]
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down")
        wait_for(lambda: refuses(f"{tmp_path}/it"))  # the log line comes a moment earlier
        for pid in server.workers():
            os.kill(pid, signal.SIGCONT)
        assert [client.response().text for client in clients] == ["hello"] * 50
        assert server.ended() == 0


def test_term_waits_no_longer_than_the_graceful_timeout(start, control, running):
    """A request that still runs then is shown in the log and cut; the server was asked to stop, so the status is 0."""
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
    """The sender of a second signal does not want to wait for the request in flight."""
    server = start(control, graceful_timeout=60)
    running(server)
    server.signal(signal.SIGTERM)
    server.wait_log("SIGTERM: shutting down")
    server.signal(second)
    assert server.ended(5 * SCALE) == 0
    assert f"{second.name}: shutting down at once" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_a_late_signal_does_not_change_the_status(start, number):
    """However late it comes, the server has stopped as asked."""
    server = start()
    server.signal(signal.SIGTERM)
    while server.process.poll() is None:
        server.signal(number)
    assert server.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
@pytest.mark.parametrize("threads", [1, 8])
def test_a_quick_stop_does_not_wait(start, control, running, number, threads):
    """A request in flight has two seconds and no more."""
    server = start(control, workers=2, threads=threads, graceful_timeout=60)
    running(server)
    server.signal(number)
    assert server.ended(5 * SCALE) == 0


def test_control_c_in_a_terminal(start, control, running):
    """The terminal sends INT to every process: there is no traceback, and the status is 0."""
    server = start(control, workers=2, graceful_timeout=60)
    running(server)
    os.killpg(server.pid, signal.SIGINT)
    assert server.ended(5 * SCALE) == 0
    assert "Traceback" not in server.log
    assert "KeyboardInterrupt" not in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_booting_server_stops_at_once(start, tmp_path, number):
    """A worker that is still importing the application has nothing to finish."""
    (tmp_path / "hang").touch()

    def stop():
        server = start(BOOTS, workers=2, env={"BOOTS": str(tmp_path)}, wait=False)
        wait_for((tmp_path / "hanging").exists)
        wait_for(lambda: len(server.workers()) == 2)
        return seconds_to_end(server, number)

    assert any(stop() < 1 * SCALE for _ in range(3))  # a busy machine only adds


def test_a_suspended_worker_does_not_delay_the_stop(start, control):
    """A worker that does not react to signals is killed when its time is up."""
    server = start(control, workers=2, graceful_timeout=1)
    os.kill(server.workers()[0], signal.SIGSTOP)
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert "was killed by the supervisor because it was still busy 1 s after it was asked to exit" in server.log


def test_the_file_of_a_unix_socket_is_removed(start, control, tmp_path):
    """Only at the end, and only by the supervisor: a worker that exits leaves it to its replacement."""
    path = tmp_path / "it.sock"
    server = start(control, bind=f"unix:{path}", workers=2)
    os.kill(server.workers()[0], signal.SIGTERM)
    server.wait_log("is ready")
    assert path.is_socket()
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert not path.exists()
