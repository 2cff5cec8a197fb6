"""Exit statuses, declared once: of the server, of each worker, and of `epollardctl`."""

from collections.abc import Mapping
from typing import Final

OK: Final = 0  # stopped as asked, or the command was carried out
FAILED: Final = 1  # anything else
BAD_CONFIGURATION: Final = 2  # or a command line that makes no sense; nothing has been started
LOAD_FAILED: Final = 3  # the application could not be imported, made, or started up

# The statuses that name a cause, in the words of a log line.
CAUSES: Final[Mapping[int, str]] = {
    BAD_CONFIGURATION: "bad configuration",
    LOAD_FAILED: "the application could not be loaded",
}
