"""A bound on how much of one kind of work goes on at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ingestion_api.problems import busy


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
        if self._free.locked():
            try:
                async with asyncio.timeout(self._wait):
                    await self._free.acquire()
            except TimeoutError:
                raise busy(f"too many {self._what} at the same time; try again") from None
        else:
            await self._free.acquire()
        try:
            yield
        finally:
            self._free.release()
