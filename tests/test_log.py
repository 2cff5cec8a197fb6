"""The server's own log: one line stays one line, and nothing is written below the level. Through the real descriptor 2."""

import errno
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator

import pytest

from epollard import log


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    log.configure("info", "epollard")


STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_a_line(capfd: pytest.CaptureFixture[str]):
    """The time in UTC, the level, the name of the process and its pid, then the text."""
    log.configure("info", "worker 3")
    log.info("hello")
    assert re.fullmatch(rf"{STAMP} info    worker 3\[{os.getpid()}\]: hello\n", capfd.readouterr().err)


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_levels(level: str, count: int, capfd: pytest.CaptureFixture[str]):
    """Lines below the level are not written; errors always are."""
    log.configure(level, "x")
    for write in log.debug, log.info, log.warning, log.error:
        write(write.__name__)
    written = [line.split()[1] for line in capfd.readouterr().err.splitlines()]
    assert written == ["debug", "info", "warning", "error"][4 - count :]


def test_every_level_has_a_name():
    """The names of the levels are the names of the functions."""
    assert all(callable(getattr(log, name)) for name in log.LEVELS)
    assert sorted(log.LEVELS.values()) == list(log.LEVELS.values())


ESCAPES = [
    ("a\nb", "a\\x0ab"),
    ("a\r\nb", "a\\x0d\\x0ab"),
    ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
    ("\0\t\x7f", "\\x00\\x09\\x7f"),
    ("\x80\x85\x9b\x9f", "\\x80\\x85\\x9b\\x9f"),
    ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
    ("caf\xe9 \u4e16 \U0001f600", "caf\xe9 \u4e16 \U0001f600"),
    ("\xa0\u202e", "\xa0\u202e"),
    ("", ""),
]


@pytest.mark.parametrize(("text", "shown"), ESCAPES)
def test_one_line_stays_one_line(text: str, shown: str, capfd: pytest.CaptureFixture[str]):
    """Characters that a terminal or a log reader would interpret are shown as escapes (CVE-2020-7694)."""
    assert log.escape(text) == shown
    log.info(text)
    line = capfd.readouterr().err
    assert line.endswith(f": {shown}\n")
    assert len(line.splitlines()) == 1


def test_no_control_character_is_written():
    """C0, DEL, C1 and the line ends of Unicode are all escaped; printable characters are left alone."""
    for code in (*range(0x20), 0x7F, *range(0x80, 0xA0), 0x2028, 0x2029):
        assert log.escape(f"a{chr(code)}b").isprintable()
    printable = "".join(chr(code) for code in range(0x20, 0x7F))
    assert log.escape(printable) == printable


def test_surrogates_are_written(capfd: pytest.CaptureFixture[str]):
    """A file name that is not UTF-8 does not suppress the line that contains it."""
    log.info("file \udcff")
    assert capfd.readouterr().err.endswith("file \\udcff\n")


def test_an_exception_has_its_traceback(capfd: pytest.CaptureFixture[str]):
    """One line about the failure, then the traceback as Python prints it, with its cause."""
    try:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error
    except ValueError as error:
        log.exception("it\nfailed", error)
    first, *rest = capfd.readouterr().err.splitlines()
    assert first.endswith(": it\\x0afailed")
    assert " error " in first
    assert rest[0] == "    Traceback (most recent call last):"
    assert "    KeyError: 'first'" in rest
    assert rest[-1] == "    ValueError: second"


def test_the_message_of_an_exception_is_escaped_and_indented(capfd: pytest.CaptureFixture[str]):
    """It may have several lines and quote a client: control characters are escaped, and no line of it begins like one of the
    log."""
    log.exception("failed", ValueError("bad\n\tname\x1b[2J\r\x9b\u2028\n"))
    said = capfd.readouterr().err
    assert said.endswith("    ValueError: bad\n    \tname\\x1b[2J\\x0d\\x9b\\u2028\n    \n")
    assert all(line.startswith("    ") for line in said.split("\n")[1:-1])


@pytest.mark.parametrize(
    "end", ["os.close(2)", "r, w = os.pipe(); os.dup2(w, 2); os.close(r)", "os.dup2(os.open('/dev/full', 1), 2)"]
)
def test_a_lost_standard_error_is_ignored(end: str):
    """The log does not fail if standard error is closed, broken or full."""
    code = f"import os; from epollard import log; {end}; log.error('x'); log.exception('y', OSError()); print('alive')"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"alive\n"


def test_a_traceback_that_cannot_be_formatted_is_replaced(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Formatting may need a descriptor, or memory, that is not left: the log names the exception and does not fail."""

    def fail(error: BaseException) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(traceback, "format_exception", fail)
    log.exception("failed", ValueError("x"))
    assert capfd.readouterr().err.endswith("failed\n    ValueError; its traceback could not be formatted: OSError\n")


def test_lines_of_many_processes_do_not_mix():
    """A line is one write, so the lines of several processes on one pipe stay whole."""
    read, write = os.pipe()
    children = []
    for number in range(4):
        pid = os.fork()
        if not pid:
            os.dup2(write, 2)
            for _ in range(200):
                log.info(str(number) * 300)
            os._exit(0)
        children.append(pid)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as pipe:
        lines = pipe.read().splitlines()
    for pid in children:
        os.waitpid(pid, 0)
    assert len(lines) == 800
    assert all(re.search(r": (\d)\1{299}$", line) for line in lines)


def test_the_loggers_of_applications_are_left_alone(capfd: pytest.CaptureFixture[str]):
    """An application that disables all loggers does not silence the server."""
    code = (
        "import logging.config; from epollard import log;"
        "logging.config.dictConfig({'version': 1, 'disable_existing_loggers': True}); logging.disable(); log.info('heard')"
    )
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, stderr=subprocess.PIPE, check=True, text=True)
    assert done.stderr.endswith(": heard\n")
