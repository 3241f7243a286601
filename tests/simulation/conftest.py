"""A simulated cluster for each story, and the oracle that watches it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from simulation.cluster import SimulatedCluster
from simulation.oracle import Oracle
from simulation.stories import SEGMENTS


@pytest.fixture
def segments() -> int:
    """Return how many segments a document has; a module may say another number."""
    return SEGMENTS


@pytest.fixture
def oracle(segments: int) -> Iterator[Oracle]:
    watched = SimulatedCluster(segments=segments)
    found = Oracle(watched)
    try:
        yield found
        found.raise_found()
    finally:
        watched.close()


@pytest.fixture
def cluster(oracle: Oracle) -> SimulatedCluster:
    return oracle.cluster
