"""Reads the operator's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families


async def scrape(client: httpx.AsyncClient) -> dict[str, float]:
    """Return the samples of /metrics by name and labels, as in `name{label="value"}`."""
    answer = await client.get("/metrics")
    answer.raise_for_status()
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


@dataclass(frozen=True, kw_only=True)
class Spread:
    """What a histogram says, as exactly as its buckets do.

    Args:
        median: within its bucket by proportion.
        largest: the upper bound of the last bucket that holds anything: never too small.
    """

    median: float
    largest: float


def spread(before: Mapping[str, float], after: Mapping[str, float], *, histogram: str, labels: str) -> Spread:
    """Return how the observations between two scrapes were spread.

    Args:
        before, after: from `scrape`.
        histogram: its name.
        labels: all but `le`, as in `name="value"`.
    """
    start, end = f'{histogram}_bucket{{le="', f'",{labels}}}'
    names = [name for name in after if name.startswith(start) and name.endswith(end)]
    bounds = [float(name.removeprefix(start).removesuffix(end)) for name in names]
    counts = [after[name] - before.get(name, 0.0) for name in names]  # cumulative
    total = counts[-1]
    assert total, f"{histogram}: nothing was observed"
    low, below = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= total / 2:
            median = low + (bound - low) * (total / 2 - below) / (count - below)
            break
        low, below = bound, count
    largest = next(bound for bound, count in zip(bounds, counts, strict=True) if count == total)
    return Spread(median=median, largest=largest)
