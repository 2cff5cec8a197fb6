"""The project's words: one name for each thing, the field's where there is one, and plain English (docs/glossary.md)."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from test_layers import EVERYWHERE, ROOT, files, name_of

# Names that things had before they got a better one, also as part of a longer name.
RENAMED = {
    "crew": "leader_followers",
    "seat": "lease",
    "heir": "successor",
    "elder": "predecessor",
    "stump": "relay",
    "doom": "schedule_kill",
    "doomed": "schedule_kill",
    "condemn": "schedule_kill",
    "bury": "reap",
    "buried": "reap",
    "bereaved": "on_worker_exit",
    "worn": "due_for_recycling",
    "fade": "retire",
    "fades": "retire",
    "fading": "retiring",
    "bequeath": "lend",
    "wish": "desired",
    "bell": "doorbell",
    "brisk": "fast_path",
    "outgoing": "write_buffer",
    "doors": "syn_filter",
    "elastic": "autoscaler",
    "kinds": "values",
    "uploads": "input",
    "patience": "the name of what the number limits",
}
# The same, but only as the whole name.
RENAMED_WHOLE = {
    "Hold": "LoopLease",
    "Guest": "AsgiRunner",
    "Host": "Runner",
    "Unread": "DiscardBody",
    "Will": "Inheritance",
    "_last_words": "load_error",
    "_step": "_reconcile",
    "suspend": "defer",
    "deliver": "complete",
    "on_end": "on_disconnect",
    "tell_of_ends": "notify_disconnects",
    "lot": "jitter",
    "told": "message",
    "tell": "report",
    "look": "steer, decide, poll, check_deadlines or sample",
    "form": "memo",
    "upload": "answer_streaming",
}
FOREIGN = {"tell"}  # as attributes these belong to the standard library: file.tell()

# Phrases that make a reader read twice, and sentences about "who".
PHRASES = re.compile(
    r"\b(?:can(?:not)? be had|(?:is|are|to be|be) had|by lot|any more|but for|whoever|nobody|somebody|everybody"
    r"|(?:is|are) told(?! apart)|tells? of|told of|of who|short way|slow twin)\b",
    re.IGNORECASE,
)
WHO = re.compile(r"""(?:^|["#*|.:;]) *Who (?!.*\?)""")
PROSE = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "docker/**/*.md", "tests/**/*.md", "loadtests/**/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def names(path: Path) -> Iterator[tuple[int, str, bool]]:
    """(line, name, whether it is an attribute) of all names in a file."""
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string, before == "."
        before = token.string


def better(name: str) -> str | None:
    """The name to use instead of one that was given up."""
    parts = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")
    return RENAMED_WHOLE.get(name) or next((RENAMED[part] for part in parts if part in RENAMED), None)


@pytest.mark.parametrize(
    ("name", "found"), [("_doomed", True), ("LastWish", True), ("wishes", False), ("Host", True), ("host", False)]
)
def test_a_name_is_judged_by_its_parts(name: str, found: bool):
    """A word that was given up is found as a part of a name in either style, but not within another word."""
    assert (better(name) is not None) == found


@pytest.mark.parametrize("path", files("app/**/*.py"), ids=name_of)
def test_names_are_those_of_the_glossary(path: Path):
    """A thing that has been given a better name no longer has the old one."""
    found = [
        f"{line}: {name} -> {better(name)}"
        for line, name, attribute in names(path)
        if better(name) and not (attribute and name in FOREIGN)
    ]
    assert not found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("A client that asks again is answered.", False),
        ("Whoever asks again is answered.", True),
        ('"""Who asks again is answered."""', True),
        ("# Who is asked, and when?", False),
        ("The two are told apart by their pid.", False),
        ("The application is told.", True),
    ],
)
def test_phrases_are_found(line: str, found: bool):
    """The expressions match what they are meant to match, and leave ordinary English alone."""
    assert bool(PHRASES.search(line) or WHO.search(line)) == found


@pytest.mark.parametrize("path", [*(path for path in EVERYWHERE if path != Path(__file__)), *PROSE], ids=name_of)
def test_plain_english(path: Path):
    """No file contains a phrase that has to be read twice."""
    lines = path.read_text("utf-8").splitlines()
    found = [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if PHRASES.search(line) or WHO.search(line)]
    assert not found
