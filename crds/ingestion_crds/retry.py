"""The rule that admits a retry, as the CRD's CEL states it: the same answer for REST, annotation and patch."""

from __future__ import annotations

from typing import Protocol

from ingestion_crds.constants import RETRYABLE_PHASES
from ingestion_crds.job import IngestionJob


class _Spec(Protocol):
    @property
    def retry_generation(self) -> int: ...


class _Status(Protocol):
    @property
    def observed_retry_generation(self) -> int | None: ...


class Generations(Protocol):
    """What says of a job which generation is wanted, and which was taken up: all of it, or a part that was read."""

    @property
    def spec(self) -> _Spec: ...

    @property
    def status(self) -> _Status: ...


def pending(job: Generations) -> bool:
    """True while a generation is wanted that the operator has not taken up: the first one of a new job, or a retry."""
    observed = job.status.observed_retry_generation
    return observed is None or job.spec.retry_generation > observed


def retry_pending(job: Generations) -> bool:
    """True while the generation that is pending is a retry: of a new job it never is."""
    return job.status.observed_retry_generation is not None and pending(job)


def why_not(job: IngestionJob) -> str | None:
    """Return why a retry is not admitted now, in words for people; None when it is.

    A retry is admitted from `failed` and `partial_failure`, with the recorded generation observed.
    """
    if job.metadata.deletion_timestamp is not None:
        return "the job is being deleted"
    if pending(job):
        return f"generation {job.spec.retry_generation} is recorded and has not begun yet"
    return wrong_phase(job)


def wrong_phase(job: IngestionJob) -> str | None:
    """Return why nothing can be retried in the job's phase, in words for people; None when it can."""
    if job.status.phase in RETRYABLE_PHASES:
        return None
    return f"the job is {job.status.phase.value}; only a failed or partially failed job can be retried"
