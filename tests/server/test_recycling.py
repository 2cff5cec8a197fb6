"""Recycling: workers that are due are replaced before they retire, one at a time, and no client notices."""

import re
import time

from harness import alive, wait_for
from load import Load


def test_recycling_by_requests_loses_nothing(start):
    """Every worker is replaced again and again while clients send requests: all are answered, and the log gives the reasons."""
    server = start(workers=2, max_requests=100, max_requests_jitter=20)
    with Load(server.address) as load:
        server.wait_log(r"worker [01] \(pid \d+\) has answered \d+ requests: replacing it", 6, 60)
    assert load.failures == []
    recycled = re.findall(r"\(pid (\d+)\) has answered (\d+) requests", server.log)
    assert len({pid for pid, _ in recycled}) == len(recycled)
    assert all(int(count) >= 100 for _, count in recycled)


def test_one_at_a_time(start):
    """All workers are too old at once: the second is touched only once the replacement of the first serves."""
    server = start(workers=3, max_worker_age=1)
    server.wait_log("replacing it", 3)
    events = re.findall(r"replacing it|is ready", server.log)
    assert events[:5] == ["replacing it", "is ready", "replacing it", "is ready", "replacing it"]


def test_memory(start):
    """A worker that has grown too big is replaced after some seconds; a small one is not."""
    server = start("apps.control:app", workers=2, max_worker_memory="90M")
    with server.connect() as client:
        big = client.get("/grow?100").text
        server.wait_log(rf"\(pid {big}\) uses 1\d\d MiB of memory: replacing it", seconds=60)
    wait_for(lambda: int(big) not in server.workers())
    assert server.log.count("replacing it") == 1


def test_requests_in_flight_are_finished(start, tmp_path):
    """A request in a recycled worker is answered, though a replacement has taken its place."""
    server = start("apps.control:app", workers=1, max_worker_age=1)
    with server.connect() as client:
        client.request(f"/until?{tmp_path}/go")
        server.wait_log(r"worker 0 \(pid \d+\) is ready")
        (tmp_path / "go").touch()
        assert client.response().text == "done"


def recycle(server, client, running):
    """Have its newest worker replaced, while it works on a request that waits for the file `running`. Returns its number."""
    pid = server.workers()[-1]
    client.request(f"/until?{running}")
    wait_for(running.with_suffix(".running").exists)
    while f"(pid {pid}) has answered" not in server.log:
        server.get("/pid")
    wait_for(lambda: server.workers()[-1] != pid and server.get("/pid").text == str(server.workers()[-1]))
    return pid


def test_the_end_of_a_recycled_worker_is_not_urgent(start, tmp_path):
    """A request longer than the graceful timeout is answered: that the worker is still there does no harm."""
    server = start("apps.control:app", workers=1, max_requests=100, graceful_timeout=0.5)
    with server.connect() as client:
        pid = recycle(server, client, tmp_path / "go")
        steady = time.monotonic() + 3
        while time.monotonic() < steady:
            assert alive(pid), server.log
            time.sleep(0.1)  # the promise is that nothing happens
        (tmp_path / "go").touch()
        assert client.response().text == "done"
    server.wait_log(rf"\(pid {pid}\) exited with 0")


def test_only_one_worker_of_a_slot_takes_its_time(start, tmp_path):
    """Requests that never end do not pile up workers: a worker that retires hurries the one that retired before it."""
    server = start("apps.control:app", workers=1, max_requests=100, graceful_timeout=0.5)
    with server.connect() as client:
        first = recycle(server, client, tmp_path / "first")
    with server.connect() as client:
        second = recycle(server, client, tmp_path / "second")
        server.wait_log(rf"\(pid {second}\) retires as well: worker 0 \(pid {first}\) is draining and now has 0.5 s to finish")
        server.wait_log(rf"\(pid {first}\) was (ended|killed) by the supervisor because it was still busy 0.5 s")
        (tmp_path / "second").touch()
        assert client.response().text == "done"


def test_a_worker_that_is_too_big_does_not_linger(start, tmp_path):
    """A worker that retires for its memory, or uses too much while it lingers, has only the graceful timeout."""
    server = start("apps.control:app", workers=1, max_worker_memory="90M", graceful_timeout=0.5)
    with server.connect() as client, server.connect() as waiting:
        waiting.request(f"/until?{tmp_path}/go")
        big = client.get("/grow?100").text
        server.wait_log(rf"--max-worker-memory: worker 0 \(pid {big}\) is draining and now has 0.5 s to finish", seconds=60)
        server.wait_log(rf"\(pid {big}\) was (ended|killed) by the supervisor because it was still busy 0.5 s")


def test_a_worker_without_clients_does_not_linger(start, tmp_path):
    """A thread of the application that never ends delays the exit of a worker that has no client, but not for ever."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "endless.py").write_text(
        "import threading\nfrom apps.control import app\nthreading.Thread(target=threading.Event().wait).start()\n"
    )
    server = start("endless:app", chdir=tmp_path / "app", workers=1, max_requests=100, graceful_timeout=0.5)
    (tmp_path / "go").touch()
    with server.connect() as client:
        pid = recycle(server, client, tmp_path / "go")
    server.wait_log(rf"worker 0 \(pid {pid}\) exited with 1 after", seconds=20)
    assert "in _shutdown" in server.log  # a stack


def test_a_replacement_that_does_not_boot_leaves_the_old_worker(start, tmp_path):
    """An old worker is better than none."""
    server = start("apps.boots:app", env={"BOOTS": str(tmp_path)}, workers=1, max_worker_age=1)
    old = server.workers()
    (tmp_path / "raise").touch()
    server.wait_log("exited with 3", 2)
    assert server.workers()[:1] == old
    assert server.get("/").text == "1"
