"""USR2: a new supervisor takes over without a gap; one that fails changes nothing; outside, only the first one is visible.

Long: one command, in all its successful and failed courses, which share the helpers at the top.
"""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from harness import SCALE, SOURCE, TESTS, WAIT, Client, alive, children, session, wait_for
from load import Load

ABANDONED = "upgrade abandoned, this supervisor keeps running"
CONTROL = "apps.control:app"
BOOTS = "apps.boots:app"


def leader(server):
    """The pid of the supervisor that leads."""
    return int((re.findall(r"supervisor\[(\d+)\]: this supervisor leads", server.log) or [server.pid])[-1])


def workers(server):
    """The workers of the supervisor that leads."""
    return children(leader(server))


def upgrade(server):
    """Upgrade, and wait until the old supervisor's workers are gone. Returns the pid of the new one."""
    old, count = leader(server), server.log.count("this supervisor leads")
    server.signal(signal.SIGUSR2)
    server.wait_log("this supervisor leads", count + 1, 20 * SCALE)
    server.wait_log(rf"supervisor\[{old}\]: stopped: .* answered, ", seconds=20 * SCALE)
    assert leader(server) != old
    return leader(server)


def listening(port):
    """Whether any process listens on a port of this machine: proc_net_tcp(5), state 0A."""
    with open("/proc/net/tcp", encoding="ascii") as file:
        return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in map(str.split, file))


def nothing_is_left(server):
    """Wait until no process of it is left, nor a listener."""
    wait_for(lambda: not session(server.pid), lambda: f"{session(server.pid)}\n{server.log}")
    assert not listening(server.port)


@pytest.fixture
def hanging(served, boots):
    """`hanging(workers=2)`: a server with an upgrade under way; the new workers boot until `hang` is removed from `boots`."""

    def hanging(**options):
        server = served(**options)
        (boots / "hang").touch()
        server.signal(signal.SIGUSR2)
        wait_for((boots / "hanging").exists)
        return server

    return hanging


# What it is for.


@pytest.mark.parametrize("app", ["apps.hello:app", "apps.hello_asgi:app"])
def test_ten_upgrades_under_load_lose_nothing(start, app):
    """Twenty clients send requests all the time, half of them on persistent connections: every request is answered."""
    server = start(app, workers=3)
    with Load(server.address) as load:
        for _ in range(10):
            upgrade(server)
        before = load.count
        wait_for(lambda: load.count > before + 100)
    assert load.failures == []
    assert len(workers(server)) == 3


def test_the_new_code_is_served(served, boots):
    """Requests are served by the old code, then by both, and from then on by the new code alone."""
    server = served(workers=2)
    (boots / "version").write_text("2")
    server.signal(signal.SIGUSR2)
    seen = []
    wait_for(lambda: seen.append(server.get("/").text) or "stopped: " in server.log)
    assert set(seen) <= {"1", "2"}
    assert {server.get("/").text for _ in range(20)} == {"2"}
    server.wait_log("2 workers of generation 2 ready")


def test_a_new_version_of_the_server_itself(start, tmp_path):
    """This is what a reload cannot do: supervisor and workers run the version that is on disk now."""
    shutil.copytree(SOURCE, tmp_path / "app")
    (tmp_path / "release.py").write_text(
        "import epollard\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [('content-length', '5')])\n"
        "    return [epollard.__version__.encode()]\n"
    )
    package = tmp_path / "app" / "epollard"
    server = start("release:app", env={"PYTHONPATH": f"{tmp_path}/app:{tmp_path}"})
    assert server.get("/").text == "0.1.0"
    init = package / "__init__.py"
    init.write_text(init.read_text().replace("0.1.0", "9.9.9"))
    code = (package / "supervisor.py").read_text()
    (package / "supervisor.py").write_text(code.replace("this supervisor leads", "new version: this supervisor leads"))
    server.signal(signal.SIGUSR2)
    server.wait_log("new version: this supervisor leads")
    wait_for(lambda: server.get("/").text == "9.9.9")
    server.wait_log("stopped: ")
    assert {server.get("/").text for _ in range(10)} == {"9.9.9"}


def test_a_link_to_the_code_is_followed_again(start, tmp_path):
    """Started in `current`, which is then pointed to another release: the new supervisor starts there, as a shell would."""
    for release in "1", "2":
        (tmp_path / release).mkdir()
        (tmp_path / release / "release.py").write_text(
            "def app(environ, start_response):\n"
            f"    start_response('200 OK', [('content-length', '1')])\n    return [b'{release}']\n"
        )
    current = tmp_path / "current"
    current.symlink_to("1")
    script = 'cd "$1"; shift; exec "$@"'
    server = start("release:app", launcher=["sh", "-c", script, "sh", str(current)])
    assert server.get("/").text == "1"
    current.unlink()
    current.symlink_to("2")
    upgrade(server)
    assert server.get("/").text == "2"


def test_the_old_worker_finishes_its_request(start, tmp_path):
    """A running request is answered by the worker that has it, while the new supervisor's workers take all others."""
    server = start(CONTROL)
    (old,) = server.workers()
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        server.signal(signal.SIGUSR2)
        server.wait_log("this supervisor leads")
        wait_for(lambda: server.get("/env").text == "0 2")
        assert alive(old)
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    server.wait_log(rf"worker 0 \(pid {old}\) exited with 0")


def test_idle_connections_to_old_workers_are_closed(start):
    """They are closed without a reset; a client that connects again stays with a new worker."""
    server = start(CONTROL, workers=1)
    with server.connect() as client:
        client.get("/")
        upgrade(server)
        assert client.rest() == b""
    with server.connect() as client:
        assert client.get("/").header("connection") is None


def test_queued_connections_are_answered(start):
    """The queue of a stopped worker is served by the new supervisor's worker, on the same listener."""
    server = start(CONTROL, workers=1)
    (old,) = server.workers()
    os.kill(old, signal.SIGSTOP)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()).request("/pid", close=True) for _ in range(20)]
        server.signal(signal.SIGUSR2)
        answered = {int(client.response().text) for client in clients}
    assert old not in answered
    os.kill(old, signal.SIGCONT)
    server.wait_log("stopped: ")


# What may change with it.


@pytest.mark.parametrize("steer", ["on", "off"])
def test_other_numbers_of_workers(start, tmp_path, steer):
    """More and fewer by the configuration, under load: listeners are opened and closed, and no client is turned away."""
    file = tmp_path / "it.toml"
    file.write_text("workers = 2")
    server = start(None, workers=[], config=file, steer=steer)
    with Load(server.address, clients=10 if steer == "on" else 0, target="/hello") as load:
        for count in 4, 1, 3:
            file.write_text(f"workers = {count}")
            upgrade(server)
            wait_for(lambda count=count: len(workers(server)) == count, lambda: server.log)
            assert server.get("/hello").status == 200
    assert load.failures == []


def test_a_number_of_workers_that_ttin_has_changed_is_kept(start):
    """As with a reload: if the configuration has not changed, there are as many workers as before."""
    server = start(workers=1)
    server.signal(signal.SIGTTIN)
    server.wait_log("2 workers ready")
    upgrade(server)
    assert len(workers(server)) == 2


def test_elastic_bounds(start):
    """The new supervisor has them as well, and also a number that has replaced them."""
    server = start(workers="1..3")
    upgrade(server)
    server.wait_log("upgrade: scaling to 1 to 3 workers")
    server.signal(signal.SIGTTIN)
    wait_for(lambda: len(workers(server)) == 2)
    upgrade(server)
    assert len(workers(server)) == 2
    assert server.log.count("scaling to 1 to 3 workers") == 1


def test_other_addresses(start, tmp_path):
    """One is kept, one is removed, one is added, even if the new one overlaps with an old one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = tmp_path / "it.toml"
    file.write_text(f"bind = ['127.0.0.1:0', '127.0.0.1:{port}', 'unix:{tmp_path}/old']")
    server = start("apps.hello:app", workers=[], bind=[], config=file, env={"WORKERS": "2"})
    kept = server.address
    file.write_text(f"bind = ['127.0.0.1:0', '0.0.0.0:{port}', 'unix:{tmp_path}/new']")
    upgrade(server)
    for address in kept, ("127.0.0.1", port), ("127.0.0.2", port), str(tmp_path / "new"):
        with Client(address) as client:
            assert client.get("/").text == "Hello, world!"
    assert not (tmp_path / "old").exists()
    file.write_text("bind = ['127.0.0.1:0']")
    upgrade(server)
    assert server.get("/").text == "Hello, world!"
    assert not listening(port)
    assert not (tmp_path / "new").exists()


def test_a_unix_socket_stays_the_same(start, tmp_path):
    """Its file is the same before and after, and it is removed at the end."""
    path = tmp_path / "it"
    server = start("apps.hello:app", workers=2, bind=["127.0.0.1:0", f"unix:{path}"])
    before = path.stat().st_ino
    for _ in range(3):
        upgrade(server)
        assert path.stat().st_ino == before
        with Client(str(path)) as client:
            assert client.get("/").text == "Hello, world!"
    server.stop()
    assert not path.exists()


def test_a_unix_socket_that_another_server_has_replaced_is_not_taken(start, tmp_path):
    """Another server listens at the path now: the upgrade fails as a start would, and the other server's file stays."""
    path = tmp_path / "it"
    server = start("apps.hello:app", bind=["127.0.0.1:0", f"unix:{path}"])
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        fails(server, 1, "cannot listen on unix:.*: another server listens there")
        assert stat.S_ISSOCK(path.stat().st_mode)
        upgrade_after_failure = server.get("/").text
    assert upgrade_after_failure == "Hello, world!"


def test_backlog_and_steering(start, tmp_path):
    """An upgrade changes options that a reload cannot."""
    file = tmp_path / "it.toml"
    file.write_text("backlog = 100")
    server = start(config=file, workers=2)
    file.write_text("backlog = 50\nsteer = 'off'")
    server.signal(signal.SIGHUP)
    server.wait_log(r"SIGHUP: --steer has changed, which needs an upgrade \(SIGUSR2\)")
    upgrade(server)
    shown = subprocess.run(["ss", "-Hltn", f"sport = :{server.port}"], capture_output=True, text=True, check=True).stdout
    assert [line.split()[2] for line in shown.splitlines()] == ["50", "50"]


def test_the_management_address_responds_all_the_time(start):
    """`epollardctl healthcheck` finds the server ready during five upgrades, and commands reach the leader."""
    server = start(CONTROL, workers=2, admin="127.0.0.1:0")
    stopped = threading.Event()
    statuses: Counter[object] = Counter()

    def ask():
        while not stopped.is_set():
            with contextlib.closing(http.client.HTTPConnection(*server.admin, timeout=WAIT)) as client:
                try:
                    client.request("GET", "/readyz")
                    statuses[client.getresponse().status] += 1
                except OSError as error:
                    statuses[repr(error)] += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for count in range(5):
            assert ctl(server, "upgrade") == "a new supervisor is being started from the code on disk\n"
            server.wait_log("this supervisor leads", count + 1)
            assert ctl(server, "healthcheck") == "ready\n"
            server.wait_log("stopped: ", count + 1)
            assert ctl(server, "scale", str(2 + count)) == f"{2 + count} workers wanted\n"
            wait_for(lambda count=count: len(workers(server)) == 2 + count)
    finally:
        stopped.set()
        thread.join()
    assert set(statuses) == {200}, statuses
    assert statuses[200] > 20


def ctl(server, *words):
    host, port = server.admin
    command = [sys.executable, "-m", "epollard.management.ctl", *words, "--admin", f"{host}:{port}"]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)}
    return subprocess.run(command, capture_output=True, text=True, env=environ, check=True).stdout


def test_another_management_address(start, tmp_path):
    """A Unix socket in place of a TCP address, then none: an address that is no longer configured is closed."""
    file = tmp_path / "it.toml"
    file.write_text("admin = '127.0.0.1:0'")
    server = start(CONTROL, admin=[], config=file)
    old = server.admin[1]
    file.write_text(f"admin = 'unix:{tmp_path}/admin'")
    upgrade(server)
    with Client(str(tmp_path / "admin")) as client:
        assert client.request("/livez", host="localhost").response().status == 200
    assert not listening(old)
    file.write_text("admin = 'off'")
    upgrade(server)
    assert not (tmp_path / "admin").exists()


# Failures.


def fails(server, status, words=""):
    """Try to upgrade: the new supervisor exits with this status, and the old one keeps running unchanged."""
    old, serving = leader(server), workers(server)
    count = server.log.count(ABANDONED)
    server.signal(signal.SIGUSR2)
    server.wait_log(rf"the new supervisor \(pid \d+\) exited with {status}.*: {ABANDONED}", count + 1)
    assert re.search(words, server.log), server.log
    assert leader(server) == old
    assert workers(server) == serving
    for _ in range(5):
        assert server.get("/").status == 200


@pytest.mark.parametrize("how", ["raise", "exit", "hang"])
def test_an_application_that_does_not_boot(served, boots, how):
    """The import raises, exits, or never ends: the log says why. Once it is fixed, the upgrade succeeds."""
    server = served(workers=2, boot_timeout=2)
    (boots / how).touch()
    fails(
        server,
        *{
            "raise": (3, r"\nRuntimeError: this application was told not to boot\n"),
            "exit": (1, r"worker [01] does not become ready"),
            "hang": (1, r"was killed by the supervisor because it was not ready after 2 s"),
        }[how],
    )
    (boots / how).unlink()
    (boots / "version").write_text("2")
    upgrade(server)
    assert server.get("/").text == "2"


def test_one_worker_that_does_not_boot_ends_the_upgrade(start, tmp_path):
    """Workers that are ready already finish their requests: an upgrade that fails half-way loses nothing."""
    (tmp_path / "half.py").write_text(
        "import os, pathlib, time\n"
        "here = pathlib.Path(__file__).parent\n"
        "if os.environ['EPOLLARD_WORKER_ID'] == '1' and (here / 'bad').exists():\n"
        "    while (here / 'bad').exists():\n"
        "        time.sleep(0.005)\n"
        "    raise RuntimeError('half')\n"
        "from apps.control import app\n"
    )
    server = start("half:app", workers=2, env={"PYTHONPATH": f"{SOURCE}:{TESTS}:{tmp_path}"})
    old = server.workers()
    (tmp_path / "bad").touch()
    server.signal(signal.SIGUSR2)
    with wait_for(lambda: served_by(server, "0 2")) as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        (tmp_path / "bad").unlink()
        server.wait_log("RuntimeError: half")
        server.wait_log("worker 1 does not become ready")
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    server.wait_log(ABANDONED)
    assert server.workers() == old


def served_by(server, identity):
    """A client of that slot and generation, if the next connection reaches it."""
    client = server.connect()
    if client.get("/env").text == identity:
        return client
    return client.close()


def test_a_bad_configuration(start, tmp_path):
    """The new supervisor exits with 2 and the message of a failing start."""
    file = tmp_path / "it.toml"
    file.write_text("workers = 2")
    server = start(workers=[], config=file)
    file.write_text("workers = 'many'")
    fails(server, 2, r"workers: 'many' is not a number from 1 to 1024")
    file.write_text("workers = 3")
    upgrade(server)


def test_an_address_that_is_taken(start, tmp_path):
    """The new supervisor exits with 1, and the addresses that it had bound are free again."""
    file = tmp_path / "it.toml"
    file.write_text("bind = '127.0.0.1:0'")
    server = start("apps.hello:app", bind=[], config=file)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        file.write_text(f"bind = ['127.0.0.1:0', 'unix:{tmp_path}/it', '127.0.0.1:{other.getsockname()[1]}']")
        fails(server, 1, r"cannot listen on 127\.0\.0\.1:\d+: another server listens there")
    assert not (tmp_path / "it").exists()


def test_a_server_that_is_broken_on_disk(start, tmp_path):
    """A half-written new version of epollard itself: the old one keeps running with what it has in memory."""
    shutil.copytree(SOURCE, tmp_path / "app")
    server = start(CONTROL, env={"PYTHONPATH": f"{tmp_path}/app:{TESTS}"})
    (tmp_path / "app" / "epollard" / "net" / "sockets.py").write_text('"""Half')
    fails(server, 1, "SyntaxError")
    server.signal(signal.SIGTTIN)
    server.wait_log("2 workers ready")


def test_a_version_with_another_handover_format(start, tmp_path):
    """It fails instead of guessing."""
    shutil.copytree(SOURCE, tmp_path / "app")
    server = start(CONTROL, env={"PYTHONPATH": f"{tmp_path}/app:{TESTS}"})
    module = tmp_path / "app" / "epollard" / "supervision" / "upgrade.py"
    module.write_text(module.read_text().replace("FORMAT: Final = 1 ", "FORMAT: Final = 7 "))
    fails(server, 1, "EPOLLARD_HANDOVER: this version cannot take over from the one that is running")


def test_a_directory_that_is_gone(start, tmp_path):
    """The directory of the start is missing: the log says so, and another attempt may succeed."""
    home = tmp_path / "home"
    home.mkdir()
    server = start("apps.hello:app", launcher=["sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", str(home)])
    home.rename(tmp_path / "moved")
    server.signal(signal.SIGUSR2)
    server.wait_log("SIGUSR2: cannot start a new supervisor: .*No such file or directory")
    assert server.get("/").text == "Hello, world!"
    home.mkdir()
    upgrade(server)


def test_a_successor_that_is_killed(hanging, boots):
    """It is killed from outside while its workers boot: the old one keeps running, steers, and scales."""
    server = hanging(workers=2)
    (new,) = set(children(server.pid)) - set(server.workers()[:2])
    os.kill(new, signal.SIGKILL)
    server.wait_log(rf"the new supervisor \(pid {new}\) was killed by signal 9: {ABANDONED}")
    (boots / "hang").unlink()
    wait_for(lambda: len(session(server.pid)) == 3)
    # Its orphaned workers have not attached SYN filters to the listeners, which are ours.
    assert {server.get("/").text for _ in range(20)} == {"1"}
    server.signal(signal.SIGTTIN)
    server.wait_log("3 workers ready")
    upgrade(server)


def test_a_successor_that_never_reports(start, tmp_path):
    """It hangs before it has read its configuration: the boot timeout applies to it too."""
    shutil.copytree(SOURCE, tmp_path / "app")
    server = start(CONTROL, boot_timeout=1, env={"PYTHONPATH": f"{tmp_path}/app:{TESTS}"})
    (tmp_path / "app" / "epollard" / "cli.py").write_text('"""Hangs."""\nimport time\ntime.sleep(600)\n')
    server.signal(signal.SIGUSR2)
    server.wait_log(r"the new supervisor \(pid \d+\) did not start in time: killing it")
    server.wait_log(f"was killed by signal 9: {ABANDONED}")
    assert server.get("/").text == "hello"


# While it is under way.


def test_nothing_else_can_be_changed_meanwhile(hanging, boots):
    """A second USR2, HUP, TTIN and TTOU are refused with a log line, by the old supervisor and by the new one."""
    server = hanging(workers=2)
    new = server.workers()[2]
    for number in signal.SIGUSR2, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU:
        server.signal(number)
        server.wait_log(f"{signal.Signals(number).name}: an upgrade is under way; ignored")
        os.kill(new, number)
        server.wait_log(f"{signal.Signals(number).name}: this supervisor does not lead yet; ignored")
    (boots / "hang").unlink()
    server.wait_log("this supervisor leads")
    assert leader(server) == new
    assert len(workers(server)) == 2


def test_a_worker_that_dies_meanwhile_is_replaced(start, tmp_path):
    """The old supervisor keeps supervising until the new one leads."""
    file = tmp_path / "it.toml"
    file.write_text("app = 'apps.hello:app'")
    boots = tmp_path / "boots"
    boots.mkdir()
    server = start(None, config=file, env={"BOOTS": str(boots)})
    (old,) = server.workers()
    (boots / "hang").touch()
    file.write_text(f"app = '{BOOTS}'")
    server.signal(signal.SIGUSR2)
    wait_for((boots / "hanging").exists)
    os.kill(old, signal.SIGKILL)
    server.wait_log(r"worker 0 \(pid \d+\) is ready")
    assert server.get("/").text == "Hello, world!"
    (boots / "hang").unlink()
    server.wait_log("stopped: ")
    assert server.get("/").text == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_both(hanging, number):
    """TERM and INT end the old supervisor, with 0, and the new one, although its workers never boot."""
    server = hanging(workers=2)
    server.signal(number)
    assert server.ended() == 0
    nothing_is_left(server)
    assert "abandoned" not in server.log


def test_a_killed_supervisor_takes_its_successor_with_it(hanging, boots):
    """A process that kills it may start another server: the new supervisor does not take the lead unnoticed."""
    server = hanging(workers=2)
    server.process.kill()
    server.ended()
    (boots / "hang").unlink()
    server.wait_log("the supervisor that this one was to replace is gone: stopping as well")
    nothing_is_left(server)


def test_an_upgrade_before_anything_is_ready_is_ignored(served, start, boots):
    """Workers that boot use the newest code anyway."""
    (boots / "hang").touch()
    server = start(BOOTS, env={"BOOTS": str(boots)}, wait=False)
    wait_for((boots / "hanging").exists)
    server.signal(signal.SIGUSR2)
    server.wait_log("SIGUSR2: no worker has been ready yet; ignored")
    (boots / "hang").unlink()
    server.started()


# Afterwards: the first one stays, as the relay.


def test_signals_reach_the_leader(start):
    """TTIN, TTOU, HUP and USR1 to the first process have their effect after one upgrade and after two."""
    server = start(CONTROL, workers=1)
    for generation in 2, 4:
        upgrade(server)
        server.signal(signal.SIGTTIN)
        wait_for(lambda: len(workers(server)) == 2)
        server.signal(signal.SIGTTOU)
        wait_for(lambda: len(workers(server)) == 1)
        server.signal(signal.SIGHUP)
        server.wait_log(f"1 worker of generation {generation + 1} ready")
        server.signal(signal.SIGUSR1)
        server.wait_log(rf"supervisor\[{leader(server)}\]: SIGUSR1: the supervisor's stack is above")


def test_a_term_to_all_processes_counts_once(start, tmp_path):
    """A service manager may send it to every process: the relay passes its own on, and that is not a second one."""
    server = start(CONTROL)
    upgrade(server)
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        for pid in session(server.pid):
            os.kill(pid, signal.SIGTERM)
        server.wait_log(r"SIGTERM: shutting down; in-flight requests")
        wait_for(lambda: not listening(server.port))
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    assert server.ended() == 0


def test_a_second_term_stops_at_once(start, tmp_path):
    """Also if both come through the relay."""
    server = start(CONTROL)
    upgrade(server)
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down; in-flight requests")
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down at once")
        assert server.ended() == 0
    (tmp_path / "go").touch()


def test_a_stop_while_the_old_supervisor_drains(start, tmp_path):
    """TERM right after an upgrade: the old worker's request is still finished."""
    server = start(CONTROL)
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        server.signal(signal.SIGUSR2)
        server.wait_log("this supervisor leads")
        server.signal(signal.SIGTERM)
        server.wait_log("SIGTERM: shutting down; in-flight requests")
        wait_for(lambda: not listening(server.port))
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    assert server.ended() == 0


def test_the_relay_exits_with_the_status_of_the_last_leader(start):
    """If the leader is killed, its workers drain, the status is 1, and nothing is left."""
    server = start(CONTROL, workers=2)
    upgrade(server)
    os.kill(upgrade(server), signal.SIGKILL)
    assert server.ended() == 1
    nothing_is_left(server)


def test_a_killed_relay_ends_everything(start, tmp_path):
    """Workers finish their requests; then there is no process and no listener left."""
    server = start(CONTROL, workers=2)
    upgrade(server)
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        server.process.kill()
        server.ended()
        wait_for(lambda: not listening(server.port))
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    nothing_is_left(server)


def test_upgrades_leave_nothing_behind(start):
    """After three upgrades there are the relay, the supervisor and its worker, and none holds the others' descriptors."""
    server = start(CONTROL)
    upgrade(server)
    counts = [descriptors(leader(server))]
    for _ in range(2):
        upgrade(server)
        counts.append(descriptors(leader(server)))
    assert len(set(counts)) == 1, counts
    wait_for(lambda: len(session(server.pid)) == 3)
    assert not [pid for pid in session(server.pid) if "EPOLLARD_HANDOVER" in server.get("/env").text]
    listeners = {link for link in links(leader(server)) if link in listening_inodes()}
    assert len(listeners) == 1
    assert not listeners & set(links(server.pid))


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def links(pid):
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def listening_inodes():
    with open("/proc/net/tcp", encoding="ascii") as file:
        return {f"socket:[{row[9]}]" for row in map(str.split, file) if row[3] == "0A"}


# As PID 1.

UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]


def can_unshare():
    """Whether a PID namespace can be made here."""
    return shutil.which("unshare") and not subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode


@pytest.mark.skipif(not can_unshare(), reason="a PID namespace needs privileges that we lack (unshare(1))")
def test_as_pid_1(start, tmp_path):
    """A container lives as long as its PID 1: upgraded twice, it stays, reaps orphans, passes signals on, and exits with 0."""
    server = start(CONTROL, launcher=UNSHARE, workers=2)
    (first,) = children(server.pid)
    assert Path(f"/proc/{first}/status").read_text().split("NSpid:")[1].splitlines()[0].split()[-1] == "1"
    new = 0
    for count in 1, 2:
        os.kill(first, signal.SIGUSR2)
        server.wait_log("this supervisor leads", count)
        server.wait_log("stopped: ", count)
        new = successor(first, new)
        assert len(children(new)) == 2
        assert server.get("/env").text.endswith(f" {count + 1}")
    server.get(f"/orphan?{tmp_path}/go")
    wait_for(lambda: len(children(first)) == 2)
    (tmp_path / "go").touch()
    wait_for(lambda: children(first) == [new])
    root = f"/proc/{first}/root/proc"
    wait_for(lambda: not [pid for pid in os.listdir(root) if pid.isdigit() and not alive_in(first, pid)])
    os.kill(first, signal.SIGTERM)
    assert server.ended() == 0
    assert not listening(server.port)


def successor(first, old):
    """The only child of PID 1, once it is another process than the old one."""
    return wait_for(lambda: (found := children(first)) and len(found) == 1 and found != [old] and found[0])


def alive_in(first, pid):
    """Whether a process of that namespace is not a zombie."""
    with contextlib.suppress(OSError):
        return ") Z " not in Path(f"/proc/{first}/root/proc/{pid}/stat").read_text()
    return True


@pytest.mark.skipif(not can_unshare(), reason="a PID namespace needs privileges that we lack (unshare(1))")
def test_pid_1_exits_when_its_successor_dies(start):
    """The container exits with 1, so that it can be restarted."""
    server = start(CONTROL, launcher=UNSHARE)
    (first,) = children(server.pid)
    os.kill(first, signal.SIGUSR2)
    server.wait_log("stopped: ")
    new = successor(first, 0)
    os.kill(new, signal.SIGKILL)
    assert server.ended() == 1
