"""Where the server was started: the name that the shell has for it, and the way there and back."""

import contextlib
import os
from pathlib import Path

import pytest

from epollard import directory


def test_the_name_is_the_shells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A link by which the shell came here is kept, because it may lead to a newer release at the next reload."""
    (tmp_path / "release").mkdir()
    (tmp_path / "current").symlink_to("release")
    monkeypatch.chdir(tmp_path / "release")
    monkeypatch.setenv("PWD", str(tmp_path / "current"))
    assert directory.current() == str(tmp_path / "current")


@pytest.mark.parametrize("name", ["", ".", "/", "/no/such/directory"])
def test_a_wrong_name_is_not_used(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`PWD` that is empty, relative, stale or of another directory is ignored."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", name)
    assert directory.current() == str(tmp_path)


def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The directory is changed for the block alone, even if the block fails."""
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    seen = []
    with contextlib.suppress(ZeroDivisionError), directory.entered("other"):
        seen.append(os.getcwd())
        seen.append(str(1 / 0))
    assert seen == [str(tmp_path / "other")]
    assert os.getcwd() == str(tmp_path)


def test_back_to_a_directory_that_was_renamed_or_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The way back is a descriptor, not a name."""
    for name in "renamed", "removed":
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        before = os.stat(".").st_ino
        with directory.entered("/"):
            (tmp_path / name).rename(tmp_path / "new") if name == "renamed" else (tmp_path / name).rmdir()
        assert os.stat(".").st_ino == before


def test_a_directory_that_cannot_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nothing has changed, and no descriptor stays open."""
    monkeypatch.chdir(tmp_path)
    descriptors = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError), directory.entered("nowhere"):
        pass
    assert os.getcwd() == str(tmp_path)
    assert os.listdir("/proc/self/fd") == descriptors
