"""The worker of a test: see puppet.py."""

from collections.abc import Iterator

import pytest

from puppet import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    """An ASGI worker within the test's process."""
    with Worker() as worker:
        yield worker
