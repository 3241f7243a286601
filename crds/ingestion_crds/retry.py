"""The rule that admits a retry, as the CRDs' CEL states it: the same answer for REST, annotation and patch.

And the same for an IngestionJob and an IngestionBatch.
"""

from __future__ import annotations

from ingestion_crds.batch import IngestionBatch
from ingestion_crds.constants import RETRYABLE_PHASES
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
