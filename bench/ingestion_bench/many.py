"""Many jobs at rest, as they are in a cluster that has been used for a while. No operator may run meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any, Final

from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob, dump_status
from ingestion_crds.kube import MERGE_PATCH, child_path, core_path, ingestion_path
from ingestion_operator.questions import settled

from ingestion_bench.failed import body, scattered
from ingestion_bench.past import Past, play
from ingestion_bench.stand import PATIENCE_SECONDS, Stand, fresh_name

_AT_ONCE: Final = 16


def usual_pasts() -> Iterator[Past]:
    """Yield pasts without end: of ten documents two have failed in part, and one of these more than once."""
    done = Past(segments=20, failed=IndexSet())
    pasts = [done] * 8
    pasts[3:3] = [Past(segments=200, failed=scattered(count=5, of=200))]
    pasts[7:7] = [Past(segments=20, failed=scattered(count=2, of=20), attempts=3)]
    return cycle(pasts)


async def store(
    stand: Stand, *, count: int, pasts: Iterator[Past] | None = None, with_last_job: bool = True, **spec: Any
) -> list[IngestionJob]:
    """Store so many jobs at rest.

    Args:
        stand: where.
        count: how many.
        pasts: what they went through, one after the other; the usual ones when None.
        with_last_job: each has its last Job beside it.
        spec: further fields of spec.
    """
    lanes = asyncio.Semaphore(_AT_ONCE)

    async def one(past: Past) -> IngestionJob:
        async with lanes:
            return await _store(stand, past, with_last_job, spec)

    return await asyncio.gather(*(one(past) for past in islice(pasts or usual_pasts(), count)))


async def _store(stand: Stand, past: Past, with_last_job: bool, spec: dict[str, Any]) -> IngestionJob:
    wanted = body(name=fresh_name("job"), namespace=stand.namespace, retryGeneration=past.attempts - 1, **spec)
    job = IngestionJob.model_validate(await stand.kube.request("POST", ingestion_path(stand.namespace), body=wanted))
    played = play(job, past, config=stand.config)
    status = dump_status(played.status)
    if with_last_job:
        # Suspended, or it would get pods before its end is recorded.
        last = {**played.last, "spec": {**played.last["spec"], "suspend": True}}
        del last["metadata"]["uid"]
        ended = last.pop("status")
        stored = await stand.kube.request("POST", child_path(stand.namespace), body=last)
        status["attempts"][-1]["jobs"][-1]["uid"] = stored["metadata"]["uid"]
        path = f"{child_path(stand.namespace, stored['metadata']['name'])}/status"
        await stand.kube.request("PATCH", path, body={"status": ended}, content_type=MERGE_PATCH)
    path = ingestion_path(stand.namespace, job.metadata.name, "status")
    raw = await stand.kube.request("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)
    job = IngestionJob.model_validate(raw)
    assert settled(job), job
    return job


async def remove(stand: Stand, jobs: Sequence[IngestionJob]) -> None:
    """Delete jobs; what they own goes with them."""
    lanes = asyncio.Semaphore(_AT_ONCE)

    async def one(job: IngestionJob) -> None:
        async with lanes:
            await stand.kube.request("DELETE", ingestion_path(stand.namespace, job.metadata.name))

    await asyncio.gather(*(one(job) for job in jobs))


async def clear(stand: Stand) -> None:
    """Delete all IngestionJobs, Jobs and ConfigMaps of the namespace, for where no garbage collector runs."""
    paths = (ingestion_path(stand.namespace), child_path(stand.namespace), core_path("configmaps", stand.namespace))
    for path in paths:
        await stand.kube.request("DELETE", path, body={"propagationPolicy": "Background"}, timeout=PATIENCE_SECONDS)
