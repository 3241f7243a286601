"""What people read of a job: its progress and its conditions, which follow from the recorded facts.

Conditions follow kstatus: https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal

from ingestion_crds import constants as names
from ingestion_crds.constants import ConditionType, Phase, Reason, Stage, VersionState
from ingestion_crds.job import Condition, IngestionJob, NotRead, Segments, Status

from ingestion_operator.obstacles import Waiting

_RUNNING = {
    Stage.PREPARE: (Reason.PREPARING, "The document is being prepared"),
    Stage.SEGMENTS: (Reason.PROCESSING_SEGMENTS, "Segments are being processed"),
    Stage.PUBLISH: (Reason.PUBLISHING, "The version is being published"),
}


def summarise(
    *, job: IngestionJob, status: Status, blocked: Waiting | None, held: Waiting | None, now: datetime
) -> Status:
    """Return the status with everything that follows from its facts.

    Args:
        job: the IngestionJob as it is stored; its conditions' times are kept where nothing changed.
        status: the facts.
        blocked: what a person has to do something about.
        held: what somebody asked for.
        now: the time of conditions that change.
    """
    segments = status.segments
    if segments is not None:
        segments = segments.changed(progress=f"{segments.completed_count}/{segments.total}")
    status = status.changed(
        job_id=job.job_id,
        observed_generation=job.metadata.generation,
        segments=segments,
        progress_percent=_percent(status, segments),
    )
    return status.changed(conditions=_conditions(job, status, blocked, held, now))


def only_counts_changed(before: Status, after: Status) -> bool:
    """True when the two differ in running counts alone, which may wait a second to be written."""
    return _without_counts(before) == _without_counts(after)


def only_observations_changed(before: Status, after: Status) -> bool:
    """True when the two differ in running counts and conditions alone: in nothing that anything is decided from."""
    return only_counts_changed(*(status.changed(conditions=[]) for status in (before, after)))


def _without_counts(status: Status) -> Status:
    if status.segments is None:
        return status
    still = status.segments.changed(completed_count=0, failed_count=0, progress="")
    return status.changed(segments=still, progress_percent=0)


def why(status: Status) -> str:
    """Return in one line why a job failed: the end of the last attempt, with the codes by number."""
    last = status.attempts[-1]
    if last.reason is Reason.SEGMENTS_FAILED and last.segments == 0:
        return "nothing was run: spec.retrySegments names no unfinished segment"
    codes = by_number(status.failure_summary)
    segments = status.segments
    if status.phase is Phase.PARTIAL_FAILURE and segments is not None:
        return f"{segments.failed_count} of {segments.total} segments failed: {codes or 'not retried'}"
    if status.failures:
        first = status.failures[0]  # of at most a hundred
        count = segments.failed_count if segments is not None else 0
        place = first.stage.value if first.segment is None else f"{count} segments, first {first.segment}"
        return f"{place}: {codes}: {first.message}"
    return codes or "the attempt ended before anything was done"


def by_number(codes: Mapping[str, int]) -> str:
    """Return codes with how often there was each, the most frequent first."""
    return ", ".join(f"{code} {count}" for code, count in sorted(codes.items(), key=lambda item: -item[1]))


def _left_out(status: Status) -> list[str]:
    """Return in words what of the document is not in the version."""
    not_read = status.not_read or NotRead()
    counts = {"pages without text": not_read.page_count, "attachments that are not read": not_read.attachments}
    return [f"{what}: {count}" for what, count in counts.items() if count]


def _percent(status: Status, segments: Segments | None) -> int:
    if status.version is not None and status.version.state is VersionState.ACTIVE:
        return 100
    if segments is None or segments.total == 0:
        return 0
    return min(99, 100 * segments.completed_count // segments.total)


def _conditions(
    job: IngestionJob, status: Status, blocked: Waiting | None, held: Waiting | None, now: datetime
) -> list[Condition]:
    reason, message = _course(status, blocked, held)
    done, failed = status.phase is Phase.COMPLETED, status.phase in names.RETRYABLE_PHASES
    open_ = status.phase not in names.TERMINAL_PHASES
    prepared = status.version is not None and status.version.plan_hash is not None
    processed = status.segments is not None and 0 < status.segments.total == status.segments.completed_count
    published = status.version is not None and status.version.state is VersionState.ACTIVE
    stalled = failed or blocked is not None
    values: list[tuple[ConditionType, bool | None, Reason, str]] = [
        (ConditionType.READY, True if done else False if failed else None, Reason.ACTIVE if done else reason, message),
        (ConditionType.RECONCILING, open_ and not stalled and held is None, reason, message),
        (ConditionType.STALLED, stalled, reason, message if stalled else ""),
        (ConditionType.COMPLETE, done, Reason.SUCCEEDED if done else reason, ""),
        (ConditionType.FAILED, failed, reason, ""),
        (ConditionType.PREPARED, prepared, Reason.SUCCEEDED if prepared else reason, ""),
        (ConditionType.SEGMENTS_PROCESSED, processed, Reason.SUCCEEDED if processed else reason, ""),
        (ConditionType.PUBLISHED, published, Reason.ACTIVE if published else Reason.NOT_ACTIVE, ""),
    ]
    before = {condition.type: condition for condition in job.status.conditions}
    generation = job.metadata.generation
    return [condition(before.get(kind), kind, value, why_, text, now, generation) for kind, value, why_, text in values]


def _course(status: Status, blocked: Waiting | None, held: Waiting | None) -> tuple[Reason, str]:
    """Return the reason and message that most conditions share."""
    attempt = status.attempts[-1] if status.attempts else None
    if status.phase is Phase.COMPLETED:
        return Reason.SUCCEEDED, "; ".join(["The version is active", *_left_out(status)])
    if status.phase in names.RETRYABLE_PHASES and attempt is not None and attempt.reason is not None:
        return attempt.reason, why(status)
    if blocked is not None:
        return blocked.reason, blocked.message
    if held is not None:
        return held.reason, held.message
    if status.phase is Phase.QUEUED or status.stage is None:
        return Reason.QUEUED, "Waiting to be dispatched"
    return _RUNNING[status.stage]


def condition(
    before: Condition | None,
    kind: ConditionType,
    value: bool | None,
    reason: Reason,
    message: str,
    now: datetime,
    generation: int,
) -> Condition:
    """Return a condition; the one before where nothing has changed, and its time where its status has not.

    Args:
        before: as it is stored; None when there is none.
        kind: its type.
        value: its status; None for Unknown.
        reason: in one word.
        message: for people; what goes beyond 1,000 bytes is cut off.
        now: the time of a status that changes.
        generation: metadata.generation of what it is about.
    """
    status: Literal["True", "False", "Unknown"] = "Unknown" if value is None else "True" if value else "False"
    message = message.encode()[:1000].decode(errors="ignore")
    since = now
    if before is not None and before.status == status and before.last_transition_time is not None:
        if (before.reason, before.message, before.observed_generation) == (reason, message, generation):
            return before
        since = before.last_transition_time
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message,
        last_transition_time=since,
        observed_generation=generation,
    )
