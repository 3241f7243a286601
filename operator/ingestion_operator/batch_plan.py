"""The planner of batches: what is to be done next, as a pure function of what exists.

`plan` is to an IngestionBatch what `ingestion_operator.plan` is to an IngestionJob. A batch owns one IngestionJob for
each document, and does three things with them: it makes them, it passes on to them what its own spec asks for (a retry,
a suspension, a cancellation), and it records how far they are. What becomes of a document is its job's affair.

A document's job has a name that follows from the batch and the document's place. So nothing has to be recorded before
it is created, and what was interrupted anywhere goes on from a list of the jobs that exist.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, auto
from functools import cached_property
from typing import Any, Final

from ingestion_crds import constants as names
from ingestion_crds.batch import BatchStatus, DocumentFailure, Documents, IngestionBatch
from ingestion_crds.config import Config, Tenant
from ingestion_crds.constants import ConditionType, Phase, Reason
from ingestion_crds.errors import Code
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import MAX_CODES, Condition

from ingestion_operator.actions import LOOK_AT_BLOCKED_SECONDS, TRY_TO_DELETE_SECONDS, Event
from ingestion_operator.batch_actions import BatchAction, CreateDocumentJob, DeleteBatch, PatchDocumentJob
from ingestion_operator.document_jobs import DocumentJob, build, name_of, retry_patch
from ingestion_operator.obstacles import OBSTACLES, Waiting, no_store
from ingestion_operator.questions import cancelled
from ingestion_operator.results import shorten
from ingestion_operator.retry_requests import answer, is_open, unanswered
from ingestion_operator.summary import by_number, condition

# The watch of IngestionJobs wakes the operator; these are for what no event tells.
_LOOK_AT_RUNNING_SECONDS: Final = 60.0
_LOOK_AT_PARKED_SECONDS: Final = 600.0
# To stop jobs makes less work than to start them, and is not to wait.
_MOST_STOPS: Final = 100
# Why a document has failed that has no job.
_LOST: Final[tuple[Code, str]] = ("JobLost", "its IngestionJob was deleted; a retry of the batch makes it again")
_NEVER_MADE: Final[tuple[Code, str]] = ("Cancelled", "the batch was cancelled before its IngestionJob was made")
# Why a job waits for a person, or for room.
_BLOCKS: Final = OBSTACLES | {
    Reason.NO_STORE,
    Reason.UNKNOWN_PROVIDER,
    Reason.IMAGE_NOT_ALLOWED,
    Reason.NAME_CONFLICT,
}
# Why a job is held by somebody; what ends by itself comes last.
_HOLDS: Final = (Reason.WAITING, Reason.SUSPENDED, Reason.CANCELLING)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSnapshot:
    """What exists, as read from the API server. A document is named by its place.

    Args:
        batch: the IngestionBatch.
        config: the installation's configuration.
        jobs: the IngestionJobs that exist.
        unread: why they could not be read; None if they were.
        behind: those not completed that carry another parentGeneration than the wanted one; read where
            `passes_on_generation` asks for it.
        unlike: those not completed whose `suspend` is not the batch's; None where `passes_on_suspend` did not ask for
            them, so that nobody has read them.
        told: documents and generations of their jobs that have been told to stop.
        starts: how many jobs may be made or retried at once.
        rejection: what the API server has refused, or another's job that is in the way.
        refused: documents for which something was refused the last time, those first for which it was so longest ago.
        answered: the token of the annotation that this look has answered; empty if it has answered none.
        answer_refused: what answers an annotation was refused a moment ago.
    """

    batch: IngestionBatch
    config: Config
    jobs: Mapping[int, DocumentJob] = field(default_factory=dict)
    unread: Waiting | None = None
    behind: frozenset[int] = frozenset()
    unlike: frozenset[int] | None = frozenset()
    told: frozenset[tuple[int, int]] = frozenset()
    starts: int = 10
    rejection: Waiting | None = None
    refused: tuple[int, ...] = ()
    answered: str = ""
    answer_refused: bool = False

    @property
    def tenant(self) -> Tenant | None:
        """The namespace's; None where the chart knows none, and nothing may be done."""
        return self.config.tenant(self.batch.metadata.namespace)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """What to do: write the status if it differs, then act, then send the events.

    Args:
        status: the status to record.
        actions: in order; they rely on the status being durable.
        events: for people.
        look_again: seconds after which to look again although nothing happened; 0 for as soon as it is its turn, None
            for never.
        starting: more jobs than these actions make, retry or resume are to be: it needs a share of the next ones too.
        parked: nothing goes on: it needs no share of the looks.
    """

    status: BatchStatus
    actions: tuple[BatchAction, ...] = ()
    events: tuple[Event, ...] = ()
    look_again: float | None = None
    starting: bool = False
    parked: bool = False


def passes_on_generation(batch: IngestionBatch) -> bool:
    """True while a retry is to be passed on to the jobs of documents that are not completed."""
    passed_on = batch.status.passed_on_generation
    return passed_on is not None and passed_on != batch.spec.retry_generation


def passes_on_suspend(batch: IngestionBatch) -> bool:
    """True while the jobs of documents that are not completed are to be suspended, or to go on."""
    begun = batch.status.observed_retry_generation is not None
    return begun and batch.status.passed_on_suspend is not batch.spec.suspend


def settled(batch: IngestionBatch) -> bool:
    """True when the body alone shows that nothing is to be done, so that no request is spent on it."""
    status, spec = batch.status, batch.spec
    if batch.metadata.deletion_timestamp is not None:
        return True
    return (
        status.phase in names.TERMINAL_PHASES
        and status.ended_generation == spec.retry_generation == status.observed_retry_generation
        and status.observed_generation == batch.metadata.generation
        and status.job_id == batch.job_id
        and not passes_on_suspend(batch)
        and not is_open(batch)
        and not (status.phase is Phase.COMPLETED and spec.ttl_seconds_after_finished is not None)
    )


def plan(snapshot: BatchSnapshot, *, now: datetime) -> BatchPlan:
    """Decide what is to be recorded and done next.

    Args:
        snapshot: what exists.
        now: the time, UTC, whole seconds.
    """
    batch = snapshot.batch
    if batch.metadata.deletion_timestamp is not None:
        return BatchPlan(status=batch.status)  # the garbage collector takes the jobs
    draft = _Draft(snapshot=snapshot, now=now, status=batch.status)
    unread = snapshot.unread
    if snapshot.tenant is None:
        unread = no_store(batch.metadata.namespace)
    if unread is not None:
        if draft.status.phase not in names.TERMINAL_PHASES or batch.retry_pending:
            draft.block(unread.reason, unread.message)
            draft.set(phase=Phase.QUEUED)
    else:
        _begin(draft)
        _pass_on(draft)
        _count(draft)
        _start(draft)
        _expire(draft)
    _answer_annotation(draft)  # the last: if the answer is refused, all else has been done
    return BatchPlan(
        status=_summarised(draft),
        actions=tuple(draft.actions),
        events=tuple(draft.events),
        look_again=draft.look_again,
        starting=draft.starting,
        parked=draft.parked,
    )


# ── the draft ─────────────────────────────────────────────────────────────────────────────────────────────────


class _State(Enum):
    """How far a document is."""

    UNMADE = auto()
    QUEUED = auto()
    PROCESSING = auto()
    COMPLETED = auto()
    PARTIAL = auto()
    FAILED = auto()


_FAILED: Final = (_State.PARTIAL, _State.FAILED)
_OPEN: Final = (_State.UNMADE, _State.QUEUED, _State.PROCESSING)


@dataclass(kw_only=True)
class _Draft:
    """The plan in the making."""

    snapshot: BatchSnapshot
    now: datetime
    status: BatchStatus
    actions: list[BatchAction] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    look_again: float | None = None
    starting: bool = False
    blocked: Waiting | None = None  # a person has to do something
    held: Waiting | None = None  # somebody asked for it: suspended, cancelling

    @property
    def batch(self) -> IngestionBatch:
        return self.snapshot.batch

    @property
    def generation(self) -> int:
        return self.batch.spec.retry_generation

    @property
    def documents(self) -> Documents:
        """The counts; they are there from `_begin` on."""
        return self.status.documents or Documents(total=len(self.batch.spec.documents))

    @property
    def cancelled(self) -> bool:
        """True when the wanted attempt is to make no more jobs."""
        return cancelled(self.batch, self.generation)

    @property
    def over(self) -> bool:
        """True once the wanted attempt has ended: what was not made for it then, a retry makes."""
        return self.status.ended_generation == self.generation

    @property
    def cancelling(self) -> bool:
        """True while jobs are to be stopped. A job that is retried by itself after that is not the batch's to stop."""
        return self.cancelled and not self.over

    @property
    def parked(self) -> bool:
        """True while nothing goes on: it is no tenant's, completed, or suspended, and all jobs have been told."""
        snapshot, batch = self.snapshot, self.batch
        suspended = batch.spec.suspend and self.status.passed_on_suspend is True and snapshot.rejection is None
        return suspended or snapshot.tenant is None or self.status.phase is Phase.COMPLETED

    @cached_property
    def behind(self) -> frozenset[int]:
        """Those whose jobs are still to join the attempt.

        A cancelled one does without a job that may not be changed: a retry that arrives late may not change it either.
        """
        return self.snapshot.behind.difference(self.snapshot.refused if self.cancelled else ())

    @cached_property
    def states(self) -> tuple[_State, ...]:
        """How far each document is; only asked for once the attempt has begun."""
        made, completed = (IndexSet.parse(text) for text in (self.documents.made, self.documents.completed))
        return tuple(self._state(index, made, completed) for index in range(len(self.batch.spec.documents)))

    def _state(self, index: int, made: IndexSet, completed: IndexSet) -> _State:
        job = self.snapshot.jobs.get(index)
        if index in completed or (job is not None and job.phase is Phase.COMPLETED):
            return _State.COMPLETED
        if job is None:
            # As an attempt whose Job is gone: it has failed, and is made again by a retry.
            return _State.FAILED if index in made or self.cancelled or self.over else _State.UNMADE
        if job.ended and index not in self.behind:
            return _State.PARTIAL if job.phase is Phase.PARTIAL_FAILURE else _State.FAILED
        return _State.PROCESSING if job.phase is Phase.PROCESSING else _State.QUEUED

    def in_turn(self, documents: Iterable[int]) -> list[int]:
        """Return documents in the order in which something is done for them: what is refused holds up no others."""
        wanted, refused = frozenset(documents), self.snapshot.refused
        return [*sorted(wanted.difference(refused)), *(index for index in refused if index in wanted)]

    def set(self, **fields: Any) -> None:
        self.status = self.status.changed(**fields)

    def look_within(self, seconds: float) -> None:
        self.look_again = seconds if self.look_again is None else min(self.look_again, seconds)

    def go_on(self) -> None:
        """Look again as soon as it is the batch's turn: there is more to do. After a refusal that has time."""
        if self.snapshot.rejection is None:
            self.look_within(0.0)

    def block(self, reason: Reason, message: str) -> None:
        self.blocked = Waiting(reason=reason, message=message)
        self.look_within(_LOOK_AT_PARKED_SECONDS if self.parked else LOOK_AT_BLOCKED_SECONDS)


# ── the course of an attempt ──────────────────────────────────────────────────────────────────────────────────


def _begin(draft: _Draft) -> None:
    """Take up the wanted generation."""
    status, generation = draft.status, draft.generation
    if status.observed_retry_generation == generation:
        return
    first = status.observed_retry_generation is None
    jobs = IndexSet.of(draft.snapshot.jobs)
    completed = IndexSet.parse(draft.documents.completed)
    draft.set(
        observed_retry_generation=generation,
        # What is made anew is made for this generation: there is nothing to pass on.
        passed_on_generation=generation if first else status.passed_on_generation,
        passed_on_suspend=draft.batch.spec.suspend if first else status.passed_on_suspend,
        # A job that was deleted since is made again, unless its document is completed.
        documents=draft.documents.changed(made=str(jobs | completed)),
        start_time=status.start_time or draft.now,
        completion_time=None,
    )
    count = len(draft.batch.spec.documents) - len(completed)
    text = f"Attempt {generation} begins: {count} of {len(draft.batch.spec.documents)} documents"
    draft.events.append(Event(reason=Reason.ATTEMPT_STARTED, message=text))


def _pass_on(draft: _Draft) -> None:
    """Pass on what the spec asks of jobs that exist; record what has been passed on to all of them."""
    snapshot, batch = draft.snapshot, draft.batch
    late = _come_late(snapshot)
    if late and draft.cancelled and draft.over:
        draft.set(ended_generation=None, completion_time=None)
    if draft.cancelling:
        _cancel(draft)
    if passes_on_generation(batch):
        behind = [snapshot.jobs[index] for index in draft.in_turn(draft.behind & snapshot.jobs.keys())]
        if not behind:
            draft.set(passed_on_generation=draft.generation)
        elif draft.cancelled:
            _leave(draft, behind)
        elif not batch.spec.suspend:
            _retry(draft, behind)
    if passes_on_suspend(batch) or (late and batch.spec.suspend):
        _pass_on_suspend(draft, late=late)


def _pass_on_suspend(draft: _Draft, *, late: bool) -> None:
    """Suspend the jobs, or have them go on; record that none is left to be told."""
    batch, unlike = draft.batch, draft.snapshot.unlike or frozenset()
    if draft.snapshot.unlike is None or unlike or late:
        # From before the first job is told: who changes his mind meanwhile has all of them told once more.
        draft.set(passed_on_suspend=None)
        draft.go_on()
    else:
        draft.set(passed_on_suspend=batch.spec.suspend)
    most = _MOST_STOPS if batch.spec.suspend else draft.snapshot.starts
    draft.starting = draft.starting or (not batch.spec.suspend and len(unlike) > most)
    for index in draft.in_turn(unlike)[:most]:
        body = {"spec": {"suspend": batch.spec.suspend}}
        draft.actions.append(PatchDocumentJob(index=index, name=name_of(batch, index), body=body))


def _come_late(snapshot: BatchSnapshot) -> bool:
    """True when there are jobs that no look has seen yet: they may know nothing of what was passed on.

    Their operator may have died, and others been told all before the request arrived.
    """
    documents = snapshot.batch.status.documents
    return not IndexSet.of(snapshot.jobs) <= IndexSet.parse(documents.made if documents is not None else "")


def _retry(draft: _Draft, behind: list[DocumentJob]) -> None:
    """Retry the jobs that have failed. One that is retried by itself already joins: it has its next attempt."""
    left = draft.snapshot.starts
    for job in behind:
        if not job.ended:
            draft.actions.append(_joins(draft, job))
        elif left > 0:
            left -= 1
            body = retry_patch(draft.batch, job)
            action = PatchDocumentJob(index=job.index, name=job.name, body=body, retries=job.generation)
            draft.actions.append(action)
        else:
            draft.starting = True
    draft.go_on()


def _leave(draft: _Draft, behind: list[DocumentJob]) -> None:
    """Have the jobs join a cancelled retry without a next attempt.

    A retry that was sent before, and arrives late, is not admitted then: the job is no longer as it was read.
    """
    draft.actions.extend(_joins(draft, job) for job in behind[:_MOST_STOPS])
    draft.go_on()


def _joins(draft: _Draft, job: DocumentJob) -> PatchDocumentJob:
    body = {"spec": {"parentGeneration": draft.generation}}
    return PatchDocumentJob(index=job.index, name=job.name, body=body)


def _cancel(draft: _Draft) -> None:
    """Stop the jobs that have not ended: each is told once."""
    jobs = (draft.snapshot.jobs[index] for index in draft.in_turn(draft.snapshot.jobs))
    left = [job for job in jobs if not job.ended and (job.index, job.generation) not in draft.snapshot.told]
    for job in left[:_MOST_STOPS]:
        body = {"spec": {"cancelGeneration": job.generation}}
        action = PatchDocumentJob(index=job.index, name=job.name, body=body, cancels=job.generation)
        draft.actions.append(action)
    if len(left) > _MOST_STOPS:
        draft.go_on()


def _start(draft: _Draft) -> None:
    """Make jobs, as many as may be made at once."""
    if draft.batch.spec.suspend or draft.cancelled:
        return
    unmade = draft.in_turn(index for index, state in enumerate(draft.states) if state is _State.UNMADE)
    left = max(0, draft.snapshot.starts - sum(isinstance(action, PatchDocumentJob) for action in draft.actions))
    for index in unmade[:left]:
        draft.actions.append(CreateDocumentJob(index=index, body=build(draft.batch, index)))
    if unmade:
        draft.starting = draft.starting or len(unmade) > left
        draft.go_on()


def _count(draft: _Draft) -> None:
    """Record how far the documents are, and the end once none of them is open."""
    states, jobs, counts = draft.states, draft.snapshot.jobs, Counter(draft.states)
    completed, failed = _indexes(states, _State.COMPLETED), _indexes(states, *_FAILED)
    made = IndexSet.parse(draft.documents.made) | IndexSet.of(jobs) | completed
    causes = [_cause(draft, index, made=index in made) for index in failed]
    draft.set(
        documents=Documents(
            total=len(states),
            made=str(made),
            completed=str(completed),
            failed=str(failed),
            queued_count=counts[_State.UNMADE] + counts[_State.QUEUED],
            processing_count=counts[_State.PROCESSING],
            completed_count=counts[_State.COMPLETED],
            partial_failure_count=counts[_State.PARTIAL],
            failed_count=counts[_State.FAILED],
            progress=f"{len(completed)}/{len(states)}",
        ),
        failures=causes[: names.MAX_FAILURES],
        failure_summary=dict(Counter(cause.code for cause in causes).most_common(MAX_CODES)),
        phase=_phase(counts),
    )
    if draft.status.phase not in names.TERMINAL_PHASES:
        draft.set(completion_time=None)
        _explain(draft)
        draft.look_within(_LOOK_AT_PARKED_SECONDS if draft.parked else _LOOK_AT_RUNNING_SECONDS)
        return
    if draft.status.completion_time is None:
        draft.set(completion_time=draft.now, ended_generation=draft.generation)
        reason, message = _end(draft)
        text, warning = f"Attempt {draft.generation}: {message}", draft.status.phase in names.RETRYABLE_PHASES
        draft.events.append(Event(reason=reason, message=text, warning=warning))


def _indexes(states: tuple[_State, ...], *wanted: _State) -> IndexSet:
    return IndexSet.of(index for index, state in enumerate(states) if state in wanted)


def _phase(counts: Counter[_State]) -> Phase:
    if any(counts[state] for state in _OPEN):
        waiting = counts[_State.UNMADE] + counts[_State.QUEUED]
        return Phase.QUEUED if waiting == counts.total() else Phase.PROCESSING
    if counts[_State.COMPLETED] == counts.total():
        return Phase.COMPLETED
    return Phase.FAILED if counts[_State.FAILED] == counts.total() else Phase.PARTIAL_FAILURE


def _cause(draft: _Draft, index: int, *, made: bool) -> DocumentFailure:
    """Return why a document has failed."""
    job = draft.snapshot.jobs.get(index)
    code: str
    if job is not None:
        code, text = job.code or job.reason, job.message
    else:
        code, text = _LOST if made else _NEVER_MADE
    return DocumentFailure(index=index, job=name_of(draft.batch, index), code=code, message=shorten(text))


def _explain(draft: _Draft) -> None:
    """Say why a batch does not go on, if nothing of it does."""
    if draft.snapshot.rejection is not None:
        draft.block(draft.snapshot.rejection.reason, draft.snapshot.rejection.message)
        return
    if draft.cancelling:
        draft.held = Waiting(reason=Reason.CANCELLING, message="Jobs that run are being cancelled")
        return
    if draft.batch.spec.suspend:
        draft.held = Waiting(reason=Reason.SUSPENDED, message="spec.suspend is true; no document is processed")
        return
    running = [job for _, job in sorted(draft.snapshot.jobs.items()) if not job.ended]
    obstructed = [job for job in running if job.reason in _BLOCKS]
    held = sorted((job for job in running if job.reason in _HOLDS), key=lambda job: _HOLDS.index(Reason(job.reason)))
    if running and len(obstructed) + len(held) == len(running):
        first = (obstructed or held)[0]
        text = f"All jobs that run wait; {first.name}: {first.message}"
        waiting = Waiting(reason=Reason(first.reason), message=text)
        if obstructed:
            draft.blocked = waiting
        else:
            draft.held = waiting


def _expire(draft: _Draft) -> None:
    """Delete a completed batch when its time to live is over."""
    ttl, ended = draft.batch.spec.ttl_seconds_after_finished, draft.status.completion_time
    if ttl is None or ended is None or draft.status.phase is not Phase.COMPLETED:
        return
    left = (ended + timedelta(seconds=ttl) - draft.now).total_seconds()
    # Decided by what is recorded already: a status that is still to be written may be refused.
    if left > 0 or draft.batch.status.phase is not Phase.COMPLETED:
        draft.look_within(max(0.0, left))
    else:
        draft.actions.append(DeleteBatch(uid=draft.batch.metadata.uid))
        draft.look_within(TRY_TO_DELETE_SECONDS)  # again, if it is refused


def _answer_annotation(draft: _Draft) -> None:
    """Turn a new annotation token into a recorded retry, or mark it handled with a warning, as for a job."""
    token, handled = unanswered(draft.batch, answered=draft.snapshot.answered)
    if handled:
        draft.set(last_handled_retry_request=handled)
    elif token:
        if not draft.snapshot.answer_refused:
            draft.actions.append(answer(draft.batch, token))
        draft.look_within(LOOK_AT_BLOCKED_SECONDS)  # again, if it is refused


# ── what people read ──────────────────────────────────────────────────────────────────────────────────────────


def _summarised(draft: _Draft) -> BatchStatus:
    """Return the status with everything that follows from its facts."""
    documents, done = draft.status.documents, draft.status.phase is Phase.COMPLETED
    percent = 100 * documents.completed_count // documents.total if documents is not None and documents.total else 0
    draft.set(
        job_id=draft.batch.job_id,
        observed_generation=draft.batch.metadata.generation,
        progress_percent=100 if done else min(percent, 99),
    )
    return draft.status.changed(conditions=_conditions(draft))


def _conditions(draft: _Draft) -> list[Condition]:
    """Return conditions that follow kstatus, as those of a job."""
    phase = draft.status.phase
    done, failed = phase is Phase.COMPLETED, phase in names.RETRYABLE_PHASES
    reason, message = _course(draft)
    stalled = failed or draft.blocked is not None
    goes_on = phase not in names.TERMINAL_PHASES and not stalled and draft.held is None
    values: list[tuple[ConditionType, bool | None, str]] = [
        (ConditionType.READY, True if done else False if failed else None, message),
        (ConditionType.RECONCILING, goes_on, message),
        (ConditionType.STALLED, stalled, message if stalled else ""),
        (ConditionType.COMPLETE, done, ""),
        (ConditionType.FAILED, failed, ""),
    ]
    before = {item.type: item for item in draft.batch.status.conditions}
    generation = draft.batch.metadata.generation
    return [
        condition(before.get(kind), kind, value, reason, text, draft.now, generation) for kind, value, text in values
    ]


def _course(draft: _Draft) -> tuple[Reason, str]:
    """Return the reason and message that the conditions share."""
    if draft.status.phase in names.TERMINAL_PHASES:
        return _end(draft)
    for waiting in (draft.blocked, draft.held):
        if waiting is not None:
            return waiting.reason, waiting.message
    if draft.status.phase is Phase.QUEUED:
        return Reason.QUEUED, "Waiting for the first document to be processed"
    return Reason.PROCESSING_DOCUMENTS, "Documents are being processed"


def _end(draft: _Draft) -> tuple[Reason, str]:
    """Return how an attempt has ended: with the failed documents by number, and their codes."""
    documents, summary = draft.documents, draft.status.failure_summary
    if draft.status.phase is Phase.COMPLETED:
        return Reason.SUCCEEDED, "All documents are completed"
    failed = documents.failed_count + documents.partial_failure_count
    reason = Reason.CANCELLED if draft.cancelled and Reason.CANCELLED in summary else Reason.DOCUMENTS_FAILED
    return reason, f"{failed} of {documents.total} documents failed: {by_number(summary)}"
