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
        tenants: how many share them; if it is several, none may hold the last quarter, so that the others get on.
        wait_seconds: how long to wait for one.
    """

    def __init__(self, *, what: str, count: int, tenants: int, wait_seconds: float) -> None:
        self._what = what
        self._wait = wait_seconds
        self._free = asyncio.Semaphore(count)
        self._each = count if tenants < 2 else max(1, count - max(1, count // 4))
        self._own: dict[str, asyncio.Semaphore] = {}

    @asynccontextmanager
    async def one(self, *, namespace: str) -> AsyncIterator[None]:
        """Hold a slot.

        Args:
            namespace: the tenant's.

        Raises:
            ProblemError: 429 when none is free in time.
        """
        own = await self._take(namespace)
        try:
            yield
        finally:
            self._give_back(own)

    async def start(self, work: Callable[[], Coroutine[Any, Any, _Result]], *, namespace: str) -> asyncio.Task[_Result]:
        """Begin work that holds a slot until it has ended, whether or not somebody still waits for it.

        Args:
            work: what to begin.
            namespace: the tenant's.

        Raises:
            ProblemError: 429 when none is free in time.
        """
        own = await self._take(namespace)
        task = asyncio.create_task(work())
        task.add_done_callback(lambda task: self._ended(task, own))
        return task

    def _ended(self, task: asyncio.Task[Any], own: asyncio.Semaphore) -> None:
        self._give_back(own)
        if not task.cancelled():
            # Looked at here, in case nobody else does: asyncio logs an error that nobody has looked at.
            task.exception()

    async def _take(self, namespace: str) -> asyncio.Semaphore:
        own = self._own.setdefault(namespace, asyncio.Semaphore(self._each))
        try:
            async with asyncio.timeout(self._wait):
                await own.acquire()
                try:
                    await self._free.acquire()
                except BaseException:
                    own.release()
                    raise
        except TimeoutError:
            raise busy(f"too many {self._what} at the same time; try again") from None
        return own

    def _give_back(self, own: asyncio.Semaphore) -> None:
        self._free.release()
        own.release()
