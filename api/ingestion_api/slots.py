"""A bound on how much of one kind of work goes on at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from ingestion_api.problems import busy

_Result = TypeVar("_Result")


class Slots:
    """So many at a time; whoever waits too long is told to come again.

    Args:
        what: for the message, in the plural.
        count: slots.
        wait_seconds: how long to wait for one.
    """

    def __init__(self, *, what: str, count: int, wait_seconds: float) -> None:
        self._what = what
        self._wait = wait_seconds
        self._free = asyncio.Semaphore(count)

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a slot.

        Raises:
            ProblemError: 429 when none is free in time.
        """
        await self._take()
        try:
            yield
        finally:
            self._free.release()

    async def start(self, work: Callable[[], Coroutine[Any, Any, _Result]]) -> asyncio.Task[_Result]:
        """Begin work that holds a slot until it has ended, whether or not somebody still waits for it.

        Args:
            work: what to begin.

        Raises:
            ProblemError: 429 when none is free in time.
        """
        await self._take()
        task = asyncio.create_task(work())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._free.release()
        if not task.cancelled():
            # Looked at here, as nobody else may: asyncio logs an error that was never looked at.
            task.exception()

    async def _take(self) -> None:
        if self._free.locked():
            try:
                async with asyncio.timeout(self._wait):
                    await self._free.acquire()
            except TimeoutError:
                raise busy(f"too many {self._what} at the same time; try again") from None
        else:
            await self._free.acquire()
