"""Boots in a way that files in the directory `BOOTS` choose: `hang` waits until it is gone, `raise` raises, `exit` exits."""

import os
import time
from pathlib import Path

_directory = Path(os.environ["BOOTS"])
if (_directory / "hang").exists():
    _until_gone = _directory / ((_directory / "hang").read_text() or "hang")
    (_directory / "hanging").touch()
    while _until_gone.exists():
        time.sleep(0.005)
if (_directory / "raise").exists():
    raise RuntimeError("this application was told not to boot")
if (_directory / "exit").exists():
    os._exit(5)
_version = (_directory / "version").read_bytes() if (_directory / "version").exists() else b"1"


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(_version)))])
    return [_version]
