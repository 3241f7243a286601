"""The work queue: when a key is handed out."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from ingestion_operator.queue import WorkQueue


async def settle() -> None:
    """Let all go on that waits for its turn alone, whatever time that takes."""
    for _ in range(20):
        await asyncio.sleep(0)


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
    await settle()
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


async def test_keys_with_news_go_before_keys_that_are_due() -> None:
    queue = WorkQueue()
    queue.add_after("team-a/due", 0)
    queue.add("team-a/happened")
    assert [await queue.get(), await queue.get()] == ["team-a/happened", "team-a/due"]


@pytest.mark.parametrize("due", [False, True])
async def test_namespaces_take_turns(*, due: bool) -> None:
    """One that has many keys keeps nobody from the others; within a namespace the first comes first."""
    queue = WorkQueue(most_due=10)

    def add(key: str) -> None:
        if due:
            queue.add_after(key, 0)
        else:
            queue.add(key)

    for key in ("a/1", "a/2", "a/3", "a/4", "b/1", "b/2", "c/1"):
        add(key)
    assert [await queue.get() for _ in range(3)] == ["a/1", "b/1", "c/1"]
    add("c/2")
    assert len(queue) == 5
    assert [await queue.get() for _ in range(5)] == ["a/2", "b/2", "c/2", "a/3", "a/4"]


async def test_what_is_due_waits_for_no_news_of_other_namespaces() -> None:
    """Of its own it does."""
    queue = WorkQueue(most_due=10)
    for key in ("a/1", "a/2", "a/3"):
        queue.add(key)
    for key in ("b/due", "c/due"):
        queue.add_after(key, 0)
    queue.add("c/happened")
    assert [await queue.get() for _ in range(6)] == ["a/1", "b/due", "c/happened", "a/2", "c/due", "a/3"]


async def test_to_take_one_of_many_keys_takes_no_longer_than_one_of_few() -> None:
    """A dict finds its first member behind the places of all that have gone."""

    async def seconds(keys: int) -> float:
        queue, each = WorkQueue(), []
        for number in range(keys):
            queue.add(f"team-a/{number}")
        while len(queue) > 500:
            queue.done(await queue.get())
        while len(queue) > 0:
            begun = time.process_time()
            for _ in range(100):
                queue.done(await queue.get())
            each.append(time.process_time() - begun)
        return min(each)

    assert await seconds(100_000) < 10 * await seconds(500)


async def test_how_long_the_first_has_waited_whosever_turn_it_is() -> None:
    seconds = 0.0
    queue = WorkQueue(clock=lambda: seconds)
    for key in ("a/1", "b/1", "a/2"):
        queue.add(key)
        seconds += 1
    assert queue.oldest_age == 3
    assert [await queue.get(), queue.oldest_age] == ["a/1", 2]
    queue.add("a/3")
    assert [await queue.get(), queue.oldest_age] == ["b/1", 1]


async def test_a_queue_stands_still_while_keys_wait_and_none_is_taken() -> None:
    seconds = 0.0
    queue = WorkQueue(clock=lambda: seconds)
    seconds = 100.0
    assert queue.stands_still == 0, "nothing waits"
    for number in range(3):
        queue.add(f"team-a/{number}")
    seconds = 110.0
    assert queue.stands_still == 10
    await queue.get()
    assert (queue.oldest_age, queue.stands_still) == (10, 0)
    seconds = 115.0
    assert (queue.oldest_age, queue.stands_still) == (15, 5)


async def test_a_key_that_is_due_when_something_happens_to_it_is_handed_out_once() -> None:
    queue = WorkQueue()
    for key in ("team-a/first", "team-a/second"):
        queue.add_after(key, 0)
    queue.add("team-a/second")
    assert [await queue.get(), await queue.get()] == ["team-a/second", "team-a/first"]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), timeout=0.05)


async def test_a_key_that_is_due_again_when_its_work_ends_goes_behind_news() -> None:
    queue = WorkQueue()
    queue.add("team-a/ended")
    assert await queue.get() == "team-a/ended"
    queue.add_after("team-a/ended", 0)
    queue.add("team-a/happened")
    queue.done("team-a/ended")
    assert [await queue.get(), await queue.get()] == ["team-a/happened", "team-a/ended"]


async def test_keys_that_are_due_leave_workers_for_news() -> None:
    queue = WorkQueue(most_due=2)
    at_work: set[str] = set()
    release = asyncio.Event()

    async def handle(key: str) -> None:
        at_work.add(key)
        if key.startswith("due"):
            await release.wait()
        at_work.discard(key)

    work = asyncio.create_task(queue.work(handle, workers=3))
    for number in range(10):
        queue.add_after(f"due/{number}", 0)
    await settle()
    assert at_work == {"due/0", "due/1"}
    queue.add("happened/0")
    await settle()
    assert len(queue) == 8  # those that are due
    release.set()
    await settle()
    assert len(queue) == 0
    assert not at_work
    work.cancel()


async def test_news_that_the_work_took_in_is_not_worked_on_again() -> None:
    taken_in = {"team-a/written": True, "team-a/patched": False}
    queue = WorkQueue(done_with=lambda key: taken_in[key])
    for key in taken_in:
        queue.add(key)
        assert await queue.get() == key
        queue.add(key)
        queue.done(key)
    assert await asyncio.wait_for(queue.get(), timeout=60) == "team-a/patched"
    assert len(queue) == 0


async def test_news_is_still_news_after_an_error() -> None:
    queue = WorkQueue(jitter=lambda: 0.01)
    queue.add("team-a/happened")
    await queue.get()
    queue.retry("team-a/happened")
    queue.done("team-a/happened")
    queue.add_after("team-a/due", 0)
    assert await queue.get() == "team-a/due"
    assert await asyncio.wait_for(queue.get(), timeout=5) == "team-a/happened"  # no room for what is due
