"""The real server as a process, and a client that sends raw bytes. Every wait is for a condition and has a deadline."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

# One factor for every wait, for slow or crowded machines.
SCALE = float(os.environ.get("EPOLLARD_TEST_SCALE", "1"))
WAIT = 10 * SCALE  # seconds for something that happens at once, on a busy machine
TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "app"

HAS_V6 = Path("/proc/net/if_inet6").exists() and " lo\n" in Path("/proc/net/if_inet6").read_text("ascii")

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str | Callable[[], str] = "", seconds: float = WAIT) -> T:
    """Wait until `condition` returns something true, and return that. `AssertionError` after `seconds` (already scaled)."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain: {what() if callable(what) else what}"
        time.sleep(0.005)
    return found


# --- The server ------------------------------------------------------------------------------------------------------


class Mode(NamedTuple):
    """One of the ways in which every promise must hold."""

    trigger: str
    threads: int
    interface: str = "wsgi"

    def __str__(self) -> str:
        return f"{self.trigger}-{self.threads if self.interface == 'wsgi' else self.interface}"


TRIGGERS = ("level", "edge", "oneshot")
# Applications with the same routes: what HTTP promises holds for both interfaces.
TWINS = {"apps.routes:app": "apps.asgi_routes:app"}


class Server:
    """`python -m epollard`, started on port 0. Keyword `some_name=value` is the flag `--some-name value`; None is no flag."""

    def __init__(
        self,
        app: str | None,
        directory: Path,
        *,
        env: Mapping[str, str] | None = None,
        launcher: Sequence[str] = (),
        **options: object,
    ) -> None:
        """Start it; `started()` waits until it serves. Its logs are files in `directory`, which no other server may use."""
        options = {"bind": "127.0.0.1:0", "workers": 1, "admin": "off", **options}
        words = [*launcher, sys.executable, "-m", "epollard"]
        for name, value in options.items():
            for one in value if isinstance(value, list | tuple) else [value] if value is not None else []:
                words += [f"--{name.replace('_', '-')}", str(one)]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EPOLLARD_")}
        for name in "HOST", "PORT", "WORKERS", "WEB_CONCURRENCY", "THREADS":
            kept.pop(name, None)
        path = os.pathsep.join([str(SOURCE), str(TESTS)])
        self._log = directory / "stderr"
        self._access = directory / "stdout"
        with self._log.open("wb") as stderr, self._access.open("wb") as stdout:
            self.process = subprocess.Popen(
                words + ([app] if app else []),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=directory,
                env=kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | dict(env or {}),
                start_new_session=True,  # to find any process that it leaves behind
            )
        self.pid = self.process.pid

    def started(self) -> Self:
        """Wait until all its workers are ready."""
        wait_for(lambda: self.process.poll() is not None or re.search(r"\d workers? ready", self.log), lambda: self.log)
        assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.log}"
        return self

    @property
    def log(self) -> str:
        """Its standard error so far."""
        return self._log.read_text("utf-8", "replace")

    @property
    def access(self) -> str:
        """Its standard output so far."""
        return self._access.read_text("utf-8", "replace")

    @property
    def urls(self) -> list[str]:
        """The addresses it listens on, according to its log."""
        return re.findall(r"listening on (\S+)", self.log)

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def admin(self) -> tuple[str, int]:
        """Host and port of its management listener; it must have been started with `admin="127.0.0.1:0"`."""
        host, _, port = re.findall(r"management on http://(\S+)", self.log)[0].rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of its first address."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def port(self) -> int:
        return self.address[1]

    def workers(self) -> list[int]:
        """Its current worker processes, oldest first."""
        return children(self.pid)

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait_log(self, pattern: str, count: int = 1, seconds: float = WAIT) -> re.Match[str]:
        """Wait for the `count`th match in the log."""
        found = wait_for(
            lambda: list(re.finditer(pattern, self.log, re.MULTILINE))[count - 1 :],
            lambda: f"{count} of {pattern!r} in:\n{self.log}",
            seconds,
        )
        return found[0]

    def ended(self, seconds: float = WAIT) -> int:
        """Wait until it has exited, and return its exit status."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s:\n{self.log}") from None

    def connect(self, **options: Any) -> "Client":
        """A new connection to its first address."""
        return Client(self.address, **options)

    def get(self, target: str = "/", **headers: str) -> "Response":
        """The response to one GET on a new connection."""
        with self.connect() as client:
            return client.get(target, close=True, **headers)

    def stop(self) -> None:
        """Stop it, and check what holds for every server: it exits with 0 on SIGTERM and leaves no process behind."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            assert self.ended() == 0, self.log
        left = wait_for_none(lambda: session(self.pid))
        assert not left, f"left behind: {left}\n{self.log}"
        assert "Exception ignored" not in self.log, self.log

    def kill(self) -> None:
        """Kill all its processes, whatever state it is in."""
        for pid in [self.pid, *session(self.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def wait_for_none(condition: Callable[[], list[int]]) -> list[int]:
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not condition())
    return condition()


def children(pid: int) -> list[int]:
    """The live children of a process, oldest first (proc_pid_stat(5): state is field 3, ppid 4, start 22)."""
    found = [(int(fields[19]), child) for child, fields in _processes() if int(fields[1]) == pid and fields[0] != "Z"]
    return [child for _, child in sorted(found)]


def session(leader: int) -> list[int]:
    """The live processes of a session, except those that have begun a session of their own."""
    return [pid for pid, fields in _processes() if int(fields[3]) == leader and fields[0] != "Z"]


def leaves(leader: int) -> list[int]:
    """The live processes of a session that have no children, oldest first: a server's workers."""
    living = [(pid, fields) for pid, fields in _processes() if int(fields[3]) == leader and fields[0] != "Z"]
    parents = {int(fields[1]) for _, fields in living}
    return [pid for _, pid in sorted((int(fields[19]), pid) for pid, fields in living if pid not in parents)]


def alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    return any(found == pid and fields[0] != "Z" for found, fields in _processes())


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Every process, with the fields of its `stat` from the third one (the state) on."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                yield int(name), Path("/proc", name, "stat").read_text("utf-8", "replace").rpartition(")")[2].split()


# --- The client ------------------------------------------------------------------------------------------------------


class Response(NamedTuple):
    """A response as it was received."""

    version: str
    status: int
    reason: str
    headers: list[tuple[str, str]]  # names in lower case
    body: bytes
    trailers: list[tuple[str, str]]

    def header(self, name: str) -> str | None:
        """The value of a header, or `None` if it is missing. `AssertionError` if it occurs more than once."""
        values = [value for key, value in self.headers if key == name.lower()]
        assert len(values) <= 1, f"{name} occurs {len(values)} times"
        return values[0] if values else None

    @property
    def text(self) -> str:
        return self.body.decode()


class Client:
    """A connection that sends any bytes, and is strict about the responses (RFC 9112)."""

    def __init__(
        self, address: tuple[str, int] | str, *, timeout: float = WAIT, receive_buffer: int = 0, source: str = ""
    ) -> None:
        """Connect, by TCP or to a Unix path. `receive_buffer` limits what the kernel receives before we read (socket(7))."""
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family)
        self.socket.settimeout(timeout)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            self.socket.bind((source, 0))
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self._buffer = b""
        self.received = 0  # bytes since the last send

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close with a reset, like a client that crashes (SO_LINGER of 0 seconds)."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()

    @property
    def port(self) -> int:
        """The client's own port."""
        port: int = self.socket.getsockname()[1]
        return port

    def send(self, *pieces: bytes) -> Self:
        """Send all the pieces at once."""
        self.received = len(self._buffer)
        self.socket.sendall(b"".join(pieces))
        return self

    def half_close(self) -> Self:
        """Close the sending side, and keep reading."""
        self.socket.shutdown(socket.SHUT_WR)
        return self

    def request(self, target: str = "/", method: str = "GET", body: bytes = b"", close: bool = False, **headers: str) -> Self:
        """Send a well-formed HTTP/1.1 request. The keyword `some_name="x"` is the field `some-name: x`."""
        fields = {"host": "test", **{name.replace("_", "-"): value for name, value in headers.items()}}
        if body or method in ("POST", "PUT", "PATCH"):
            fields.setdefault("content-length", str(len(body)))
        if close:
            fields["connection"] = "close"
        head = f"{method} {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        return self.send(head.encode("latin-1"), body)

    def get(self, target: str = "/", close: bool = False, **headers: Any) -> Response:
        """Send a GET and read the response."""
        return self.request(target, close=close, **headers).response()

    def post(self, target: str, body: bytes, close: bool = False, **headers: str) -> Response:
        """Send a POST and read the response."""
        return self.request(target, "POST", body, close=close, **headers).response()

    def response(self, method: str = "GET") -> Response:
        """Read one response, to a request with `method`. Bytes that follow it are kept for the next call.

        A 1xx response is returned by itself, so that a test sees it.
        """
        head = self._until(b"\r\n\r\n")
        assert b"\n" not in head.replace(b"\r\n", b""), f"a bare line feed: {head!r}"
        start, *lines = head[:-4].decode("latin-1").split("\r\n")
        match = re.fullmatch(r"(HTTP/1\.[01]) ([1-5][0-9][0-9]) ([\t\x20-\x7e\x80-\xff]*)", start)
        assert match, f"no status line: {start!r}"
        status = int(match[2])
        headers = _fields(lines)
        lengths = [value for name, value in headers if name == "content-length"]
        codings = [value for name, value in headers if name == "transfer-encoding"]
        assert len(lengths) + len(codings) <= 1, f"two framings: {headers}"
        body = b""
        trailers: list[tuple[str, str]] = []
        if method == "HEAD" or status < 200 or status in (204, 304):
            if status < 200 or status == 204:
                assert not lengths, f"{status} with a length (RFC 9110 8.6): {headers}"
                assert not codings, f"{status} with a coding (RFC 9112 6.1): {headers}"
        elif codings:
            assert codings == ["chunked"], codings
            body, trailers = self._chunks()
        elif lengths:
            assert lengths[0].isdigit(), lengths
            body = self._exactly(int(lengths[0]))
        else:
            body = self.rest()
        return Response(match[1], status, match[3], headers, body, trailers)

    def rest(self) -> bytes:
        """Read until the server closes the connection. `ConnectionResetError` if it resets the connection."""
        while self._more():
            pass
        rest, self._buffer = self._buffer, b""
        return rest

    def closed(self) -> bool:
        """Wait until the server closes the connection. `False` if it sends another byte, or stays silent."""
        try:
            return not self._buffer and not self.socket.recv(1)
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def quiet(self, seconds: float) -> bool:
        """Whether nothing arrives for this long, not even the close. For promises *not* to do something; not scaled."""
        return not self._buffer and not select.select([self.socket], [], [], seconds)[0]

    def _more(self) -> bool:
        received = self.socket.recv(65536)
        self._buffer += received
        self.received += len(received)
        return bool(received)

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            assert self._more(), f"the connection ended after {self._buffer!r}"
        found, _, self._buffer = self._buffer.partition(end)
        return found + end

    def _exactly(self, count: int) -> bytes:
        pieces = bytearray(self._buffer)
        while len(pieces) < count:
            received = self.socket.recv(65536)
            assert received, f"the connection ended after {len(pieces)} of {count} bytes"
            pieces += received
        self._buffer = bytes(pieces[count:])
        return bytes(pieces[:count])

    def _chunks(self) -> tuple[bytes, list[tuple[str, str]]]:
        body = []
        while True:
            line = self._until(b"\r\n")[:-2]
            assert re.fullmatch(rb"[0-9a-fA-F]{1,16}", line), f"no chunk size: {line!r}"
            size = int(line, 16)
            if not size:
                break
            body.append(self._exactly(size))
            assert self._exactly(2) == b"\r\n"
        trailers = []
        while line := self._until(b"\r\n")[:-2]:
            trailers.append(line.decode("latin-1"))
        return b"".join(body), _fields(trailers)


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    fields = []
    for line in lines:
        match = re.fullmatch(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*", line)
        assert match, f"no field: {line!r}"
        fields.append((match[1].lower(), match[2]))
    return fields
