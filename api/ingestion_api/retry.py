"""The retry: one new generation, however many ask for it, and no acknowledged one is lost.

The rule that admits it is the CRD's (`ingestion_crds.retry`); here it is asked first, for a good message, and the
write carries the resourceVersion that the decision was made on.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakValueDictionary

from ingestion_crds.batch import IngestionBatch
from ingestion_crds.constants import (
    ANNOTATION_IDEMPOTENCY_KEYS,
    ANNOTATION_RETRY_ORIGIN,
    MAX_IDEMPOTENCY_KEYS,
    Trigger,
)
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient
from ingestion_crds.retry import Retryable, origin, why_not, wrong_phase
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ingestion_api.auth import Principal
from ingestion_api.idempotency import KeyDigest
from ingestion_api.job_index import JobIndex
from ingestion_api.jobs import Jobs, path_of
from ingestion_api.metrics import Metrics
from ingestion_api.problems import bad_request, not_found, unavailable

MAX_TRIES: Final = 8
# Of a write that the API server fails with: a webhook that is away holds each up for its whole timeout.
_MAX_FAILURES: Final = 2
_TRY_SECONDS: Final = 10.0


class KeptKey(BaseModel):
    """An Idempotency-Key that a generation answers to."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str = Field(max_length=64)
    generation: int


_KEPT: Final = TypeAdapter(list[KeptKey])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    """What one PATCH is to do: record the key and, unless the generation is there already, raise it."""

    generation: int
    bump: bool


class Retries:
    """Accepts retries.

    Args:
        kube: the cluster.
        jobs: reads them again.
        index: is told of what was written.
        metrics: counts outcomes.
    """

    def __init__(self, *, kube: KubeClient, jobs: Jobs, index: JobIndex, metrics: Metrics) -> None:
        self._kube = kube
        self._jobs = jobs
        self._index = index
        self._metrics = metrics
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def accept(self, *, caller: Principal, job: Retryable, key: KeyDigest | None) -> None:
        """Return once the retry is recorded in the cluster.

        Args:
            caller: who asks.
            job: as it was read for this request.
            key: the request's Idempotency-Key.

        Raises:
            ProblemError: 404 the job is gone; 400 not to be retried now, with the phase; 503 not recorded.
            ApiError: the API server does not answer, or fails: it may be recorded.
        """
        # Fixed at the first read: whoever raises the generation to this one did it for this request too.
        target = job.spec.retry_generation + (0 if job.retry_pending else 1)
        if key is None:
            await self._reach(caller, job, target, key)
            return
        # Requests with different keys all have to write; one after the other they do not get in each other's way.
        lock = self._locks.setdefault(job.metadata.uid, asyncio.Lock())
        contended = lock.locked()
        async with lock:
            await self._reach(caller, await self._jobs.again(job) if contended else job, target, key)

    async def _reach(self, caller: Principal, job: Retryable, target: int, key: KeyDigest | None) -> None:
        failures = 0
        for tries in range(MAX_TRIES):
            if tries:
                await asyncio.sleep(0.02 * tries * random.random())  # noqa: S311 - spreads rivals, guards nothing
                job = await self._jobs.again(job)
            write = self._decide(job, target, key)
            if write is None:
                return
            try:
                await self._patch(job, write, caller, key)
            except ApiError as error:
                if error.denied or (error.status == 422 and tries == MAX_TRIES - 1):
                    raise bad_request(error.message, error="not_retryable") from error
                if error.missing:
                    raise not_found(f"the ingestion job {job.job_id} was deleted") from error
                # 409 and 422: the job changed since the look. 0 and 5xx: the write may have happened.
                if error.status in (409, 422):
                    continue
                failures += 1
                if (error.status != 0 and error.status < 500) or failures > _MAX_FAILURES:
                    raise
            else:
                self._metrics.retries.labels(outcome="bumped" if write.bump else "joined").inc()
                return
        raise unavailable("the job keeps changing; try again")

    def _decide(self, job: Retryable, target: int, key: KeyDigest | None) -> _Write | None:
        """Return what to write, None when the retry is recorded already.

        Raises:
            ProblemError: 400 when the job is not to be retried now.
        """
        live = job.spec.retry_generation
        if key is not None and any(kept.key == key for kept in kept_keys(job)):
            self._metrics.retries.labels(outcome="repeated").inc()
            return None
        if job.metadata.deletion_timestamp is not None:
            self._metrics.retries.labels(outcome="refused").inc()
            raise bad_request(why_not(job) or "", error="not_retryable")
        if live >= target or job.retry_pending:
            if key is None:
                self._metrics.retries.labels(outcome="joined").inc()
                return None
            # The key must be kept here too, or its repeat would make a generation of its own later.
            return _Write(generation=live, bump=False)
        reason = why_not(job)
        if reason is not None:
            self._metrics.retries.labels(outcome="refused").inc()
            # The phase first, which is what a client knows: also of a job whose first generation has not begun.
            raise bad_request(wrong_phase(job) or reason, error="not_retryable")
        return _Write(generation=live + 1, bump=True)

    async def _patch(self, job: Retryable, write: _Write, caller: Principal, key: KeyDigest | None) -> None:
        annotations: dict[str, str] = {}
        body: dict[str, Any] = {
            "metadata": {"resourceVersion": job.metadata.resource_version, "annotations": annotations}
        }
        if key is not None:
            kept = [*kept_keys(job), KeptKey(key=key, generation=write.generation)][-MAX_IDEMPOTENCY_KEYS:]
            annotations[ANNOTATION_IDEMPOTENCY_KEYS] = json.dumps([entry.model_dump() for entry in kept])
        if write.bump:
            annotations[ANNOTATION_RETRY_ORIGIN] = origin(
                generation=write.generation, trigger=Trigger.REST, requested_by=f"key:{caller.key_id}"
            )
            body["spec"] = {"retryGeneration": write.generation}
            if not isinstance(job, IngestionBatch):
                # An earlier retry may have been cut to a subset; this one must not be.
                body["spec"]["retrySegments"] = None
        path = path_of(job)
        answer = await self._kube.request("PATCH", path, body=body, content_type=MERGE_PATCH, timeout=_TRY_SECONDS)
        self._index.put(answer)


def kept_keys(job: Retryable) -> list[KeptKey]:
    """Return the Idempotency-Keys kept on a job; an annotation that somebody has spoilt counts as none."""
    text = job.metadata.annotations.get(ANNOTATION_IDEMPOTENCY_KEYS)
    if not text:
        return []
    try:
        return _KEPT.validate_json(text)
    except ValidationError:
        return []
