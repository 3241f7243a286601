"""The work queue: when a key is handed out."""

from __future__ import annotations

import asyncio
from typing import Any

from ingestion_operator.queue import WorkQueue


async def test_a_timer_that_ends_a_tick_early_does_not_keep_the_queue_from_its_key() -> None:
    seconds = 0.0
    queue = WorkQueue(clock=lambda: seconds)
    queue.add_after("team-a/handbook", 1.0)
    seconds = 1.0 - 1e-9  # and it stands still there: the rest is too little to wait for
    assert await asyncio.wait_for(queue.get(), timeout=60) == "team-a/handbook"


async def test_a_key_wakes_one_worker_and_not_all_that_wait() -> None:
    loop, queue, handled = asyncio.get_running_loop(), WorkQueue(), asyncio.Event()
    callbacks = 0
    call_soon = loop.call_soon

    def counted(*args: Any, **kwargs: Any) -> asyncio.Handle:
        nonlocal callbacks
        callbacks += 1
        return call_soon(*args, **kwargs)

    async def handle(key: str) -> None:
        handled.set()

    work = asyncio.create_task(queue.work(handle, workers=100))
    await asyncio.sleep(0.01)
    loop.call_soon = counted  # type: ignore[method-assign]
    queue.add("team-a/handbook")
    await asyncio.wait_for(handled.wait(), timeout=60)
    await asyncio.sleep(0.01)
    del loop.call_soon  # type: ignore[method-assign]
    assert callbacks < 20
    work.cancel()


async def test_a_key_that_is_due_sooner_than_another_is_not_kept_by_it() -> None:
    queue = WorkQueue()
    queue.add_after("team-a/later", 3_600.0)
    queue.add_after("team-a/sooner", 0.01)
    assert await asyncio.wait_for(queue.get(), timeout=60) == "team-a/sooner"


async def test_a_worker_that_is_cancelled_takes_no_key_with_it() -> None:
    queue = WorkQueue()
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("team-a/handbook")
    waiting.cancel()
    assert await asyncio.wait_for(queue.get(), timeout=60) == "team-a/handbook"
