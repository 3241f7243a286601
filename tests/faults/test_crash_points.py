"""The operator and the API are killed at every request that changes something; the end is always the same.

The oracle is differential: a run without a fault says what must come out (`rig.converged`).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
import traceback
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults.proxy import Fault, crash_after, crash_before
from faults.rig import Outcome, api_of, converged, running, settled_outcome
from faults.scenarios import SCENARIOS, Scenario, segmented
from ingestion_crds.kube import KubeClient
from local_cluster.control_plane import ControlPlane
from support.campaign import record

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

FULL = os.environ.get("INGESTION_FAULTS") == "full"
SIDE_BY_SIDE = 8
SAMPLE = 4
SEED = 20
INVARIANTS = (1, 2, 3, 4, 5, 7, 8)
WHEN = {"before it is sent": crash_before, "after it is committed": crash_after}


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Where runs are made."""

    control_plane: ControlPlane
    kube: KubeClient
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Point:
    """A request at which a process is killed."""

    victim: str
    number: int
    when: str

    def __str__(self) -> str:
        return f"{self.victim} killed at change {self.number} {self.when}"


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a run came to, how many changes each process asked for, and how often the point was reached."""

    outcome: Outcome
    changes: dict[str, list[str]]
    reached: int


async def play(
    stand: Stand, scenario: Scenario, *, point: Point | None = None, expected: Outcome | None = None
) -> Played:
    """Play a scenario, kill at the point, and check the end against the expected outcome."""
    async with AsyncExitStack() as stack:
        run = await stack.enter_async_context(
            running(control_plane=stand.control_plane, kube=stand.kube, folder=stand.folder)
        )
        victims = {"operator": (run.proxy, run.operator)}
        api = None
        if scenario is segmented:
            api = await stack.enter_async_context(api_of(run))
            victims["API"] = (api.proxy, api.process)
        fault: Fault | None = None
        if point is not None:
            proxy, process = victims[point.victim]
            fault = proxy.add(lambda call: call.number == point.number, WHEN[point.when](process.kill))
        await scenario(run, api)
        outcome = expected or await settled_outcome(run)
        await converged(run, outcome)
        changes = {victim: [str(call) for call in proxy.calls] for victim, (proxy, _) in victims.items()}
        return Played(outcome=outcome, changes=changes, reached=fault.injected if fault else 0)


async def sweep(stand: Stand, name: str, reference: Played, points: list[Point]) -> dict[Point, str]:
    """Play a scenario once for each point, several side by side; return what went wrong by point."""
    lanes = asyncio.Semaphore(SIDE_BY_SIDE)
    wrong: dict[Point, str] = {}
    reached: dict[Point, int] = {}

    async def one(point: Point) -> None:
        async with lanes:
            try:
                played = await play(stand, SCENARIOS[name], point=point, expected=reference.outcome)
                reached[point] = played.reached
            except Exception:
                wrong[point] = traceback.format_exc()
                reached[point] = 1

    await asyncio.gather(*(one(point) for point in points))
    for victim in reference.changes:
        for when in WHEN:
            ours = [point for point in points if (point.victim, point.when) == (victim, when)]
            injected = sum(reached[point] for point in ours)
            if injected:
                survived = injected - sum(point in wrong for point in ours)
                record(f"{victim} killed {when}: {name}", injected=injected, survived=survived, invariants=INVARIANTS)
    return wrong


def every_point(reference: Played) -> list[Point]:
    return [
        Point(victim=victim, number=number, when=when)
        for victim, changes in reference.changes.items()
        for number in range(1, len(changes) + 1)
        for when in WHEN
    ]


@pytest.fixture
def stand(control_plane: ControlPlane, kube: KubeClient, tmp_path: Path) -> Stand:
    return Stand(control_plane=control_plane, kube=kube, folder=tmp_path)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_kill_at_any_request_changes_nothing_in_the_end(stand: Stand, name: str) -> None:
    """Invariants 1, 2, 3, 4, 5, 7, 8."""
    began = time.monotonic()
    reference = await play(stand, SCENARIOS[name])
    points = every_point(reference)
    if not FULL:
        points = random.Random(SEED).sample(points, SAMPLE) + [point for point in points if point.victim == "API"]
    wrong = await sweep(stand, name, reference, points)
    print(f"{name}: {len(points)} of {len(every_point(reference))} points in {time.monotonic() - began:.0f} s")
    print("\n".join(f"{victim}: {' · '.join(changes)}" for victim, changes in reference.changes.items()))
    assert not wrong, "\n\n".join(f"{point}\n{error}" for point, error in wrong.items())
