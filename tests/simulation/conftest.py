"""A simulated cluster for each story."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from simulation.cluster import SimulatedCluster
from simulation.stories import SEGMENTS


@pytest.fixture
def cluster() -> Iterator[SimulatedCluster]:
    found = SimulatedCluster(segments=SEGMENTS)
    try:
        yield found
        assert not found.broken.found
    finally:
        found.close()
