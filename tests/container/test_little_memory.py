"""Promises of `--workers MIN..MAX` in a container with little memory."""

import concurrent.futures
import http.client
import json
import re
import time
from pathlib import Path

import pytest

from container.engine import SCALE, running, until

APP = """
import time
kept = b"x" * (30 << 20)
def app(environ, start_response):
    time.sleep(0.1)
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""


@pytest.mark.timeout(200 * SCALE)
def test_workers_are_added_only_while_memory_is_left(image: str, tmp_path: Path) -> None:
    """The load requires many more: workers are added until a tenth of the limit is left, and the kernel kills no process."""
    (tmp_path / "own.py").write_text(APP)
    tmp_path.chmod(0o755)  # the image's user is another one
    options = (
        *("--volume", f"{tmp_path}:/app:ro", "--memory", "160m", "--memory-swap", "160m", "--publish", "127.0.0.1::8001"),
        *("--env", "WORKERS=1..16", "--env", "THREADS=1", "--env", "EPOLLARD_ACCESS_LOG=off"),
    )
    with running(image, "own:app", options=options) as container:
        until("ready", 20, lambda: "1 worker ready" in container.logs())
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            end = time.monotonic() + 30 * SCALE
            loads = [pool.submit(ask_until, end, container.port()) for _ in range(16)]
            until("memory limits the workers", 30, lambda: "there is memory for" in container.logs())
            codes = {code for load in loads for code in load.result()}
        assert codes == {200}
        wanted = int(re.findall(r"scaling to (\d+) worker", container.logs())[-1])
        found = json.loads(container.ask("/readyz", inside=8001)[1])
        assert found["workers"]["ready"] == wanted
        assert 2 <= wanted <= 3  # of 30 MiB and an interpreter each
        assert "killed by" not in container.logs()


def ask_until(end: float, port: int) -> set[int]:
    """The statuses of requests that are sent one after the other until `end`."""
    codes = set()
    while time.monotonic() < end:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        client.request("GET", "/")
        codes.add(client.getresponse().status)
        client.close()
    return codes
