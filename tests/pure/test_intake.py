"""What of IngestionJobs is news."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from typing import Any

import ingestion_operator.memory
import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.job import IngestionJob
from ingestion_operator.batch_intake import BatchIntake
from ingestion_operator.batch_memory import BatchMemory
from ingestion_operator.intake import Intake
from ingestion_operator.memory import Memory
from ingestion_operator.pace import Kept
from support.builders import ingestion_batch, ingestion_job

KEY = "team-a/handbook"
AT_REST: JsonObject = {
    "jobID": "u",
    "phase": "failed",
    "observedRetryGeneration": 0,
    "observedGeneration": 1,
    "attempts": [
        {
            "generation": 0,
            "trigger": "Initial",
            "startTime": "2026-01-01T00:00:00Z",
            "completionTime": "2026-01-01T00:01:00Z",
            "reason": "PrepareFailed",
            "segments": 0,
        }
    ],
}


def now() -> float:
    return 1_000.0


class Queue:
    """Notes what is queued."""

    def __init__(self) -> None:
        self.added: list[str] = []

    def add(self, key: str) -> None:
        self.added.append(key)

    def add_after(self, key: str, _: float) -> None:
        self.added.append(key)


class Urgency:
    """Notes how long it is until something is to be looked at."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def add(self, _: str) -> None:
        self.waits.append(0)

    def add_after(self, _: str, wait: float) -> None:
        self.waits.append(wait)


def body(version: int, *, at_rest: bool = False) -> JsonObject:
    raw = ingestion_job(namespace="team-a", name="handbook")
    raw["metadata"] |= {"uid": "u", "resourceVersion": str(version), "creationTimestamp": "2026-01-01T00:00:00Z"}
    raw["metadata"]["generation"] = 1
    return {**raw, "status": AT_REST} if at_rest else raw


def intake(*, leading: bool, before: str, is_open: bool) -> tuple[Intake, Memory, Queue]:
    """Return a fresh intake to which the job's states 4 and 5 are known, or nothing."""
    memory, queue = Memory(monotonic=now), Queue()
    if before != "unknown":
        for version in (4, 5):
            raw = body(version)
            memory.remember(KEY, Kept(raw, IngestionJob.model_validate(raw)))
    if before == "forgotten":
        memory.forget(KEY)
    if is_open:
        memory.open.add(KEY)
    batches = BatchIntake(memory=BatchMemory(), queue=queue)  # type: ignore[arg-type]
    made = Intake(memory=memory, queue=queue, batches=batches)  # type: ignore[arg-type]
    made.leading = leading
    return made, memory, queue


@pytest.mark.parametrize("phase", ["completed", "failed", "partial_failure"])
@pytest.mark.parametrize("retried", [False, True])
def test_what_a_newer_release_has_said_hides_no_job(phase: str, *, retried: bool) -> None:
    """After a rollback: its conditions, and how its attempts ended, may be of a kind that this release has none of."""
    made, memory, queue = intake(leading=True, before="unknown", is_open=False)
    shown = body(5, at_rest=True)
    shown["spec"]["retryGeneration"] = 1 + retried
    ran = [{"stage": "brand_new", "name": f"ran-{number}", "mapDigest": "d"} for number in range(4)]
    first = {**AT_REST["attempts"][0], "reason": "BrandNew", "jobs": ran}
    shown["status"] = {
        **AT_REST,
        "phase": phase,
        "stage": "brand_new",
        "failures": [{"stage": "brand_new", "code": "BrandNew", "retryable": True, "attempt": 0}],
        "observedRetryGeneration": 1,
        "segments": {"total": 2, "completed": "0" if phase == "partial_failure" else "0-1", "completedCount": 1},
        "attempts": [first, {**first, "generation": 1, "trigger": "BrandNew"}],
        "conditions": [
            {"type": "BrandNew", "status": "True", "reason": "Queued"},
            {"type": "Stalled", "status": "True", "reason": "BrandNew"},
        ],
    }
    made.on_job_seen(shown)
    assert bool(queue.added) is (KEY in memory.shown) is retried


def test_what_the_watch_shows_is_kept_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may make jobs may make thousands of large ones at once; those that are not kept are read."""
    made, memory, queue = intake(leading=True, before="unknown", is_open=False)
    size = len(IngestionJob.model_validate(body(5)).model_dump_json())
    monkeypatch.setattr(ingestion_operator.memory, "_MOST_KEPT", 2 * size + 100)
    keys = [f"team-a/handbook-{number}" for number in range(4)]
    for key in keys:
        shown = body(5)
        shown["metadata"]["name"] = key.partition("/")[2]
        made.on_job_seen(shown)
    assert queue.added == keys
    assert list(memory.shown) == keys[:2]
    shown["metadata"]["name"], shown["metadata"]["resourceVersion"] = "handbook-1", "6"
    made.on_job_seen(shown)
    assert memory.shown[keys[1]].raw["metadata"]["resourceVersion"] == "6", "the later state takes its own place"
    shown["spec"]["retrySegments"] = "1,3,5,7,9" * 100
    shown["metadata"]["resourceVersion"] = "7"
    made.on_job_seen(shown)
    assert list(memory.shown) == keys[:1], "there is no room for it, and the one before is outdated"


@pytest.mark.parametrize(
    ("leading", "before", "version", "at_rest", "is_open"),
    list(product((True, False), ("unknown", "forgotten", "followed"), (3, 4, 5, 6), (True, False), (True, False))),
)
def test_what_is_passed_over_would_be_taken_in_as_no_more(
    *, leading: bool, before: str, version: int, at_rest: bool, is_open: bool
) -> None:
    """In each state of what is remembered. What kopf is not shown must not be missed."""
    state: dict[str, Any] = {"leading": leading, "before": before, "is_open": is_open}
    shown = body(version, at_rest=at_rest)
    asked, by_itself, queue = intake(**state)
    untouched = deepcopy(by_itself)
    handed, by_handler, handlers_queue = intake(**state)
    handed.on_job_seen(shown)
    known = {"unknown": (), "forgotten": (3, 4, 5), "followed": (4, 5)}[before]
    passed = asked.passes_over(shown)
    assert passed is (not leading or version in known)
    assert not queue.added
    if passed:
        assert by_itself == by_handler
        assert (KEY in by_itself.open) is (is_open or (leading and before == "followed"))
        assert not handlers_queue.added
    else:
        assert by_itself == untouched


@pytest.mark.parametrize("phase", ["processing", "failed"])
def test_the_list_of_a_new_leader_wakes_the_batch_of_a_job_that_runs(phase: str) -> None:
    """It was retried by itself while nobody led; the batch alone seems to be at rest."""
    made, _, queue = intake(leading=False, before="unknown", is_open=False)
    made.begin()
    shown = body(5, at_rest=phase == "failed")
    shown.setdefault("status", {"phase": phase})
    shown["metadata"] |= {
        "labels": {names.LABEL_BATCH_UID: "b"},
        "ownerReferences": [{"kind": names.BATCH_KIND, "name": "manuals", "uid": "b", "controller": True}],
    }
    made.on_job_seen(shown, listed=True)
    assert ("team-a/manuals" in queue.added) is (phase == "processing")


def test_a_batch_that_is_touched_all_the_time_is_not_put_before_those_that_are_due() -> None:
    """It is urgent once for each time that it has rested."""
    clock = [1_000.0]
    memory, queue = BatchMemory(monotonic=lambda: clock[0]), Urgency()
    batches = BatchIntake(memory=memory, queue=queue)  # type: ignore[arg-type]
    batches.begin()
    shown = ingestion_batch(documents=1_000)
    shown["metadata"] |= {"uid": "b", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
    batches.on_batch_seen(shown)
    assert queue.waits == [0]
    memory.begin_look("team-a/manuals")
    memory.ask("team-a/manuals", rows=1_000, starting=False)
    for version in range(2, 42):
        clock[0] += 0.1
        shown["metadata"]["resourceVersion"] = str(version)
        batches.on_batch_seen(shown)
    assert queue.waits.count(0) == 1
    assert max(queue.waits) == 1
    clock[0] += 2
    shown["metadata"]["resourceVersion"] = "42"
    batches.on_batch_seen(shown)
    assert queue.waits.count(0) == 2
