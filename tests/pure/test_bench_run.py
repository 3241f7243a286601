"""In what order `make bench` runs a case's two sides."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from ingestion_bench.case import CASES, PAIRS, Duel, Sample
from ingestion_bench.cases.running import Running
from ingestion_bench.run import warm_up
from ingestion_bench.stand import Stand


@pytest.mark.parametrize(
    ("pairs", "baseline", "ran"),
    [
        (PAIRS, True, ["ours", "theirs"]),
        (1, True, ["theirs"]),
        (PAIRS, False, ["ours"]),
        (1, False, []),
    ],
    ids=["short runs", "long runs", "short runs of a count", "long runs of a count"],
)
async def test_nobody_is_the_first_on_a_fresh_control_plane(pairs: int, baseline: bool, ran: list[str]) -> None:
    done: list[str] = []

    async def ours() -> Sample:
        done.append("ours")
        return {}

    async def theirs() -> Sample:
        done.append("theirs")
        return {}

    await warm_up(Duel(ours=ours, theirs=theirs if baseline else None), pairs=pairs)
    assert done == ran


async def test_few_running_jobs_are_not_the_first_either(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    async def run(_: Running, count: int, *, minimal: bool = False) -> tuple[list[float], Sample, Sample]:
        ran.append(count)
        return [1.0] * (1 + minimal), {}, {}

    monkeypatch.setattr(Running, "_run", run)
    async with CASES["running-1000"].open(Mock(spec=Stand)) as duel:
        assert ran == [100]
        await duel.ours()
    assert ran == [100, 100, 100, 1000, 1000]
