"""A part of Autobahn's WebSocket test suite (tests/autobahn), which others wrote: all cases but those of hundreds of MiB."""

import pytest

from autobahn import run as autobahn


@pytest.mark.timeout(600)  # the first run installs the suite
def test_every_mandatory_case_passes(tmp_path):
    """Framing, UTF-8 and closing are correct, without compression and with it, as is each negotiation of compression."""
    try:
        outcomes = autobahn.run(autobahn.QUICK, 1, tmp_path)
    except autobahn.MissingError as problem:
        pytest.skip(str(problem))
    assert len(outcomes) > 300
    assert [outcome for outcome in outcomes if not outcome.good] == []
