"""What running jobs cost the operator: processor time for each segment that ends, and how long keys wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import repeat
from statistics import median
from typing import Final

import httpx
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import child_path, ingestion_path
from local_cluster import ports
from local_cluster.process import Process

from ingestion_bench import many
from ingestion_bench.bare import ask
from ingestion_bench.case import Budget, Duel, Measure, Sample, register
from ingestion_bench.cases.storm import dispatched
from ingestion_bench.feed import Feed
from ingestion_bench.lags import Lags
from ingestion_bench.load import per_second
from ingestion_bench.past import Past
from ingestion_bench.scrape import scrape, spread
from ingestion_bench.stand import Plane, Stand
from ingestion_bench.usage import calm, usage

_SEGMENTS: Final = 20
_PAST: Final = Past(segments=_SEGMENTS, failed=IndexSet.span(_SEGMENTS))
_LANES: Final = 32
_WAIT: Final = "ingestion_queue_wait_seconds"
_DEPTH: Final = "ingestion_queue_depth"
_NOTICED: Final = 0.1
"""Seconds: shorter waits are counted as this long, or a median of a millisecond would forbid any hiccup."""


def _cpu(count: int) -> str:
    return f"running: operator's CPU for each segment, {count:,} jobs"


_COUNTED: Final = {
    "events": ('ingestion_watch_events_total{kind="IngestionJob"}', 'ingestion_watch_events_total{kind="Job"}'),
    "looks": ("ingestion_reconcile_seconds_count",),
    "status writes": ("ingestion_status_writes_total",),
}
"""What the operator does for a segment, counted: no matter how fast the processor is."""


def _each(what: str, count: int) -> str:
    return f"running: {what} for each segment, {count:,} jobs"


def _beside(count: int) -> str:
    return f"running: the same, beside that of kopf that does nothing, {count:,} jobs"


_FALLING: Final = "running: the same, many / few jobs"
_FALLING_BESIDE: Final = "running: the same, many / few jobs, each beside kopf that does nothing"
_SPREAD: Final = "running: longest / median wait of a key"
_LONGEST: Final = "running: longest wait of a key"
_LATEST: Final = "running: latest look at counts"
_LAG_SPREAD: Final = "running: Job's end → seen in status, longest / median of all keys"
_LAG_LONGEST: Final = "running: Job's end → seen in status, longest of all keys"
_LAG_MEDIAN: Final = "running: Job's end → seen in status, median of all keys"


class Running:
    """Jobs whose segments all run.

    Args:
        stand: where; kwok ends the pods.
        few, many: two numbers of jobs.
    """

    def __init__(self, *, stand: Stand, few: int, many: int) -> None:
        self._stand = stand
        self._few = few
        self._many = many

    async def ours(self) -> Sample:
        """Let few jobs run, then many, each also with the minimal operator watching: what seconds are worth then."""
        (few,), of_few, _ = await self._run(self._few)
        (few_beside, few_minimal), _, _ = await self._run(self._few, minimal=True)
        (many_,), of_many, waits = await self._run(self._many)
        (many_beside, many_minimal), _, _ = await self._run(self._many, minimal=True)
        return {
            **of_few,
            **of_many,
            _cpu(self._few): few,
            _beside(self._few): few_beside / few_minimal,
            _cpu(self._many): many_,
            _beside(self._many): many_beside / many_minimal,
            _FALLING: many_ / few,
            _FALLING_BESIDE: (many_beside / many_minimal) / (few_beside / few_minimal),
            **waits,
        }

    async def warm_up(self) -> None:
        """Let few jobs run once: the first on a fresh control plane are dear, and would make many look cheap."""
        await self._run(self._few)

    async def _run(self, count: int, *, minimal: bool = False) -> tuple[list[float], Sample, Sample]:
        """Return CPU seconds for each segment, of the operator and of the minimal one, its counts, and keys' waits.

        Args:
            count: jobs.
            minimal: the minimal operator runs as well, and hears of the same events in the same seconds: what a
                machine's processor seconds are worth then meets both.
        """
        stand = self._stand
        jobs = await many.store(stand, count=count, pasts=repeat(_PAST))
        lags = Lags(count=count)
        begun: set[str] = set()

        def runs(event: JsonObject) -> bool:
            if dispatched(event["object"]):
                begun.add(event["object"]["metadata"]["uid"])
            return len(begun) == count

        async def retry(_: int, job: IngestionJob) -> None:
            await ask(stand, job)

        port = ports.free(count=1)[0]
        async with AsyncExitStack() as stack:
            processes = [await stack.enter_async_context(stand.operator(port=port))]
            if minimal:
                environment = {"BENCH_SEEN": str(stand.folder / "seen")}
                module = "ingestion_bench.minimal_operator"
                other = stand.process(module, user="bench:minimal", environment=environment)
                processes.append(await stack.enter_async_context(other))
            client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60.0)
            await stack.enter_async_context(client)
            feed = await stack.enter_async_context(Feed(stand.kube, ingestion_path(stand.namespace)))
            children = Feed(stand.kube, child_path(stand.namespace), selector=f"{names.LABEL_GENERATION}=1")
            ended = (await stack.enter_async_context(children)).expect(lags.ended)
            running, completed = feed.expect(runs), feed.expect(lags.recorded)
            before = [await _cpu_at_rest(process) for process in processes]
            start = await scrape(client)
            await per_second(jobs, lanes=_LANES, do=retry)
            await running
            metrics = await _drained(client)  # how long keys waited while the retries came in is the storm's
            assert not completed.done(), "keys waited for as long as jobs ran"
            await asyncio.gather(completed, ended)
            after = await scrape(client)
            used = [await _cpu_at_rest(process) for process in processes]
        cpu = [(end - begin) / (count * _SEGMENTS) for begin, end in zip(before, used, strict=True)]
        counts = {
            _each(what, count): sum(after[name] - start[name] for name in names) / (count * _SEGMENTS)
            for what, names in _COUNTED.items()
        }
        happened, due = (spread(metrics, after, histogram=_WAIT, labels=f'why="{why}"') for why in ("happened", "due"))
        waits = {
            _SPREAD: happened.largest / max(happened.median, _NOTICED),
            _LONGEST: happened.largest,
            _LATEST: due.largest,
            _LAG_SPREAD: max(lags.longest) / median(lags.longest),
            _LAG_LONGEST: max(lags.longest),
            _LAG_MEDIAN: median(lags.longest),
        }
        await many.remove(stand, jobs)
        await stand.quiet()
        return cpu, counts, waits


async def _drained(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the metrics of the moment when no key waits, neither to be begun nor behind those that were."""
    while True:
        metrics = await scrape(client)
        if not metrics[_DEPTH]:
            return metrics
        await asyncio.sleep(0.1)


async def _cpu_at_rest(process: Process) -> float:
    await calm(process.pid)
    return usage(process.pid).cpu_seconds


def _run(few: int, many_: int) -> Callable[[Stand], AsyncIterator[Duel]]:
    async def duel(stand: Stand) -> AsyncIterator[Duel]:
        running = Running(stand=stand, few=few, many=many_)
        await running.warm_up()
        yield Duel(ours=running.ours)

    return duel


for _few, _many in ((10, 100), (100, 1_000)):
    _budgeted = _many == 1_000
    register(
        name=f"running-{_many}",
        about=f"{_few} and {_many:,} running jobs of {_SEGMENTS} segments; pods run for no time at all",
        measures=[
            Measure(what=_cpu(_few), unit="s"),
            Measure(what=_beside(_few), unit=""),
            Measure(what=_cpu(_many), unit="s", budget=Budget(at_most=0.002) if _budgeted else None),
            Measure(what=_beside(_many), unit=""),
            Measure(what=_FALLING, unit="", budget=Budget(at_most=1.0) if _budgeted else None),
            Measure(what=_FALLING_BESIDE, unit="", budget=Budget(at_most=1.0) if _budgeted else None),
            Measure(what=_SPREAD, unit="", budget=Budget(at_most=3.0) if _budgeted else None),
            Measure(what=_LONGEST, unit="s"),
            Measure(what=_LATEST, unit="s"),
            Measure(what=_LAG_SPREAD, unit="", budget=Budget(at_most=3.0) if _budgeted else None),
            Measure(what=_LAG_LONGEST, unit="s"),
            Measure(what=_LAG_MEDIAN, unit="s"),
            *(Measure(what=_each(what, count), unit="") for what in _COUNTED for count in (_few, _many)),
        ],
        run=_run(_few, _many),
        pairs=1 if _budgeted else 3,
        on_request=not _budgeted,
        plane=Plane(nodes=10),
    )
