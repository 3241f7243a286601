"""A job's past without the hours: the planner is shown what it would have seen, until the job has failed.

Nothing here decides what a status looks like. `plan` begins the attempts, its Jobs are ended as Kubernetes would end
them, `plan` harvests and closes; what it records is what is stored.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.config import Config
from ingestion_crds.constants import Mode, Stage
from ingestion_crds.errors import ANY, ERROR_CODES
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob, Status, format_time, version_id_of
from ingestion_operator.actions import CreateChild, DeleteChild, RemovePods
from ingestion_operator.children import read_child
from ingestion_operator.plan import Snapshot, plan
from ingestion_operator.questions import current
from ingestion_operator.results import Harvest, PodResult, shorten

_READ_PODS: Final = 2_000  # four pages: the operator looks at no more failed pods
# Every code that a segment's pod may say: the summaries of an attempt are then as long as they get.
_CODES: Final = tuple(
    error for error in ERROR_CODES.values() if error.stage in (ANY, Stage.SEGMENTS) and error.exit_code is not None
)


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a job went through.

    Args:
        segments: N.
        failed: the segments that failed in each attempt, k of them.
        attempts: how many.
    """

    segments: int
    failed: IndexSet
    attempts: int = 1


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a past comes to.

    Args:
        status: as the operator recorded it.
        last: the last attempt's Job, which stays until the next one's UID is recorded.
    """

    status: Status
    last: JsonObject


def play(job: IngestionJob, past: Past, *, config: Config) -> Played:
    """Return what the operator records while a job goes through its past.

    Args:
        job: as created, with `spec.retryGeneration` of the last attempt.
        past: what it goes through.
        config: the installation's.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    last = job.spec.retry_generation
    status, ended = job.status, {}
    for generation in range(last - past.attempts + 1, last + 1):
        spec = job.spec.model_copy(update={"retry_generation": generation, "suspend": False})
        snapshot = Snapshot(job=job.model_copy(update={"spec": spec, "status": status}), config=config)
        while status.observed_retry_generation != generation or not status.completion_time or status.pods_to_remove:
            decided = plan(replace(snapshot, harvest=_harvest(snapshot, past)), now=now)
            status = decided.status
            snapshot = replace(snapshot, job=snapshot.job.model_copy(update={"status": status}))
            for action in decided.actions:
                match action:
                    case CreateChild():
                        ended = _ended(action, past, now)
                        snapshot = replace(snapshot, children=(*snapshot.children, read_child(ended)))
                    case DeleteChild():
                        left = tuple(child for child in snapshot.children if child.uid != action.uid)
                        snapshot = replace(snapshot, children=left)
                    case RemovePods():
                        snapshot = replace(snapshot, tidied=snapshot.tidied | {action.child_uid})
                    case _:
                        raise AssertionError(f"not in this past: {action}")
    return Played(status=status, last=ended)


def next_child(job: IngestionJob, *, config: Config) -> CreateChild:
    """Return the ConfigMap and the Job that the next retry of a failed job creates."""
    spec = job.spec.model_copy(update={"retry_generation": job.spec.retry_generation + 1})
    snapshot = Snapshot(job=job.model_copy(update={"spec": spec}), config=config)
    (action,) = plan(snapshot, now=datetime.now(UTC).replace(microsecond=0)).actions
    assert isinstance(action, CreateChild)
    return action


def _ended(action: CreateChild, past: Past, now: datetime) -> JsonObject:
    """Return a Job as it is when its pods have ended.

    Source: https://kubernetes.io/docs/concepts/workloads/controllers/job/ (terminal conditions)
    """
    job = action.body
    everything = IndexSet.span(job["spec"]["completions"])
    dispatched = IndexSet.parse(json.loads(action.config_map["data"][names.ATTEMPT_KEY]).get("segments"))
    failed = IndexSet.of(index for index, segment in enumerate(dispatched) if segment in past.failed)
    done = everything - failed
    status: JsonObject = {
        "startTime": format_time(now),
        "succeeded": len(done),
        "completedIndexes": str(done),
        "uncountedTerminatedPods": {},
    }
    if failed:
        status |= {"failed": len(failed), "failedIndexes": str(failed)}
        reason, kinds = "FailedIndexes", ("FailureTarget", "Failed")
    else:
        status["completionTime"] = format_time(now)
        reason, kinds = "CompletionsReached", ("SuccessCriteriaMet", "Complete")
    status["conditions"] = [
        {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": format_time(now)} for kind in kinds
    ]
    return {**job, "metadata": {**job["metadata"], "uid": str(uuid.uuid4())}, "status": status}


def _harvest(snapshot: Snapshot, past: Past) -> Harvest:
    """Return what the pods of the running stage say."""
    record = current(snapshot.job)
    child = next((child for child in snapshot.children if record is not None and child.name == record.name), None)
    if child is None:
        return {}
    if child.stage == Stage.PREPARE:
        version = {"id": version_id_of(snapshot.job.metadata.uid), "number": 1, "planHash": "41ab"}
        said = {"mode": Mode.SEGMENTED.value, "segments": past.segments, "version": version}
        return {0: PodResult(succeeded=True, exit_code=0, payload=said)}
    return {index: _failure(index) for _, index in zip(range(_READ_PODS), child.failed, strict=False)}


def _failure(index: int) -> PodResult:
    error = _CODES[index % len(_CODES)]
    message = shorten(f"{error.code} of the pod at index {index}: " + "as long as a message may be, and " * 10)
    return PodResult(succeeded=False, code=error.code, message=message, exit_code=error.exit_code)
