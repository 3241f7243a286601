"""How often running jobs are looked at when there are many."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ingestion_crds.constants import Reason, Stage, VersionState
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import Condition, IngestionJob, Version
from ingestion_operator.children import ChildJob
from ingestion_operator.pace import Kept, LastLook, Pace, rest_for
from support.builders import ingestion_job


def test_a_few_jobs_are_looked_at_about_once_a_second() -> None:
    assert rest_for(0) == rest_for(1) == rest_for(18) == 1.2


def test_a_job_is_looked_at_the_more_rarely_the_more_there_are() -> None:
    assert rest_for(100) == 10.0
    assert rest_for(1_000) == pytest.approx(178, abs=1)
    assert all(rest_for(2 * jobs) > 2 * rest_for(jobs) for jobs in (20, 100, 500))


def test_no_job_is_forgotten_for_more_than_five_minutes() -> None:
    assert rest_for(1_000_000) == 300.0


RAW = ingestion_job()
RAW["metadata"] |= {"uid": "uid-of-it", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}
ATTEMPT = {"generation": 0, "trigger": "Initial", "startTime": "2026-01-01T00:00:00Z", "segments": 20}
RAW["status"] = {"stage": Stage.SEGMENTS, "attempts": [ATTEMPT]}
KEPT = Kept(RAW, IngestionJob.model_validate(RAW))


def child(*, version: int, done: int = 0, active: int = 5, uid: str = "uid-of-the-job") -> ChildJob:
    """Return a Job that runs."""
    return ChildJob(
        name="job",
        uid=uid,
        resource_version=version,
        active=active,
        ready=active,
        succeeded=done,
        completed=IndexSet.span(done),
    )


def kept(*, every: float) -> Pace:
    """Return what is remembered of a job that runs, and was read whole at 0."""
    pace = Pace(looked=0.0, diagnosed=0.0, rest=every, listed=0.0)
    pace.remember(KEPT, now=0.0)
    pace.end_look(LastLook(KEPT, child(version=10)))
    return pace


@pytest.mark.parametrize(
    ("every", "at", "counts_alone"), [(1.2, 29, True), (1.2, 31, False), (100, 490, True), (100, 501, False)]
)
def test_a_full_look_is_taken_every_30_seconds_or_instead_of_each_fifth_where_many_run(
    every: float, at: float, counts_alone: bool
) -> None:
    assert (kept(every=every).begin_look(at) is not None) is counts_alone


def test_an_end_is_taken_from_the_watch_however_long_ago_the_job_was_read() -> None:
    """The write that records it confirms what is remembered: another read would tell nothing more."""
    pace = kept(every=1.2)
    ended = replace(child(version=11, done=5, active=0), complete=True)
    pace.on_child_ended(ended)
    assert pace.begin_look(1_000) == (KEPT, ended)


@pytest.mark.parametrize(
    ("every", "at", "due"), [(1.2, 119, True), (12, 119, False), (12, 121, True), (100, 990, False)]
)
def test_a_resync_has_all_jobs_listed_again_after_ten_looks(every: float, at: float, due: bool) -> None:
    assert kept(every=every).listing_due(at, rest=every) is due


def test_all_jobs_are_listed_again_after_trouble() -> None:
    pace = kept(every=100)
    pace.distrust()
    assert pace.listing_due(1, rest=100)


@pytest.mark.parametrize(
    ("every", "changed", "unchanged"), [(1.2, 1.2, 5), (10, 10, 40), (100, 100, 400), (200, 200, 600)]
)
def test_a_job_whose_job_has_not_changed_is_looked_at_when_its_pods_are_to_be_asked(
    every: float, changed: float, unchanged: float
) -> None:
    pace = kept(every=every)
    assert pace.idle(0) == unchanged
    assert pace.on_child_changed(child(version=11, done=1), 0) == changed
    assert pace.idle(0) == changed
    pace.begin_look(changed)
    pace.end_look(LastLook(KEPT, child(version=11, done=1)))
    assert pace.idle(changed) == unchanged


@pytest.mark.parametrize(
    ("every", "moving", "still"), [(1.2, 30, 5), (10, 100, 40), (100, 1_000, 400), (200, 2_000, 600)]
)
def test_pods_are_asked_why_they_do_not_start_when_others_end_and_when_none_does(
    every: float, moving: float, still: float
) -> None:
    """With a thousand jobs, each asks only when nothing has happened to it for a while: to list pods is what costs."""
    for ends, after in ((True, moving), (False, still)):
        pace = kept(every=every)
        asked = [second for second in range(3_000) if asks(pace, second, done=second if ends else 0)]
        assert asked == [after * number for number in range(1, len(asked) + 1)]


def asks(pace: Pace, second: int, *, done: int) -> bool:
    """Return whether a look asks the pods of a Job that has none ready."""
    due = pace.diagnosis_due(replace(child(version=10, done=done), ready=0), second)
    if due:
        pace.diagnosed = second
    return due


def told(pace: Pace) -> ChildJob:
    """Return the Job that the next look decides counts from."""
    known = pace.begin_look(10)
    assert known is not None
    return known[1]


def test_the_next_look_takes_the_last_state_that_the_watch_has_shown() -> None:
    pace = kept(every=10)
    pace.on_child_changed(child(version=11, done=1), 1)
    pace.on_child_changed(child(version=12, done=2), 2)
    assert told(pace) == child(version=12, done=2)


WAITS = replace(child(version=10), ready=0)
STARTS = replace(WAITS, active=0)


def job(*, stage: Stage = Stage.SEGMENTS, stalled: bool = False, state: VersionState = VersionState.PROCESSING) -> Kept:
    """Return an IngestionJob that runs.

    Args:
        stage: what runs.
        stalled: it says why its pods do not start.
        state: of its version.
    """
    condition = Condition(type="Stalled", status="True" if stalled else "False", reason=Reason.POD_PENDING, message="")
    version = Version(id="v", number=1, state=state)
    status = KEPT.job.status.model_copy(update={"stage": stage, "conditions": [condition], "version": version})
    return Kept(RAW, KEPT.job.model_copy(update={"status": status}))


def resting(seen: ChildJob, *, of: Kept) -> Pace:
    """Return what is remembered of a job that was looked at at 0."""
    pace = kept(every=10)
    pace.begin_look(0)
    pace.end_look(LastLook(of, seen))
    return pace


@pytest.mark.parametrize(
    ("shown", "of", "seen"),
    [
        (child(version=9, done=1), job(), child(version=10)),
        (child(version=10, done=1), job(), child(version=10)),
        (child(version=11), job(), child(version=10)),
        (child(version=11, active=4), job(), child(version=10)),
        (child(version=11), job(), STARTS),
        (child(version=11), job(state=VersionState.PENDING), WAITS),
        (replace(WAITS, resource_version=11), job(stalled=True), replace(WAITS, active=4)),
        (child(version=11, done=1), job(stage=Stage.PUBLISH), child(version=10)),
        (child(version=11, done=20, active=0), job(), child(version=10, done=18)),
    ],
    ids=[
        "older",
        "the same",
        "nothing else",
        "fewer pods",
        "pods run",
        "pods run of a new one",
        "more pods wait",
        "published, and not complete yet",
        "all segments have ended, and it is not complete yet",
    ],
)
def test_what_the_status_says_nothing_of_is_not_looked_at(shown: ChildJob, of: Kept, seen: ChildJob) -> None:
    pace = resting(seen, of=of)
    assert pace.on_child_changed(shown, 1) is None
    assert pace.idle(1) == 39  # until its pods are asked


@pytest.mark.parametrize(
    ("shown", "of", "seen"),
    [
        (child(version=11, done=1), job(), child(version=10)),
        (replace(WAITS, resource_version=11), job(), child(version=10)),
        (child(version=11), job(stalled=True), WAITS),
        (replace(WAITS, resource_version=11), job(stalled=True), STARTS),
        (replace(WAITS, resource_version=11), job(state=VersionState.PENDING), STARTS),
        (replace(child(version=11), suspended=True), job(), child(version=10)),
    ],
    ids=["a count", "pods wait", "stalled pods run", "stalled and gets pods", "the first pods", "suspended"],
)
def test_what_the_status_is_to_say_is_looked_at(shown: ChildJob, of: Kept, seen: ChildJob) -> None:
    pace = resting(seen, of=of)
    assert pace.on_child_changed(shown, 1) == 9
    assert pace.idle(1) == 9


def test_what_was_not_looked_at_is_not_read_again() -> None:
    pace = resting(WAITS, of=job())
    assert pace.on_child_changed(child(version=11), 1) is None
    assert told(pace) == child(version=11)


@pytest.mark.parametrize(("during", "taken", "rests"), [(11, 12, 40), (12, 12, 40), (13, 13, 10)])
def test_what_is_heard_during_a_look_is_looked_at_again_if_it_is_newer_than_what_was_read(
    during: int, taken: int, rests: float
) -> None:
    pace = kept(every=10)
    pace.begin_look(1)
    assert pace.on_child_changed(child(version=during, done=during - 10), 1) is not None
    pace.end_look(LastLook(KEPT, child(version=12, done=2)))
    assert pace.idle(1) == rests
    assert told(pace) == child(version=taken, done=taken - 10)


def test_a_job_that_was_replaced_under_its_name_is_looked_at() -> None:
    pace = kept(every=10)
    another = child(version=9, uid="uid-of-another")
    assert pace.on_child_changed(another, 1) == 9
    assert told(pace) == another
    pace.on_child_changed(child(version=11), 1)
    pace.on_child_changed(another, 1)
    pace.end_look(LastLook(KEPT, child(version=11)))
    assert told(pace) == another


def test_counts_that_came_too_soon_are_counted_by_the_next_look() -> None:
    pace = kept(every=10)
    pace.begin_look(1)
    pace.end_look(LastLook(KEPT, child(version=12, done=2), unwritten=True))
    assert pace.idle(1) == 10
    assert told(pace) == child(version=12, done=2)
