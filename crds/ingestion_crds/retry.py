"""The rule that admits a retry, as the CRD's CEL states it: the same answer for REST, annotation and patch."""

from __future__ import annotations

from ingestion_crds.constants import RETRYABLE_PHASES
from ingestion_crds.job import IngestionJob


def why_not(job: IngestionJob) -> str | None:
    """Return why a retry is not admitted now, in words for people; None when it is.

    A retry is admitted from `failed` and `partial_failure`, with the recorded generation observed.
    """
    if job.metadata.deletion_timestamp is not None:
        return "the job is being deleted"
    wanted, observed = job.spec.retry_generation, job.status.observed_retry_generation
    if observed is None or wanted > observed:
        return f"generation {wanted} is recorded and has not begun yet"
    return wrong_phase(job)


def wrong_phase(job: IngestionJob) -> str | None:
    """Return why nothing can be retried in the job's phase, in words for people; None when it can."""
    if job.status.phase in RETRYABLE_PHASES:
        return None
    return f"the job is {job.status.phase.value}; only a failed or partially failed job can be retried"
