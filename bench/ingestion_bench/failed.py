"""Failed jobs, stored in the API server without having run."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob, dump_status
from ingestion_crds.kube import MERGE_PATCH, child_path, ingestion_path
from ingestion_operator.questions import settled

from ingestion_bench.past import Past, play
from ingestion_bench.stand import PATIENCE_SECONDS, Stand, fresh_name

_KNOWLEDGE_BASE: Final = "2b1d7a52-6c1e-4a0b-9f55-0d3c0f2f8a11"
_DOCUMENT: Final = "8d0a7f0e-64f1-4f59-8a2c-7b9d2f3c4e55"


def scattered(*, count: int, of: int) -> IndexSet:
    """Return so many segments, evenly spread: no two are neighbours, so that index sets are as long as they get."""
    return IndexSet.of(position * of // count for position in range(count))


def body(*, name: str, namespace: str, **spec: Any) -> JsonObject:
    """Return an IngestionJob as a user writes it; keyword arguments go into spec."""
    source = {"uri": f"s3://{namespace}/handbook.pdf"}
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "knowledgeBase": _KNOWLEDGE_BASE,
            "document": {"id": _DOCUMENT, "title": "Handbook", "source": source},
            "mode": "Segmented",
            **spec,
        },
    }


async def store(stand: Stand, past: Past, *, with_last_job: bool = True, **spec: Any) -> IngestionJob:
    """Store a job that has failed, and return it once it is at rest.

    Args:
        stand: where.
        past: what it went through.
        with_last_job: its last Job is there too, as after a real attempt; without pods, which are gone by then.
        spec: further fields of spec.
    """
    path = ingestion_path(stand.namespace)
    name = fresh_name("job")
    # Suspended at first, or an operator that runs would begin it.
    wanted = body(name=name, namespace=stand.namespace, suspend=True, retryGeneration=past.attempts - 1, **spec)
    created = await stand.kube.request("POST", path, body=wanted)
    job = IngestionJob.model_validate(created)
    played = play(job, past, config=stand.config)
    status = dump_status(played.status)
    status["observedGeneration"] = job.metadata.generation + 1
    last = await _store_last_job(stand, played.last) if with_last_job else None
    if last is not None:
        status["attempts"][-1]["jobs"][-1]["uid"] = last["metadata"]["uid"]
    await _patch(stand, ingestion_path(stand.namespace, name, "status"), {"status": status})
    if last is not None:
        ours = {field: played.last["metadata"][field] for field in ("labels", "ownerReferences")}
        await _patch(stand, child_path(stand.namespace, last["metadata"]["name"]), {"metadata": ours})
    await _patch(stand, ingestion_path(stand.namespace, name), {"spec": {"suspend": False}})
    return await _at_rest(stand, name)


async def _store_last_job(stand: Stand, played: JsonObject) -> JsonObject:
    """Store a Job that has ended; the operator gets to see it only when it is recorded."""
    metadata = {key: played["metadata"][key] for key in ("name", "namespace", "annotations")}
    wanted = {**played, "metadata": metadata, "spec": {**played["spec"], "suspend": True}}
    created = await stand.kube.request("POST", child_path(stand.namespace), body=wanted)
    path = f"{child_path(stand.namespace, created['metadata']['name'])}/status"
    return await _patch(stand, path, {"status": played["status"]})


async def _patch(stand: Stand, path: str, content: JsonObject) -> JsonObject:
    return await stand.kube.request("PATCH", path, body=content, content_type=MERGE_PATCH)


async def _at_rest(stand: Stand, name: str) -> IngestionJob:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        job = IngestionJob.model_validate(await stand.get(name))
        if settled(job):
            return job
        assert time.monotonic() < deadline, f"{job.key} does not come to rest"
        await asyncio.sleep(0.02)
