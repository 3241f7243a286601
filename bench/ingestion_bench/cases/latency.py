"""How long a retry's own parts take: until the POST is answered, and from the answer until the Job is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from functools import partial
from statistics import quantiles
from typing import Final

import httpx
from ingestion_crds import constants as names
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient, child_path, core_path, ingestion_path
from local_cluster.control_plane import CONTROLLER_MANAGER

from ingestion_bench import failed
from ingestion_bench.bare import LABEL, bare_child, get_and_ask
from ingestion_bench.case import Budget, Duel, Measure, Sample, register
from ingestion_bench.failed import scattered
from ingestion_bench.feed import Feed, Wish
from ingestion_bench.past import Past
from ingestion_bench.stand import Plane, Stand

_PAST: Final = Past(segments=50, failed=scattered(count=3, of=50))
_JOBS: Final = 100
"""Retries in one run; enough for a 99th percentile, which is then the second largest."""
_AT_ONCE: Final = 8


def _percentiles(what: str, seconds: Sequence[float]) -> Sample:
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {f"{what}, p50": cuts[49], f"{what}, p99": cuts[98]}


async def _failed_jobs(stand: Stand) -> list[IngestionJob]:
    """Store the jobs of one run."""
    lanes = asyncio.Semaphore(_AT_ONCE)

    async def one() -> IngestionJob:
        async with lanes:
            return await failed.store(stand, _PAST, with_last_job=False)

    return await asyncio.gather(*(one() for _ in range(_JOBS)))


async def _remove(stand: Stand, jobs: Sequence[IngestionJob]) -> None:
    for job in jobs:
        await _gone(stand.kube, ingestion_path(stand.namespace, job.metadata.name))


async def _gone(kube: KubeClient, path: str) -> None:
    try:
        await kube.request("DELETE", path, body={"propagationPolicy": "Background"})
    except ApiError as error:
        if not error.not_found:
            raise


# ── POST → 202 ────────────────────────────────────────────────────────────────────────────────────────────────

_ANSWER: Final = "POST retry → 202"


async def _answers(stand: Stand, api: httpx.AsyncClient) -> Sample:
    jobs, seconds = await _failed_jobs(stand), []
    for job in jobs:
        begun = time.perf_counter()
        answer = await api.post(f"/ingestion-jobs/{job.job_id}/retry")
        seconds.append(time.perf_counter() - begun)
        assert answer.status_code == 202, answer.text
    await _remove(stand, jobs)
    return _percentiles(_ANSWER, seconds)


async def _gets_and_patches(stand: Stand) -> Sample:
    jobs, seconds = await _failed_jobs(stand), []
    for job in jobs:
        begun = time.perf_counter()
        await get_and_ask(stand, job)
        seconds.append(time.perf_counter() - begun)
    await _remove(stand, jobs)
    return _percentiles(_ANSWER, seconds)


async def _answer_duel(stand: Stand) -> AsyncIterator[Duel]:
    # Without an operator, which would begin what both have recorded.
    async with stand.api() as api:
        yield Duel(ours=partial(_answers, stand, api), theirs=partial(_gets_and_patches, stand))


# ── 202 → Job stored ──────────────────────────────────────────────────────────────────────────────────────────

_DISPATCH: Final = "202 → Job stored"


async def _dispatches(stand: Stand, api: httpx.AsyncClient) -> Sample:
    jobs, seconds = await _failed_jobs(stand), []
    async with Feed(stand.kube, child_path(stand.namespace)) as feed:
        for job in jobs:
            seen = feed.expect(_added(names.LABEL_JOB_UID, job.metadata.uid))
            answer = await api.post(f"/ingestion-jobs/{job.job_id}/retry")
            begun = time.perf_counter()
            assert answer.status_code == 202, answer.text
            seconds.append(await seen - begun)
            await _gone(stand.kube, ingestion_path(stand.namespace, job.metadata.name))
    await _remove_children(stand)
    return _percentiles(_DISPATCH, seconds)


async def _bare_dispatches(stand: Stand) -> Sample:
    jobs, seconds = await _failed_jobs(stand), []
    async with Feed(stand.kube, child_path(stand.namespace)) as feed:
        for job in jobs:
            child = bare_child(stand, job)
            seen = feed.expect(_added(LABEL, child.body["metadata"]["name"]))
            live = await stand.get(job.metadata.name)  # the operator may have written what it had to say of it
            begun = time.perf_counter()
            await stand.kube.request(
                "PATCH",
                ingestion_path(stand.namespace, job.metadata.name, "status"),
                body={"metadata": {"resourceVersion": live["metadata"]["resourceVersion"]}, "status": {"chunks": 1}},
                content_type=MERGE_PATCH,
            )
            await stand.kube.request("POST", core_path("configmaps", stand.namespace), body=child.config_map)
            await stand.kube.request("POST", child_path(stand.namespace), body=child.body)
            seconds.append(await seen - begun)
            await _gone(stand.kube, ingestion_path(stand.namespace, job.metadata.name))
    await _remove_children(stand)
    return _percentiles(_DISPATCH, seconds)


def _added(label: str, value: str) -> Wish:
    return lambda event: event["type"] == "ADDED" and event["object"]["metadata"]["labels"].get(label) == value


async def _remove_children(stand: Stand) -> None:
    """Remove what the garbage collector, which stands still, does not."""
    for path in (child_path(stand.namespace), core_path("configmaps", stand.namespace)):
        await _gone(stand.kube, path)


async def _dispatch_duel(stand: Stand) -> AsyncIterator[Duel]:
    # Neither pods nor anything else that becomes of the Jobs: only what the product does until they are stored.
    await asyncio.to_thread(stand.control_plane.stop_component, CONTROLLER_MANAGER)
    async with stand.operator(), stand.api() as api:
        yield Duel(ours=partial(_dispatches, stand, api), theirs=partial(_bare_dispatches, stand))


register(
    name="retry-latency-answer",
    about="a POST retry until its 202, one after the other",
    baseline="GET + PATCH of the same client library",
    measures=[
        Measure(what=f"{_ANSWER}, p50", unit="s", budget=Budget(at_most=2.5)),
        Measure(what=f"{_ANSWER}, p99", unit="s"),
    ],
    run=_answer_duel,
    plane=Plane(nodes=0),
)
register(
    name="retry-latency-dispatch",
    about="from the 202 until the Job is seen to be stored, one after the other",
    baseline="PATCH of status + POST of ConfigMap and Job",
    measures=[
        Measure(what=f"{_DISPATCH}, p50", unit="s", budget=Budget(at_most=3.0)),
        Measure(what=f"{_DISPATCH}, p99", unit="s"),
    ],
    run=_dispatch_duel,
    plane=Plane(nodes=0),
)
