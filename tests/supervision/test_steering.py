"""How likely each slot is to get the next connection: rows of loads, and the shares that follow."""

import pytest

from epollard.supervision.steering import FINENESS, shares


@pytest.mark.parametrize(
    ("loads", "expected", "result"),
    [
        ([0, 0, 0], 100, [FINENESS] * 3),
        ([5, None, 5], 100, [FINENESS, 0, FINENESS]),
        ([None, None], 100, [FINENESS] * 2),  # nobody can: then they wait everywhere
        ([100, 0], 50, [0, FINENESS]),  # fewer than would fill it up
        ([100, 0], 300, [FINENESS // 2, FINENESS]),  # 100 more to the one, 200 to the other
        ([10, 4, 4], 0, [0, FINENESS, FINENESS]),  # the least that is expected: 4 for each
        ([1000, 1000, 1010], 0, [FINENESS, FINENESS, 63]),  # half of what is open is expected: a burst does no harm
    ],
)
def test_shares_fill_up_the_emptiest(loads, expected, result):
    """After the connections that are expected all loads would be even, or as even as they can become."""
    assert shares(loads, expected) == result
