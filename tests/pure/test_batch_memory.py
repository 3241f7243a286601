"""How batches share the looks, and the jobs that may be started in a second."""

from __future__ import annotations

import pytest
from ingestion_operator.batch_memory import BatchMemory

START = 1_000.0


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def test_batches_in_which_nothing_goes_on_take_no_share() -> None:
    memory = BatchMemory(monotonic=Clock())
    for number in range(100):
        pace = memory.pace(f"team-a/{number}")
        pace.documents, pace.starting, pace.parked = 1_000, False, True
    assert memory.begin_look("team-a/new").starts == 10
    assert memory.rest == 1


def test_batches_whose_jobs_all_run_take_no_share_of_the_starts() -> None:
    memory = BatchMemory(monotonic=Clock())
    for number in range(4):
        pace = memory.pace(f"team-a/{number}")
        pace.documents, pace.starting = 100, False
    assert memory.rest == 2
    assert memory.begin_look("team-a/new").starts == 20


@pytest.mark.parametrize("batches", [1, 3, 10, 70, 300])
@pytest.mark.parametrize("documents", [1, 1_000])
def test_all_batches_together_start_ten_jobs_a_second(batches: int, documents: int) -> None:
    clock = Clock()
    memory = BatchMemory(monotonic=clock)
    keys = [f"team-a/{number}" for number in range(batches)]
    for key in keys:
        memory.pace(key).documents = documents
    rest, started = memory.rest, 0
    for _ in range(10):
        started += sum(memory.begin_look(key).starts for key in keys)
        clock.now += rest
    assert 5 < started / (10 * rest) <= 10


def test_who_has_a_batch_looked_at_more_often_starts_no_more_of_its_jobs() -> None:
    clock = Clock()
    memory = BatchMemory(monotonic=clock)
    memory.pace("team-a/touched").documents = memory.pace("team-a/other").documents = 500
    assert memory.rest == 5
    assert memory.begin_look("team-a/touched").starts == 25
    clock.now += 1
    assert memory.begin_look("team-a/touched").starts == 5
