"""How large an IngestionJob gets, as the API server stores it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import orjson

from ingestion_bench import failed
from ingestion_bench.case import Budget, Duel, Measure, Sample, register
from ingestion_bench.failed import scattered
from ingestion_bench.past import Past
from ingestion_bench.stand import Plane, Stand

LARGE = Past(segments=10_000, failed=scattered(count=500, of=10_000), attempts=20)
LARGEST = Past(segments=100_000, failed=scattered(count=5_000, of=100_000), attempts=20)
LARGE_BYTES = 64 * 1024
LARGEST_BYTES = 1024**2


async def stored_bytes(stand: Stand, past: Past) -> int:
    """Store a job that went through a past, and return the bytes of its JSON, managedFields included."""
    job = await failed.store(stand, past, with_last_job=False)
    return len(orjson.dumps(await stand.get(job.metadata.name)))


def _run(past: Past) -> Callable[[Stand], AsyncIterator[Duel]]:
    async def duel(stand: Stand) -> AsyncIterator[Duel]:
        async def ours() -> Sample:
            return {"IngestionJob after 20 attempts": await stored_bytes(stand, past)}

        yield Duel(ours=ours)

    return duel


for _past, _limit in (
    (Past(segments=1_000, failed=scattered(count=50, of=1_000), attempts=20), None),
    (LARGE, LARGE_BYTES),
    (LARGEST, LARGEST_BYTES),
):
    _n, _k = _past.segments, len(_past.failed)
    register(
        name=f"size-{_k}-of-{_n}",
        about=f"the stored IngestionJob of {_n:,} segments, {_k:,} of which failed in each of 20 attempts",
        measures=[
            Measure(
                what="IngestionJob after 20 attempts",
                unit="bytes",
                budget=Budget(at_most=_limit) if _limit else None,
                growth={"N": _n},
            )
        ],
        run=_run(_past),
        pairs=1,
        plane=Plane(nodes=0),
    )
