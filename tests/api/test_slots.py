"""Slots: so many at a time, and of several tenants none takes all."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest
from ingestion_api.problems import ProblemError
from ingestion_api.slots import Slots


async def held(slots: Slots, namespace: str, *, stack: AsyncExitStack) -> int:
    """Take slots until one is refused; return how many there were."""
    count = 0
    while True:
        try:
            await stack.enter_async_context(slots.one(namespace=namespace))
        except ProblemError:
            return count
        count += 1


@pytest.mark.parametrize(
    ("count", "tenants", "first", "second"), [(8, 1, 8, 0), (8, 3, 6, 2), (4, 2, 3, 1), (2, 2, 1, 1), (1, 2, 1, 0)]
)
async def test_of_several_tenants_none_takes_the_last_quarter(
    count: int, tenants: int, first: int, second: int
) -> None:
    slots = Slots(what="uploads", count=count, tenants=tenants, wait_seconds=0.01)
    async with AsyncExitStack() as stack:
        assert await held(slots, "team-a", stack=stack) == first
        assert await held(slots, "team-b", stack=stack) == second
    async with AsyncExitStack() as stack:  # all came back
        assert await held(slots, "team-b", stack=stack) == first


async def test_a_request_that_waits_in_vain_takes_no_slot_of_its_tenant() -> None:
    slots = Slots(what="searches", count=4, tenants=2, wait_seconds=0.01)
    never = asyncio.Event()
    tasks = [await slots.start(never.wait, namespace="team-a") for _ in range(3)]
    tasks.append(await slots.start(never.wait, namespace="team-b"))
    for _ in range(5):
        with pytest.raises(ProblemError):
            await slots.start(never.wait, namespace="team-b")
    never.set()
    await asyncio.wait(tasks)
    await asyncio.sleep(0)  # slots come back when the tasks' ends are told
    for _ in range(3):
        await slots.start(never.wait, namespace="team-b")
