"""How much of what the cluster gives the REST API passes on: GETs of progress, lists, retries by many at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import cycle, islice, repeat
from typing import Final

import httpx
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import ingestion_path

from ingestion_bench import many
from ingestion_bench.bare import get_and_ask
from ingestion_bench.case import Budget, Duel, Measure, Sample, register
from ingestion_bench.failed import scattered
from ingestion_bench.load import callers, per_second
from ingestion_bench.memory_app import PATH as MEMORY_PATH
from ingestion_bench.past import Past
from ingestion_bench.stand import Plane, Stand

_LANES: Final = 16
_PAST: Final = Past(segments=1_000, failed=scattered(count=50, of=1_000))

# ── GET progress ──────────────────────────────────────────────────────────────────────────────────────────────

_GETS: Final = 1_000
_GET: Final = "GET progress"


async def _progress(client: httpx.AsyncClient, jobs: Sequence[IngestionJob]) -> Sample:
    async def get(lane: int, job: IngestionJob) -> None:
        status, answer = await api[lane].call("GET", f"/v1/knowledge-base/ingestion-jobs/{job.job_id}")
        assert status == 200, answer

    async with callers(client, count=_LANES) as api:
        return {_GET: await per_second(list(islice(cycle(jobs), _GETS)), lanes=_LANES, do=get)}


async def _bare_gets(stand: Stand, jobs: Sequence[IngestionJob]) -> Sample:
    async def get(_: int, job: IngestionJob) -> None:
        await stand.kube.request("GET", ingestion_path(stand.namespace, job.metadata.name))

    return {_GET: await per_second(list(islice(cycle(jobs), _GETS)), lanes=_LANES, do=get)}


async def _get_duel(stand: Stand) -> AsyncIterator[Duel]:
    jobs = await many.store(stand, count=20, pasts=repeat(_PAST), with_last_job=False)
    async with stand.api() as client:
        yield Duel(ours=partial(_progress, client, jobs), theirs=partial(_bare_gets, stand, jobs))


# ── a list of 50 ──────────────────────────────────────────────────────────────────────────────────────────────

_LISTS: Final = 500
_LIST: Final = "GET a list of 50"


async def _lists(client: httpx.AsyncClient, path: str) -> Sample:
    async def get(lane: int, _: int) -> None:
        status, answer = await connections[lane].call("GET", path)
        assert status == 200, answer

    async with callers(client, count=_LANES) as connections:
        return {_LIST: await per_second(range(_LISTS), lanes=_LANES, do=get)}


def _list_run(count: int) -> Callable[[Stand], AsyncIterator[Duel]]:
    async def duel(stand: Stand) -> AsyncIterator[Duel]:
        (job, *_) = await many.store(stand, count=count, with_last_job=False)
        path = f"/v1/knowledge-base/knowledge-bases/{job.spec.knowledge_base}/ingestion-jobs?limit=50"
        async with stand.api() as client:
            async with callers(client, count=1) as (api,):
                _, content = await api.call("GET", path)
            assert content.count(b'"job_type"') == min(50, count), content
            file = stand.folder / "content.json"
            file.write_bytes(content)
            key, environment = client.headers["x-api-key"], {"BENCH_CONTENT": str(file)}
            async with stand.api_process("ingestion_bench.memory_app", key=key, environment=environment) as memory:
                yield Duel(ours=partial(_lists, client, path), theirs=partial(_lists, memory, MEMORY_PATH))

    return duel


# ── retries by 64 clients ─────────────────────────────────────────────────────────────────────────────────────

_CLIENTS: Final = 64
_SMALL: Final = Past(segments=50, failed=scattered(count=3, of=50))
_RETRIES: Final = 10 * _CLIENTS
_RETRY: Final = "POST retry by 64 clients"


async def _retries(stand: Stand, client: httpx.AsyncClient) -> Sample:
    async def retry(lane: int, job: IngestionJob) -> None:
        status, answer = await api[lane].call("POST", f"/v1/knowledge-base/ingestion-jobs/{job.job_id}/retry")
        assert status == 202, answer

    jobs = await many.store(stand, count=_RETRIES, pasts=repeat(_SMALL), with_last_job=False)
    async with callers(client, count=_CLIENTS) as api:
        found = await per_second(jobs, lanes=_CLIENTS, do=retry)
    await many.remove(stand, jobs)
    return {_RETRY: found}


async def _bare_retries(stand: Stand) -> Sample:
    async def retry(_: int, job: IngestionJob) -> None:
        await get_and_ask(stand, job)

    jobs = await many.store(stand, count=_RETRIES, pasts=repeat(_SMALL), with_last_job=False)
    found = await per_second(jobs, lanes=_CLIENTS, do=retry)
    await many.remove(stand, jobs)
    return {_RETRY: found}


async def _retry_duel(stand: Stand) -> AsyncIterator[Duel]:
    # Without an operator, which would begin what both have recorded.
    async with stand.api() as client:
        yield Duel(ours=partial(_retries, stand, client), theirs=partial(_bare_retries, stand))


register(
    name="api-get",
    about=f"GETs of a job's progress, {_LANES} at a time",
    baseline="Kubernetes GETs of the same client library",
    measures=[Measure(what=_GET, unit="1/s", budget=Budget(at_least=0.6))],
    run=_get_duel,
    plane=Plane(nodes=0),
)
for _count in (100, 1_000, 10_000):
    register(
        name=f"api-list-{_count}",
        about=f"a list of 50 out of {_count:,} jobs, {_LANES} at a time",
        baseline="a route of the same API, with its key check, limits and log, that returns the same bytes from memory",
        measures=[Measure(what=_LIST, unit="1/s", budget=Budget(at_least=0.5))],
        run=_list_run(_count),
        plane=Plane(nodes=0),
    )
register(
    name=f"api-retry-{_CLIENTS}",
    about=f"retries of different jobs by {_CLIENTS} clients at the same time, no operator",
    baseline="GET + PATCH of the same client library",
    measures=[Measure(what=_RETRY, unit="1/s", budget=Budget(at_least=0.6))],
    run=_retry_duel,
    plane=Plane(nodes=0),
)
