"""The images under test. Without Docker these tests are skipped, but never in CI, where that is a failure."""

import os

import pytest

from container.engine import docker, missing


@pytest.fixture(scope="session", autouse=True)
def _engine() -> None:
    reason = missing()
    if reason and os.environ.get("CI", "").lower() in ("", "0", "false"):
        pytest.skip(reason)
    if reason:
        pytest.fail(reason)


@pytest.fixture(scope="session")
def image(_engine: None) -> str:
    """The image of this checkout, under the name that the examples build on."""
    docker("build", "--tag", "epollard", ".")
    return "epollard"
