"""One line on standard output for each response, as text or JSON. Lines are collected until the turn of the loop ends."""

import json
import os
import time
from typing import Final

from .log import escape
from .protocol.request import Request

MAX_LINES: Final = 1000  # collected; a turn of the loop rarely has more


class AccessLog:
    """The access log of one worker. All calls are on the loop's thread."""

    def __init__(self, style: str) -> None:
        self.add = self._add_json if style == "json" else self._add_text
        self._lines: list[str] = []
        self._second = 0
        self._stamp = ""

    def _add_text(self, host: str, request: Request, code: int, sent: int, seconds: float) -> None:
        """Common Log Format, then the duration in seconds."""
        line = request.line
        target = line.target  # the parser has made sure that it is visible ASCII
        if '"' in target or "\\" in target:
            target = target.replace("\\", "\\\\").replace('"', '\\"')
        asked = f"{line.method} {target} HTTP/{request.fields.version}"
        self._lines.append(f'{host or "-"} - - [{self._now()}] "{asked}" {code} {sent} {seconds:.6f}\n')
        if len(self._lines) > MAX_LINES:
            self.flush()

    def _add_json(self, host: str, request: Request, code: int, sent: int, seconds: float) -> None:
        line, fields = request.line, request.fields
        record = {
            "time": self._now(),
            "client": host,
            "method": line.method,
            "target": line.target,
            "protocol": "HTTP/" + fields.version,
            "host": fields.host,
            "status": code,
            "bytes": sent,
            "seconds": round(seconds, 6),
            "agent": next((escape(value) for name, value in fields.items if name == "user-agent"), None),
            "worker": os.getpid(),
        }
        self._lines.append(json.dumps(record, separators=(",", ":")) + "\n")
        if len(self._lines) > MAX_LINES:
            self.flush()

    def _now(self) -> str:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now))
        return self._stamp

    def flush(self) -> None:
        """Write the collected lines in one write(2). If standard output is closed, broken or full, they are lost."""
        if self._lines:
            text, self._lines = "".join(self._lines), []
            try:
                data = text.encode("utf-8", "backslashreplace")
                while data:
                    data = data[os.write(1, data) :]
            except OSError:
                pass
