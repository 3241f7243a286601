"""Two operators that know nothing of each other, as when a Lease is not used, or is believed in by both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count

import pytest
from faults.proxy import delay
from faults.rig import Outcome, Run, converged, outcome_of
from faults.scenarios import annotation, cancel_then_retry, single_pass, suspend_and_resume
from faults.stand import FULL, Stand

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]


async def test_two_operators_at_once_do_everything_once(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    scenarios = (annotation, single_pass, cancel_then_retry, suspend_and_resume)

    def together(expected: Outcome, number: int) -> Callable[[Run], Awaitable[int]]:
        async def play(run: Run) -> int:
            async with run.another_operator():
                await scenarios[number](run, None)
                await converged(run, expected)
            return 1

        return play

    cases = {
        f"{scenario.__name__} {turn}": together((await stand.reference(scenario)).outcome, number)
        for number, scenario in enumerate(scenarios if FULL else scenarios[:1])
        for turn in range(5 if FULL else 1)
    }
    await stand.each("two operators without a Lease", cases, invariants=(1, 2, 3, 4, 5, 8))


async def test_a_request_that_arrives_when_all_is_over_changes_nothing(stand: Stand) -> None:
    """Invariants 1, 2, 3, 7, 8: an operator's request is held on its way until another operator has ended the job."""
    reference = await stand.reference(annotation)

    def held(number: int) -> Callable[[Run], Awaitable[int]]:
        async def play(run: Run) -> int:
            release = asyncio.Event()
            fault = run.proxy.add(lambda call: call.number == number, delay(release))
            scenario = asyncio.create_task(annotation(run, None))
            while not fault.injected and not scenario.done():
                await asyncio.sleep(0.02)
            async with run.another_operator():
                await scenario
                release.set()
                await objects_are(run, reference.outcome)
            return fault.injected

        return play

    numbers = range(1, len(reference.changes["operator"]) + 1)
    creations = [number for number, change in zip(count(1), reference.changes["operator"]) if change == "create jobs"]
    cases = {f"request {number}": held(number) for number in (numbers if FULL else creations[:1])}
    await stand.each(
        "request delayed until another operator has ended the job",
        cases,
        invariants=(1, 2, 3, 7, 8),
        may_miss={f"request {number}" for number in reference.unsure},
    )


async def objects_are(run: Run, expected: Outcome) -> None:
    """Wait for the expected objects, with pods of the expected stages and segments, and rest.

    A late Job may have come and gone, so how many there were is free, and of how many pods. A ConfigMap that comes late
    without its Job stays until the IngestionJob goes; no pod reads it.
    """
    deadline = time.monotonic() + run.patience
    while True:
        found = await outcome_of(run)
        jobs = {job["name"] for job in found.objects["jobs"]}
        in_use = [item for item in found.objects["configMaps"] if item["name"] in jobs]
        wanted = replace(expected.at_least(found), counts=found.counts)
        difference = wanted.difference(replace(found, objects={**found.objects, "configMaps": in_use}))
        if not difference:
            break
        assert time.monotonic() < deadline, f"{difference}\n{run.log_end()}"
        await asyncio.sleep(0.1)
    await run.at_rest()
