"""The planner: what is to be done next, as a pure function of what exists.

`plan` is given a snapshot and returns the status to record and the actions to take after it is recorded. It knows no
clock, no event, no cluster: called again with the result of its own actions it goes on, called again at rest it
changes nothing. How an attempt goes:

    begin ──► dispatch: record the intent, create ConfigMap and Job ──► follow: record the UID, count
      ▲            ▲                                                        │ Job Complete, Failed or gone
      │            └───────────── next stage ◄── harvest: record all it did ┘
      └── retryGeneration raised ◄── remove pods ◄── close: record ◄┘ nothing left, or failed
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.config import Config, Tenant
from ingestion_crds.constants import Mode, Phase, Reason, Stage, Trigger, VersionState
from ingestion_crds.errors import ERROR_CODES
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import (
    Attempt,
    AttemptJob,
    ChildUid,
    Failure,
    IngestionJob,
    Segments,
    Status,
    Version,
    version_id_of,
)
from ingestion_crds.retry import read_origin

from ingestion_operator import summary
from ingestion_operator.actions import (
    LOOK_AT_BLOCKED_SECONDS,
    TRY_TO_DELETE_SECONDS,
    Action,
    CreateChild,
    DeleteChild,
    DeleteConfigMap,
    DeleteIngestionJob,
    Event,
    PatchChild,
    RemovePods,
    RestoreConfigMap,
)
from ingestion_operator.children import ChildJob, Dispatch, build_child, build_config_map, suspend_annotation
from ingestion_operator.obstacles import Waiting, no_store, stays
from ingestion_operator.questions import (
    cancelled,
    child_records,
    current,
    given_up,
    goes_on,
    last_made,
    phase_of,
    rejection_said,
    stalled,
    wants_diagnosis,
    wants_harvest,
)
from ingestion_operator.results import Harvest, PodResult, failed, read_chunks, read_not_read, read_prepare, shorten
from ingestion_operator.retry_requests import answer, unanswered

_KEPT_FAILED_PODS: Final = 20
# The words of the API server where there are as many Jobs, or ConfigMaps, as a ResourceQuota allows.
_QUOTA: Final = re.compile(r"exceeded quota\b.*\b(jobs\.batch|configmaps)\b")
# The Job watch wakes the operator; these are for what no event tells.
_LOOK_AT_STARTING_SECONDS: Final = 5.0
_LOOK_AT_RUNNING_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What exists, as read from the API server.

    Args:
        job: the IngestionJob.
        config: the installation's configuration.
        children: the Kubernetes Jobs of a recorded name, and all that carry the job's UID where there may be others.
        harvest: what the pods of the finished Job said; None unless `wants_harvest` asked for it.
        harvest_truncated: there were more pods than were read.
        obstacle: why pods do not start, or do not end; None when they do, or nobody looked.
        config_map_gone: pods that have not started wait for a ConfigMap that somebody deleted.
        rejection: the API server's words when it refused a child, that one be changed or deleted, or its pods be read.
        answer_refused: it refused what answers an annotation.
        answered: the token of the annotation that this look has answered; empty if it has answered none.
        tidied: UIDs of Jobs whose pods have just been removed, as far as they can be.
    """

    job: IngestionJob
    config: Config
    children: tuple[ChildJob, ...] = ()
    harvest: Harvest | None = None
    harvest_truncated: bool = False
    obstacle: Waiting | None = None
    config_map_gone: bool = False
    rejection: str | None = None
    answer_refused: bool = False
    answered: str = ""
    tidied: frozenset[ChildUid] = frozenset()

    @property
    def tenant(self) -> Tenant | None:
        """The namespace's; None where the chart knows none, and nothing may be done."""
        return self.config.tenant(self.job.metadata.namespace)

    def child(self, uid: ChildUid | None) -> ChildJob | None:
        """Return the Job with this UID, if it exists."""
        return next((child for child in self.children if child.uid == uid), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do: write the status if it differs, then act, then send the events.

    Args:
        status: the status to record.
        actions: in order; they rely on the status being durable.
        events: for people.
        look_again: seconds after which to look again although nothing happened; None for never.
    """

    status: Status
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    look_again: float | None = None


def plan(snapshot: Snapshot, *, now: datetime) -> Plan:
    """Decide what is to be recorded and done next.

    Args:
        snapshot: what exists.
        now: the time, UTC, whole seconds.
    """
    draft = _Draft(snapshot=snapshot, now=now, status=snapshot.job.status)
    if snapshot.job.metadata.deletion_timestamp is not None:
        return Plan(status=snapshot.job.status)  # the garbage collector takes the children
    _advance(draft)
    if snapshot.tenant is not None:  # else nothing may be deleted there
        _clean_up(draft)
        _expire(draft)
    _answer_annotation(draft)  # behind the others: if the answer is refused, all else has been done
    _remove_left_pods(draft)
    status = summary.summarise(job=snapshot.job, status=draft.status, blocked=draft.blocked, held=draft.held, now=now)
    return Plan(status=status, actions=tuple(draft.actions), events=tuple(draft.events), look_again=draft.look_again)


_CANCELLED: Final = failed("Cancelled", "the attempt was cancelled")


# ── the draft ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True, kw_only=True)
class _Draft:
    """The plan in the making."""

    snapshot: Snapshot
    now: datetime
    status: Status
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    look_again: float | None = None
    blocked: Waiting | None = None  # a person has to do something
    held: Waiting | None = None  # somebody asked for it: suspended, cancelling

    @property
    def job(self) -> IngestionJob:
        """The IngestionJob with the status as drafted."""
        return self.snapshot.job.changed(status=self.status)

    @property
    def attempt(self) -> Attempt:
        """The last attempt; there is one from `_begin` on."""
        return self.status.attempts[-1]

    @property
    def record(self) -> AttemptJob:
        """The last Job of that attempt, as it is recorded; there is one while a stage runs."""
        return self.attempt.jobs[-1]

    @property
    def segments(self) -> Segments:
        """The counts; they are there from `_begin` on."""
        assert self.status.segments is not None
        return self.status.segments

    @property
    def owned(self) -> Iterator[ChildJob]:
        uid = self.snapshot.job.metadata.uid
        return (child for child in self.snapshot.children if child.owner_uid == uid)

    def set(self, **fields: Any) -> None:
        self.status = self.status.changed(**fields)

    def set_attempt(self, **fields: Any) -> None:
        *earlier, last = self.status.attempts
        self.set(attempts=[*earlier, last.changed(**fields)])

    def set_record(self, **fields: Any) -> None:
        attempt = self.status.attempts[-1]
        *earlier, last = attempt.jobs
        self.set_attempt(jobs=[*earlier, last.changed(**fields)])

    def look_within(self, seconds: float) -> None:
        self.look_again = seconds if self.look_again is None else min(self.look_again, seconds)

    def block(self, reason: Reason, message: str) -> None:
        self.blocked = Waiting(reason=reason, message=message)
        self.look_within(LOOK_AT_BLOCKED_SECONDS)

    @property
    def cancelled(self) -> bool:
        """True when the open attempt is to end: the spec says so, or has said so until its Job was told to end."""
        made = last_made(self.attempt.jobs)
        child = self.snapshot.child(made.uid) if made is not None else None
        told = child is not None and child.cancelled
        return told or cancelled(self.snapshot.job, self.attempt.generation)


# ── retry requests by annotation ──────────────────────────────────────────────────────────────────────────────


def _answer_annotation(draft: _Draft) -> None:
    """Turn a new annotation token into a recorded retry, or mark it handled with a warning.

    The mark is made by the patch that raises the generation, so that a crash between the two cannot be. It counts until
    the status has the token. Where a policy takes the mark off, a token that a crash keeps from the status is answered
    once more while its retry is under way: it is refused then.
    """
    token, handled = unanswered(draft.snapshot.job, answered=draft.snapshot.answered)
    if handled:
        draft.set(last_handled_retry_request=handled)
    elif token and draft.snapshot.answer_refused:
        draft.look_within(LOOK_AT_BLOCKED_SECONDS)
    elif token:
        draft.actions.append(answer(draft.snapshot.job, token))


# ── the course of an attempt ──────────────────────────────────────────────────────────────────────────────────


def _advance(draft: _Draft) -> None:
    if not draft.status.attempts:
        _begin(draft)
        return
    attempt = draft.attempt
    if attempt.completion_time is not None and draft.snapshot.job.spec.retry_generation > attempt.generation:
        _begin(draft)
        return
    # A retry is admitted by these two: what somebody else has written there must not stay.
    draft.set(phase=phase_of(draft.status), observed_retry_generation=attempt.generation)
    if attempt.completion_time is None:
        _follow(draft)


def _begin(draft: _Draft) -> None:
    """Take up the wanted generation: a new attempt, from the stage that failed."""
    job, status = draft.snapshot.job, draft.status
    generation = job.spec.retry_generation
    if not cancelled(job, generation) and _gate(draft):
        draft.set(phase=Phase.QUEUED)
        return
    if unfinished := [child for child in draft.owned if not child.finished]:
        # A duplicate that is on its way out, as is what outlives its attempt; or a finalizer holds it. Two must never
        # run at once.
        draft.set(phase=Phase.QUEUED)
        for child in unfinished:
            _say_that_it_stays(draft, child)
        draft.look_within(_LOOK_AT_STARTING_SECONDS)
        return
    trigger, requested_by = _origin(job, first=not status.attempts)
    segments = status.segments
    stage = _stage_to_resume(status)
    version = status.version or Version(id=version_id_of(job.metadata.uid))
    if stage is Stage.PREPARE:
        segments = Segments()
        version = version.changed(state=VersionState.PENDING)
    elif segments is not None:
        version = version.changed(state=VersionState.PROCESSING)
        segments = segments.changed(failed="", failed_count=0)
    kept, codes = _not_retried(draft, stage)
    attempt = Attempt(generation=generation, trigger=trigger, requested_by=requested_by, start_time=draft.now)
    draft.set(
        observed_retry_generation=generation,
        phase=Phase.PROCESSING,
        stage=stage,
        mode=None if stage is Stage.PREPARE else status.mode,
        version=version,
        segments=segments,
        chunks=None,
        not_read=None,
        failures=kept,
        failure_summary=dict(codes),
        attempts=[*status.attempts, attempt][-names.MAX_ATTEMPTS :],
        start_time=draft.now if stage is Stage.PREPARE else status.start_time or draft.now,
        completion_time=None,
    )
    _dispatch(draft)


def _origin(job: IngestionJob, *, first: bool) -> tuple[Trigger, str | None]:
    if first:
        return Trigger.INITIAL, None
    trigger, requested_by = read_origin(job)
    return trigger, None if requested_by is None else shorten(requested_by, limit=names.MAX_REQUESTED_BY_LENGTH)


def _stage_to_resume(status: Status) -> Stage:
    """Return the stage that failed: what is done stays done."""
    segments, version = status.segments, status.version
    if segments is None or version is None or version.plan_hash is None or status.mode is not Mode.SEGMENTED:
        return Stage.PREPARE
    return Stage.SEGMENTS if _unfinished(segments) else Stage.PUBLISH


def _unfinished(segments: Segments) -> IndexSet:
    return IndexSet.span(segments.total) - IndexSet.parse(segments.completed)


def _dispatched(draft: _Draft, stage: Stage = Stage.SEGMENTS) -> IndexSet:
    """Return the segments that the attempt dispatches: the unfinished ones that `retrySegments` means.

    None in another stage. Never a Job's failedIndexes: an index that never started is in neither of the Job's lists.
    """
    if stage is not Stage.SEGMENTS:
        return IndexSet()
    chosen = _chosen(draft.snapshot.job)
    unfinished = _unfinished(draft.segments)
    return unfinished if chosen is None or len(draft.status.attempts) == 1 else unfinished & chosen


def _chosen(job: IngestionJob) -> IndexSet | None:
    """Return what `retrySegments` names; None when it is not given, and all are meant.

    To the CRD an empty one is not given either: it may come and go while an attempt runs. But the CRD cannot see that a
    range ends before it begins. Then nothing is meant, not even by the other ranges.
    """
    if not job.spec.retry_segments:
        return None
    try:
        return IndexSet.parse(job.spec.retry_segments)
    except ValueError:
        return IndexSet()


def _not_retried(draft: _Draft, stage: Stage) -> tuple[list[Failure], Counter[str]]:
    """Return the failures that stay as they are, as an attempt runs other segments, and how many there are by code."""
    status, chosen = draft.status, _chosen(draft.snapshot.job)
    if stage is not Stage.SEGMENTS or status.segments is None or chosen is None or not status.attempts:
        return [], Counter()
    kept = [failure for failure in status.failures if failure.segment is not None and failure.segment not in chosen]
    codes = Counter(failure.code for failure in kept)
    # Of failures beyond the first hundred only the counts by code are known: with one code it is clear which are left.
    unlisted = Counter(status.failure_summary) - Counter(failure.code for failure in status.failures)
    left = len(_unfinished(status.segments) - chosen) - len(kept)
    if left > 0:
        codes += unlisted if left == unlisted.total() else Counter({_only(unlisted) or "Unknown": left})
    return kept, codes


def _only(codes: Counter[str]) -> str | None:
    return next(iter(codes)) if len(codes) == 1 else None


def _gate(draft: _Draft) -> bool:
    """Return True, with the reason noted, when nothing may be dispatched now."""
    job, config = draft.snapshot.job, draft.snapshot.config
    provider = job.spec.pipeline.embedding.provider
    image = job.spec.template.image if job.spec.template is not None else None
    if job.spec.suspend:
        draft.held = Waiting(reason=Reason.SUSPENDED, message="spec.suspend is true; nothing is dispatched")
        return True
    if _no_tenant(draft):
        return True
    if provider != names.BUILTIN_PROVIDER and config.provider(provider) is None:
        known = ", ".join([names.BUILTIN_PROVIDER, *sorted(entry.name for entry in config.embedding_providers)])
        draft.block(
            Reason.UNKNOWN_PROVIDER, f"spec.pipeline.embedding.provider: {shorten(provider)!r} is none of {known}"
        )
        return True
    if image is not None and not config.allows_image(image):
        known = ", ".join([config.worker_image, *config.worker_allowed_images])
        draft.block(Reason.IMAGE_NOT_ALLOWED, f"spec.template.image: {shorten(image)!r} is none of {known}")
        return True
    return False


def _no_tenant(draft: _Draft) -> bool:
    """Return True, with the reason noted, when the namespace is no tenant's: the operator may do nothing in it."""
    if draft.snapshot.tenant is not None:
        return False
    namespace = draft.snapshot.job.metadata.namespace
    draft.blocked = no_store(namespace)  # and no look follows: another list of tenants starts another operator
    return True


def _dispatch(draft: _Draft) -> None:
    """Between stages: record the intent for the next one and create its children, or close the attempt."""
    attempt = draft.attempt
    stage = _stage_to_resume(draft.status)
    dispatched = _dispatched(draft, stage)
    if draft.cancelled:
        _fail(draft, stage, _CANCELLED)
        return
    if stage is Stage.SEGMENTS and not dispatched:
        text = "Nothing is run: spec.retrySegments names no segment that is unfinished; ranges are written 9-40"
        draft.events.append(Event(reason=Reason.RETRY_REFUSED, message=text, warning=True))
        _record_segments(draft, done=IndexSet(), causes={})
        return
    if _gate(draft):
        return
    dispatch = _dispatch_of(draft, stage)
    record = AttemptJob(stage=stage, name=dispatch.name, map_digest=dispatch.digest)
    draft.set(stage=stage)
    draft.set_attempt(
        jobs=[*attempt.jobs, record], segments=len(dispatched) if stage is Stage.SEGMENTS else attempt.segments
    )
    _create(draft, dispatch)


def _dispatch_of(draft: _Draft, stage: Stage) -> Dispatch:
    job, config, tenant = draft.job, draft.snapshot.config, draft.snapshot.tenant
    assert tenant is not None
    return Dispatch(
        job=job,
        stage=stage,
        generation=draft.attempt.generation,
        segments=_dispatched(draft, stage),
        deadline_seconds=_deadline(draft),
        config=config,
        tenant=tenant,
        provider=config.provider(job.spec.pipeline.embedding.provider),
    )


def _create(draft: _Draft, dispatch: Dispatch) -> None:
    draft.actions.append(CreateChild(config_map=build_config_map(dispatch), body=build_child(dispatch)))


def _deadline(draft: _Draft) -> int:
    """Return for how many seconds a stage may run: what the stages before it have left of the attempt's time."""
    spent = sum(
        (
            record.completion_time - record.start_time
            for record in draft.attempt.jobs
            if record.start_time and record.completion_time
        ),
        timedelta(),
    )
    return max(1, draft.snapshot.job.spec.active_deadline_seconds - int(spent.total_seconds()))


def _follow(draft: _Draft) -> None:
    """An attempt is open: go on from what is recorded and what exists."""
    attempt = draft.attempt
    if attempt.jobs and _no_tenant(draft):
        return
    if attempt.reason is not None:
        _finish(draft)
        return
    record = current(draft.job)
    if record is None:
        _dispatch(draft)
        return
    child = _child_of(draft, record)
    if record.uid is None:
        _follow_intent(draft, record, child)
    elif child is None:
        _end_lost(draft)
    else:
        _follow_child(draft, child)


def _follow_intent(draft: _Draft, record: AttemptJob, child: ChildJob | None) -> None:
    """A Job was to be made, and it is not recorded that it was: see what has its name."""
    owned = child is not None and child.owner_uid == draft.job.metadata.uid
    if child is not None and owned and child.map_digest == record.map_digest:
        draft.set_record(uid=child.uid)
        draft.set(pods_to_remove=None)  # they go with the Job before it
        _follow_child(draft, child)
    elif draft.cancelled:
        draft.set_record(completion_time=draft.now)
        if child is None:
            draft.actions.append(DeleteConfigMap(name=record.name))
        _fail(draft, record.stage, _CANCELLED)
    elif child is None:
        _launch(draft, record)
    elif owned:
        # The operator of another release sent it and died. It came all the same, for a file that is no more.
        if not child.deleting:
            _delete(draft, child)
        _say_that_it_stays(draft, child)
        draft.look_within(_LOOK_AT_STARTING_SECONDS)
    else:
        draft.block(
            Reason.NAME_CONFLICT,
            f"the Job {child.name} exists and is not this attempt's: delete it, or find out who made it",
        )


def _follow_child(draft: _Draft, child: ChildJob) -> None:
    """The running stage's Job is there: take in its end, or steer it."""
    if given_up(draft.job, child):
        _harvest(draft, child)
        if current(draft.job) is None:
            draft.set_record(start_time=None)  # it was not seen to end: the next attempt looks whether it is gone
    elif child.finished:
        _harvest(draft, child)
    else:
        _steer(draft, child)


def _child_of(draft: _Draft, record: AttemptJob) -> ChildJob | None:
    if record.uid is not None:
        return draft.snapshot.child(record.uid)
    return next((child for child in draft.snapshot.children if child.name == record.name), None)


def _launch(draft: _Draft, record: AttemptJob) -> None:
    """The intent is recorded, and its Job does not exist: create it, unless the wish has changed since."""
    rejection = draft.snapshot.rejection
    if rejection is not None:
        # The Job before it is not needed any more, and counts towards the quota.
        before = last_made(child_records(draft.snapshot.job.status)) if _QUOTA.search(rejection) else None
        child = next((child for child in draft.owned if before is not None and child.uid == before.uid), None)
        if child is not None and child.finished and not child.deleting:
            _still_rejected(draft)
            draft.actions.append(DeleteChild(name=child.name, uid=child.uid))
            return
    elif _gate(draft):
        return
    if _refused(draft):
        return
    dispatch = _dispatch_of(draft, record.stage)
    # They differ if another release wrote the intent, or the job is back from a backup: it has another UID then.
    draft.set_record(name=dispatch.name, map_digest=dispatch.digest)
    _create(draft, dispatch)


def _refused(draft: _Draft) -> bool:
    """Return True, with the reason noted, when the cluster has just refused a change: it is asked again in a while."""
    if draft.snapshot.rejection is None:
        _still_rejected(draft)
        return False
    draft.block(Reason.REJECTED_BY_CLUSTER, draft.snapshot.rejection)
    return True


def _still_rejected(draft: _Draft) -> None:
    """Keep saying that the cluster refused something until it does not: each try would else write the status twice."""
    if (said := rejection_said(draft.snapshot.job)) is not None:
        draft.block(Reason.REJECTED_BY_CLUSTER, said)


def _steer(draft: _Draft, child: ChildJob) -> None:
    """The Job runs: count, and pass on what the spec says now."""
    job = draft.snapshot.job
    wish: JsonObject = {}
    if draft.cancelled:
        draft.held = Waiting(reason=Reason.CANCELLING, message="waiting for the attempt's pods to end")
        if not child.cancelled:
            wish["activeDeadlineSeconds"] = 0
    else:
        wanted = _dispatch_of(draft, draft.record.stage)
        suspended_by_us = child.suspended and not child.let_go
        if suspended_by_us != job.spec.suspend and not child.queue:
            wish["suspend"] = job.spec.suspend
        if child.parallelism != wanted.parallelism and (child.suspended or not child.takes_fewer):
            wish["parallelism"] = wanted.parallelism
        if child.deadline_seconds != wanted.deadline_seconds:
            wish["activeDeadlineSeconds"] = wanted.deadline_seconds
        if child.suspended and child.queue:
            text = f"waiting for the queue {child.queue} to admit the Job {child.name}"
            draft.held = Waiting(reason=Reason.WAITING, message=text)
        elif job.spec.suspend and "suspend" not in wish:  # or the operator has yet to suspend it, or take it over
            kept = "the running Job is its queue's to suspend" if child.queue else "what is done is kept"
            draft.held = Waiting(reason=Reason.SUSPENDED, message=f"spec.suspend is true; {kept}")
        elif child.suspended and not suspended_by_us:
            text = f"somebody else has suspended the Job {child.name}, and is to resume it: a person, or Kueue"
            text += f", which may want the label {names.LABEL_QUEUE_NAME}"
            draft.held = Waiting(reason=Reason.WAITING, message=text)
    # One patch for each field: one that the cluster refuses must not keep the others from being made.
    patches = [_patch(child, key, value) for key, value in wish.items()]
    if child.queue and child.let_go:  # or it stands still once it is taken out of the queue: nobody else resumes it
        patches.append(PatchChild(name=child.name, uid=child.uid, spec={}, annotations=suspend_annotation(wanted=None)))
    # One that is deleted and not gone still ends at its deadline.
    if patches and (draft.cancelled or not child.deleting) and not _refused(draft):
        draft.actions += patches
    obstacle = draft.snapshot.obstacle
    if obstacle is not None and not goes_on(obstacle.reason, child):
        draft.blocked = obstacle
    if not child.active:
        _say_that_it_stays(draft, child)
    if child.managed_by:
        text = f"the Job {child.name} was given to {child.managed_by}, for a cluster where its pods lack their input"
        draft.block(Reason.REJECTED_BY_CLUSTER, f"{text}. Cancel the attempt, name another queue, then retry")
    if draft.snapshot.config_map_gone and not _refused(draft):
        _restore_config_map(draft)
    _count(draft, child)
    draft.look_within(_LOOK_AT_STARTING_SECONDS if wants_diagnosis(child) else _LOOK_AT_RUNNING_SECONDS)


def _say_that_it_stays(draft: _Draft, child: ChildJob) -> None:
    """Say of a Job that was deleted that it is still there, if nothing else is known that keeps it."""
    waiting = stays(child, draft.now)
    if waiting is not None and draft.blocked is None:
        draft.block(waiting.reason, waiting.message)


def _patch(child: ChildJob, key: str, value: Any) -> PatchChild:
    """Return the change of one field of a Job.

    Before Kubernetes 1.36 a suspended Job keeps its startTime, and the deadline counts from that when it is resumed.
    Up to 1.33.5 and 1.34.1 the API server even refuses a new one then, and the Job stands still. All of them admit that
    it is taken off while the Job is suspended, as Kueue does.

    Source: https://github.com/kubernetes/kubernetes/issues/134521, and kubernetes PR 135104.
    """
    resumed = key == "suspend" and not value and child.start_time is not None
    version = str(child.resource_version) if resumed else None
    annotations = suspend_annotation(wanted=value) if key == "suspend" else {}
    return PatchChild(
        name=child.name, uid=child.uid, spec={key: value}, annotations=annotations, clear_start_of=version
    )


def _restore_config_map(draft: _Draft) -> None:
    """Make the running stage's ConfigMap again, if it comes out as it was recorded."""
    record = draft.record
    dispatch = _dispatch_of(draft, record.stage)
    if dispatch.digest == record.map_digest:
        draft.actions.append(RestoreConfigMap(config_map=build_config_map(dispatch)))
        return
    draft.block(Reason.POD_PENDING, f"the ConfigMap {record.name} is gone: cancel the attempt, then retry")


def _count(draft: _Draft, child: ChildJob) -> None:
    segments, version = draft.segments, draft.status.version
    if draft.record.stage is Stage.SEGMENTS:
        done = len(IndexSet.parse(segments.completed)) + child.succeeded
        draft.set(segments=segments.changed(completed_count=done, failed_count=len(child.failed)))
    if version is not None and version.state is VersionState.PENDING and child.active > 0:
        draft.set(version=version.changed(state=VersionState.PROCESSING))


# ── the harvest ───────────────────────────────────────────────────────────────────────────────────────────────


def _harvest(draft: _Draft, child: ChildJob) -> None:
    """The Job is Complete or Failed: record all that it did, before anything else is begun."""
    if wants_harvest(draft.job, child) and draft.snapshot.harvest is None:
        if not _refused(draft):
            draft.look_within(0.0)
        return
    draft.set_record(start_time=child.start_time, completion_time=child.completion_time or draft.now)
    harvest = draft.snapshot.harvest or {}
    record = draft.record
    match record.stage:
        case Stage.PREPARE:
            _harvest_prepare(draft, child, harvest.get(0))
        case Stage.SEGMENTS:
            _harvest_segments(draft, child, harvest)
        case Stage.PUBLISH:
            _harvest_publish(draft, child, harvest.get(0))
    if draft.status.attempts[-1].reason is None:
        _dispatch(draft)


def _end_lost(draft: _Draft) -> None:
    """The recorded Job is gone, and what it did was not recorded: the attempt ends, a retry finds the outputs."""
    record = draft.record
    draft.set_record(completion_time=draft.now)
    draft.actions.append(DeleteConfigMap(name=record.name))
    lost = failed("JobLost", f"the Job {record.name} was deleted before it was finished")
    _fail(draft, record.stage, _CANCELLED if draft.cancelled else lost)


def _fail(draft: _Draft, stage: Stage, result: PodResult) -> None:
    """End the attempt with one cause for all that the stage had to do."""
    if stage is Stage.SEGMENTS:
        _record_segments(draft, done=IndexSet(), causes=dict.fromkeys(_dispatched(draft), result))
    else:
        _fail_stage(draft, stage, result)


def _harvest_prepare(draft: _Draft, child: ChildJob, result: PodResult | None) -> None:
    if not _succeeded(child):
        _fail_stage(draft, Stage.PREPARE, _stage_result(draft, child, result))
        return
    said = read_prepare(result.payload) if result is not None else None
    version = draft.status.version
    if said is None or version is None:
        _fail_stage(
            draft,
            Stage.PREPARE,
            failed("ResultLost", "prepare_document ended well, and what it said cannot be read"),
        )
        return
    single = said.mode is Mode.SINGLE_PASS
    everything = str(IndexSet.span(said.segments)) if single else ""
    draft.set(
        mode=said.mode,
        version=version.changed(
            id=said.version_id,
            number=said.version_number,
            plan_hash=said.plan_hash,
            state=VersionState.ACTIVE if single else VersionState.PROCESSING,
        ),
        segments=Segments(total=said.segments, completed=everything, completed_count=said.segments if single else 0),
        chunks=said.chunks if single else None,
        not_read=read_not_read(result.payload) if single and result is not None else None,
    )
    if single:
        draft.set_attempt(segments=said.segments, completed=said.segments)
        _close(draft, Reason.SUCCEEDED)


def _harvest_segments(draft: _Draft, child: ChildJob, harvest: Harvest) -> None:
    dispatched = _dispatched(draft)
    if not _is_what_runs(draft, dispatched):
        lost = failed("ResultLost", "spec.retrySegments was changed meanwhile: which segments were run is not known")
        draft.set_attempt(segments=len(dispatched))
        _fail(draft, Stage.SEGMENTS, _CANCELLED if draft.cancelled else lost)
        return
    done = dispatched.members(child.completed)
    if draft.snapshot.harvest_truncated:
        unread = failed("Unknown", "there were more failed pods than are looked at")
    else:
        unread = failed("PodLost", "the segment's pod is gone")
    otherwise, stopped = unread, {}
    if draft.cancelled:
        otherwise = _CANCELLED
    elif child.failure_reason == "DeadlineExceeded":
        otherwise = _out_of_time(draft, child, None)
        stopped = {index: _out_of_time(draft, child, result) for index, result in harvest.items()}
    elif child.failure_reason == "MaxFailedIndexesExceeded":
        otherwise = failed("TooManyFailures", "stopped: more segments failed than maxFailedSegments")
    elif child.complete:
        otherwise = failed("PodLost", "the Job was made smaller by hand, and did not run the segment")
    said = {index: result for index, result in harvest.items() if index in child.failed and not result.succeeded}
    causes = {
        segment: said.get(index, unread) if index in child.failed else stopped.get(index, otherwise)
        for index, segment in enumerate(dispatched)
        if segment not in done
    }
    _record_segments(draft, done=done, causes=causes)


def _is_what_runs(draft: _Draft, dispatched: IndexSet) -> bool:
    """False where what the attempt dispatches is not what its Job was made for.

    While an attempt runs the CRD lets nobody change that, unless somebody has written into its status that it is over.
    """
    attempt, record = draft.attempt, draft.record
    if len(dispatched) != attempt.segments:
        return False
    unchanged = draft.snapshot.job.spec.retry_generation == attempt.generation
    return unchanged or _dispatch_of(draft, record.stage).digest == record.map_digest  # another release's may differ


def _record_segments(draft: _Draft, *, done: IndexSet, causes: dict[int, PodResult]) -> None:
    """Record which of the dispatched segments are done, and why each of the others is not."""
    segments, attempt = draft.segments, draft.attempt
    failures: list[Failure] = []
    own: Counter[str] = Counter()
    for segment, result in causes.items():
        own[result.code] += 1
        if len(failures) < names.MAX_FAILURES:
            failures.append(_failure(attempt.generation, Stage.SEGMENTS, result, segment))
    completed = IndexSet.parse(segments.completed) | done
    unfinished = IndexSet.span(segments.total) - completed
    codes = Counter(draft.status.failure_summary) + own
    draft.set(
        segments=segments.changed(
            completed=str(completed),
            completed_count=len(completed),
            failed=str(unfinished),
            failed_count=len(unfinished),
        ),
        failures=[*failures, *draft.status.failures][: names.MAX_FAILURES],
        failure_summary=dict(codes),
    )
    draft.set_attempt(completed=len(done), failed=own.total(), codes=dict(own) or None)
    if unfinished:
        _close(draft, Reason.CANCELLED if draft.cancelled else Reason.SEGMENTS_FAILED)


def _harvest_publish(draft: _Draft, child: ChildJob, result: PodResult | None) -> None:
    version = draft.status.version
    if not _succeeded(child) or version is None:
        _fail_stage(draft, Stage.PUBLISH, _stage_result(draft, child, result))
        return
    draft.set(
        version=version.changed(state=VersionState.ACTIVE),
        chunks=read_chunks(result.payload) if result is not None else None,
        not_read=read_not_read(result.payload) if result is not None else None,
    )
    _close(draft, Reason.SUCCEEDED)


def _succeeded(child: ChildJob) -> bool:
    """True when the one pod of a stage has done its work, if only while a deadline or a cancel was ending it."""
    return child.complete or 0 in child.completed


def _stage_result(draft: _Draft, child: ChildJob, result: PodResult | None) -> PodResult:
    """Return why a stage of one pod failed."""
    if draft.cancelled:
        return _CANCELLED
    if child.failure_reason == "DeadlineExceeded":
        return _out_of_time(draft, child, result)
    if result is None or result.succeeded:
        return failed("PodLost", "the pod is gone and left no message")
    return result


def _out_of_time(draft: _Draft, child: ChildJob, result: PodResult | None) -> PodResult:
    """Return why an index failed that its Job's deadline has stopped, with what kept it, as far as that is known.

    That is what its last pod said: one that its node puts out is run again for as long as there is time. Or it is what
    the job waited for when its time was over. What it has waited for since then kept its pods from ending.
    """
    said, kept = stalled(draft.snapshot.job.status), ""
    deadline = (child.start_time or draft.now) + timedelta(seconds=child.deadline_seconds or 0)
    if result is not None and result.code not in ("", "Interrupted"):  # as the deadline itself does
        kept = f"; {result.code}: {result.message}"
    elif said is not None and (said.last_transition_time or draft.now) < deadline:
        kept = f"; {said.reason}: {said.message}"
    return failed("Deadline", child.failure_message + kept)


def _fail_stage(draft: _Draft, stage: Stage, result: PodResult) -> None:
    attempt = draft.attempt
    draft.set(failures=[_failure(attempt.generation, stage, result, None)], failure_summary={result.code: 1})
    draft.set_attempt(codes={result.code: 1})
    if result.code == "Cancelled":
        _close(draft, Reason.CANCELLED)
    else:
        _close(draft, Reason.PREPARE_FAILED if stage is Stage.PREPARE else Reason.PUBLISH_FAILED)


def _failure(generation: int, stage: Stage, result: PodResult, segment: int | None) -> Failure:
    return Failure(
        segment=segment,
        stage=stage,
        code=result.code,
        retryable=ERROR_CODES[result.code].retryable,
        message=result.message,
        exit_code=result.exit_code,
        attempt=generation,
    )


# ── the end of an attempt ─────────────────────────────────────────────────────────────────────────────────────


def _close(draft: _Draft, reason: Reason) -> None:
    """Record how the attempt ended. It is over only when none of its Jobs can go on, which `_finish` sees to."""
    draft.set_attempt(reason=reason)
    _finish(draft)


def _finish(draft: _Draft) -> None:
    # The last Job that was made, if only for the stage before: nothing else tidies up after it.
    made = last_made(draft.attempt.jobs)
    uid = made.uid if made is not None else None
    child = draft.snapshot.child(uid)
    if child is not None and not child.finished:
        # It was given up, and must not be resumed.
        if not child.deleting:
            _delete(draft, child)
        draft.held = Waiting(reason=Reason.CANCELLING, message="waiting for the Job to be gone")
        _say_that_it_stays(draft, child)
        draft.look_within(_LOOK_AT_STARTING_SECONDS)
        return
    if any(_is_stale(draft, child) for child in draft.owned):
        return  # the next round, in a moment
    draft.set_attempt(completion_time=draft.now)
    phase = phase_of(draft.status)
    version = draft.status.version
    if version is not None and phase is not Phase.COMPLETED:
        version = version.changed(state=VersionState.FAILED)
    # What no Job has been made for leaves the pods that an attempt before it may have left.
    left = uid if uid is not None else draft.status.pods_to_remove
    draft.set(phase=phase, version=version, completion_time=draft.now, pods_to_remove=left)


def _remove_left_pods(draft: _Draft) -> None:
    """Remove the pods of an attempt that is over, but for some whose logs somebody may want.

    Only once the harvest is durable: pods are the only place where it can be read again. And only where nothing else is
    to be done: many pods take their time, or may not be removed, and nobody is to wait for that. So the status says
    that it is still to be done, until the next attempt has a Job. While that is held back, they are removed all the
    same.
    """
    uid = draft.status.pods_to_remove
    if uid is None or draft.snapshot.tenant is None:
        return
    if uid in draft.snapshot.tidied:
        draft.set(pods_to_remove=None)
        return
    if draft.actions:
        return
    child = draft.snapshot.child(uid)
    kept = tuple(islice(child.failed, _KEPT_FAILED_PODS)) if child is not None else ()
    draft.actions.append(RemovePods(child_uid=uid, keep=kept))


# ── leftovers ─────────────────────────────────────────────────────────────────────────────────────────────────


def _is_stale(draft: _Draft, child: ChildJob) -> bool:
    """True for a Job that is not needed: nobody recorded it, or a newer one replaces it, or it outlives its attempt."""
    if child.deleting:
        return False
    newest = last_made(child_records(draft.status))
    if newest is not None and child.uid == newest.uid:  # a tombstone, once it has ended
        return draft.attempt.completion_time is not None and not child.finished
    intent = current(draft.job)
    return intent is None or intent.uid is not None or child.name != intent.name


def _clean_up(draft: _Draft) -> None:
    """Delete Jobs that are of no use any more.

    That of a stage that went well only once its pods are removed: the garbage collector needs two requests for each.
    But the attempt does not wait for them. What is left of them when the next stage has ended goes with the Job.
    """
    ahead = draft.attempt.jobs[:-1] if current(draft.job) is not None else []
    with_pods = {record.uid for record in ahead} - draft.snapshot.tidied
    for child in draft.owned:
        if not _is_stale(draft, child):
            continue
        if child.finished and child.uid in with_pods:
            draft.actions.append(RemovePods(child_uid=child.uid, keep=()))
        elif child.finished:  # whatever the cluster has just refused
            draft.actions.append(DeleteChild(name=child.name, uid=child.uid))
        else:
            _delete(draft, child)


def _delete(draft: _Draft, child: ChildJob) -> None:
    if not _refused(draft):
        draft.actions.append(DeleteChild(name=child.name, uid=child.uid))


def _expire(draft: _Draft) -> None:
    """Delete a completed job when its time to live is over."""
    ttl, ended = draft.snapshot.job.spec.ttl_seconds_after_finished, draft.status.completion_time
    # Decided by what is recorded already: a status that is still to be written may be refused.
    phases = {draft.snapshot.job.status.phase, draft.status.phase}
    if ttl is None or ended is None or phases != {Phase.COMPLETED} or draft.status.pods_to_remove is not None:
        return
    left = (ended + timedelta(seconds=ttl) - draft.now).total_seconds()
    if left > 0:
        draft.look_within(left)
    elif draft.snapshot.rejection is None:
        draft.actions.append(DeleteIngestionJob(uid=draft.snapshot.job.metadata.uid))
    else:
        draft.look_within(TRY_TO_DELETE_SECONDS)
