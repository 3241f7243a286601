"""Many retries at once: how fast the operator dispatches them, beside a client that only sends the same requests."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import repeat
from statistics import median
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import ingestion_path
from local_cluster.control_plane import CONTROLLER_MANAGER

from ingestion_bench import many
from ingestion_bench.bare import ask
from ingestion_bench.case import Budget, Duel, Measure, Sample, register
from ingestion_bench.failed import scattered
from ingestion_bench.feed import Feed
from ingestion_bench.load import per_second
from ingestion_bench.past import Past
from ingestion_bench.record import Script, record
from ingestion_bench.stand import Plane, Stand
from ingestion_bench.usage import calm, usage

_PAST: Final = Past(segments=50, failed=scattered(count=3, of=50))
_CLIENTS: Final = 32
_RATE: Final = "storm: retries dispatched"
_SECONDS: Final = "storm: first PATCH → last Job UID recorded"
_SPREAD: Final = "storm: longest / median latency"
_CPU: Final = "storm: CPU of the process, each retry"

Asked = Callable[[IngestionJob, str], None]
"""Is told a job, and its resourceVersion after its retry was asked for."""


class Storm:
    """So many retries at once.

    Args:
        stand: where; neither controllers nor pods.
        count: how many.
        script: what the operator sends for one of them.
    """

    def __init__(self, *, stand: Stand, count: int, script: Script) -> None:
        self._stand = stand
        self._count = count
        self._script = script

    async def ours(self) -> Sample:
        """Let the operator see them."""
        jobs = await many.store(self._stand, count=self._count, pasts=repeat(_PAST))
        async with self._stand.operator() as process:
            await calm(process.pid)
            before = usage(process.pid).cpu_seconds
            sample = await self._retry(jobs, lambda _job, _resource_version: None)
            await calm(process.pid)  # Events are still sent
            cpu = usage(process.pid).cpu_seconds - before
        await many.clear(self._stand)
        return {**sample, _CPU: cpu / self._count}

    async def theirs(self) -> Sample:
        """Let the bare client send what the operator would have sent."""
        jobs = await many.store(self._stand, count=self._count, pasts=repeat(_PAST))
        lines = {job.metadata.uid: self._script.line(job) for job in jobs}
        async with _replay(self._stand) as process:
            assert process.stdin is not None
            stdin = process.stdin

            def asked(job: IngestionJob, resource_version: str) -> None:
                stdin.write(resource_version.encode() + b" " + lines[job.metadata.uid])

            before = usage(process.pid).cpu_seconds
            sample = await self._retry(jobs, asked)
            await calm(process.pid)
            cpu = usage(process.pid).cpu_seconds - before
        await many.clear(self._stand)
        del sample[_SPREAD]  # a bound on ours, not a comparison
        return {**sample, _CPU: cpu / self._count}

    async def _retry(self, jobs: Sequence[IngestionJob], asked: Asked) -> dict[str, float]:
        """Raise the generation of all jobs, and return how long it took until each had its Job recorded."""
        stand = self._stand
        begun: dict[str, float] = {}
        ended: dict[str, float] = {}

        def seen(event: JsonObject) -> bool:
            if dispatched(event["object"]):
                ended.setdefault(event["object"]["metadata"]["uid"], time.perf_counter())
            return len(ended) == len(jobs)

        async def retry(_: int, job: IngestionJob) -> None:
            begun[job.metadata.uid] = time.perf_counter()
            answer = await ask(stand, job)
            asked(job, answer["metadata"]["resourceVersion"])

        async with Feed(stand.kube, ingestion_path(stand.namespace)) as feed:
            done = feed.expect(seen)
            await per_second(jobs, lanes=_CLIENTS, do=retry)
            last = await done
        seconds = last - min(begun.values())
        waits = [ended[uid] - moment for uid, moment in begun.items()]
        return {_RATE: len(jobs) / seconds, _SECONDS: seconds, _SPREAD: max(waits) / median(waits)}


def dispatched(body: JsonObject) -> bool:
    """True when the UID of a retry's Job is in the status."""
    attempt = body["status"]["attempts"][-1]
    return attempt["generation"] > 0 and any("uid" in child for child in attempt["jobs"])


@asynccontextmanager
async def _replay(stand: Stand) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the bare client: a process of its own, as the operator is."""
    environment = {"KUBECONFIG": str(stand.control_plane.kubeconfig)}
    command = [sys.executable, "-m", "ingestion_bench.replay"]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdin is not None
    assert process.stdout is not None
    async with AsyncExitStack() as stack:
        stack.callback(process.stdin.close)
        assert await process.stdout.readline(), "the bare client did not start"
        yield process
        process.stdin.close()
        assert await process.wait() == 0


def _run(count: int) -> Callable[[Stand], AsyncIterator[Duel]]:
    async def duel(stand: Stand) -> AsyncIterator[Duel]:
        # Neither pods nor the Job controller: only what the operator does until a retry is dispatched.
        await asyncio.to_thread(stand.control_plane.stop_component, CONTROLLER_MANAGER)
        (sample,) = await many.store(stand, count=1, pasts=repeat(_PAST))
        script = await record(stand, sample)
        await many.clear(stand)
        storm = Storm(stand=stand, count=count, script=script)
        yield Duel(ours=storm.ours, theirs=storm.theirs)

    return duel


for _count in (100, 300, 1_000):
    _budgeted = _count == 1_000
    register(
        name=f"storm-{_count}",
        about=f"{_count:,} retries at once, until each has its Job recorded",
        baseline="a bare client that sends the same requests in the same order, as many at a time",
        measures=[
            Measure(what=_RATE, unit="1/s", budget=Budget(at_least=0.8) if _budgeted else None),
            Measure(what=_SECONDS, unit="s", growth={"jobs": _count}),
            Measure(what=_SPREAD, unit="", budget=Budget(at_most=3.0) if _budgeted else None),
            Measure(what=_CPU, unit="s"),
        ],
        run=_run(_count),
        plane=Plane(nodes=0),
    )
