"""In what order `make bench` runs a case's two sides."""

from __future__ import annotations

import pytest
from ingestion_bench.case import PAIRS, Duel, Sample
from ingestion_bench.run import warm_up


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
