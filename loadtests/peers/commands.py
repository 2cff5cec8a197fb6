"""How each server is started, and the virtual environment of the peers. Never tunes one server and not the others."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent

# Takes the interpreter's directory, the port, and the application (an attribute of hello.py, or MODULE:ATTRIBUTE for ASGI).
Command = Callable[[Path, int, str], list[str]]

# Every peer has one worker process and its own defaults for everything else, except where a comment gives a reason.
PEERS: dict[str, Command] = {
    "bjoern": lambda bin, port, app: [f"{bin}/python", "serve_bjoern.py", str(port), app],
    "granian": lambda bin, port, app: [
        *(f"{bin}/granian", "--interface", "wsgi", "--http", "1", "--workers", "1", "--no-access-log"),
        *("--log-level", "warning", "--host", "127.0.0.1", "--port", str(port), f"hello:{app}"),
    ],
    "socketify": lambda bin, port, app: [
        *(f"{bin}/python", "-m", "socketify", f"hello:{app}", "--interface", "wsgi", "--workers", "1"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ],
    # Its HTTP router is a process of its own, and is counted. Without it uWSGI keeps one connection open for each worker.
    "uwsgi": lambda bin, port, app: [
        *(f"{bin}/uwsgi", "--http", f"127.0.0.1:{port}", "--http-keepalive", "--tcp-nodelay", "--master", "--processes", "1"),
        *("--listen", "1024", "--disable-logging", "--die-on-term", "--module", f"hello:{app}"),
    ],
    # Its default worker class, sync, has no keep-alive.
    "gunicorn": lambda bin, port, app: [
        *(f"{bin}/gunicorn", "--workers", "1", "--worker-class", "gthread", "--threads", "8", "--log-level", "warning"),
        *("--bind", f"127.0.0.1:{port}", f"hello:{app}"),
    ],
    "cheroot": lambda bin, port, app: [f"{bin}/cheroot", "--bind", f"127.0.0.1:{port}", f"hello:{app}"],
    "waitress": lambda bin, port, app: [f"{bin}/waitress-serve", f"--listen=127.0.0.1:{port}", f"hello:{app}"],
}

# The same for ASGI applications.
ASGI_PEERS: dict[str, Command] = {
    "uvicorn": lambda bin, port, app: [
        *(f"{bin}/uvicorn", "--loop", "uvloop", "--http", "httptools", "--ws", "websockets", "--no-access-log"),
        *("--log-level", "warning", "--host", "127.0.0.1", "--port", str(port), app),
    ],
    "granian": lambda bin, port, app: [
        *(f"{bin}/granian", "--interface", "asgi", "--http", "1", "--workers", "1", "--no-access-log"),
        *("--log-level", "warning", "--host", "127.0.0.1", "--port", str(port), app),
    ],
    "hypercorn": lambda bin, port, app: [f"{bin}/hypercorn", "--workers", "1", "--bind", f"127.0.0.1:{port}", app],
}


def environment(python: str, directory: Path | None) -> Path:
    """The bin directory of the peers' virtual environment for this interpreter. The first call makes the environment."""
    if directory is None:
        about = [python, "-c", "import sys; print(sys.version, sys.base_prefix)"]
        identity = hashlib.sha256(subprocess.run(about, capture_output=True, check=True).stdout).hexdigest()[:12]
        directory = Path.home() / ".cache" / "epollard-peers" / identity
    bin = directory / "bin"
    wanted = [line for line in (HERE / "requirements.txt").read_text().split("\n") if line and not line.startswith("#")]
    done = directory / "tried.txt"
    if done.exists() and done.read_text().split("\n") == wanted:
        return bin
    print(f"making the peers' environment in {directory}", file=sys.stderr)
    subprocess.run([python, "-m", "venv", str(directory)], check=True)
    for requirement in wanted:
        log = directory / f"{requirement.partition('==')[0]}.log"
        with log.open("w") as output:
            install = [str(bin / "pip"), "install", requirement]
            status = subprocess.run(install, stdout=output, stderr=output, check=False).returncode
        print(f"  {requirement}: {'installed' if status == 0 else f'cannot be installed, see {log}'}", file=sys.stderr)
    done.write_text("\n".join(wanted))
    return bin


def versions(bin: Path) -> dict[str, str]:
    about = "from importlib.metadata import distributions\nfor d in distributions(): print(d.name.lower(), d.version)"
    listed = subprocess.run([str(bin / "python"), "-c", about], capture_output=True, text=True, check=True).stdout
    found = dict(line.split() for line in listed.splitlines())
    return {name: found[name] for name in PEERS | ASGI_PEERS if name in found}


def server(name: str, bin: Path, app: str, options: Sequence[str] = ()) -> measure.Server:
    """epollard or one of its peers, serving an application; `options` are added to its command line.

    `app` is an attribute of hello.py (WSGI), or MODULE:ATTRIBUTE (ASGI).
    """
    port = measure.free_port()
    if name == "epollard":
        spec = app if ":" in app else f"hello:{app}"
        return measure.epollard(str(bin / "python"), port, spec, *options, app_directory=HERE)
    # The environment is activated for servers that find their packages through the PATH (uWSGI embeds the interpreter).
    env = {"PYTHONPATH": str(HERE), "VIRTUAL_ENV": str(bin.parent), "PATH": f"{bin}:/usr/local/bin:/usr/bin:/bin"}
    if name == "uwsgi":
        env["UWSGI_VIRTUALENV"] = str(bin.parent)
    command = ASGI_PEERS[name] if ":" in app else PEERS[name]
    return measure.Server([*command(bin, port, app), *options], port, env=env, cwd=HERE)
