"""The planner of batches over random histories: no document is forgotten, and none is asked for twice.

The little world below applies the planner's actions and plays the jobs; crashes are actions that are not applied.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingestion_crds import JsonObject, retry
from ingestion_crds import constants as names
from ingestion_crds.batch import BatchStatus, IngestionBatch
from ingestion_crds.config import Config, Tenant
from ingestion_crds.constants import RETRYABLE_PHASES, TERMINAL_PHASES, ConditionType, Phase, Reason
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import dump_status
from ingestion_operator.actions import AnswerAnnotation
from ingestion_operator.batch_actions import CreateDocumentJob, DeleteBatch, PatchDocumentJob
from ingestion_operator.batch_plan import (
    BatchPlan,
    BatchSnapshot,
    passes_on_generation,
    passes_on_suspend,
    plan,
    settled,
)
from ingestion_operator.document_jobs import DocumentJob
from ingestion_operator.obstacles import Waiting
from support.builders import ingestion_batch

CONFIG = Config(worker_image="worker:test", tenants=[Tenant(namespace="team-a", bucket="team-a")])
START = datetime(2026, 1, 1, tzinfo=UTC)
DOCUMENTS = 5


@dataclass
class Job:
    """An IngestionJob, as far as it matters here."""

    name: str
    parent: int | None
    suspend: bool
    phase: Phase = Phase.QUEUED
    generation: int = 0
    begun: int | None = None
    cancel: int | None = None
    reason: str = ""

    @property
    def ended(self) -> bool:
        return self.phase in TERMINAL_PHASES and self.begun == self.generation


class World:
    """An IngestionBatch, its jobs, and what they were ever asked for."""

    def __init__(self, *, documents: int = DOCUMENTS, **spec: Any) -> None:
        body = ingestion_batch(documents=documents, **spec)
        body["metadata"] |= {"uid": "b-1", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1"}
        self.batch = IngestionBatch.model_validate(body)
        self.config = CONFIG
        self.jobs: dict[int, Job] = {}
        self.now = START
        self.starts = 10
        self.told: set[tuple[int, int]] = set()
        self.asked: Counter[tuple[int, int]] = Counter()  # of a document, in a generation of the batch
        self.completed_before = IndexSet()
        self.last: BatchPlan | None = None

    @property
    def status(self) -> BatchStatus:
        return self.batch.status

    def snapshot(self) -> BatchSnapshot:
        open_ = {index: job for index, job in self.jobs.items() if job.phase is not Phase.COMPLETED}
        wanted = self.batch.spec
        behind = {index for index, job in open_.items() if job.parent != wanted.retry_generation}
        unlike = {index for index, job in open_.items() if job.suspend != wanted.suspend}
        rows = {
            index: DocumentJob(
                index=index,
                name=job.name,
                phase=job.phase,
                generation=job.generation,
                begun=job.begun,
                reason=job.reason,
                code="EmbeddingRejected" if job.phase in RETRYABLE_PHASES else "",
            )
            for index, job in self.jobs.items()
        }
        return BatchSnapshot(
            batch=self.batch,
            config=self.config,
            jobs=rows,
            behind=frozenset(behind) if passes_on_generation(self.batch) else frozenset(),
            unlike=frozenset(unlike) if passes_on_suspend(self.batch) else None,
            told=frozenset(self.told),
            starts=self.starts,
        )

    def step(self, *, crash_after: int | None = None) -> bool:
        """Make one plan and apply it, or only its first parts; return whether anything changed."""
        self.now += timedelta(seconds=1)
        self.last = decided = plan(self.snapshot(), now=self.now)
        if crash_after == 0:
            return False
        changed = dump_status(decided.status) != dump_status(self.status)
        # What is written is read back as stored: nothing may hide in the models.
        stored = BatchStatus.model_validate(dump_status(decided.status))
        self.batch = self.batch.changed(status=stored)
        self.check()
        for number, action in enumerate(decided.actions, start=1):
            if crash_after == number:
                self.told.clear()
                return True
            changed = self.apply(action) or changed
        return changed

    def apply(self, action: Any) -> bool:
        match action:
            case CreateDocumentJob():
                return self.create(action.index, action.body)
            case PatchDocumentJob():
                if action.cancels is not None:
                    self.told.add((action.index, action.cancels))
                return self.patch(action.index, action.body["spec"])
            case AnswerAnnotation() | DeleteBatch():
                return False
        raise AssertionError(action)

    def create(self, index: int, body: JsonObject) -> bool:
        if index in self.jobs:
            return False
        assert index not in self.done, "a completed document's job was made again"
        spec = body["spec"]
        self.jobs[index] = Job(name=body["metadata"]["name"], parent=spec["parentGeneration"], suspend=spec["suspend"])
        self.asked[index, self.batch.spec.retry_generation] += 1
        return True

    def patch(self, index: int, spec: JsonObject) -> bool:
        """Merge, as the CRD of the jobs admits it."""
        job = self.jobs.get(index)
        if job is None:
            return False
        wanted = spec.get("retryGeneration", job.generation)
        admitted = wanted == job.generation + 1 and job.phase in RETRYABLE_PHASES and job.begun == job.generation
        if wanted != job.generation and not admitted:
            return False
        if wanted != job.generation:
            assert index not in self.done, "a completed document was retried"
            self.asked[index, self.batch.spec.retry_generation] += 1
        before = replace(job)
        job.generation, job.parent = wanted, spec.get("parentGeneration", job.parent)
        job.suspend, job.cancel = spec.get("suspend", job.suspend), spec.get("cancelGeneration", job.cancel)
        return job != before

    @property
    def done(self) -> IndexSet:
        documents = self.status.documents
        return IndexSet.parse(documents.completed if documents is not None else "")

    def check(self) -> None:
        assert self.completed_before <= self.done, "the completed set shrank"
        self.completed_before = self.done
        counts = self.status.documents
        if counts is not None:
            parts = (counts.queued_count, counts.processing_count, counts.completed_count)
            assert sum(parts) + counts.partial_failure_count + counts.failed_count == counts.total
            ended = self.status.phase in TERMINAL_PHASES
            assert ended == (self.status.completion_time is not None)

    def rest(self) -> None:
        """Look until nothing changes any more."""
        for _ in range(60):
            if not self.step():
                return
        raise AssertionError("the planner does not come to rest")

    def edit(self, **spec: Any) -> None:
        metadata = self.batch.metadata.changed(generation=self.batch.metadata.generation + 1)
        self.batch = self.batch.changed(spec=self.batch.spec.changed(**spec), metadata=metadata)

    def retry(self) -> None:
        assert retry.why_not(self.batch) is None
        self.edit(retry_generation=self.batch.spec.retry_generation + 1)

    def play(self, outcome: Phase, *only: int) -> None:
        """Let jobs go a step: begin, stop where they were told to, else end so."""
        for index, job in self.jobs.items():
            if (only and index not in only) or job.ended or job.suspend:
                continue
            if job.begun != job.generation:
                job.begun, job.phase = job.generation, Phase.PROCESSING
            elif job.cancel is not None and job.cancel >= job.generation:
                job.phase, job.reason = Phase.FAILED, Reason.CANCELLED
            else:
                job.phase, job.reason = outcome, Reason.SEGMENTS_FAILED

    def end(self, outcome: Phase, *only: int) -> None:
        self.play(outcome, *only)
        self.play(outcome, *only)


def ended(*, failed: tuple[int, ...]) -> World:
    """Return a batch whose first attempt is over; these of its documents have failed."""
    world = World()
    world.rest()
    if failed:
        world.end(Phase.FAILED, *failed)
    world.end(Phase.COMPLETED)
    world.rest()
    return world


# ── histories ─────────────────────────────────────────────────────────────────────────────────────────────────

OPERATIONS = st.one_of(
    st.tuples(st.just("play"), st.tuples(st.sampled_from(sorted(TERMINAL_PHASES)), st.integers(0, DOCUMENTS - 1))),
    st.tuples(st.just("play all"), st.sampled_from(sorted(TERMINAL_PHASES))),
    st.tuples(st.just("crash"), st.integers(0, 4)),
    st.tuples(st.just("look"), st.none()),
    st.tuples(st.just("retry"), st.none()),
    st.tuples(st.just("retry one"), st.integers(0, DOCUMENTS - 1)),
    st.tuples(st.just("suspend"), st.booleans()),
    st.tuples(st.just("cancel"), st.none()),
    st.tuples(st.just("take the cancellation back"), st.none()),
    st.tuples(st.just("delete"), st.integers(0, DOCUMENTS - 1)),
)


def happen(world: World, what: str, detail: Any) -> None:
    match what:
        case "play":
            outcome, index = detail
            if index in world.jobs:
                world.play(outcome, index)
        case "play all":
            world.play(detail)
        case "crash":
            world.step(crash_after=detail)
        case "look":
            world.step()
        case "retry" if retry.why_not(world.batch) is None:
            world.retry()
        case "retry one" if detail in world.jobs:
            job = world.jobs[detail]
            if job.ended and job.phase is not Phase.COMPLETED:
                job.generation += 1
        case "suspend":
            world.edit(suspend=detail)
        case "cancel":
            world.edit(cancel_generation=world.batch.spec.retry_generation)
        case "take the cancellation back":
            world.edit(cancel_generation=None)
        case "delete":
            world.jobs.pop(detail, None)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(OPERATIONS, max_size=30))
def test_whatever_happens_the_batch_ends_and_a_retry_completes_it(operations: list[tuple[str, Any]]) -> None:
    world = World()
    world.starts = 3
    for what, detail in operations:
        happen(world, what, detail)
        deleted = {detail for what, detail in operations if what == "delete"}
        for (index, generation), count in world.asked.items():
            assert count == 1 or index in deleted, f"document {index} was asked for {count} times in {generation}"

    world.edit(suspend=False)
    for _ in range(3):  # the last attempt ends, and the retry after it completes what has failed
        for _ in range(12):
            world.rest()
            world.play(Phase.COMPLETED)
        world.rest()
        assert world.status.phase in TERMINAL_PHASES
        assert all(job.ended for job in world.jobs.values())
        assert settled(world.batch)
        if world.status.phase is Phase.COMPLETED:
            break
        world.retry()
    assert world.status.phase is Phase.COMPLETED
    assert world.done == IndexSet.span(DOCUMENTS)


@settings(max_examples=200, deadline=None)
@given(
    failed=st.sets(st.integers(0, DOCUMENTS - 1), min_size=1),
    crashes=st.lists(st.integers(0, 4), max_size=8),
    again=st.sets(st.integers(0, DOCUMENTS - 1)),
)
def test_a_retry_asks_each_failed_document_once_wherever_it_is_interrupted(
    failed: set[int], crashes: list[int], again: set[int]
) -> None:
    """Also those that fail once more before it has been passed on to the others."""
    world = ended(failed=tuple(sorted(failed)))
    world.starts = 2
    world.retry()
    for crash_after in crashes:
        world.step(crash_after=crash_after)
        if again & world.jobs.keys():
            world.play(Phase.FAILED, *again)
    for _ in range(12):
        world.rest()
        world.play(Phase.FAILED)
    assert {index for (index, generation) in world.asked if generation == 1} == failed
    assert all(count == 1 for count in world.asked.values())
    assert world.status.observed_retry_generation == world.status.passed_on_generation == 1
    assert IndexSet.parse(world.status.documents.failed if world.status.documents else "") == IndexSet.of(failed)


# ── what is recorded ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("outcomes", "phase"),
    [
        ((Phase.COMPLETED,) * DOCUMENTS, Phase.COMPLETED),
        ((Phase.FAILED,) * DOCUMENTS, Phase.FAILED),
        ((Phase.COMPLETED, *(Phase.FAILED,) * 4), Phase.PARTIAL_FAILURE),
        ((Phase.PARTIAL_FAILURE,) * DOCUMENTS, Phase.PARTIAL_FAILURE),
    ],
)
def test_the_phase_is_that_of_all_documents(outcomes: tuple[Phase, ...], phase: Phase) -> None:
    world = World()
    assert world.status.phase is Phase.QUEUED
    world.rest()
    world.play(Phase.COMPLETED)
    world.rest()
    assert world.status.phase is Phase.PROCESSING
    for index, outcome in enumerate(outcomes):
        world.play(outcome, index)
    world.rest()
    assert world.status.phase is phase
    assert settled(world.batch)
    ready = world.status.conditions[0]
    assert (ready.type, ready.status) == ("Ready", "True" if phase is Phase.COMPLETED else "False")


def test_a_failure_names_the_document_its_job_and_the_code() -> None:
    world = ended(failed=(1, 3))
    documents = world.status.documents
    assert documents is not None
    assert (documents.completed, documents.failed, documents.progress) == ("0,2,4", "1,3", "3/5")
    assert [(item.index, item.job, item.code) for item in world.status.failures] == [
        (index, world.jobs[index].name, "EmbeddingRejected") for index in (1, 3)
    ]
    assert world.status.failure_summary == {"EmbeddingRejected": 2}
    assert world.status.progress_percent == 60
    message = next(item.message for item in world.status.conditions if item.type == "Stalled")
    assert message == "2 of 5 documents failed: EmbeddingRejected 2"


def test_jobs_are_made_as_many_as_may_be_made_at_once() -> None:
    world = World()
    world.starts = 2
    world.step()
    assert sorted(world.jobs) == [0, 1]
    assert world.last is not None
    assert world.last.look_again == 0
    world.rest()
    assert sorted(world.jobs) == list(range(DOCUMENTS))


def test_a_job_has_the_batch_s_settings_and_no_time_to_live() -> None:
    world = World(parallelism=3, template={"image": "worker:mine"}, ttlSecondsAfterFinished=60, maxFailedSegments=2)
    decided = plan(world.snapshot(), now=world.now)
    first = decided.actions[0]
    assert isinstance(first, CreateDocumentJob)
    spec = first.body["spec"]
    assert (spec["parallelism"], spec["template"], spec["maxFailedSegments"]) == (3, {"image": "worker:mine"}, 2)
    assert spec["document"]["title"] == "Manual 0"
    assert "ttlSecondsAfterFinished" not in spec
    [owner] = first.body["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == ("b-1", True, True)


def test_a_retry_brings_the_batch_s_settings_as_they_are_now() -> None:
    """Such as the image that was wrong, by which all of them failed."""
    world = ended(failed=(2,))
    world.edit(template=None, parallelism=1)
    world.retry()
    decided = plan(world.snapshot(), now=world.now)
    [patch] = [action for action in decided.actions if isinstance(action, PatchDocumentJob)]
    assert patch.index == 2
    assert patch.body["spec"] == {
        "retryGeneration": 1,
        "retrySegments": None,
        "parentGeneration": 1,
        "template": None,
        "parallelism": 1,
        "segmentBackoffLimit": 3,
        "maxFailedSegments": None,
        "activeDeadlineSeconds": 21600,
    }


# ── deleted, cancelled, suspended ─────────────────────────────────────────────────────────────────────────────


def test_a_completed_document_s_job_may_be_deleted() -> None:
    world = ended(failed=(1,))
    del world.jobs[0]
    world.retry()
    world.rest()
    assert 0 not in world.jobs
    world.end(Phase.COMPLETED)
    world.rest()
    assert world.status.phase is Phase.COMPLETED


def test_a_job_that_is_deleted_before_it_is_done_fails_its_document_until_a_retry_makes_it_again() -> None:
    world = World()
    world.rest()
    del world.jobs[2]
    world.rest()
    assert 2 not in world.jobs
    assert [(item.index, item.code) for item in world.status.failures] == [(2, "JobLost")]
    world.end(Phase.COMPLETED)
    world.rest()
    assert world.status.phase is Phase.PARTIAL_FAILURE
    world.retry()
    world.rest()
    assert world.jobs[2].parent == 1
    world.end(Phase.COMPLETED)
    world.rest()
    assert world.status.phase is Phase.COMPLETED


def test_a_cancelled_batch_makes_no_more_jobs_and_can_be_retried() -> None:
    world = World()
    world.starts = 2
    world.step()
    world.edit(cancel_generation=0)
    world.rest()
    assert sorted(world.jobs) == [0, 1]
    world.end(Phase.COMPLETED)
    world.rest()
    assert world.status.phase is Phase.FAILED
    assert world.status.conditions[0].reason is Reason.CANCELLED
    assert {item.index for item in world.status.failures} == set(range(DOCUMENTS))
    world.retry()
    world.rest()
    world.end(Phase.COMPLETED)
    world.rest()
    assert world.status.phase is Phase.COMPLETED


def test_an_attempt_that_was_cancelled_stays_over_when_the_cancellation_is_taken_back() -> None:
    """It could not be cancelled any more."""
    world = World()
    world.starts = 2
    world.step()
    world.edit(cancel_generation=0)
    world.rest()
    world.end(Phase.COMPLETED)
    world.rest()
    world.edit(cancel_generation=None)
    world.rest()
    assert sorted(world.jobs) == [0, 1]
    assert world.status.phase is Phase.FAILED
    assert settled(world.batch)
    world.retry()
    world.rest()
    world.end(Phase.COMPLETED)
    world.rest()
    assert world.status.phase is Phase.COMPLETED


def test_a_job_that_is_retried_by_itself_after_a_cancelled_batch_goes_on() -> None:
    world = World()
    world.rest()
    world.edit(cancel_generation=0)
    world.rest()
    world.end(Phase.COMPLETED)
    world.rest()
    world.jobs[0].generation = 1
    world.rest()
    assert world.status.phase in (Phase.PROCESSING, Phase.QUEUED)
    world.end(Phase.COMPLETED)
    world.rest()
    assert world.jobs[0].phase is Phase.COMPLETED
    assert world.status.phase is Phase.PARTIAL_FAILURE


def test_a_job_that_is_retried_by_itself_joins_the_batch_s_retry() -> None:
    world = ended(failed=(1, 2))
    world.jobs[1].generation = 1
    world.retry()
    world.rest()
    assert [(job.generation, job.parent) for _, job in sorted(world.jobs.items())][1:3] == [(1, 1), (1, 1)]
    assert world.asked[1, 1] == 0


def test_a_suspended_batch_stops_all_jobs_and_goes_on_where_it_stopped() -> None:
    world = World()
    world.starts = 2
    world.step()
    world.edit(suspend=True)
    world.rest()
    assert sorted(world.jobs) == [0, 1]
    assert all(job.suspend for job in world.jobs.values())
    assert world.status.conditions[0].reason is Reason.SUSPENDED
    world.edit(suspend=False)
    world.rest()
    assert sorted(world.jobs) == list(range(DOCUMENTS))
    assert not any(job.suspend for job in world.jobs.values())


def test_who_resumes_a_batch_before_it_is_suspended_has_all_jobs_go_on() -> None:
    world = World()
    world.rest()
    world.edit(suspend=True)
    world.step()
    assert all(job.suspend for job in world.jobs.values())
    world.edit(suspend=False)
    world.rest()
    assert not any(job.suspend for job in world.jobs.values())


def test_a_job_that_is_suspended_by_itself_stays_so() -> None:
    world = World()
    world.rest()
    world.jobs[1].suspend = True
    world.rest()
    assert world.jobs[1].suspend


def test_a_job_that_is_suspended_by_itself_stays_so_through_a_retry_of_the_batch() -> None:
    world = ended(failed=(1,))
    world.jobs[1].suspend = True
    world.retry()
    world.rest()
    assert (world.jobs[1].generation, world.jobs[1].suspend) == (1, True)
    world.edit(suspend=True)
    world.rest()
    world.edit(suspend=False)
    world.rest()
    assert not world.jobs[1].suspend


# ── who waits for what ────────────────────────────────────────────────────────────────────────────────────────


def test_a_namespace_without_tenant_gets_no_jobs_and_a_reason() -> None:
    world = World()
    world.config = Config(worker_image="worker:test")
    world.rest()
    assert not world.jobs
    assert world.status.phase is Phase.QUEUED
    assert {item.reason for item in world.status.conditions} == {Reason.NO_STORE}
    world.config = CONFIG
    world.rest()
    assert len(world.jobs) == DOCUMENTS


def test_where_all_jobs_wait_the_batch_says_why() -> None:
    world = World()
    world.rest()
    world.play(Phase.COMPLETED)
    for job in world.jobs.values():
        job.reason = Reason.IMAGE_UNAVAILABLE
    world.rest()
    stalled = next(item for item in world.status.conditions if item.type == "Stalled")
    assert (stalled.status, stalled.reason) == ("True", Reason.IMAGE_UNAVAILABLE)
    world.jobs[0].reason = Reason.WAITING
    world.rest()
    stalled = next(item for item in world.status.conditions if item.type == "Stalled")
    assert (stalled.status, stalled.reason) == ("True", Reason.IMAGE_UNAVAILABLE)
    assert world.jobs[1].name in stalled.message
    world.jobs[3].reason = Reason.PREPARING
    world.rest()
    assert {item.reason for item in world.status.conditions} == {Reason.PROCESSING_DOCUMENTS}


@pytest.mark.parametrize(
    ("reasons", "said", "stalled"),
    [
        ((Reason.SUSPENDED, Reason.SUSPENDED), Reason.SUSPENDED, False),
        ((Reason.SUSPENDED, Reason.WAITING), Reason.WAITING, False),
        ((Reason.CANCELLING, Reason.SUSPENDED), Reason.SUSPENDED, False),
        ((Reason.CANCELLING, Reason.CANCELLING), Reason.CANCELLING, False),
        ((Reason.SUSPENDED, Reason.IMAGE_UNAVAILABLE), Reason.IMAGE_UNAVAILABLE, True),
        ((Reason.CANCELLING, Reason.IMAGE_UNAVAILABLE), Reason.IMAGE_UNAVAILABLE, True),
        ((Reason.SUSPENDED, Reason.PREPARING), Reason.PROCESSING_DOCUMENTS, False),
    ],
)
def test_a_job_that_somebody_holds_by_itself_does_not_hide_what_the_others_wait_for(
    reasons: tuple[Reason, Reason], said: Reason, *, stalled: bool
) -> None:
    """Documents that are completed wait for nothing."""
    world = World(documents=3)
    world.rest()
    world.end(Phase.COMPLETED, 0)
    world.play(Phase.COMPLETED)
    for index, reason in enumerate(reasons, start=1):
        world.jobs[index].reason = reason
    world.rest()
    conditions = {item.type: item for item in world.status.conditions}
    assert {item.reason for item in conditions.values()} == {said}
    goes_on = said is Reason.PROCESSING_DOCUMENTS
    assert conditions[ConditionType.RECONCILING].status == str(goes_on)
    assert conditions[ConditionType.STALLED].status == str(stalled)
    named = world.jobs[1 + reasons.index(said)].name if said in reasons else ""
    assert named in conditions[ConditionType.READY].message


def test_what_is_refused_is_said_and_tried_again_later() -> None:
    world = World()
    rejection = Waiting(reason=Reason.REJECTED_BY_CLUSTER, message="exceeded quota")
    decided = plan(replace(world.snapshot(), rejection=rejection, starts=0), now=world.now)
    assert decided.look_again == 30
    assert not decided.actions
    stalled = next(item for item in decided.status.conditions if item.type == "Stalled")
    assert (stalled.status, stalled.message) == ("True", "exceeded quota")


def test_what_was_refused_longest_ago_is_the_first_of_what_was_refused() -> None:
    world = World()
    decided = plan(replace(world.snapshot(), refused=(3, 0)), now=world.now)
    assert [action.index for action in decided.actions if isinstance(action, CreateDocumentJob)] == [1, 2, 4, 3, 0]


def test_what_is_cancelled_and_suspended_is_cancelled_first() -> None:
    """A cancellation is not to wait for what is refused."""
    world = World()
    world.rest()
    world.edit(suspend=True, cancel_generation=0)
    patches = [
        action for action in plan(world.snapshot(), now=world.now).actions if isinstance(action, PatchDocumentJob)
    ]
    assert [patch.cancels for patch in patches] == [0] * DOCUMENTS + [None] * DOCUMENTS


@pytest.mark.parametrize(("failed", "admitted"), [((1,), True), ((), False)])
def test_an_annotation_asks_for_a_retry(failed: tuple[int, ...], *, admitted: bool) -> None:
    world = ended(failed=failed)
    annotations = {names.ANNOTATION_RETRY_REQUESTED: "token"}
    world.batch = world.batch.changed(metadata=world.batch.metadata.changed(annotations=annotations))
    assert not settled(world.batch)
    [answer] = plan(world.snapshot(), now=world.now).actions
    assert isinstance(answer, AnswerAnnotation)
    assert (not answer.told) is admitted
    assert any(item["path"] == "/spec/retryGeneration" for item in answer.operations) is admitted


def test_a_completed_batch_is_deleted_when_its_time_is_over_and_a_failed_one_never() -> None:
    for failed, deleted in (((), True), ((1,), False)):
        world = ended(failed=failed)
        world.edit(ttl_seconds_after_finished=60)
        world.rest()
        world.now += timedelta(seconds=60)
        actions = plan(world.snapshot(), now=world.now).actions
        assert any(isinstance(action, DeleteBatch) for action in actions) is deleted
