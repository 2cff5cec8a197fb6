"""Tests of the configuration run in an empty directory, or a file of this project would configure them."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
