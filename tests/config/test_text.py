"""What is printed about the options: --help, --print-config, and the table of docs/settings.md."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from configured import load
from epollard import cgroup
from epollard.config import text
from epollard.config.options import ACTIONS, OPTIONS, flag, variable

SETTINGS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_print_config_can_be_read_back(tmp_path: Path):
    """The output of --print-config is a TOML file that configures the same, with the source of each value as a comment."""
    (tmp_path / r'quote"back\slash').mkdir()
    words = ["m\u00f6d:make()", "--bind", "[::]:80", "--bind", "unix:x", "--keep-alive", "500ms"]
    loaded = load(*words, "--chdir", r'quote"back\slash', THREADS="3")
    shown = text.config_text(loaded)
    assert set(tomllib.loads(shown)) == set(OPTIONS)
    (tmp_path / "shown.toml").write_text(shown, "utf-8")
    again = load("--config", "shown.toml")
    first, second = (
        dataclasses.replace(config, workers_reason="", admin_explicit=True) for config in (loaded.config, again.config)
    )
    assert first == second
    lines = dict(line.split(" = ", 1) for line in shown.splitlines())
    assert lines["threads"].split() == ["3", "#", "THREADS"]
    assert lines["keep_alive"].split() == ["0.5", "#", "--keep-alive"]
    assert lines["app"].endswith("  # command line")


@pytest.mark.parametrize(
    ("workers", "shown"), [("4", "4"), ("2..8", '"2..8"'), ("3..3", "3"), ("auto", "5"), ("2..auto", '"2..5"')]
)
def test_print_config_shows_a_range_of_workers_as_it_is_written(workers: str, shown: str, monkeypatch: pytest.MonkeyPatch):
    """A range appears as MIN..MAX, a fixed number as a number; auto appears as the number that it came to."""
    monkeypatch.setattr(cgroup, "size", lambda: cgroup.Sizing(5, "5 workers: quota x"))
    (line,) = (line for line in text.config_text(load(WORKERS=workers)).splitlines() if line.startswith("workers"))
    assert line.partition("#")[0].strip() == f"workers = {shown}"


def test_help_shows_every_option():
    """Each flag has its metavar, its default and its well-known variables, in at most 96 columns."""
    shown = text.help_text()
    assert max(map(len, shown.splitlines())) <= 96
    words = " ".join(shown.split())
    for key, option in OPTIONS.items():
        if key != "app":
            also = f"; also {', '.join(option.well_known)}" if option.well_known else ""
            assert f"{flag(key)} {option.value_type.metavar} {option.help}" in words
            assert f"[{option.default}{also}]" in words
    for name in ("[APP]", "--config FILE", *(flag(key) for key in ACTIONS), "-h, --help"):
        assert name in words


def settings_table() -> str:
    """The table of docs/settings.md, generated from the declarations."""
    rows = ["| flag | variable | TOML key | default | meaning |", "|---|---|---|---|---|"]
    for key, option in OPTIONS.items():
        shown = "`APP`" if key == "app" else f"`{flag(key)} {option.value_type.metavar}`"
        variables = ", ".join(f"`{name}`" for name in (variable(key), *option.well_known))
        default = f"`{option.default}`" if option.default else "the demo"
        cells = [shown.replace("|", "\\|") + " (repeatable)" * option.repeatable, variables, f"`{key}`", default, option.help]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def test_the_documentation_lists_every_option_as_it_is():
    """docs/settings.md contains exactly the table that follows from the declarations; if this fails, paste the one shown."""
    assert settings_table() in SETTINGS.read_text("utf-8")
