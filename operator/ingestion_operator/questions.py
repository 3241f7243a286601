"""What can be told from an IngestionJob and its Job alone, without a plan and without a request."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter
from typing import Final

from ingestion_crds.constants import ConditionType, Phase, Reason, Stage, VersionState
from ingestion_crds.job import AttemptJob, Condition, IngestionJob, Status
from ingestion_crds.retry import Retryable

from ingestion_operator.children import ChildJob
from ingestion_operator.retry_requests import is_open


def settled(job: IngestionJob) -> bool:
    """True when the body alone shows that nothing is to be done, so that no request is spent on it."""
    status = job.status
    return (
        at_rest(job)
        and status.phase is phase_of(status)
        and status.observed_retry_generation == status.attempts[-1].generation
        and not job.retry_pending
        and status.observed_generation == job.metadata.generation
        and status.job_id == job.job_id
        and not is_open(job)
        and status.pods_to_remove is None
        and not (status.phase is Phase.COMPLETED and job.spec.ttl_seconds_after_finished is not None)
    )


def phase_of(status: Status) -> Phase:
    """Return the phase by what is recorded of the last attempt."""
    last = status.attempts[-1]
    if last.completion_time is None:
        return Phase.PROCESSING
    if last.reason is Reason.SUCCEEDED:
        return Phase.COMPLETED
    if last.reason is Reason.SEGMENTS_FAILED and status.segments is not None and status.segments.completed:
        return Phase.PARTIAL_FAILURE
    return Phase.FAILED


def current(job: IngestionJob) -> AttemptJob | None:
    """Return the recorded Job of the running stage, or None between stages and at rest."""
    attempt = job.status.attempts[-1] if job.status.attempts else None
    if attempt is None or attempt.completion_time is not None or not attempt.jobs:
        return None
    record = attempt.jobs[-1]
    return None if record.completion_time is not None else record


def at_rest(job: IngestionJob) -> bool:
    """True when an attempt was made and the last one is over: no other Job was known of when that was recorded."""
    return bool(job.status.attempts) and job.status.attempts[-1].completion_time is not None


def begins(job: IngestionJob) -> bool:
    """True when the body alone shows that an attempt is to begin: of a new job, or the next of one at rest."""
    return not job.status.attempts or (at_rest(job) and job.retry_pending)


def expected_names(job: IngestionJob) -> tuple[str, ...]:
    """Return the names of the Jobs that exist if nothing has gone wrong: the last one, and one that is to replace it.

    Others are a leftover of a request that was lost or late, or somebody's own.
    """
    records = child_records(job.status)
    made = last_made(records)
    intended = [record for record in records[-1:] if record.uid is None]
    return tuple(dict.fromkeys(record.name for record in (made, *intended) if record is not None))


def ended(job: IngestionJob) -> ChildJob | None:
    """Return the last Job of a job at rest, as far as its record tells, or None if it was not seen to end.

    A Job that has ended does not change any more. One that was found gone was not seen to end: its record has no start.
    Nor does the record tell which of its pods are to be kept where they are still to be removed.
    """
    last = last_made(child_records(job.status))
    if not at_rest(job) or last is None or last.uid is None or last.start_time is None or last.completion_time is None:
        return None
    if job.status.pods_to_remove is not None:
        return None
    return ChildJob(
        name=last.name,
        uid=last.uid,
        owner_uid=job.metadata.uid,
        stage=last.stage.value,
        map_digest=last.map_digest,
        complete=True,  # or failed, which nobody asks any more
        start_time=last.start_time,
        completion_time=last.completion_time,
    )


def child_records(status: Status) -> list[AttemptJob]:
    """Return the Jobs of all attempts that are kept, in order, as they are recorded."""
    return [record for attempt in status.attempts for record in attempt.jobs]


def last_made(records: list[AttemptJob]) -> AttemptJob | None:
    """Return the last of them that is known to have been made."""
    return next((record for record in reversed(records) if record.uid is not None), None)


def wants_harvest(job: IngestionJob, child: ChildJob) -> bool:
    """True when the pods of the running stage's Job have to be read: it is over, and does not say everything itself."""
    if given_up(job, child):
        return bool(child.failed or (child.completed and child.stage != Stage.SEGMENTS))
    return child.finished and not (child.complete and child.stage == Stage.SEGMENTS)


def rejection_said(job: IngestionJob) -> str | None:
    """Return what a job says that the API server refused, or None."""
    said = stalled(job.status)
    return said.message if said is not None and said.reason == Reason.REJECTED_BY_CLUSTER else None


def stalled(status: Status) -> Condition | None:
    """Return condition Stalled while it is true."""
    return next(
        (item for item in status.conditions if item.type == ConditionType.STALLED and item.status == "True"), None
    )


def given_up(job: IngestionJob, child: ChildJob) -> bool:
    """True when the running stage's Job is to be taken as it stands, and deleted.

    Its attempt is cancelled, or was, while it is suspended, or another's to run: a deadline does not reach it then.
    """
    attempts = job.status.attempts
    to_end = child.cancelled or (bool(attempts) and cancelled(job, attempts[-1].generation))
    return to_end and (child.suspended or bool(child.managed_by)) and not child.finished


def cancelled(job: Retryable, generation: int) -> bool:
    """True when spec.cancelGeneration ends the attempt of this generation."""
    limit = job.spec.cancel_generation
    return limit is not None and limit >= generation


def wants_diagnosis(child: ChildJob) -> bool:
    """True when a Job should have pods that run and has not; those of another cluster are not to be seen."""
    waits = child.active == 0 or child.ready < child.active
    return waits and not child.finished and not child.suspended and not child.managed_by


def goes_on(reason: str, child: ChildJob) -> bool:
    """True when a Job goes on although pods wait for this reason: there is room, if not for all of `parallelism`."""
    return reason == Reason.POD_UNSCHEDULABLE and child.ready > 0


def is_news(status: Status, *, before: ChildJob, after: ChildJob) -> bool:
    """True when a running Job has changed in what its job's status says, or its pods are to be asked why they wait.

    That its last segment has ended is no news: the end of the Job comes next, and says the same.
    """
    if status.stage is Stage.SEGMENTS and after.succeeded + len(after.failed) == status.attempts[-1].segments:
        return _steered(before) != _steered(after)
    told, tells = (_told(status, child) for child in (before, after))
    return told != tells or (wants_diagnosis(after) and not wants_diagnosis(before))


_ENDS: Final = ("succeeded", "completed", "failed")
_ends = attrgetter(*_ENDS)
# All but what changes by itself while pods come and go.
_steered = attrgetter(
    *(
        item.name
        for item in fields(ChildJob)
        if item.name not in ("resource_version", "start_time", "active", "ready", *_ENDS)
    )
)


def _told(status: Status, child: ChildJob) -> tuple[object, ...]:
    """Return what a job's status may say of a running Job.

    How many indexes have ended, it says of segments alone. How many pods there are, it never says. That there are pods
    at all takes a version out of pending, and that they run takes away the reason why they did not.
    """
    said = stalled(status)
    pending = status.version is not None and status.version.state is VersionState.PENDING
    return (
        _steered(child),
        _ends(child) if status.stage is Stage.SEGMENTS else None,
        child.active > 0 if said is not None or pending else None,
        said is not None and (not wants_diagnosis(child) or goes_on(said.reason, child)),
    )
