"""The work queue: when a key is handed out."""

from __future__ import annotations

import asyncio

from ingestion_operator.queue import WorkQueue


async def test_a_timer_that_ends_a_tick_early_does_not_keep_the_queue_from_its_key() -> None:
    seconds = 0.0
    queue = WorkQueue(clock=lambda: seconds)
    queue.add_after("team-a/handbook", 1.0)
    seconds = 1.0 - 1e-9  # and it stands still there: the rest is too little to wait for
    assert await asyncio.wait_for(queue.get(), timeout=60) == "team-a/handbook"
