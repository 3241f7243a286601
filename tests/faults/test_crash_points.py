"""The operator and the API are killed at every request that changes something; the end is always the same.

The oracle is differential: a run without a fault says what must come out (`rig.converged`).
"""

from __future__ import annotations

import random

import pytest
from faults.proxy import Act, Fault, crash_after, crash_before
from faults.real_worker import really_ingested
from faults.rig import Api, Run
from faults.scenarios import SCENARIOS
from faults.stand import FULL, Arrange, Reference, Stand

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

SAMPLE = 4
SEED = 20
WITH_REAL_WORKERS = 16
WHEN = {"before it is sent": crash_before, "after it is committed": crash_after}


def killed(victim: str, when: str, number: int) -> Arrange:
    """Kill a process at its n-th request that changes something."""

    def arrange(run: Run, api: Api | None) -> Fault:
        process, proxy = run.operator, run.proxy
        if victim == "API":
            assert api is not None
            process, proxy = api.process, api.proxy
        act: Act = WHEN[when](process.kill)
        return proxy.add(lambda call: call.number == number, act)

    return arrange


def name_of(victim: str, when: str, number: int) -> str:
    return f"{victim} killed at a request {when}: {number}"


def every_point(reference: Reference) -> dict[str, Arrange]:
    """Return a kill before and after each request of the reference run."""
    return {
        name_of(victim, when, number): killed(victim, when, number)
        for victim, changes in reference.changes.items()
        for number in range(1, len(changes) + 1)
        for when in WHEN
    }


def unsure(reference: Reference) -> set[str]:
    """Return the kills at the operator's last requests, which another run may not come to."""
    return {name_of("operator", when, number) for when in WHEN for number in reference.unsure}


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_kill_at_any_request_changes_nothing_in_the_end(stand: Stand, name: str) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    reference = await stand.reference(SCENARIOS[name])
    points = every_point(reference)
    if not FULL:
        sample = random.Random(SEED).sample([point for point in points if point.startswith("operator")], SAMPLE)
        points = {point: arrange for point, arrange in points.items() if point in sample or point.startswith("API")}
    await stand.survive(
        SCENARIOS[name],
        points,
        invariants=(1, 2, 3, 4, 5, 8),
        fault_of=lambda point: f"{point.rpartition(':')[0]} ({name})",
        may_miss=unsure(reference),
    )


@pytest.mark.skipif(not FULL, reason="runs the worker some hundred times: part of `make faults`")
async def test_with_the_real_worker_each_effect_happens_once(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 6, 8: what lies in the store is part of the comparison."""
    reference = await stand.reference(really_ingested)
    written = reference.outcome.objects["store"]
    assert (
        sum(name.endswith(".parquet") for name in written)
        == reference.outcome.objects["ingestionJob"]["status"]["segments"]["total"]
    )
    points = every_point(reference)
    chosen = random.Random(SEED).sample(sorted(points), WITH_REAL_WORKERS)
    await stand.survive(
        really_ingested,
        {point: points[point] for point in chosen},
        invariants=(1, 2, 3, 4, 5, 6, 8),
        fault_of=lambda point: f"{point.rpartition(':')[0]} (real worker and store)",
        may_miss=unsure(reference),
    )
