"""How likely each slot is to get the next connection: rows of loads, and the shares that follow."""

import pytest

from epollard.supervision.steering import FINENESS, shares


@pytest.mark.parametrize(
    ("loads", "expected", "result"),
    [
        ([0, 0, 0], 100, [FINENESS] * 3),
        ([5, None, 5], 100, [FINENESS, 0, FINENESS]),
        ([None, None], 100, [FINENESS] * 2),  # no slot can serve: then connections wait in all queues
        ([100, 0], 50, [0, FINENESS]),  # fewer than would make the loads even
        ([100, 0], 300, [FINENESS // 2, FINENESS]),  # 100 more to the one, 200 to the other
        ([10, 4, 4], 0, [0, FINENESS, FINENESS]),  # at least 4 are expected for each slot
        ([1000, 1000, 1010], 0, [FINENESS, FINENESS, 63]),  # half as many as are open are expected: a burst does no harm
    ],
)
def test_shares_fill_up_the_emptiest(loads, expected, result):
    """After the expected connections all loads would be even, or as even as they can become."""
    assert shares(loads, expected) == result
