"""The server's own log: lines for people, on standard error. Never raises, never takes a lock, imports nothing of ours.

The standard `logging` module is left to applications: their `dictConfig` may disable loggers that it did not create, and that
must not silence the server. Each line is one `write`, so the lines of several processes do not mix.
"""

import os
import time
import traceback
from typing import Final

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_threshold = LEVELS["info"]
_name = "epollard"

# Characters that a terminal or a log reader would interpret. A line may contain text that a client has sent.
_ESCAPES: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(0x7F, 0xA0))} | {0x2028: "\\u2028", 0x2029: "\\u2029"}
_IN_BLOCKS: Final = {code: shown for code, shown in _ESCAPES.items() if chr(code) not in "\t\n"}


def configure(level: str, name: str) -> None:
    """Set the lowest level that is written (a key of `LEVELS`) and the name of this process (`supervisor`, `worker 3`)."""
    global _threshold, _name
    _threshold = LEVELS[level]
    _name = name
    # From Python 3.15 on the first traceback imports a module, and when it is needed there may be no descriptor left for that.
    try:
        raise ValueError
    except ValueError as error:
        _formatted(error)


def escape(text: str) -> str:
    """Write every control character in `text` as an escape, so that one line stays one line."""
    return text if text.isprintable() else text.translate(_ESCAPES)


def debug(text: str) -> None:
    if _threshold <= 10:
        _write("debug", text)


def info(text: str) -> None:
    if _threshold <= 20:
        _write("info", text)


def warning(text: str) -> None:
    if _threshold <= 30:
        _write("warning", text)


def error(text: str) -> None:
    _write("error", text)


def block(text: str, lines: str) -> None:
    """Write one line and then a block of lines, all at once."""
    _write("info", text, lines)


def exception(text: str, error: BaseException) -> None:
    """Write one line about the failure and then the traceback, all at once."""
    _write("error", text, _formatted(error))


def _formatted(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except Exception as problem:
        return f"{type(error).__name__}; its traceback could not be formatted: {type(problem).__name__}\n"


def _write(level: str, text: str, block: str = "") -> None:
    if block:
        # Indented, because an exception's message may quote a client, and must not be able to imitate a line of the log.
        block = "    " + block.translate(_IN_BLOCKS).removesuffix("\n").replace("\n", "\n    ") + "\n"
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    line = f"{stamp}.{int(now * 1000) % 1000:03d}Z {level:<7} {_name}[{os.getpid()}]: {escape(text)}\n{block}"
    try:
        os.write(2, line.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # standard error is closed, broken or full: there is no better place to report that
