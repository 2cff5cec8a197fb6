"""`make load`: the checkout's server under Locust, headless and bounded. Never leaves a server behind.

    python loadtests/run.py [LOCUST OPTIONS]

The environment configures the server as usual (`EPOLLARD_APP` and so on; the default of `WORKERS` is 2 here), but it listens on
a free port. The exit status is 0 if no request failed and the server stopped as asked, else 1.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import measure

HERE = Path(__file__).parent
BOUNDS = ["--users", "50", "--spawn-rate", "50", "--run-time", "20s"]  # options on the command line override these
START_TIMEOUT = 30  # seconds
STOP_TIMEOUT = 40  # seconds: above the server's own graceful timeout


def serve(port: int) -> subprocess.Popen[bytes]:
    """The server, once it accepts connections. Its access log is dropped; its other log goes to standard error."""
    path = os.pathsep.join(filter(None, (str(HERE.parent / "app"), os.environ.get("PYTHONPATH"))))
    environ = {"WORKERS": "2"} | dict(os.environ) | {"PYTHONPATH": path, "EPOLLARD_BIND": f"127.0.0.1:{port}"}
    command = [sys.executable, "-m", "epollard"]
    server = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, preexec_fn=measure.end_with_us)
    deadline = time.monotonic() + START_TIMEOUT
    while server.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port)):
                return server
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                server.kill()
            time.sleep(0.05)
    sys.exit(f"the server did not start: exit status {server.returncode}")


def main() -> int:
    port = measure.free_port()
    server = serve(port)
    try:
        locust = [sys.executable, "-m", "locust", "--locustfile", str(HERE / "locustfile.py"), "--headless", "--only-summary"]
        locust += ["--host", f"http://127.0.0.1:{port}", *BOUNDS, *sys.argv[1:]]
        failed = subprocess.call(locust, preexec_fn=measure.end_with_us)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            status = server.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            server.kill()
            status = server.wait()
    if status:
        print(f"the server stopped with exit status {status}", file=sys.stderr)
    return 1 if failed or status else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
