"""What is claimed of a program's own process, without a cluster."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from local_cluster.process import wait_until_interrupted

SIGNALS = 4_000
"""Enough for one to come in the moment before the wait begins: of 20,000, `signal.pause` slept through 86."""
AGAIN_SECONDS = 5.0
"""When a wait that slept through its signal gets a second one."""


@pytest.fixture
def alarm_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.mark.usefixtures("alarm_interrupts")
def test_no_signal_is_slept_through_whenever_it_comes() -> None:
    longest = 0.0
    for number in range(SIGNALS):
        began = time.monotonic()
        try:
            signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 100), AGAIN_SECONDS)
            wait_until_interrupted(look_seconds=0.01)
        except KeyboardInterrupt:
            signal.setitimer(signal.ITIMER_REAL, 0)
        longest = max(longest, time.monotonic() - began)
    assert longest < AGAIN_SECONDS
