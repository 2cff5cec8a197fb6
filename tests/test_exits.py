"""Exit statuses are an interface: container engines and scripts act on the numbers."""

import re
from pathlib import Path

from epollard import exits

DOCUMENTED = Path(__file__).parents[1] / "docs" / "signals.md"


def test_the_numbers_do_not_change():
    """Scripts and restart policies compare with these numbers."""
    assert (exits.OK, exits.FAILED, exits.BAD_CONFIGURATION, exits.LOAD_FAILED) == (0, 1, 2, 3)


def test_each_status_is_documented():
    """docs/signals.md has a row for each exit status, and for no other."""
    _, _, section = DOCUMENTED.read_text("utf-8").partition("## Exit statuses\n")
    listed = re.findall(r"^\| ([0-9]+) \|", section.partition("\n## ")[0], re.MULTILINE)
    assert listed == [str(status) for status in (exits.OK, exits.FAILED, exits.BAD_CONFIGURATION, exits.LOAD_FAILED)]


def test_a_cause_is_named_only_where_the_status_has_one():
    """A successor's exit status appears in the log with its cause; 0 and 1 name none."""
    assert exits.CAUSES.keys() == {exits.BAD_CONFIGURATION, exits.LOAD_FAILED}
