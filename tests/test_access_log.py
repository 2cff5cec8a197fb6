"""The access log: its formats, that a line stays one line, and when lines are written. Through the real descriptor 1."""

import calendar
import json
import os
import re
import subprocess
import sys
import time

import pytest

import corpus
from epollard import access_log
from epollard.access_log import AccessLog
from epollard.protocol.request import Request


def request(line: bytes = b"GET /a?b=c HTTP/1.1", *fields: bytes) -> Request:
    found = corpus.reader().read(b"\r\n".join((line, b"Host: example.com", *fields, b"", b"")))
    assert found is not None
    return found


TEXT = re.compile(
    r"(?P<host>\S+) - - \[(?P<time>\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000)\] "
    r'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) (?P<bytes>\d+) (?P<seconds>\d+\.\d{6})'
)


def text_of(capfd: pytest.CaptureFixture[str]) -> re.Match[str]:
    line = capfd.readouterr().out
    assert line.endswith("\n")
    match = TEXT.fullmatch(line[:-1])
    assert match, line
    return match


def test_a_text_line(capfd: pytest.CaptureFixture[str]):
    """The Common Log Format, then the duration in seconds."""
    log = AccessLog("text")
    before = int(time.time())
    log.add("192.0.2.1", request(), 200, 13, 0.0123456)
    log.flush()
    line = text_of(capfd)
    assert line.group("host", "request", "status", "bytes", "seconds") == (
        "192.0.2.1",
        "GET /a?b=c HTTP/1.1",
        "200",
        "13",
        "0.012346",
    )
    stamp = time.strptime(line["time"], "%d/%b/%Y:%H:%M:%S +0000")
    assert before <= calendar.timegm(stamp) <= time.time()


def test_a_client_without_an_address(capfd: pytest.CaptureFixture[str]):
    """The client of a Unix socket is a dash in text and an empty string in JSON."""
    for style in "text", "json":
        log = AccessLog(style)
        log.add("", request(), 200, 0, 0)
        log.flush()
    text, line = capfd.readouterr().out.splitlines()
    assert text.startswith("- - - [")
    assert json.loads(line)["client"] == ""


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        (b'/"', r"GET /\" HTTP/1.1"),
        (b'/" 200 0 "', None),
        (b"/\\", r"GET /\\ HTTP/1.1"),
        (b'/\\"', r"GET /\\\" HTTP/1.1"),
        (b"/%0a%22", "GET /%0a%22 HTTP/1.1"),
        (b"http://example.com/x", "GET http://example.com/x HTTP/1.1"),
    ],
)
def test_a_target_does_not_end_its_quotes(target: bytes, shown: str | None, capfd: pytest.CaptureFixture[str]):
    """Whatever target a client requests stays between the quotes, and the numbers after them are ours."""
    if shown is None:
        target, shown = target.replace(b" ", b"%20"), r"GET /\"%20200%200%20\" HTTP/1.1"
    log = AccessLog("text")
    log.add("::1", request(b"GET " + target + b" HTTP/1.1"), 404, 7, 0)
    log.flush()
    line = text_of(capfd)
    assert line.group("request", "status", "bytes") == (shown, "404", "7")


def test_every_valid_request_is_one_line(capfd: pytest.CaptureFixture[str]):
    """Each valid request of the corpus becomes one line, in both styles."""
    rows = corpus.rows("valid")
    for style in "text", "json":
        log = AccessLog(style)
        for row in rows:
            found = corpus.reader().read(row.data)
            assert found is not None
            log.add("h", found, 200, 0, 0)
        log.flush()
        lines = capfd.readouterr().out.splitlines()
        assert len(lines) == len(rows)
        assert all(line.isprintable() for line in lines)
        assert all(TEXT.fullmatch(line) if style == "text" else json.loads(line) for line in lines)


def test_a_json_line(capfd: pytest.CaptureFixture[str]):
    """One object of numbers and strings; a missing user agent is null."""
    log = AccessLog("json")
    log.add("192.0.2.1", request(b"POST /a?b HTTP/1.0", b"User-Agent: x/1", b"user-agent: second"), 201, 5, 0.1234567)
    log.add("192.0.2.1", request(), 200, 0, 0)
    log.flush()
    first, second = map(json.loads, capfd.readouterr().out.splitlines())
    assert re.fullmatch(r"\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d \+0000", first.pop("time"))
    assert first == {
        "client": "192.0.2.1",
        "method": "POST",
        "target": "/a?b",
        "protocol": "HTTP/1.0",
        "host": "example.com",
        "status": 201,
        "bytes": 5,
        "seconds": 0.123457,
        "agent": "x/1",
        "worker": os.getpid(),
    }
    assert second["agent"] is None


def test_json_escapes_the_user_agent(capfd: pytest.CaptureFixture[str]):
    """Quotes, bytes over 127 and C1 controls stay inside their string, and the line is ASCII."""
    log = AccessLog("json")
    log.add("h", request(b"GET / HTTP/1.1", b'User-Agent: a"b\\\xe9\x9b31m'), 200, 0, 0)
    log.flush()
    line = capfd.readouterr().out
    assert line[:-1].isascii()
    assert line[:-1].isprintable()
    assert json.loads(line)["agent"].startswith('a"b\\\xe9')


def test_lines_wait_for_the_flush(capfd: pytest.CaptureFixture[str]):
    """Nothing is written before the turn ends; then all lines are written in order, once."""
    log = AccessLog("text")
    for number in range(3):
        log.add("h", request(), 200 + number, 0, 0)
    assert capfd.readouterr().out == ""
    log.flush()
    log.flush()
    assert [TEXT.fullmatch(line)["status"] for line in capfd.readouterr().out.splitlines()] == ["200", "201", "202"]


@pytest.mark.parametrize("style", ["text", "json"])
def test_too_many_lines_do_not_wait(style: str, capfd: pytest.CaptureFixture[str]):
    """A turn with very many responses does not keep all their lines in memory."""
    log = AccessLog(style)
    found = request()
    for _ in range(access_log.MAX_LINES + 1):
        log.add("h", found, 200, 0, 0)
    assert len(capfd.readouterr().out.splitlines()) == access_log.MAX_LINES + 1


def test_the_time_is_cached_for_a_second(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """The formatted time changes with the second."""
    log = AccessLog("text")
    for now in 784111777.9, 784111778.0, 784111778.9:
        monkeypatch.setattr(time, "time", lambda now=now: now)
        log.add("h", request(), 200, 0, 0)
    log.flush()
    monkeypatch.undo()
    times = [TEXT.fullmatch(line)["time"] for line in capfd.readouterr().out.splitlines()]
    assert times == ["06/Nov/1994:08:49:37 +0000", "06/Nov/1994:08:49:38 +0000", "06/Nov/1994:08:49:38 +0000"]


def test_a_full_pipe_gets_it_all():
    """If the pipe does not take everything at once, the rest is written when its reader has read."""
    code = """
import sys
import corpus
from epollard.access_log import AccessLog
log = AccessLog("text")
found = corpus.reader().read(b"GET /" + b"a" * 4000 + b" HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
for _ in range(100):
    log.add("h", found, 200, 0, 0)
log.flush()
"""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, stdout=subprocess.PIPE, check=True)
    assert len(done.stdout.splitlines()) == 100
    assert {len(line) for line in done.stdout.splitlines()} == {len(done.stdout) // 100 - 1}


@pytest.mark.parametrize(
    "end", ["os.close(1)", "r, w = os.pipe(); os.dup2(w, 1); os.close(r)", "os.dup2(os.open('/dev/full', 1), 1)"]
)
def test_a_lost_standard_output_is_ignored(end: str):
    """The access log does not fail if standard output is closed, broken or full, and drops the lines."""
    code = f"""
import os, sys
import corpus
from epollard.access_log import AccessLog
log = AccessLog("json")
found = corpus.reader().read(b"GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n")
{end}
log.add("h", found, 200, 0, 0)
log.flush()
assert not log._lines
print("alive", file=sys.stderr)
"""
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, stderr=subprocess.PIPE, check=True)
    assert done.stderr == b"alive\n"
