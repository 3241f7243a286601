"""The work queue: keys to look at, each at most once at a time, again later, and more slowly after errors.

The shape is that of client-go's workqueue: https://pkg.go.dev/k8s.io/client-go/util/workqueue
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable
from typing import Final

_FIRST_DELAY_SECONDS: Final = 0.2
_LONGEST_DELAY_SECONDS: Final = 60.0
# A timer may end a tick of the clock early: who then sets one for the rest of it, sets it again and again for nothing.
_TICK_SECONDS: Final = 0.001


class WorkQueue:
    """Keys in order of arrival.

    A key added while it waits is kept once; added while it is worked on, it is worked on again afterwards.

    Args:
        clock: seconds that only grow; for tests.
        jitter: a factor around 1 for each delay after an error; for tests.
        waited: is told how many seconds each key has waited when a worker takes it.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] | None = None,
        jitter: Callable[[], float] | None = None,
        waited: Callable[[float], None] | None = None,
    ) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._jitter = jitter or (lambda: random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, guards nothing
        self._waited = waited
        self._waiting: dict[str, float] = {}  # key → when it was added; a dict keeps the order
        self._working: set[str] = set()
        self._again: set[str] = set()
        self._later: list[tuple[float, int, str]] = []
        self._due: dict[str, float] = {}
        self._errors: dict[str, int] = {}
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        # As many permits as keys wait: each key wakes one worker, where an event would wake them all.
        self._ready = asyncio.Semaphore(0)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest_age(self) -> float:
        """Seconds that the first key has waited; 0 when none waits."""
        return self._clock() - next(iter(self._waiting.values())) if self._waiting else 0.0

    def add(self, key: str) -> None:
        """Have a key looked at as soon as a worker is free."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting[key] = self._clock()
            self._ready.release()

    def add_after(self, key: str, delay: float) -> None:
        """Have a key looked at after so many seconds, or sooner if that was wished before."""
        if delay <= 0:
            self.add(key)
            return
        when = self._clock() + delay
        if self._due.get(key, float("inf")) <= when:
            return
        self._due[key] = when
        heapq.heappush(self._later, (when, next(self._order), key))
        if self._later[0][0] == when:
            self._set_timer()

    def retry(self, key: str) -> float:
        """Have a key looked at again after an error, doubling the delay each time; return the delay in seconds."""
        count = self._errors[key] = self._errors.get(key, 0) + 1
        delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(count - 1, 16)) * self._jitter()
        self.add_after(key, delay)
        return delay

    def forget(self, key: str) -> None:
        """Forget a key's errors: it went well."""
        self._errors.pop(key, None)

    async def get(self) -> str:
        """Wait for a key and take it; the worker calls `done` with it."""
        await self._ready.acquire()
        key, since = next(iter(self._waiting.items()))
        del self._waiting[key]
        if self._waited is not None:
            self._waited(self._clock() - since)
        self._working.add(key)
        return key

    def done(self, key: str) -> None:
        """Give a key back."""
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _set_timer(self) -> None:
        """Have what is due first moved when it is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._later:
            delay = max(0.0, self._later[0][0] - self._clock())
            self._timer = asyncio.get_running_loop().call_later(delay, self._move_due)

    def _move_due(self) -> None:
        now = self._clock()
        while self._later and self._later[0][0] <= now + _TICK_SECONDS:
            when, _, key = heapq.heappop(self._later)
            if self._due.get(key) == when:
                del self._due[key]
                self.add(key)
        self._set_timer()

    async def work(self, handle: Callable[[str], Awaitable[None]], *, workers: int) -> None:
        """Let so many workers call `handle` with keys until cancelled. `handle` must not raise."""

        async def worker() -> None:
            while True:
                key = await self.get()
                try:
                    await handle(key)
                finally:
                    self.done(key)

        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())
