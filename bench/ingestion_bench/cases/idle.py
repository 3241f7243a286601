"""What jobs cost that are at rest: memory, the time to be ready after a restart, processor time, writes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import count as counting
from typing import Final

import httpx
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import MERGE_PATCH, ingestion_path
from ingestion_operator.main import resync_pause
from local_cluster import ports
from local_cluster.process import Process

from ingestion_bench import many
from ingestion_bench.audit import Audit, audited, writes
from ingestion_bench.case import Budget, Duel, Measure, Sample, register
from ingestion_bench.load import per_second
from ingestion_bench.scrape import scrape
from ingestion_bench.stand import PATIENCE_SECONDS, Stand
from ingestion_bench.usage import calm, usage

_READY: Final = "idle: start → all objects seen"
_START: Final = "idle: CPU until then"
_RESTARTED: Final = "idle: memory after a restart"
_TOUCHED: Final = "idle: memory after touching each"
_CPU: Final = "idle: CPU at rest"
_WRITES: Final = "idle: writes at rest"
_REST_SECONDS: Final = 120.0
_FIRST_LIST_SECONDS: Final = 140.0
"""After so many seconds the operator's first full list is over, which comes two minutes after its start."""
_TOLERANCE: Final = 0.005
"""Half a percent of a core: a full list now and then is what it costs that no lost event loses a job."""
_LANES: Final = 16
_RUNS: Final = 2

Seen = Callable[[], Awaitable[float]]


class Idle:
    """So many jobs at rest, each with its last Job.

    Args:
        stand: where; the API server keeps an audit log.
        jobs: the jobs.
        rests: what happens at rest is measured too, which takes minutes.
    """

    def __init__(self, *, stand: Stand, jobs: Sequence[IngestionJob], rests: bool) -> None:
        self._stand = stand
        self._jobs = jobs
        self._rests = rests
        self._audit = Audit(stand.folder)
        self._touches = counting()

    async def ours(self) -> Sample:
        """Run the operator."""
        port = ports.free(count=1)[0]
        begun = time.perf_counter()
        async with (
            self._stand.operator(port=port) as process,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60.0) as client,
        ):

            async def seen() -> float:
                metrics = await scrape(client)
                return sum(value for name, value in metrics.items() if name.startswith("ingestion_watch_events_total"))

            sample = await self._measure(process, begun, seen)
            if not self._rests:
                return sample
            await asyncio.sleep(begun + _FIRST_LIST_SECONDS - time.perf_counter())
            self._audit.read()
            cpu = await self._rest(process, seconds=resync_pause(len(self._jobs)))  # one full list is in it
            written = writes(self._audit.read())
        return {**sample, _CPU: cpu, _WRITES: len(written)}

    async def theirs(self) -> Sample:
        """Run the minimal operator."""
        log = self._stand.folder / "seen"
        log.unlink(missing_ok=True)
        environment = {"BENCH_SEEN": str(log)}
        begun = time.perf_counter()
        async with self._stand.process(
            "ingestion_bench.minimal_operator", user="bench:minimal", environment=environment
        ) as process:

            async def seen() -> float:
                return log.stat().st_size if log.exists() else 0.0

            sample = await self._measure(process, begun, seen)
            return {**sample, _CPU: await self._rest(process, seconds=_REST_SECONDS)} if self._rests else sample

    async def _measure(self, process: Process, begun: float, seen: Seen) -> Sample:
        objects = 2 * len(self._jobs)
        await _until(process, seen, objects)
        ready, start = time.perf_counter() - begun, usage(process.pid).cpu_seconds
        await calm(process.pid)
        restarted = usage(process.pid).resident_bytes
        before = await seen()
        await self._touch()
        await _until(process, seen, before + len(self._jobs))
        await calm(process.pid)
        return {_READY: ready, _START: start, _RESTARTED: restarted, _TOUCHED: usage(process.pid).resident_bytes}

    async def _touch(self) -> None:
        patch = {"metadata": {"labels": {"bench/touched": str(next(self._touches))}}}

        async def touch(_: int, job: IngestionJob) -> None:
            path = ingestion_path(self._stand.namespace, job.metadata.name)
            await self._stand.kube.request("PATCH", path, body=patch, content_type=MERGE_PATCH)

        await per_second(self._jobs, lanes=_LANES, do=touch)

    async def _rest(self, process: Process, *, seconds: float) -> float:
        """Return the share of a core that the process takes while nothing happens."""
        before, begun = usage(process.pid).cpu_seconds, time.perf_counter()
        await asyncio.sleep(seconds)
        return (usage(process.pid).cpu_seconds - before) / (time.perf_counter() - begun)


async def _until(process: Process, seen: Seen, count: float) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while await seen() < count:
        process.check()
        assert time.monotonic() < deadline, f"{await seen():.0f} of {count:.0f} objects seen"
        await asyncio.sleep(0.1)


def _run(count: int, *, rests: bool) -> Callable[[Stand], AsyncIterator[Duel]]:
    async def duel(stand: Stand) -> AsyncIterator[Duel]:
        idle = Idle(stand=stand, jobs=await many.store(stand, count=count), rests=rests)
        yield Duel(ours=idle.ours, theirs=idle.theirs)

    return duel


for _count, _rests in ((1_000, False), (3_000, False), (10_000, True)):
    _growth = {"jobs": _count}
    _budget = Budget(at_most=1.2)
    _at_rest = [
        Measure(what=_CPU, unit="of a core", budget=Budget(at_most=1.0, plus=_TOLERANCE)),
        Measure(what=_WRITES, unit="", budget=Budget(at_most=0)),
    ]
    register(
        name=f"idle-{_count}",
        about=f"{_count:,} jobs at rest, each with its last Job",
        baseline="a minimal kopf operator that watches the same and does nothing",
        measures=[
            Measure(what=_READY, unit="s", budget=_budget, growth=_growth),
            Measure(what=_START, unit="s", growth=_growth),
            Measure(what=_RESTARTED, unit="bytes", budget=_budget, growth=_growth),
            Measure(what=_TOUCHED, unit="bytes", budget=_budget, growth=_growth),
            *(_at_rest if _rests else []),
        ],
        run=_run(_count, rests=_rests),
        pairs=_RUNS,
        plane=audited(nodes=0),
    )
