"""HUP: new code takes over without a gap; bad code never replaces good code."""

import contextlib
import os
import signal
import time

from harness import SCALE, wait_for
from load import Load

BOOTS = "apps.boots:app"


def test_new_code_takes_over_without_a_gap(served, boots):
    """Every request is answered, first by the old code, later by the new one; in the end all workers are new."""
    server = served(workers=3)
    old = server.workers()
    (boots / "version").write_text("2")
    server.signal(signal.SIGHUP)
    seen = []
    wait_for(lambda: seen.append(server.get("/").text) or "3 workers of generation 2 ready" in server.log)
    assert set(seen) <= {"1", "2"}
    wait_for(lambda: not {*old} & {*server.workers()})
    assert {server.get("/").text for _ in range(20)} == {"2"}
    assert len(server.workers()) == 3


def test_reloads_under_load_lose_nothing(start):
    """Five reloads while twenty clients send requests: every request is answered."""
    server = start(workers=3)
    with Load(server.address) as load:
        for generation in range(2, 7):
            server.signal(signal.SIGHUP)
            server.wait_log(f"3 workers of generation {generation} ready")
        before = load.count
        wait_for(lambda: load.count > before + 100)
    assert load.failures == []


def test_the_configuration_is_read_again(start, tmp_path):
    """New workers have the new settings: another application, other limits, another number of workers."""
    file = tmp_path / "it.toml"
    file.write_text("workers = 1\nmax_line = '1k'")
    server = start(None, workers=[], config=file)
    assert server.get("/?" + "x" * 2000).status == 414
    file.write_text("workers = 3\nmax_line = '4k'\napp = 'apps.hello:app'")
    server.signal(signal.SIGHUP)
    server.wait_log("3 workers of generation 2 ready")
    wait_for(lambda: len(server.workers()) == 3)
    assert server.get("/?" + "x" * 2000).text == "Hello, world!"


def test_a_relative_file_is_found_again(start, tmp_path):
    """It is looked up in the directory of the start, though the server has changed to --chdir since."""
    directory = tmp_path / "server-1"
    (tmp_path / "elsewhere").mkdir()
    server = start(None, workers=[], chdir="../elsewhere", env={"WORKERS": "2"})
    (directory / "epollard.toml").write_text("threads = 3\nworkers = 1")
    server.signal(signal.SIGHUP)
    server.wait_log("2 workers of generation 2 ready")
    (directory / "epollard.toml").write_text("nonsense = 3")
    server.signal(signal.SIGHUP)
    server.wait_log("SIGHUP: nothing is reloaded: epollard.toml: unknown key 'nonsense'")


def test_a_bad_configuration_changes_nothing(start, tmp_path):
    """The log has the error with which a start would end; workers, their number and their code stay."""
    file = tmp_path / "it.toml"
    file.write_text("workers = 2")
    server = start(None, workers=[], config=file)
    old = server.workers()
    file.write_text("workers = 'many'")
    server.signal(signal.SIGHUP)
    server.wait_log(r"SIGHUP: nothing is reloaded: .*it\.toml: workers: 'many' is not a number from 1 to 1024")
    assert server.workers() == old
    file.write_text("workers = 3")
    server.signal(signal.SIGHUP)
    server.wait_log("3 workers of generation 2 ready")


def test_a_directory_that_is_gone_changes_nothing(start, tmp_path):
    """It may be that of an old release: the reload is refused, and the server carries on."""
    release = tmp_path / "release"
    release.mkdir()
    server = start(chdir=release)
    release.rmdir()
    server.signal(signal.SIGHUP)
    server.wait_log("SIGHUP: nothing is reloaded: --chdir: .* is not a directory")
    release.mkdir()
    server.signal(signal.SIGHUP)
    server.wait_log("apps.hello:app: the current directory is gone")  # a new one of the same name is another directory
    server.wait_log("generation 2 does not boot: the workers of generation 1 stay")
    assert server.get("/").status == 200


def test_listeners_stay_as_they_are(start, tmp_path):
    """Options of the listeners need an upgrade: the log says so, and everything else is reloaded."""
    file = tmp_path / "it.toml"
    file.write_text("threads = 1")
    server = start(None, config=file)
    file.write_text("threads = 2\nbacklog = 100")
    server.signal(signal.SIGHUP)
    server.wait_log(r"SIGHUP: --backlog has changed, which needs an upgrade \(SIGUSR2\)")
    server.wait_log("1 worker of generation 2 ready")


def test_an_application_that_does_not_boot_takes_its_configuration_with_it(start, boots, tmp_path):
    """A worker that dies after a failed reload is replaced by one with the old configuration."""
    file = tmp_path / "it.toml"
    file.write_text("app = 'apps.control:app'")
    server = start(None, config=file)
    file.write_text("app = 'nowhere:app'")
    server.signal(signal.SIGHUP)
    server.wait_log("generation 2 does not boot: the workers of generation 1 stay")
    (old,) = server.workers()
    os.kill(old, signal.SIGKILL)
    server.wait_log(r"worker 0 \(pid \d+\) is ready")
    assert server.get("/env").text == "0 1"


def test_idle_connections_are_closed(served):
    """A client between two requests is not left hanging: its connection is closed, and it may connect again."""
    server = served(workers=1)
    with server.connect() as client:
        assert client.get("/").text == "1"
        server.signal(signal.SIGHUP)
        server.wait_log("1 worker of generation 2 ready")
        assert client.closed()


def test_a_client_between_two_requests_has_time(served):
    """A client that sends another request within seconds is answered by its old worker, with `Connection: close`."""
    server = served(workers=1)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(20)]
        assert {client.get("/").text for client in clients} == {"1"}
        server.signal(signal.SIGHUP)
        server.wait_log("1 worker of generation 2 ready")
        due = time.monotonic()
        for client in clients:
            due += 0.15
            wait_for(lambda due=due: time.monotonic() > due)
            answer = client.get("/")
            assert (answer.text, answer.header("connection")) == ("1", "close")


def test_a_stop_shortens_the_time_of_idle_clients(served):
    """After a reload an idle client has some seconds; when the whole server stops, it has them no longer."""
    server = served(workers=1)
    with server.connect() as client:
        assert client.get("/").text == "1"
        server.signal(signal.SIGHUP)
        server.wait_log("1 worker of generation 2 ready")
        server.signal(signal.SIGTERM)
        begun = time.monotonic()
        assert client.closed()
        assert server.ended() == 0
        assert time.monotonic() - begun < 3 * SCALE


def test_the_old_worker_finishes_its_request(start, tmp_path):
    """A request in flight during the reload is answered by the worker that has it."""
    server = start("apps.control:app")
    (old,) = server.workers()
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        wait_for((tmp_path / "go.running").exists)
        server.signal(signal.SIGHUP)
        server.wait_log("1 worker of generation 2 ready")
        wait_for(lambda: server.get("/env").text == "0 2")  # until its queue is empty, the old one answers too
        assert old in server.workers()
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    server.wait_log(rf"worker 0 \(pid {old}\) exited with 0")


def test_queued_connections_are_answered(served, boots):
    """Connections in the old worker's queue are answered, be it by the old worker or by the new one."""
    server = served(workers=1)
    (old,) = server.workers()
    os.kill(old, signal.SIGSTOP)  # or it would have answered before the reload
    clients = [server.connect().request("/", close=True) for _ in range(20)]
    server.signal(signal.SIGHUP)
    server.wait_log("1 worker of generation 2 ready")
    os.kill(old, signal.SIGCONT)
    for client in clients:
        with client:
            assert client.response().text == "1"


def test_bad_code_does_not_replace_good_code(served, boots):
    """If the first replacement does not boot, the log says why once, and every old worker stays. Mended code is then served."""
    server = served(workers=3)
    old = server.workers()
    (boots / "raise").touch()
    server.signal(signal.SIGHUP)
    server.wait_log("generation 2 does not boot: the workers of generation 1 stay")
    server.wait_log("^RuntimeError: this application was told not to boot$")
    assert server.log.count("Traceback") == 1
    assert server.workers() == old
    assert server.get("/").text == "1"
    (boots / "raise").unlink()
    (boots / "version").write_text("3")
    server.signal(signal.SIGHUP)
    server.wait_log("3 workers of generation 3 ready")
    wait_for(lambda: not {*old} & {*server.workers()})
    assert server.get("/").text == "3"


def test_code_that_hangs_does_not_replace_good_code(served, boots):
    """A replacement that is not ready in time is killed, and the old worker keeps serving all along."""
    server = served(workers=1, boot_timeout=1)
    old = server.workers()
    (boots / "hang").touch()
    server.signal(signal.SIGHUP)
    wait_for((boots / "hanging").exists)
    assert server.get("/").text == "1"
    server.wait_log("generation 2 does not boot: the workers of generation 1 stay")
    assert server.workers() == old
    assert server.get("/").text == "1"


def test_one_slot_at_a_time(served, boots):
    """While the first replacement boots, no other worker is touched."""
    server = served(workers=3)
    old = server.workers()
    (boots / "hang").touch()
    server.signal(signal.SIGHUP)
    wait_for((boots / "hanging").exists)
    assert server.workers()[:3] == old
    assert len(server.workers()) == 4
    (boots / "hang").unlink()
    server.wait_log("3 workers of generation 2 ready")


def test_a_second_reload_overtakes_the_first(served, boots):
    """Code that hangs while it boots need not be waited for once there is newer code."""
    server = served(workers=2)
    (boots / "for ever").touch()
    (boots / "hang").write_text("for ever")
    server.signal(signal.SIGHUP)
    wait_for((boots / "hanging").exists)
    (hanging,) = server.workers()[2:]
    (boots / "hang").unlink()
    (boots / "version").write_text("3")
    server.signal(signal.SIGHUP)
    server.wait_log("2 workers of generation 3 ready")
    server.wait_log(rf"\(pid {hanging}\) was killed by signal SIGTERM")
    wait_for(lambda: len(server.workers()) == 2)
    assert "does not boot" not in server.log
    assert {server.get("/").text for _ in range(10)} == {"3"}


def test_a_worker_that_dies_later_does_not_undo_a_reload(served, boots):
    """Once a worker of the new generation has been ready, a worker that dies is replaced by the new code."""
    server = served(workers=1)
    (boots / "version").write_text("2")
    server.signal(signal.SIGHUP)
    server.wait_log("1 worker of generation 2 ready")
    wait_for(lambda: len(server.workers()) == 1)
    os.kill(server.workers()[0], signal.SIGKILL)
    assert server.get("/").text == "2"
    assert "stay" not in server.log


def test_a_reload_before_anything_is_ready_is_ignored(served, start, boots):
    """The workers that boot have the newest code anyway."""
    (boots / "hang").touch()
    server = start(BOOTS, env={"BOOTS": str(boots)}, wait=False)
    wait_for((boots / "hanging").exists)
    server.signal(signal.SIGHUP)
    server.wait_log("SIGHUP: no worker has been ready yet; ignored")
    (boots / "hang").unlink()
    server.started()
    assert server.get("/").text == "1"
