"""The management listener: its pages are right, it takes commands only from where it should, and no client can block it.

Long: the pages, the commands and the command-line client are tested with the same servers.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest

from harness import SOURCE, WAIT, Client, wait_for

BOOTS = "apps.boots:app"
CONTROL = "apps.control:app"
ANY = "127.0.0.1:0"


@pytest.fixture
def managed(start):
    """A server with two workers and a management address."""
    return start(CONTROL, workers=2, admin=ANY)


def ask(server, target="/readyz", method="GET", **headers):
    with Client(server.admin) as client:
        return client.request(target, method, **{"host": "localhost", **headers}).response(method)


def readiness(server):
    return json.loads(ask(server).body)


def figures(server):
    """Each sample of /metrics by its name and labels."""
    page = ask(server, "/metrics").text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}


def test_its_address_is_logged_and_responds(managed):
    """Any HTTP client gets JSON, and the right status for what is not there."""
    host, port = managed.admin
    response = httpx.get(f"http://{host}:{port}/livez")
    assert response.status_code == 200
    assert response.json() == {"alive": True, "pid": managed.pid}
    assert httpx.head(f"http://{host}:{port}/readyz").status_code == 200
    assert httpx.get(f"http://{host}:{port}/nothing").status_code == 404
    assert httpx.post(f"http://{host}:{port}/livez").status_code == 405


def test_readyz_lists_the_workers(managed):
    """All slots are ready, and have the pids of the workers."""
    found = readiness(managed)
    assert found["ready"] is True
    assert found["reasons"] == []
    assert found["workers"] == {"wanted": 2, "ready": 2, "needed": 1}
    assert sorted(slot["pid"] for slot in found["slots"]) == sorted(managed.workers())
    assert {slot["state"] for slot in found["slots"]} == {"ready"}


def test_not_ready_while_all_boot(start, tmp_path):
    """The status is 503, and each slot that boots is named."""
    (tmp_path / "hang").touch()
    server = start(BOOTS, workers=2, admin=ANY, env={"BOOTS": str(tmp_path)}, wait=False)
    server.wait_log("management on")
    wait_for((tmp_path / "hanging").exists)
    response: Any = wait_for(lambda: (found := ask(server)).status == 503 and b"booting" in found.body and found)
    found = json.loads(response.body)
    assert found["ready"] is False
    assert found["reasons"] == ["0 of 2 workers ready, 1 needed", "worker 0 is booting", "worker 1 is booting"]
    assert ask(server, "/livez").status == 200


def test_a_slot_that_backs_off_is_named(start, tmp_path):
    """A worker that dies again and again leaves its slot empty for a while: not ready, with the number of failures."""
    server = start(BOOTS, admin=ANY, env={"BOOTS": str(tmp_path)})
    (tmp_path / "exit").touch()
    os.kill(server.workers()[0], signal.SIGKILL)
    server.wait_log("has exited early 2 times in a row")
    found = wait_for(lambda: (found := readiness(server))["slots"][0]["state"] == "backing off" and found)
    assert found["ready"] is False
    assert "worker 0 is backing off" in found["reasons"]
    assert found["slots"][0]["failures"] >= 2
    (tmp_path / "exit").unlink()
    wait_for(lambda: readiness(server)["ready"])


def test_a_stuck_worker_is_named_and_half_of_the_workers_are_enough(managed):
    """A worker that accepts nothing from its queue is stuck; the other one is enough to be ready."""
    victim = managed.workers()[0]
    os.kill(victim, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(managed.connect()).request("/")
            slot = wait_for(lambda: next((slot for slot in readiness(managed)["slots"] if slot["state"] == "stuck"), None))
            assert slot["pid"] == victim
            assert readiness(managed)["ready"] is True
    finally:
        os.kill(victim, signal.SIGCONT)


def test_workers_that_were_only_just_asked_for_are_not_missed(start):
    """Scaling up a server that is ready does not make it unready."""
    server = start(workers=1, admin=ANY)
    statuses = []
    assert ask(server, "/scale?workers=6", "POST").status == 202
    while len(server.workers()) < 6 or readiness(server)["workers"]["ready"] < 6:
        statuses.append(ask(server).status)
    assert set(statuses) <= {200}
    assert readiness(server)["workers"] == {"wanted": 6, "ready": 6, "needed": 3}


def test_counters_only_grow(managed):
    """Requests are counted once, and those of a worker that is gone stay counted."""
    for _ in range(20):
        assert managed.get("/").status == 200
    with managed.connect() as client:
        client.send(b"nonsense\r\n\r\n").rest()
    wait_for(lambda: figures(managed)["epollard_requests_total"] == 20)
    wait_for(lambda: figures(managed)["epollard_requests_rejected_total"] == 1)
    managed.signal(signal.SIGHUP)
    managed.wait_log("2 workers of generation 2 ready")
    wait_for(lambda: managed.log.count("exited with 0") == 2)
    after = figures(managed)
    assert after["epollard_requests_total"] == 20
    assert after["epollard_connections_accepted_total"] == 21
    assert after['epollard_workers{state="ready"}'] == 2
    assert after["epollard_ready"] == 1


def test_metrics_have_the_prometheus_text_format(managed):
    """Each sample follows its HELP and TYPE, and each family occurs once (text format 0.0.4)."""
    response = ask(managed, "/metrics")
    assert response.header("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    seen = []
    for line in response.text.splitlines():
        if match := re.fullmatch(r"# HELP (\w+) \S.*", line):
            seen.append(match[1])
        elif match := re.fullmatch(r"# TYPE (\w+) (gauge|counter)", line):
            assert match[1] == seen[-1]
            assert match[1].endswith("_total") is (match[2] == "counter")
        else:
            match = re.fullmatch(r'(\w+)(?:\{\w+="[^"]*"\})? [0-9.]+', line)
            assert match, line
            assert match[1] == seen[-1]
    assert len(seen) == len(set(seen)) >= 9


@pytest.mark.parametrize("busy", ["loop", "threads"])
def test_saturation_is_measured(start, busy):
    """It is near 0 without requests, near 1 while a worker always computes or all its threads are taken, and then 0 again."""
    server = start(CONTROL, workers=1, threads=4, admin=ANY)
    wait_for(lambda: figures(server)["epollard_saturation"] < 0.1)
    target, clients = ("/compute", 8) if busy == "loop" else ("/sleep", 4)
    with contextlib.ExitStack() as stack:
        open_ = [stack.enter_context(server.connect()) for _ in range(clients)]
        deadline = time.monotonic() + WAIT
        found = 0.0
        for client in open_:
            client.request(target + "?0.1")
        while found < 0.85 and time.monotonic() < deadline:
            for client in open_:
                client.response()
                client.request(target + "?0.1")
            found = figures(server)["epollard_saturation"]
        assert found >= 0.85
        for client in open_:
            client.response()
    wait_for(lambda: figures(server)["epollard_saturation"] < 0.1)


# Commands.


def test_scale_reload_and_drain(managed):
    """Each command does what the signal does, and the response says what happens."""
    response = ask(managed, "/scale?workers=3", "POST")
    assert (response.status, json.loads(response.body)) == (202, {"done": "3 workers wanted"})
    managed.wait_log("^.*command: scaling to 3 workers")
    wait_for(lambda: len(managed.workers()) == 3)
    assert ask(managed, "/reload", "POST").status == 202
    managed.wait_log("3 workers of generation 2 ready")
    assert ask(managed, "/drain", "POST").status == 202
    assert managed.ended() == 0
    assert "stopped: " in managed.log


def test_a_command_has_no_body(managed):
    """A command with a body is not carried out, and its sender gets the whole response."""
    with Client(managed.admin) as client:
        response = client.post("/drain", b"x" * 200_000, host="localhost")
        assert response.status == 413
    assert readiness(managed)["ready"] is True


def test_commands_come_from_this_machine_only(start, other_machine):
    """A client on another machine may read pages, and nothing else."""
    ip, run = other_machine
    server = start(admin="0.0.0.0:0")
    port = server.admin[1]
    program = "import sys, httpx; print(httpx.request(sys.argv[1], sys.argv[2], trust_env=False).status_code)"
    assert run(program, "GET", f"http://{ip}:{port}/readyz") == "200"
    assert run(program, "POST", f"http://{ip}:{port}/drain") == "403"
    with Client((ip, port)) as client:  # from this machine, by the address that others use
        assert client.post("/reload", b"", host="name").status == 202


@pytest.fixture
def other_machine():
    """A network namespace: our address as seen from there, and how to run Python there."""
    name = f"epo{os.getpid()}"
    commands = [
        f"ip netns add {name}",
        f"ip link add {name}a type veth peer name {name}b netns {name}",
        f"ip addr add 10.213.7.1/30 dev {name}a",
        f"ip link set {name}a up",
        f"ip -n {name} addr add 10.213.7.2/30 dev {name}b",
        f"ip -n {name} link set {name}b up",
    ]

    def run(program, *words):
        command = ["ip", "netns", "exec", name, sys.executable, "-c", program, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=WAIT).stdout.strip()

    try:
        for command in commands:
            try:
                done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            except FileNotFoundError:
                pytest.skip("ip(8) is not installed")
            if done.returncode:
                pytest.skip(f"cannot make a network namespace here: {done.stderr.strip()}")
        yield "10.213.7.1", run
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def test_no_command_is_taken_while_the_server_stops(start, tmp_path):
    """The readiness probe gets 503 and every command 409, until the last worker has exited."""
    server = start(CONTROL, admin=ANY)
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down")
        response = ask(server)
        assert response.status == 503
        assert "the server is stopping" in json.loads(response.body)["reasons"]
        assert ask(server, "/livez").status == 200
        for target in "/scale?workers=2", "/reload", "/drain":
            assert ask(server, target, "POST").status == 409
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    assert server.ended() == 0


# Where it listens.


def test_the_default_address_may_be_taken(start):
    """The server logs that it runs without management, and serves."""
    with taken("127.0.0.1:8001"):
        server = start(admin=None)
        assert "cannot listen on 127.0.0.1:8001: another server listens there; the server runs without it" in server.log
        assert server.get("/").status == 200


def test_an_address_that_was_asked_for_must_be_available(start):
    """If it was given by flag or by variable and is taken, the server exits with status 1 and starts nothing."""
    with taken("127.0.0.1:0") as address:
        for options in {"admin": address}, {"admin": None, "env": {"EPOLLARD_ADMIN": address}}:
            server = start(wait=False, **options)
            assert server.ended() == 1
            assert f"cannot listen on {address}: another server listens there" in server.log
            assert "Traceback" not in server.log


@contextlib.contextmanager
def taken(address):
    """Have a listener at the address, ours or another process's."""
    host, _, port = address.rpartition(":")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            listener.bind((host, int(port)))
            listener.listen()
        yield f"{host}:{listener.getsockname()[1] or port}"


def test_off_means_no_listener(start):
    """There is no address, and the log does not mention one."""
    assert "management" not in start(admin="off").log


def test_on_a_unix_socket(start, tmp_path):
    """Its file exists as long as the server does, and its owner may send commands."""
    path = tmp_path / "admin.sock"
    server = start(admin=f"unix:{path}")
    with Client(str(path)) as client:
        assert client.post("/scale?workers=2", b"").status == 202
    server.wait_log("2 workers ready")
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert not path.exists()


def test_on_ipv6(start):
    """The address is written in brackets, as everywhere."""
    server = start(admin="[::1]:0")
    assert ask(server).status == 200


# No client can block it.


def test_silent_and_slow_clients_delay_no_other_client(managed):
    """Hundreds send nothing or half a request: another client gets its response at once, and dead workers are replaced."""
    with contextlib.ExitStack() as stack:
        for number in range(300):
            client = stack.enter_context(Client(managed.admin))
            if number % 3:
                client.send(b"GET /livez HT" if number % 3 == 1 else b"G")
        begin = time.monotonic()
        assert ask(managed).status == 200
        assert time.monotonic() - begin < WAIT / 4
        assert len(os.listdir(f"/proc/{managed.pid}/fd")) < 150  # they cannot use up the supervisor's descriptors
        os.kill(managed.workers()[0], signal.SIGKILL)
        managed.wait_log("is ready")
        assert wait_for(lambda: len(managed.workers()) == 2)


def test_a_silent_client_is_closed(managed):
    """The rest of a head has a deadline."""
    with Client(managed.admin) as client:
        client.send(b"GET /livez HTTP/1.1\r\n")
        assert client.closed()


def test_a_client_that_does_not_read_is_closed(managed):
    """It cannot make the server keep its response: the deadline is for all of it."""
    with Client(managed.admin, receive_buffer=1024) as client:
        client.request("/metrics", host="localhost")
        wait_for(lambda: f":{client.socket.getsockname()[1]:04X} " not in established(managed), seconds=WAIT)
    assert readiness(managed)["ready"] is True


def established(server):
    """Remote ends of the management listener's connections (proc_net_tcp(5): state 01 is established)."""
    port = f":{server.admin[1]:04X}"
    with open("/proc/net/tcp", encoding="ascii") as file:
        rows = [line.split() for line in file][1:]
    return " ".join(row[2] + " " for row in rows if row[1].endswith(port) and row[3] == "01")


def test_clients_that_reset_do_no_harm(managed):
    """They reset before, during and after their response."""
    for sent in (b"", b"GET", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n") * 20:
        client = Client(managed.admin)
        client.send(sent)
        client.reset()
    assert readiness(managed)["ready"] is True
    assert "Traceback" not in managed.log


def test_workers_hold_none_of_its_sockets(start, tmp_path):
    """A worker that is forked while clients are connected holds neither them nor the listener, not even while it boots."""
    server = start(BOOTS, admin=ANY, env={"BOOTS": str(tmp_path)})
    (tmp_path / "hang").touch()
    with Client(server.admin) as client:
        client.send(b"GET /livez HTTP/1.1\r\nHost: ")
        server.signal(signal.SIGTTIN)
        wait_for((tmp_path / "hanging").exists)
        port = server.admin[1]
        for pid in server.workers():
            assert port not in {local for local, _ in sockets_of(pid)}
        assert port in {local for local, _ in sockets_of(server.pid)}
        assert client.send(b"localhost\r\n\r\n").response().status == 200
    (tmp_path / "hang").unlink()


def sockets_of(pid):
    """Local port and state of each TCP socket that a process holds."""
    inodes = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    with open("/proc/net/tcp", encoding="ascii") as file:
        rows = [line.split() for line in file][1:]
    return [(int(row[1].rpartition(":")[2], 16), row[3]) for row in rows if f"socket:[{row[9]}]" in inodes]


# The command line.


def ctl(*words, **environ):
    """A real `python -m epollard.management.ctl`, run to its end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EPOLLARD_")}
    return subprocess.run(
        [sys.executable, "-m", "epollard.management.ctl", *words],
        env=kept | {"PYTHONPATH": str(SOURCE)} | environ,
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )


def test_epollardctl_sends_commands(managed):
    """Each command is carried out, prints one line about it, and exits with 0."""
    address = "{}:{}".format(*managed.admin)
    assert ctl("healthcheck", EPOLLARD_ADMIN=address).returncode == 0
    done = ctl("scale", "3", "--admin", address)
    assert (done.returncode, done.stdout) == (0, "3 workers wanted\n")
    managed.wait_log("3 workers ready")
    status = ctl("status", "--admin", address)
    assert status.stdout.splitlines()[0] == "ready: 3 of 3 workers"
    assert len(status.stdout.splitlines()) == 4
    assert ctl("reload", "--admin", address).stdout == "replacing all workers by generation 2\n"
    managed.wait_log("3 workers of generation 2 ready")
    assert ctl("drain", "--admin", address).stdout == "the server is stopping\n"
    assert managed.ended() == 0
    gone = ctl("status", "--admin", address)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert gone.stderr == f"epollardctl: {address}: Connection refused\n"


def test_epollardctl_reads_the_configuration_file_of_the_server(managed, tmp_path):
    """Like the server it takes the address from there."""
    host, port = managed.admin
    file = tmp_path / "it.toml"
    file.write_text(f'admin = "{host}:{port}"\n')
    assert ctl("healthcheck", "--config", str(file)).returncode == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((), 2, "usage: epollardctl"),
        (("dance",), 2, "unknown command 'dance'"),
        (("scale",), 2, "scale: '' is not a number"),
        (("scale", "many"), 2, "scale: 'many' is not a number"),
        (("scale", "2", "3"), 2, "scale: unexpected argument '3'"),
        (("drain", "--check"), 2, "drain: unexpected argument '--check'"),
        (("reload", "--nonsense"), 2, "unknown option '--nonsense'"),
        (("reload", "--admin", "off"), 1, "no management address"),
        (("healthcheck", "--admin", "nowhere"), 2, "--admin: 'nowhere' is not HOST:PORT"),
    ],
)
def test_epollardctl_reports_what_is_wrong(words, status, message):
    """It prints an error, and exits with 2 if the command is invalid, or with 1 if it cannot be carried out."""
    done = ctl(*words)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("response", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", b"220 mail\r\nready\r\n"])
@pytest.mark.parametrize("command", ["status", "healthcheck", "reload"])
def test_another_server_is_not_taken_for_epollard(command, response):
    """If another program listens there, the command fails, with one line."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(response)

        thread = threading.Thread(target=serve)
        thread.start()
        done = ctl(command, "--admin", f"127.0.0.1:{listener.getsockname()[1]}")
        thread.join()
    assert done.returncode == 1
    assert len((done.stdout + done.stderr).splitlines()) == 1


def test_the_help_of_a_command_does_not_send_it(managed):
    """`drain --help` prints the usage and does nothing else."""
    done = ctl("drain", "--help", EPOLLARD_ADMIN="{}:{}".format(*managed.admin))
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, "usage")
    assert readiness(managed)["ready"] is True


def test_healthcheck_without_management_tries_every_address(start, tmp_path):
    """It sends `OPTIONS *`, which the application never sees; one address that does not respond is enough to fail."""
    server = start(bind=["127.0.0.1:0", f"unix:{tmp_path}/it"], admin="off")
    binds = f"127.0.0.1:{server.port},unix:{tmp_path}/it"
    assert ctl("healthcheck", EPOLLARD_ADMIN="off", EPOLLARD_BIND=binds).returncode == 0
    done = ctl("healthcheck", EPOLLARD_ADMIN="off", EPOLLARD_BIND=f"{binds},unix:{tmp_path}/nothing")
    assert done.returncode == 1
    assert f"unix:{tmp_path}/nothing: No such file or directory" in done.stdout
    server.signal(signal.SIGTERM)
    server.ended()
    assert ctl("healthcheck", EPOLLARD_ADMIN="off", EPOLLARD_BIND=binds).returncode == 1


def test_healthcheck_is_readiness(start, tmp_path):
    """A server all of whose workers boot is not healthy, although it listens; the reason is printed."""
    (tmp_path / "hang").touch()
    server = start(BOOTS, admin=ANY, env={"BOOTS": str(tmp_path)}, wait=False)
    server.wait_log("management on")
    wait_for((tmp_path / "hanging").exists)
    done = ctl("healthcheck", EPOLLARD_ADMIN="{}:{}".format(*server.admin))
    assert done.returncode == 1
    assert "0 of 1 workers ready, 1 needed; worker 0 is booting" in done.stdout
