"""A part of Autobahn's WebSocket test suite (tests/autobahn), which nobody here wrote: without the cases of hundreds of MiB."""

import pytest

from autobahn import run as autobahn


@pytest.mark.timeout(600)  # the first time the suite is installed
def test_every_mandatory_case_passes(tmp_path):
    """Without compression and with it: framing, UTF-8, closing, and each way to negotiate compression."""
    try:
        outcomes = autobahn.run(autobahn.QUICK, 1, tmp_path)
    except autobahn.MissingError as problem:
        pytest.skip(str(problem))
    assert len(outcomes) > 300
    assert [outcome for outcome in outcomes if not outcome.good] == []
