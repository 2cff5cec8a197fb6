"""An application whose worker counts its own calls, for calls.py. Import it only in a worker, before its threads start.

The profile function is set for this thread and for all later ones, so that every thread that turns the loop is counted.
"""

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_python: Counter[CodeType] = Counter()
_c: Counter[str] = Counter()


def _count(frame: FrameType, event: str, argument: Any) -> None:
    if event == "call":
        _python[frame.f_code] += 1
    elif event == "c_call":
        _c[getattr(argument, "__qualname__", repr(argument))] += 1


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    if environ["PATH_INFO"] == "/counts":
        python: Counter[str] = Counter()
        for code, count in _python.copy().items():
            file = code.co_filename.rpartition("/")[2]
            python[f"{file}:{code.co_qualname}"] += count
        body = json.dumps({"python": python, "c": _c}).encode()
    else:
        if environ.get("CONTENT_LENGTH"):
            environ["wsgi.input"].read()
        body = b"Hello, world!"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


threading.setprofile(_count)
sys.setprofile(_count)
