"""Runs a case: pairs of runs, ours and theirs in turn, so that what the machine does meanwhile meets both."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import median

from local_cluster.progress import say

from ingestion_bench.case import PAIRS, Case, Duel, Sample
from ingestion_bench.result import Result
from ingestion_bench.stand import standing


async def run(case: Case, *, pairs: int | None = None) -> list[Result]:
    """Run a case on a control plane of its own and return its results.

    Args:
        case: what to run.
        pairs: how many, instead of the case's own number.
    """
    count = pairs or case.pairs
    say(f"{case.name}: {case.about}" + (f", against {case.baseline}" if case.baseline else ""))
    with tempfile.TemporaryDirectory(prefix=f"bench-{case.name}-") as folder:
        async with standing(case.plane, folder=Path(folder)) as stand, case.open(stand) as duel:
            await warm_up(duel, pairs=count)
            samples = []
            for number in range(count):
                begun = time.perf_counter()
                ours, theirs = await _pair(duel, first=number % 2 == 0)
                samples.append((ours, theirs))
                seconds = time.perf_counter() - begun
                say(f"{case.name}: {number + 1} of {count}, {seconds:.1f} s: {_line(ours, theirs)}")
    results = []
    for measure in case.measures:
        own = [ours[measure.what] for ours, _ in samples]
        other = [theirs[measure.what] for _, theirs in samples if measure.what in theirs]
        results.append(Result.of(case.name, case.baseline, measure, own, other))
    for result in results:
        middle = f", ratio {median(result.ratios):.2f}" if result.theirs else ""
        say(f"{case.name}: {result.what}: {median(result.ours):.4g} {result.unit}{middle} {result.verdict}")
    return results


async def warm_up(duel: Duel, *, pairs: int) -> None:
    """Run what does not count: nobody is to be the first on a fresh control plane.

    Where runs are short, connections, caches and compiled rules have to be there. Where they are long, and few, kwok
    needs more than twice the processor time for each of the first thousands of pods: one run of theirs is enough.

    Args:
        duel: what is compared.
        pairs: how many will count.
    """
    if pairs >= PAIRS:
        await duel.ours()
    if duel.theirs is not None:
        await duel.theirs()


async def _pair(duel: Duel, *, first: bool) -> tuple[Sample, Sample]:
    """Run both; ours first in every other pair."""
    if duel.theirs is None:
        return await duel.ours(), {}
    if first:
        ours = await duel.ours()
        return ours, await duel.theirs()
    theirs = await duel.theirs()
    return await duel.ours(), theirs


def _line(ours: Sample, theirs: Sample) -> str:
    parts = []
    for what, value in ours.items():
        beside = f" / {theirs[what]:.3g}" if what in theirs else ""
        parts.append(f"{value:.3g}{beside}")
    return ", ".join(parts)
