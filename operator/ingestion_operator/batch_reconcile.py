"""The work on one batch: read a snapshot, plan, write the status, act. What was begun goes on with the next look."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from ingestion_crds import JsonObject, retry
from ingestion_crds import constants as names
from ingestion_crds.batch import BatchStatus, Documents, IngestionBatch
from ingestion_crds.config import Config
from ingestion_crds.constants import ConditionType, Phase, Reason
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob, dump_status
from ingestion_crds.kube import ApiError

from ingestion_operator import metrics
from ingestion_operator.actions import LOOK_AT_BLOCKED_SECONDS, AnswerAnnotation
from ingestion_operator.batch_actions import BatchAction, CreateDocumentJob, DeleteBatch, PatchDocumentJob
from ingestion_operator.batch_cluster import BatchCluster
from ingestion_operator.batch_memory import BatchMemory, BatchPace
from ingestion_operator.batch_plan import (
    BatchPlan,
    BatchSnapshot,
    passes_on_generation,
    passes_on_suspend,
    plan,
    settled,
)
from ingestion_operator.cluster import merge_diff
from ingestion_operator.custom_resources import TRIES_OF_WEBHOOKS
from ingestion_operator.document_jobs import DocumentJob, is_owned, read_table
from ingestion_operator.obstacles import LONGEST_MESSAGE, Waiting
from ingestion_operator.results import shorten

# After so many in one look it is not one document that is at fault: a quota refuses all of them.
_MOST_REFUSALS: Final = 3
_OLD_CRD: Final = Waiting(
    reason=Reason.REJECTED_BY_CLUSTER,
    message="the CRD of IngestionJobs is older than this operator: apply both CRDs, as docs/upgrade.md says",
)

log = logging.getLogger(__name__)


class BatchReconciler:
    """Brings one IngestionBatch at a time to what its spec says.

    Args:
        cluster: the API server.
        config: the installation's configuration.
        memory: what is remembered of each batch.
        now: the wall clock, for times that are recorded.
    """

    def __init__(
        self, *, cluster: BatchCluster, config: Config, memory: BatchMemory, now: Callable[[], datetime]
    ) -> None:
        self._cluster = cluster
        self._batches = cluster.batches
        self._config = config
        self._memory = memory
        self._now = now

    async def reconcile(self, key: str) -> float | None:
        """Look at one batch.

        Args:
            key: namespace/name.

        Returns:
            Seconds after which to look again although nothing happened, or None.

        Raises:
            ApiError: when the API server cannot be worked with; look again later.
            ConflictError: when something changed meanwhile; look again.
        """
        pace = self._memory.begin_look(key)
        try:
            return await self._look(key, pace)
        except Exception:
            pace.stirred = True  # what the look was for is still to be found
            raise

    async def _look(self, key: str, pace: BatchPace) -> float | None:
        namespace, _, name = key.partition("/")
        stirred, pace.stirred = pace.stirred, False
        raw = await self._batches.find(namespace=namespace, name=name)
        if raw is None:
            return self._memory.forget(key)
        batch = IngestionBatch.model_validate(raw)
        pace.take_up(batch.metadata.uid)
        pace.resource_versions.append(batch.metadata.resource_version)
        if settled(batch) and not stirred:
            return self._memory.forget(key)
        documents = len(batch.spec.documents)
        self._memory.ask(key, rows=0 if pace.parked else documents, starting=pace.starting)
        snapshot = await self._read(batch, pace)
        decided = plan(snapshot, now=self._now())
        pace.parked = decided.parked
        self._memory.ask(key, rows=0 if pace.parked else documents, starting=decided.starting)
        raw, batch = await self._write(raw, batch, decided, pace)
        if await self._act(decided.actions, raw, snapshot, pace):
            # What was refused is said at once: the next look is some time away.
            snapshot = replace(snapshot, batch=batch, rejection=pace.rejection, starts=0)
            decided = plan(snapshot, now=self._now())
            raw, batch = await self._write(raw, batch, decided, pace)
        if pace.rejection is not None:
            self._memory.ask(key, rows=pace.rows, starting=False)
        if settled(batch):
            return self._memory.forget(key)
        if pace.stirred:
            return self._memory.rest(key)
        return None if decided.look_again is None else max(decided.look_again, self._memory.rest(key))

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, batch: IngestionBatch, pace: BatchPace) -> BatchSnapshot:
        """Read the jobs; those that something is to be passed on to first, as after that they may have ended."""
        snapshot = BatchSnapshot(
            batch=batch,
            config=self._config,
            told=frozenset(pace.told),
            starts=pace.starts,
            rejection=pace.rejection,
            refused=tuple(pace.refused),
            answered=pace.answered,
            answer_refused=pace.looked - pace.answer_refused < LOOK_AT_BLOCKED_SECONDS,
        )
        if snapshot.tenant is None or batch.status.phase is Phase.COMPLETED:
            return snapshot  # nothing is decided there, and nothing is read; or there is nothing more to know
        behind: frozenset[int] = frozenset()
        unlike: frozenset[int] | None = None
        if passes_on_generation(batch):
            behind = await self._unfinished(batch, f"spec.parentGeneration!={batch.spec.retry_generation}")
        if passes_on_suspend(batch):
            unlike = await self._unfinished(batch, f"spec.suspend!={str(batch.spec.suspend).lower()}")
        try:
            jobs = await self._jobs(batch)
        except LookupError:
            return replace(snapshot, unread=_OLD_CRD)
        pace.phases = {job.name: job.phase for job in jobs.values()}
        return replace(snapshot, jobs=jobs, behind=behind, unlike=unlike)

    async def _jobs(self, batch: IngestionBatch) -> dict[int, DocumentJob]:
        table = await self._cluster.list_jobs(namespace=batch.metadata.namespace, batch_uid=batch.metadata.uid)
        return read_table(table, batch=batch)

    async def _unfinished(self, batch: IngestionBatch, fields: str) -> frozenset[int]:
        """Return the documents whose jobs are not completed, and fit a field selector."""
        table = await self._cluster.list_jobs(
            namespace=batch.metadata.namespace,
            batch_uid=batch.metadata.uid,
            fields=f"status.phase!={Phase.COMPLETED.value},{fields}",
        )
        return frozenset(read_table(table, batch=batch))

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _write(
        self, raw: JsonObject, batch: IngestionBatch, decided: BatchPlan, pace: BatchPace
    ) -> tuple[JsonObject, IngestionBatch]:
        """Write the status if it differs, and then send the events; return the batch as it is now."""
        patch = merge_diff(raw.get("status", {}), dump_status(decided.status)) if decided.status != batch.status else {}
        if not patch:
            return raw, batch
        raw = await self._batches.write_status(raw, patch)
        _count_ends(batch.status, decided.status)
        metadata = batch.metadata.changed(resource_version=raw["metadata"]["resourceVersion"])
        pace.resource_versions.append(metadata.resource_version)
        if decided.status.documents is not None and batch.status.phase is not decided.status.phase:
            log.info("%s", decided.status.phase.value, extra={"job": batch.key})
        self._cluster.events.tell(raw, decided.events, now=self._now())
        # Read back as it is stored: a policy may have changed it.
        return raw, batch.changed(metadata=metadata, status=BatchStatus.model_validate(raw.get("status", {})))

    # ── acting ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _act(
        self, actions: tuple[BatchAction, ...], raw: JsonObject, snapshot: BatchSnapshot, pace: BatchPace
    ) -> bool:
        """Take the actions, until too many are refused; return whether there is news of what is refused."""
        before, pace.rejection = pace.rejection, None
        failures = pace.webhook_failures
        refusals = 0
        for action in actions:
            waiting = None
            if isinstance(action, CreateDocumentJob | PatchDocumentJob):
                pace.refused.pop(action.index, None)  # a request that nobody answers is not refused, but may be late
            match action:
                case CreateDocumentJob():
                    waiting = await self._create(action, snapshot.batch, pace)
                case PatchDocumentJob():
                    waiting = await self._patch(action, snapshot.batch, pace)
                    if waiting is None and action.cancels is not None:
                        pace.told.add((action.index, action.cancels))
                case AnswerAnnotation():
                    await self._answer(action, raw, snapshot.batch, pace)
                case DeleteBatch():
                    await self._delete(action, snapshot.batch, pace)
            if isinstance(action, CreateDocumentJob | PatchDocumentJob) and waiting is not None:
                pace.refused[action.index] = None  # the last one now
                pace.rejection = pace.rejection or waiting
                refusals += 1
                if refusals == _MOST_REFUSALS:
                    break
        if actions and pace.webhook_failures == failures:
            pace.webhook_failures = 0  # webhooks answer
        return pace.rejection != before

    async def _create(self, action: CreateDocumentJob, batch: IngestionBatch, pace: BatchPace) -> Waiting | None:
        """Create a document's job. One that exists is ours if we own it: an earlier request has come through."""
        name, namespace = action.body["metadata"]["name"], batch.metadata.namespace
        try:
            await self._cluster.create_job(body=action.body)
        except ApiError as error:
            if not error.already_exists:
                return _refusal(pace, name, error)
            found = await self._cluster.find_job(namespace=namespace, name=name)
            return None if found is None else _in_the_way(found, batch)
        return None

    async def _patch(self, action: PatchDocumentJob, batch: IngestionBatch, pace: BatchPace) -> Waiting | None:
        """Patch a document's job. One that has changed since it was read is looked at again."""
        namespace, body = batch.metadata.namespace, action.body
        if action.retries is not None:
            found = await self._cluster.find_job(namespace=namespace, name=action.name)
            waiting = None if found is None else _in_the_way(found, batch)
            if found is None or waiting is not None or _has_moved_on(found, action.retries):
                return waiting
            body = _exactly(body, found)
        try:
            await self._cluster.patch_job(namespace=namespace, name=action.name, body=body)
        except ApiError as error:
            return None if error.missing or error.conflict else _refusal(pace, action.name, error)
        return None

    async def _answer(self, action: AnswerAnnotation, raw: JsonObject, batch: IngestionBatch, pace: BatchPace) -> None:
        """Answer an annotation. The batch is read anew after that, as its spec has changed."""
        try:
            await self._batches.answer(action, raw)
        except ApiError as error:
            _tolerate(pace, batch, "an annotation is not answered", error)
            pace.answer_refused = pace.looked
            return
        pace.answered = action.token
        pace.stirred = True
        self._cluster.events.tell(raw, action.told, now=self._now())

    async def _delete(self, action: DeleteBatch, batch: IngestionBatch, pace: BatchPace) -> None:
        try:
            await self._batches.delete(namespace=batch.metadata.namespace, name=batch.metadata.name, uid=action.uid)
        except ApiError as error:
            _tolerate(pace, batch, "a completed batch stays", error)


def _count_ends(before: BatchStatus, after: BatchStatus) -> None:
    """Count what has ended since the status was written last."""
    if after.completion_time is not None and after.completion_time != before.completion_time:
        reason = next(condition.reason for condition in after.conditions if condition.type is ConditionType.READY)
        metrics.BATCH_ATTEMPTS_ENDED.labels(reason=reason.value).inc()
    old, new = before.documents or Documents(), after.documents or Documents()
    for phase, was, now in (
        (Phase.COMPLETED, old.completed, new.completed),
        (Phase.FAILED, old.failed, new.failed),
    ):
        count = len(IndexSet.parse(now) - IndexSet.parse(was))
        metrics.BATCH_DOCUMENTS_ENDED.labels(result=phase.value).inc(count)


def _tolerate(pace: BatchPace, batch: IngestionBatch, what: str, error: ApiError) -> None:
    """Go on without what the API server has refused; raises any other error."""
    _expect_refusal(pace, error)
    log.warning("%s: %s", what, error, extra={"job": batch.key})


def _expect_refusal(pace: BatchPace, error: ApiError) -> None:
    """Raise the error unless it can be lived with: a refusal, or a webhook that fails for long."""
    if error.refused:
        return
    if error.webhook_failed:
        pace.webhook_failures += 1
        if pace.webhook_failures >= TRIES_OF_WEBHOOKS:
            return
    raise error


def _refusal(pace: BatchPace, name: str, error: ApiError) -> Waiting:
    """Return what the API server has refused; raises any other error."""
    _expect_refusal(pace, error)
    text = shorten(f"{name}: {error.message}", limit=LONGEST_MESSAGE)
    return Waiting(reason=Reason.REJECTED_BY_CLUSTER, message=text)


def _in_the_way(job: JsonObject, batch: IngestionBatch) -> Waiting | None:
    """Return why nothing can be done with a job that has a document's name; None when it is that document's."""
    metadata = job["metadata"]
    text = f"the IngestionJob {metadata['name']} "
    if not is_owned(job, batch=batch):
        return Waiting(reason=Reason.NAME_CONFLICT, message=f"{text}exists and is not this batch's: delete it")
    if metadata.get("labels", {}).get(names.LABEL_BATCH_UID) != batch.metadata.uid:
        # No list has it.
        text += f"has lost its label {names.LABEL_BATCH_UID}: delete it, or give it {batch.metadata.uid}"
        return Waiting(reason=Reason.NAME_CONFLICT, message=text)
    if "deletionTimestamp" in metadata:
        return Waiting(reason=Reason.POD_TERMINATING, message=f"{text}is being deleted; a finalizer keeps it")
    return None


def _has_moved_on(job: JsonObject, generation: int) -> bool:
    """Return whether a job is not what a retry from this generation was decided on."""
    found = IngestionJob.model_validate(job)
    return found.spec.retry_generation != generation or retry.why_not(found) is not None


def _exactly(body: JsonObject, job: JsonObject) -> JsonObject:
    """Return a patch by which the fields of the spec are as given, and not what was there and is given together.

    It is for the job as it was read: one that arrives late is refused.
    """
    wanted = {name: value for name, value in {**job["spec"], **body["spec"]}.items() if value is not None}
    metadata = {**body.get("metadata", {}), "resourceVersion": job["metadata"]["resourceVersion"]}
    return {"metadata": metadata, "spec": merge_diff(job["spec"], wanted)}
