"""What the options look like in print: `--help` and `--print-config`, generated from the declarations."""

import textwrap
from typing import Final

from .options import ACTIONS, CONFIG_FILE, OPTIONS, Option, flag
from .sources import Loaded

_WIDTH: Final = 96
_COLUMN: Final = 30

_EPILOG: Final = """
Every option --some-name can also be set by the variable EPOLLARD_SOME_NAME or by the key
some_name in the TOML file. A flag overrides a variable, a variable overrides the file.
TIME is in seconds or has a unit: 500ms, 2m, 1h. SIZE is in bytes or has a unit: 64k, 100M, 1G.
"""


def help_text() -> str:
    """The output of `--help`."""
    lines = ["usage: epollard [OPTIONS] [APP]", "", *_entry("APP", OPTIONS["app"].help)]
    groups: dict[str, list[str]] = {}
    for key, option in OPTIONS.items():
        if key != "app":
            groups.setdefault(option.group, []).extend(_entry(f"{flag(key)} {option.value_type.metavar}", _described(option)))
    for group, entries in groups.items():
        lines += ["", f"{group}:", *entries]
    lines += ["", "Other:"]
    default = "default: epollard.toml, else [tool.epollard] in pyproject.toml"
    lines += _entry(f"--config {CONFIG_FILE.value_type.metavar}", f"{CONFIG_FILE.help} [{default}]")
    for key, help in ACTIONS.items():
        lines += _entry("-h, --help" if key == "help" else flag(key), help)
    return "\n".join(lines) + "\n" + _EPILOG


def _described(option: Option) -> str:
    """The help of an option, with its default and the other names that it has."""
    repeatable = "; repeatable" if option.repeatable else ""
    well_known = f"; also {', '.join(option.well_known)}" if option.well_known else ""
    return f"{option.help}{repeatable} [{option.default}{well_known}]"


def _entry(name: str, text: str) -> list[str]:
    indent = " " * _COLUMN
    lines = textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    head = f"  {name}"
    return [head, *lines] if len(head) > _COLUMN - 2 else [head.ljust(_COLUMN) + lines[0].lstrip(), *lines[1:]]


def config_text(loaded: Loaded) -> str:
    """The output of `--print-config`: a TOML file that would configure the same, each value with its source."""
    config = loaded.config
    shown = {key: getattr(config, key) for key in OPTIONS}
    if config.most_workers > config.workers:
        shown["workers"] = f"{config.workers}..{config.most_workers}"
    lines = [f"{key} = {_toml(value)}" for key, value in shown.items()]
    width = min(max(map(len, lines)), _COLUMN)
    return "".join(f"{line:<{width}}  # {loaded.sources[key]}\n" for key, line in zip(OPTIONS, lines, strict=True))


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if value is None or isinstance(value, str):
        shown = (char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08x}" for char in value or "")
        return f'"{"".join(shown)}"'
    return str(value)
