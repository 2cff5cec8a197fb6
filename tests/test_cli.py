"""From words to an exit status and what is printed where; a few of them in real processes."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import epollard
from epollard import cli
from epollard.config import text
from epollard.config.options import OPTIONS

SOURCE = Path(epollard.__file__).parents[1]
SCALE = float(os.environ.get("EPOLLARD_TEST_SCALE", "1"))


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path, monkeypatch):
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


def epollard_command(*words, stdout=subprocess.PIPE, **environ):
    """A real `python -m epollard`, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "epollard", *words],
        env=os.environ | {"PYTHONPATH": str(SOURCE)} | environ,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=20 * SCALE,
        check=False,
    )


def test_help_and_version(capsys):
    """Both are asked for, so they go to standard output, with status 0, whatever the environment holds."""
    os.environ["EPOLLARD_NONSENSE"] = "1"
    try:
        assert cli.main(["--help"]) == 0
        assert capsys.readouterr() == (text.help_text(), "")
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr() == (f"epollard {epollard.__version__}\n", "")
    finally:
        del os.environ["EPOLLARD_NONSENSE"]


@pytest.mark.parametrize("action", ["--help", "--version", "--print-config"])
def test_nowhere_to_print_to(action):
    """A full device is said in one line; a reader that has gone wants to hear nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, open(writer, "wb") as gone:
        for stdout, told in (full, "epollard: standard output: No space left on device\n"), (gone, ""):
            ended = epollard_command(action, stdout=stdout)
            assert (ended.returncode, ended.stderr) == (1, told)


def test_print_config(capsys):
    """Every value and its source, and nothing is started or imported."""
    assert cli.main(["--print-config", "no.such:app", "--threads", "3"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == list(OPTIONS)
    assert "threads = 3                # --threads" in shown


def test_check_says_ok(capsys, tmp_path):
    """The application is looked for where --chdir says."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "checked.py").write_text("app = print")
    assert cli.main(["--check", "--chdir", "site", "checked:app"]) == 0
    assert capsys.readouterr() == ("ok: checked:app (WSGI)\n", "")


@pytest.mark.parametrize(("app", "status"), [("app = print", 0), ("", 3)])
def test_check_waits_for_no_thread_of_the_application(app, status, tmp_path):
    """An import may start one that never ends."""
    (tmp_path / "threaded.py").write_text(f"import threading\nthreading.Thread(target=threading.Event().wait).start()\n{app}\n")
    ended = epollard_command("--check", "threaded:app")
    assert (ended.returncode, ended.stdout) == (status, "" if status else "ok: threaded:app (WSGI)\n")


def test_check_without_an_application_is_the_demo(capsys):
    """There is always something to serve."""
    assert cli.main(["--check"]) == 0
    assert capsys.readouterr().out == "ok: the built-in demo (WSGI)\n"


def test_a_mistyped_application_is_one_line_and_status_3(capsys, tmp_path):
    """A check of a name that is not there says which one is."""
    (tmp_path / "checked.py").write_text("app = print")
    assert cli.main(["--check", "checked:ap"]) == 3
    assert capsys.readouterr().err == "epollard: checked:ap: module 'checked' has no attribute 'ap'; did you mean 'app'?\n"


class Worker:
    def run(self):
        return 7


@pytest.mark.parametrize(("result", "status"), [(0, 0), (3, 3), (Worker(), 7)])
def test_main_returns_the_supervisors_status_or_runs_the_worker(result, status, monkeypatch, tmp_path):
    """What comes back from the supervisor is its own end, or, in a forked child, the worker that is to run."""
    (tmp_path / "site").mkdir()
    seen = []

    class Supervisor:
        def __init__(self, settings, reread, start):
            seen.append((settings.threads, os.getcwd()))
            seen.append((reread().threads, os.getcwd()))
            assert start == str(tmp_path)

        def run(self):
            return result

    module = ModuleType("epollard.supervisor")
    module.Supervisor = Supervisor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "epollard.supervisor", module)
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
def test_bad_configuration_is_exactly_one_line_and_status_2(words, environ, line):
    """For real: nothing on standard output, one line on standard error, no traceback, no usage."""
    ended = epollard_command(*words, **environ)
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", line)


def test_a_directory_that_is_gone_is_one_line_too(tmp_path, monkeypatch, capsys):
    """Whoever starts us in one that was removed meanwhile hears of it, and not by a traceback."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["--check"]) == 2
    assert capsys.readouterr().err == "epollard: the current directory cannot be entered: No such file or directory\n"


def test_an_application_that_does_not_import_ends_with_its_own_traceback_and_status_3(tmp_path):
    """For real: one line of ours, then the application's traceback from its own first frame, and nothing after it."""
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


def test_standard_streams_that_are_closed_are_filled(tmp_path):
    """Else what is opened next, an epoll or a client, would be standard error, and get the log."""
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


def test_the_current_directory_is_importable_even_where_python_says_not(tmp_path):
    """The contract holds under PYTHONSAFEPATH, too, and the application is found ahead of what is installed."""
    (tmp_path / "checked.py").write_text("app = print")
    ended = epollard_command("--check", "checked:app", PYTHONSAFEPATH="1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ok: checked:app (WSGI)\n", "")


def test_help_loads_neither_supervisor_nor_application_code():
    """`--help` answers without what it does not use."""
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
