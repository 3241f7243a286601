"""All IngestionJobs and IngestionBatches in memory, fed by one list and one watch of each: ids to names, and lists.

It is a view that may be a moment old; whatever decides something reads the job live.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import asyncio
import logging
import sys
from bisect import bisect_left, insort
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Self

from ingestion_crds import JsonObject
from ingestion_crds.constants import BATCH_KIND, KIND, Phase
from ingestion_crds.follow import follow
from ingestion_crds.kube import ApiError, KubeClient, batch_path, ingestion_path
from pydantic import BaseModel

from ingestion_api.documents import document_view
from ingestion_api.metrics import Metrics
from ingestion_api.views import NarrowBatch, NarrowJob, shown_phase, summary

LOG: Final = logging.getLogger("ingestion_api.job_index")
_TOMBSTONES: Final = 4096

_PATHS: Final = {KIND: ingestion_path(), BATCH_KIND: batch_path()}

Place = tuple[float, str]
"""Where a job stands in its list: creation time in epoch seconds, then UID."""
Named = tuple[str, str]
"""A resource's kind and its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedJob:
    """What is kept of a job: what it is found by, and its entry in a list as JSON. As models that took 8 times as much.

    Args:
        kind, namespace, name: the resource's.
        job_id: in this API.
        knowledge_base: UUID.
        batch: of a job that a batch has made: the batch's UID, and the document's place; it is in no other list.
        resource_version: comparable as a number since Kubernetes 1.35 (KEP-5504), and in fact ever since
            etcd 3.
        place: in its list.
        phase: what clients see.
        entry: JSON.
    """

    kind: str
    namespace: str
    name: str
    job_id: str
    knowledge_base: str
    batch: tuple[str, int | None] | None
    resource_version: int
    place: Place
    phase: str
    entry: bytes

    @classmethod
    def of(cls, job: NarrowJob | NarrowBatch) -> Self:
        """Return what is kept of a job."""
        metadata = job.metadata
        batch = None if isinstance(job, NarrowBatch) else metadata.batch
        return cls(
            kind=BATCH_KIND if isinstance(job, NarrowBatch) else KIND,
            # Each job was read from JSON of its own: those with the same text are to share one copy of it.
            namespace=sys.intern(metadata.namespace),
            name=metadata.name,
            job_id=job.job_id,
            knowledge_base=sys.intern(job.spec.knowledge_base),
            batch=batch,
            resource_version=int(metadata.resource_version or 0),
            place=(metadata.creation_timestamp.timestamp(), metadata.uid),
            phase=shown_phase(job),
            entry=_entry(job, batch).model_dump_json().encode(),
        )


def _entry(job: NarrowJob | NarrowBatch, batch: tuple[str, int | None] | None) -> BaseModel:
    if isinstance(job, NarrowBatch) or batch is None:
        return summary(job)
    _, place = batch
    return document_view(job, index=place or 0)


class JobIndex:
    """The jobs of all namespaces; every look-up names one namespace.

    Args:
        kube: the cluster.
        metrics: counts lists, failures and jobs.
    """

    def __init__(self, *, kube: KubeClient, metrics: Metrics) -> None:
        self._kube = kube
        self._metrics = metrics
        self._jobs: dict[str, IndexedJob] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._lists: dict[tuple[str, str], list[Place]] = {}
        self._of_batches: dict[tuple[str, str], dict[int, str]] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._listed: set[str] = set()
        self._failing: set[str] = set()
        self.synced = False
        """True once the first lists are in."""
        self.ended = False
        """True once it is no longer kept up to date."""

    @property
    def failing(self) -> bool:
        """True from the failure of a list or watch to the next list that is in."""
        return bool(self._failing)

    async def run(self) -> None:
        """Keep the index up to date until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for kind in _PATHS:
                    group.create_task(self._follow(kind))
        except Exception:
            # Nobody waits for this task. The probe reports its end, and the cluster starts the process anew.
            LOG.exception("the jobs are no longer followed")
        finally:
            self.ended = True

    async def _follow(self, kind: str) -> None:
        def listed(uids: frozenset[str], resource_version: int) -> None:
            self._take_list(kind, uids, resource_version)

        def failed(error: ApiError, pause: float) -> None:
            self._take_failure(kind, error, pause)

        await follow(self._kube, _PATHS[kind], take=self._take, listed=listed, failed=failed)

    def named(self, *, namespace: str, job_id: str) -> Named | None:
        """Return what has this id in this namespace, None when the index has nothing."""
        uid = self._names.get((namespace, job_id))
        return (self._jobs[uid].kind, self._jobs[uid].name) if uid else None

    def page(
        self, *, namespace: str, knowledge_base: str, phase: Phase | None, limit: int, before: Place | None
    ) -> tuple[list[IndexedJob], Place | None]:
        """Return jobs of a knowledge base, newest first.

        Args:
            namespace: the caller's.
            knowledge_base: UUID.
            phase: only jobs that show this phase; None for all.
            limit: jobs at most.
            before: where the page before ended.

        Returns:
            the jobs, and the place to go on from; None at the end.
        """
        places = self._lists.get((namespace, knowledge_base), [])
        at = len(places) if before is None else bisect_left(places, before)
        found: list[IndexedJob] = []
        last: Place | None = None
        while at > 0:
            at -= 1
            job = self._jobs[places[at][1]]
            if phase is not None and job.phase != phase:
                continue
            if len(found) == limit:
                return found, last
            found.append(job)
            last = places[at]
        return found, None

    def documents(self, *, namespace: str, batch: str) -> dict[int, bytes]:
        """Return the documents of a batch whose jobs are there, by their places, each as JSON.

        Args:
            namespace: the caller's.
            batch: its UID.
        """
        uids = self._of_batches.get((namespace, batch), {})
        return {place: self._jobs[uid].entry for place, uid in uids.items()}

    def document_place(self, *, namespace: str, job_id: str) -> int:
        """Return the place of a job's document among the files of its ingest: 0 unless a batch has made the job."""
        uid = self._names.get((namespace, job_id))
        batch = self._jobs[uid].batch if uid else None
        return (batch[1] if batch else None) or 0

    def put(self, body: JsonObject) -> None:
        """Take in a job as the API server has just answered it; an older state than the known one is ignored."""
        try:
            model = NarrowBatch if body.get("kind") == BATCH_KIND else NarrowJob
            job = IndexedJob.of(model.model_validate(body))
        except ValueError as error:
            metadata = body.get("metadata", {})
            name = f"{metadata.get('namespace')}/{metadata.get('name')}"
            LOG.warning("unreadable job", extra={"job": name, "error": str(error)[:200]})
            return
        uid = job.place[1]
        known = self._jobs.get(uid)
        if uid in self._gone or (known is not None and known.resource_version > job.resource_version):
            return
        self._forget(uid)
        self._jobs[uid] = job
        self._names[job.namespace, job.job_id] = uid
        if job.batch is not None:
            batch, place = job.batch
            if place is not None:
                self._of_batches.setdefault((job.namespace, batch), {})[place] = uid
        else:
            insort(self._lists.setdefault((job.namespace, job.knowledge_base), []), job.place)
        self._metrics.indexed_jobs.set(len(self._jobs))

    def _take(self, body: JsonObject, deleted: bool) -> None:
        if deleted:
            self._delete(body["metadata"]["uid"])
        else:
            self.put(body)

    def _take_list(self, kind: str, uids: frozenset[str], resource_version: int) -> None:
        """Drop what a full list does not have."""
        for uid, job in list(self._jobs.items()):
            # A job made while the list was under way is newer than the list.
            if job.kind == kind and uid not in uids and job.resource_version <= resource_version:
                self._forget(uid)
        self._metrics.indexed_jobs.set(len(self._jobs))
        self._metrics.index_lists.inc()
        self._listed.add(kind)
        self._failing.discard(kind)
        if self._listed == _PATHS.keys():
            self.synced = True

    def _take_failure(self, kind: str, error: ApiError, pause: float) -> None:
        self._metrics.index_failures.inc()
        self._failing.add(kind)
        LOG.warning("the watch of jobs ended", extra={"kind": kind, "error": str(error), "pause": pause})

    def _delete(self, uid: str) -> None:
        self._forget(uid)
        self._metrics.indexed_jobs.set(len(self._jobs))
        # The answer to an earlier request may come in after a job was deleted, and must not bring it back.
        self._gone[uid] = None
        if len(self._gone) > _TOMBSTONES:
            self._gone.popitem(last=False)

    def _forget(self, uid: str) -> None:
        job = self._jobs.pop(uid, None)
        if job is None:
            return
        if self._names.get((job.namespace, job.job_id)) == uid:
            del self._names[job.namespace, job.job_id]
        if job.batch is not None:
            self._forget_document(job, *job.batch)
            return
        key = (job.namespace, job.knowledge_base)
        places = self._lists[key]
        places.pop(bisect_left(places, job.place))
        if not places:
            del self._lists[key]

    def _forget_document(self, job: IndexedJob, batch: str, place: int | None) -> None:
        key = (job.namespace, batch)
        places = self._of_batches.get(key, {})
        # Another job may have taken its place.
        if place is not None and places.get(place) == job.place[1]:
            del places[place]
            if not places:
                del self._of_batches[key]
