"""From a command line to an exit status and output; a few of them in real processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest

import epollard
from epollard import cli
from epollard.config import text
from epollard.config.options import OPTIONS, Config

SOURCE = Path(epollard.__file__).parents[1]
SCALE = float(os.environ.get("EPOLLARD_TEST_SCALE", "1"))


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in list(os.environ):
        if name.startswith("EPOLLARD_") or name in ("HOST", "PORT", "WORKERS", "WEB_CONCURRENCY", "THREADS"):
            monkeypatch.delenv(name)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def epollard_command(
    *words: str, stdout: int | IO[bytes] = subprocess.PIPE, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A real `python -m epollard`, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "epollard", *words],
        env=os.environ | {"PYTHONPATH": str(SOURCE), **(environ or {})},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20 * SCALE,
        check=False,
    )


def test_help_and_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Both go to standard output with status 0, whatever is wrong in the environment."""
    monkeypatch.setenv("EPOLLARD_NONSENSE", "1")
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr() == (text.help_text(), "")
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"epollard {epollard.__version__}\n", "")


@pytest.mark.parametrize("action", ["--help", "--version", "--print-config"])
def test_output_that_cannot_be_written(action: str):
    """A full device is reported in one line; a pipe whose reader is gone is not reported."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, open(writer, "wb") as gone:
        for stdout, message in (full, "epollard: standard output: No space left on device\n"), (gone, ""):
            ended = epollard_command(action, stdout=stdout)
            assert (ended.returncode, ended.stderr) == (1, message)


def test_print_config(capsys: pytest.CaptureFixture[str]):
    """Every value appears with its source, and nothing is started or imported."""
    assert cli.main(["--print-config", "no.such:app", "--threads", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == list(OPTIONS)
    assert "threads = 3                # --threads" in shown


def test_check_reports_success(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """The application is imported from the directory of --chdir, and its interface is named."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "checked.py").write_text("app = print")
    assert cli.main(["--check", "--chdir", "site", "checked:app"]) == 0
    assert capsys.readouterr() == ("ok: checked:app (WSGI)\n", "")


@pytest.mark.parametrize(("app", "status"), [("app = print", 0), ("", 3)])
def test_check_does_not_wait_for_threads_of_the_application(app: str, status: int, tmp_path: Path):
    """The check ends even if the import has started a thread that never does."""
    (tmp_path / "threaded.py").write_text(f"import threading\nthreading.Thread(target=threading.Event().wait).start()\n{app}\n")
    ended = epollard_command("--check", "threaded:app")
    assert (ended.returncode, ended.stdout) == (status, "" if status else "ok: threaded:app (WSGI)\n")


def test_check_without_an_application_checks_the_demo(capsys: pytest.CaptureFixture[str]):
    """Without an application the demo would be served, so the check succeeds."""
    assert cli.main(["--check"]) == 0
    assert capsys.readouterr().out == "ok: the built-in demo (WSGI)\n"


def test_a_misspelled_application_is_one_line_and_status_3(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """A check of a name that does not exist suggests the one that does."""
    (tmp_path / "checked.py").write_text("app = print")
    assert cli.main(["--check", "checked:ap"]) == 3
    assert capsys.readouterr().err == "epollard: checked:ap: module 'checked' has no attribute 'ap'; did you mean 'app'?\n"


class Worker:
    """A worker as the supervisor returns it in a forked child."""

    def run(self) -> int:
        return 7


@pytest.mark.parametrize(("result", "status"), [(0, 0), (3, 3), (Worker(), 7)])
def test_main_returns_the_supervisors_status_or_runs_the_worker(
    result: int | Worker, status: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The supervisor returns its own exit status or, in a forked child, the worker to run."""
    (tmp_path / "site").mkdir()
    seen: list[tuple[int, str]] = []

    class Supervisor:
        def __init__(self, config: Config, reread: Callable[[], Config], start: str) -> None:
            seen.append((config.threads, os.getcwd()))
            seen.append((reread().threads, os.getcwd()))
            assert start == str(tmp_path)

        def run(self) -> int | Worker:
            return result

    monkeypatch.setitem(sys.modules, "epollard.supervisor", SimpleNamespace(Supervisor=Supervisor))
    assert cli.main(["--threads", "3", "--chdir", "site"]) == status
    assert seen == [(3, str(tmp_path / "site"))] * 2


@pytest.mark.parametrize(
    ("words", "environ", "line"),
    [
        (
            ["--bind", "nonsense"],
            {},
            "epollard: --bind: 'nonsense' is not HOST:PORT, [IPV6]:PORT or unix:PATH (at most 107 bytes); "
            "did you mean nonsense:8000?\n",
        ),
        ([], {"EPOLLARD_THREADS": "9\n9"}, "epollard: EPOLLARD_THREADS: '9\\n9' is not a number from 1 to 1024\n"),
        (["--check", "--wat"], {}, "epollard: unknown option '--wat'; epollard --help lists all options\n"),
    ],
)
def test_bad_configuration_is_exactly_one_line_and_status_2(words: list[str], environ: dict[str, str], line: str):
    """In a real process: nothing on standard output, one line on standard error, no traceback, no usage."""
    ended = epollard_command(*words, environ=environ)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", line)


def test_a_removed_directory_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A start in a directory that has been removed is reported in one line, not by a traceback."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["--check"]) == 2
    assert capsys.readouterr().err == "epollard: the current directory cannot be entered: No such file or directory\n"


def test_an_application_that_fails_to_import_ends_with_its_own_traceback_and_status_3(tmp_path: Path):
    """In a real process: one line of ours, then the application's traceback from its own first frame, then nothing."""
    (tmp_path / "broken.py").write_text("def connect():\n    raise OSError('no database')\n\nconnect()\n")
    ended = epollard_command("--check", "broken:app")
    assert (ended.returncode, ended.stdout) == (3, "")
    lines = ended.stderr.splitlines()
    assert lines[:3] == [
        "epollard: broken:app: importing broken failed",
        "Traceback (most recent call last):",
        f'  File "{tmp_path}/broken.py", line 4, in <module>',
    ]
    assert lines[-1] == "OSError: no database"


def test_closed_standard_streams_are_opened(tmp_path: Path):
    """Otherwise the next file opened, an epoll or a client, would become standard error and get the log."""
    code = """
import os, sys
for fd in range(3):
    os.close(fd)
from epollard import cli
cli.main(["--version"])
found = [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)]
with open("found", "w") as file:
    file.write(" ".join(found))
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(SOURCE)}, check=True)
    assert (tmp_path / "found").read_text() == "/dev/null /dev/null /dev/null"


def test_the_current_directory_is_importable_even_under_pythonsafepath(tmp_path: Path):
    """PYTHONSAFEPATH keeps Python from adding the directory, but the server adds it, ahead of installed packages."""
    (tmp_path / "checked.py").write_text("app = print")
    ended = epollard_command("--check", "checked:app", environ={"PYTHONSAFEPATH": "1"})
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ok: checked:app (WSGI)\n", "")


def test_help_loads_neither_supervisor_nor_application_code():
    """`--help` is quick, because it does not import what it does not use."""
    code = "import sys; from epollard import cli; cli.main(['--help']); print({'socket', 'epollard.net.loop'} & {*sys.modules})"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=20 * SCALE,
        check=True,
    )
    assert ended.stdout.endswith("\nset()\n")
