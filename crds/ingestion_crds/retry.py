"""The rule that admits a retry, as the CRDs' CEL states it: the same answer for REST, annotation and patch.

And the same for an IngestionJob and an IngestionBatch. Beside it, the annotation that says who has asked.
"""

from __future__ import annotations

import json

from ingestion_crds import JsonObject
from ingestion_crds.batch import IngestionBatch
from ingestion_crds.constants import ANNOTATION_RETRY_ORIGIN, RETRYABLE_PHASES, Trigger
from ingestion_crds.job import IngestionJob

Retryable = IngestionJob | IngestionBatch


def why_not(job: Retryable) -> str | None:
    """Return why a retry is not admitted now, in words for people; None when it is.

    A retry is admitted from `failed` and `partial_failure`, with the recorded generation observed.
    """
    if job.metadata.deletion_timestamp is not None:
        return f"the {_word(job)} is being deleted"
    wanted, observed = job.spec.retry_generation, job.status.observed_retry_generation
    if observed is None or wanted > observed:
        return f"generation {wanted} is recorded and has not begun yet"
    return wrong_phase(job)


def wrong_phase(job: Retryable) -> str | None:
    """Return why nothing can be retried in the job's phase, in words for people; None when it can."""
    if job.status.phase in RETRYABLE_PHASES:
        return None
    word = _word(job)
    return f"the {word} is {job.status.phase}; only a failed or partially failed {word} can be retried"


def _word(job: Retryable) -> str:
    return "batch" if isinstance(job, IngestionBatch) else "job"


def origin(*, generation: int, trigger: Trigger, requested_by: str | None = None) -> str:
    """Return the value of the annotation retry-origin, which goes with the patch that raises the generation.

    Args:
        generation: the one that is asked for.
        trigger: how.
        requested_by: `key:` and the key's id, for a retry by REST.
    """
    said: JsonObject = {"generation": generation, "trigger": trigger.value}
    return json.dumps(said if requested_by is None else {**said, "requestedBy": requested_by})


def read_origin(job: IngestionJob) -> tuple[Trigger, str | None]:
    """Return how the wanted generation was asked for, and by whom: by a patch where the annotation is of no use.

    Somebody else may have written that. The retry is a retry all the same.
    """
    try:
        said = json.loads(job.metadata.annotations.get(ANNOTATION_RETRY_ORIGIN, "{}"))
        if said.get("generation") == job.spec.retry_generation:
            by = said.get("requestedBy")
            return Trigger(said.get("trigger")), by if isinstance(by, str) else None
    except (ValueError, AttributeError, RecursionError):
        pass
    return Trigger.PATCH, None
