"""Signals as bytes in the loop: reported in its turn, never in the middle of anything."""

import os
import signal
import time

import pytest

from epollard.net.signals import Signals

NUMBERS = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def reported(loop):
    """The numbers that `Signals` has reported; handlers and wake-up descriptor are restored after the test."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    found: list[int] = []
    signals = Signals(loop, NUMBERS, found.append)
    yield found, signals
    signals.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def turn(loop, until):
    deadline = time.monotonic() + 10
    while not until():
        assert time.monotonic() < deadline
        loop.turn(0.01)


def test_a_signal_is_reported_in_a_turn_of_the_loop(loop, reported):
    """Not before, and in the order of arrival."""
    found, _ = reported
    os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert found == []
    turn(loop, lambda: len(found) == 2)
    assert found == [signal.SIGUSR1, signal.SIGUSR2]


def test_a_signal_that_was_blocked_is_unblocked(loop):
    """The process that started us may have blocked it, and exec(2) keeps that."""
    before = signal.getsignal(signal.SIGUSR1)
    signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
    found: list[int] = []
    signals = Signals(loop, NUMBERS, found.append)
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        turn(loop, lambda: found == [signal.SIGUSR1])
        assert not set(NUMBERS) & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signals.close()
        for number in NUMBERS:
            signal.signal(number, before)


def test_after_the_end_signals_do_nothing(loop, reported):
    """They are neither reported nor do they end the process."""
    found, signals = reported
    loop.unwatch(signals._reader.fileno())
    signals.close()
    os.kill(os.getpid(), signal.SIGUSR1)
    loop.turn(0)
    assert found == []
