"""Boots as files in the directory `BOOTS` tell it: `hang` waits until it is gone, `raise` raises, `exit` exits."""

import os
import time
from pathlib import Path

_told = Path(os.environ["BOOTS"])
if (_told / "hang").exists():
    _until_gone = _told / ((_told / "hang").read_text() or "hang")
    (_told / "hanging").touch()
    while _until_gone.exists():
        time.sleep(0.005)
if (_told / "raise").exists():
    raise RuntimeError("this application was told not to boot")
if (_told / "exit").exists():
    os._exit(5)
_version = (_told / "version").read_bytes() if (_told / "version").exists() else b"1"


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(_version)))])
    return [_version]
