"""The shared records: a parent reads what its child writes, and no record is handed out twice."""

import os

import pytest

from epollard import scoreboard
from epollard.scoreboard import ACCEPTED, ACTIVE, FREE, REQUESTS, STARTING, STATE, WIDTH, Scoreboard


def test_a_claimed_record_is_clean_and_starting():
    """The counts of its last owner are not attributed to the next one."""
    board = Scoreboard(1)
    record = board.claim()
    record[REQUESTS] = 7
    record[STATE] = FREE
    assert list(board.claim()) == [STARTING if column == STATE else 0 for column in range(WIDTH)]


def test_no_record_is_claimed_twice():
    """Each worker has its own record until that is freed and can be claimed again."""
    board = Scoreboard(3)
    records = [board.claim() for _ in range(3)]
    for number, record in enumerate(records):
        record[ACCEPTED] = number
    assert [board.record(index)[ACCEPTED] for index in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="all 3 records"):
        board.claim()
    records[1][STATE] = FREE
    board.claim()[ACCEPTED] = 9
    assert [board.record(index)[ACCEPTED] for index in range(3)] == [0, 9, 2]


def test_a_parent_reads_what_its_child_writes():
    """All processes share the memory, and numbers of 64 bits arrive whole, negative ones too."""
    board = Scoreboard(2)
    record = board.claim()
    pid = os.fork()
    if not pid:
        record[ACCEPTED] = os.getpid()
        record[ACTIVE] = -(2**63)
        record[REQUESTS] = 2**63 - 1
        os._exit(0)
    os.waitpid(pid, 0)
    assert (record[ACCEPTED], record[ACTIVE], record[REQUESTS]) == (pid, -(2**63), 2**63 - 1)
    assert list(board.record(1)) == [0] * WIDTH


def test_states_have_names():
    """The pages of the management listener show the right name for each state."""
    states = [scoreboard.FREE, scoreboard.STARTING, scoreboard.READY, scoreboard.DRAINING]
    assert [scoreboard.STATE_NAMES[state] for state in states] == ["free", "starting", "ready", "draining"]
