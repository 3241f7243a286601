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
        memory.pace(f"team-a/{number}")
        memory.ask(f"team-a/{number}", rows=0, starting=False)
    assert memory.begin_look("team-a/new").starts == 10
    assert memory.rest("team-a/new") == 1


def test_batches_whose_jobs_all_run_take_no_share_of_the_starts() -> None:
    memory = BatchMemory(monotonic=Clock())
    for number in range(4):
        memory.pace(f"team-a/{number}")
        memory.ask(f"team-a/{number}", rows=100, starting=False)
    assert memory.rest("team-a/new") == 2
    assert memory.begin_look("team-a/new").starts == 20


@pytest.mark.parametrize("batches", [1, 3, 10, 70, 300])
@pytest.mark.parametrize("documents", [1, 1_000])
def test_all_batches_together_start_ten_jobs_a_second(batches: int, documents: int) -> None:
    clock = Clock()
    memory = BatchMemory(monotonic=clock)
    keys = [f"team-a/{number}" for number in range(batches)]
    for key in keys:
        memory.pace(key)
        memory.ask(key, rows=documents, starting=True)
    rest, started = memory.rest(keys[0]), 0
    for _ in range(10):
        started += sum(memory.begin_look(key).starts for key in keys)
        clock.now += rest
    assert 5 < started / (10 * rest) <= 10


def rate_of(memory: BatchMemory, clock: Clock, keys: list[str], *, seconds: int = 600) -> float:
    """Return how many jobs of these batches may be started in a second, each looked at as soon as it may be."""
    started, ends = 0, clock.now + seconds
    due = dict.fromkeys(keys, clock.now)
    while clock.now < ends:
        for key in keys:
            if due[key] <= clock.now:
                started += memory.begin_look(key).starts
                due[key] = clock.now + memory.rest(key)
        clock.now += 1
    return started / seconds


@pytest.mark.parametrize("others", [1, 100, 600])
def test_a_tenant_with_many_batches_leaves_half_of_the_starts_to_another(others: int) -> None:
    clock = Clock()
    memory = BatchMemory(monotonic=clock)
    for number in range(others):
        memory.pace(f"team-a/{number}")
        memory.ask(f"team-a/{number}", rows=1_000, starting=True)
    memory.pace("team-b/one")
    memory.ask("team-b/one", rows=1_000, starting=True)
    assert memory.rest("team-b/one") == 10  # two share 200 rows a second
    assert 4.5 < rate_of(memory, clock, ["team-b/one"]) <= 5.5


def test_all_namespaces_together_start_ten_jobs_a_second() -> None:
    clock = Clock()
    memory = BatchMemory(monotonic=clock)
    keys = [f"team-{name}/{number}" for name, batches in (("a", 1), ("b", 5), ("c", 40)) for number in range(batches)]
    for key in keys:
        memory.pace(key)
        memory.ask(key, rows=20, starting=True)
    assert 6 < rate_of(memory, clock, keys) <= 10.5


def test_who_has_gone_takes_no_share() -> None:
    memory = BatchMemory(monotonic=Clock())
    for key in ("team-a/one", "team-b/one"):
        memory.pace(key)
        memory.ask(key, rows=1_000, starting=True)
    assert memory.forget("team-a/one") is None
    memory.ask("team-b/one", rows=1_000, starting=False)
    assert memory.rest("team-b/one") == 5
    assert memory.forget("team-b/one") is None
    assert memory.begin_look("team-c/new").starts == 10


def test_who_has_a_batch_looked_at_more_often_starts_no_more_of_its_jobs() -> None:
    clock = Clock()
    memory = BatchMemory(monotonic=clock)
    for key in ("team-a/touched", "team-a/other"):
        memory.pace(key)
        memory.ask(key, rows=500, starting=True)
    assert memory.rest("team-a/touched") == 5
    assert memory.begin_look("team-a/touched").starts == 25
    clock.now += 1
    assert memory.begin_look("team-a/touched").starts == 5
