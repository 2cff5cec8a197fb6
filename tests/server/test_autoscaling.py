"""`--workers MIN..MAX` under real load: as many workers as are needed, no flapping, nothing lost; and how to overrule it."""

import contextlib
import json
import re
import signal
import time

import pytest

from harness import SCALE, Client, wait_for
from load import Load

CONTROL = "apps.control:app"
ANY = "127.0.0.1:0"
SOON = 30 * SCALE
LATE = 60 * SCALE  # half a minute of quiet, and the exit of a worker


def metric(server, name):
    with Client(server.admin) as client:
        text = client.get("/metrics", host="localhost").text
    return next(float(line.removeprefix(name + " ")) for line in text.splitlines() if line.startswith(name + " "))


@pytest.mark.timeout(240 * SCALE)
def test_it_grows_stays_and_shrinks_under_load(start):
    """Load for more than one worker: two, and no change. Load for many: the maximum. None: the minimum. Nothing is lost."""
    server = start(CONTROL, workers="1..4", threads=1)
    assert len(server.workers()) == 1
    with Load(server.address, clients=1, target="/sleep?0.1", pause=0) as one:
        wait_for(lambda: len(server.workers()) == 2, lambda: server.log, SOON)
        steady = time.monotonic() + 10
        while time.monotonic() < steady:
            assert server.log.count("scaling to") == 1, server.log
            time.sleep(0.1)  # the promise is that nothing happens
        with Load(server.address, clients=12, target="/sleep?0.1", pause=0) as many:
            wait_for(lambda: len(server.workers()) == 4, lambda: server.log, SOON)
            server.wait_log("4 workers ready")
    assert "% busy: scaling to 2 workers" in server.log
    wait_for(lambda: len(server.workers()) == 1, lambda: server.log, LATE)
    numbers = [1, *map(int, re.findall(r"scaling to (\d) worker", server.log)), 0]
    peak = numbers.index(4)
    assert numbers == sorted(numbers[:peak]) + sorted(numbers[peak:], reverse=True), server.log  # up, and then down
    assert one.failures == []
    assert many.failures == []


@pytest.mark.timeout(120 * SCALE)
def test_a_worker_that_retires_because_the_load_fell_finishes_its_requests(start, tmp_path):
    """Its end is not urgent: a request longer than the graceful timeout is answered. The metrics still count the worker."""
    server = start(CONTROL, workers=2, graceful_timeout=1, admin=ANY)
    file = tmp_path / "done"
    with contextlib.ExitStack() as stack:
        client = None
        while client is None or client.get("/env").text != "1 1":  # of the worker that will retire
            client = stack.enter_context(Client(server.address))
        client.request(f"/until?{file}")
        wait_for((tmp_path / "done.running").exists)
        answered = metric(server, "epollard_requests_total")
        with Client(server.admin) as control:
            control.post("/scale?workers=1..2", b"", host="localhost")
        server.wait_log("% busy: scaling to 1 worker", seconds=LATE)
        wait_for(lambda: metric(server, 'epollard_workers{state="draining"}') == 1)
        steady = time.monotonic() + 8  # a worker without a supervisor would be gone by now as well
        while time.monotonic() < steady:
            assert metric(server, 'epollard_workers{state="draining"}') == 1
            assert metric(server, "epollard_requests_total") >= answered
            time.sleep(0.1)  # the promise is that nothing happens
        file.touch()
        assert client.response().text == "done"
    wait_for(lambda: len(server.workers()) == 1)
    assert "killed" not in server.log


def test_a_signal_pins_the_number(start):
    """After TTIN the number is fixed, whatever the load."""
    server = start(CONTROL, workers="1..4", threads=1)
    server.signal(signal.SIGTTIN)
    server.wait_log("SIGTTIN: scaling to 2 workers, no longer 1 to 4")
    server.wait_log("2 workers ready")
    with Load(server.address, clients=8, target="/sleep?0.1", pause=0):
        time.sleep(6)  # twice what it takes to grow
    assert server.log.count("scaling to") == 1


def test_a_command_sets_other_bounds(start):
    """`scale 3..4` takes effect at once, and the number follows the load within the new bounds; `scale 1` fixes it."""
    server = start(CONTROL, workers=1, threads=1, admin=ANY)
    with Client(server.admin) as client:
        answer = client.post("/scale?workers=3..4", b"", host="localhost")
    assert answer.text == '{"done": "3 to 4 workers wanted"}\n'
    server.wait_log("3 workers ready")
    with Load(server.address, clients=12, target="/sleep?0.1", pause=0) as load:
        wait_for(lambda: len(server.workers()) == 4, lambda: server.log, SOON)
    with Client(server.admin) as client:
        client.post("/scale?workers=1", b"", host="localhost")
    wait_for(lambda: len(server.workers()) == 1)
    assert load.failures == []


def test_a_reload_reads_new_bounds(start, tmp_path):
    """HUP reads the bounds again; if they have not changed, it leaves the number alone."""
    file = tmp_path / "it.toml"
    file.write_text('workers = "1..4"\n')
    server = start(CONTROL, workers=None, config=file)
    assert "1 to 4 workers: from" in server.log
    server.signal(signal.SIGHUP)
    server.wait_log("1 worker of generation 2 ready")
    assert "scaling" not in server.log
    file.write_text('workers = "2..4"\n')
    server.signal(signal.SIGHUP)
    server.wait_log("SIGHUP: scaling to 2 to 4 workers, no longer 1 to 4")
    server.wait_log("2 workers of generation 3 ready")


def test_wsgi_multiprocess_is_true_if_there_may_be_more(start):
    """`wsgi.multiprocess` is true from the start, though there is one worker: there may be more later (PEP 3333)."""
    server = start("apps.routes:app", workers="1..2")
    assert json.loads(server.get("/environment").text)["wsgi.multiprocess"] is True
