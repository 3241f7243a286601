"""The work queue: keys to look at, each at most once at a time, again later, and more slowly after errors.

Namespaces take turns: else one that has ten thousand keys would keep the operator from those of all others. In its turn
a namespace gives a key that something happened to, and one that is merely due only where it has no other. Else, when
the API server is slow, a thousand running jobs whose counts are due would keep the operator from those that end or are
retried.

The shape is that of client-go's workqueue: https://pkg.go.dev/k8s.io/client-go/util/workqueue
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

_FIRST_DELAY_SECONDS: Final = 0.2
_LONGEST_DELAY_SECONDS: Final = 60.0
# A timer may go off a tick of the clock early. What is due within a tick is due then: a timer for the rest of the tick
# would go off early again.
_TICK_SECONDS: Final = 0.001


@dataclass(slots=True)
class _Keys:
    """The keys of a namespace that wait, each since when; in the order of arrival."""

    # A dict would find its first member behind the places of all that have gone.
    added: OrderedDict[str, float] = field(default_factory=OrderedDict)
    due: OrderedDict[str, float] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.added) + len(self.due)


class _Line:
    """Keys that wait: namespaces take turns, and in each of them those come first that were added."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, _Keys] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._turns.values()))

    @property
    def any_due(self) -> bool:
        """True when there is one that is merely due."""
        return any(keys.due for keys in self._turns.values())

    def oldest(self, now: float) -> float:
        """Return since when the first of those waits that were added; now when there is none."""
        return min((next(iter(keys.added.values())) for keys in self._turns.values() if keys.added), default=now)

    def add(self, key: str, since: float) -> bool:
        """Have a key wait behind the others of its namespace that were added; return False if it does already."""
        keys = self._of(key)
        keys.due.pop(key, None)
        if key in keys.added:
            return False
        keys.added[key] = since
        return True

    def fall_due(self, key: str, since: float) -> bool:
        """Have a key wait behind all others of its namespace; return False if it waits already."""
        keys = self._of(key)
        if key in keys.added or key in keys.due:
            return False
        keys.due[key] = since
        return True

    def _of(self, key: str) -> _Keys:
        """Return the keys of a key's namespace, to which it is to belong."""
        namespace = key.partition("/")[0]
        keys = self._turns.get(namespace)
        if keys is None:
            keys = self._turns[namespace] = _Keys()
        return keys

    def take(self, *, due: bool) -> tuple[str, float, bool] | None:
        """Return the key whose turn it is; the turn passes to the next namespace.

        Args:
            due: it may be one that is merely due.

        Returns:
            The key, since when it waits, and whether it is merely due; None when there is none.
        """
        namespace = next((namespace for namespace, keys in self._turns.items() if keys.added or due), None)
        if namespace is None:
            return None
        keys = self._turns.pop(namespace)
        only_due = not keys.added
        taken = (*(keys.due if only_due else keys.added).popitem(last=False), only_due)
        if keys:
            self._turns[namespace] = keys
        return taken


class WorkQueue:
    """Keys, of all namespaces in turn, in order of arrival; of each, those that were added before those that are due.

    A key added while it waits is kept once; added while it is worked on, it is worked on again afterwards, unless the
    work took in what it was added for.

    Args:
        clock: seconds that only grow; for tests.
        jitter: a factor around 1 for each delay after an error; for tests.
        waited: is told how many seconds each key has waited when a worker takes it, and whether it was merely due.
        most_due: how many keys that are merely due are worked on at once at most.
        done_with: is asked about a key that was added while it was worked on: True when that work has taken in what
            happened.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] | None = None,
        jitter: Callable[[], float] | None = None,
        waited: Callable[[float, bool], None] | None = None,
        most_due: int = 1,
        done_with: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._jitter = jitter or (lambda: random.uniform(0.8, 1.2))  # noqa: S311 - spreads load, guards nothing
        self._waited = waited
        self._most_due = most_due
        self._done_with = done_with
        self._waiting = _Line()
        self._taken = self._clock()  # when a worker took a key for the last time
        self._working: dict[str, bool] = {}  # key → whether it was merely due
        self._again: set[str] = set()
        self._due_again: set[str] = set()
        self._later: list[tuple[float, int, str]] = []
        self._times: dict[str, float] = {}
        self._errors: dict[str, int] = {}
        self._urgent: set[str] = set()  # keys that something happened to, and whose work has failed since
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        # A permit for each key that can be taken: each wakes one worker, where an event would wake them all.
        self._ready = asyncio.Semaphore(0)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest_age(self) -> float:
        """Seconds that the first key has waited that something happened to; 0 when none waits."""
        now = self._clock()
        return now - self._waiting.oldest(now)

    @property
    def stands_still(self) -> float:
        """Seconds for which keys have waited that something happened to, and none was taken; 0 when none waits."""
        return min(self.oldest_age, self._clock() - self._taken)

    def add(self, key: str) -> None:
        """Have a key looked at as soon as a worker is free: something happened to it."""
        if key in self._working:
            self._again.add(key)
        elif self._waiting.add(key, self._clock()):
            self._ready.release()

    def add_after(self, key: str, delay: float) -> None:
        """Have a key looked at after so many seconds, or sooner if that was wished before."""
        if delay <= 0:
            self._fall_due(key)
            return
        when = self._clock() + delay
        if self._times.get(key, float("inf")) <= when:
            return
        self._times[key] = when
        heapq.heappush(self._later, (when, next(self._order), key))
        if self._later[0][0] == when:
            self._set_timer()

    def _fall_due(self, key: str) -> None:
        if key in self._working:
            self._due_again.add(key)
        elif self._waiting.fall_due(key, self._clock()):
            self._ready.release()

    def is_due(self, key: str) -> bool:
        """Return whether a key that is worked on was merely due."""
        return self._working.get(key, True)

    def retry(self, key: str) -> float:
        """Have a key looked at again after an error, doubling the delay each time; return the delay in seconds."""
        if not self.is_due(key):
            self._urgent.add(key)
        count = self._errors[key] = self._errors.get(key, 0) + 1
        delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(count - 1, 16)) * self._jitter()
        self.add_after(key, delay)
        return delay

    def forget(self, key: str) -> None:
        """Forget a key's errors: it went well."""
        self._errors.pop(key, None)
        self._urgent.discard(key)

    async def get(self) -> str:
        """Wait for a key and take it; the worker calls `done` with it."""
        while True:
            await self._ready.acquire()
            taken = self._waiting.take(due=sum(self._working.values()) < self._most_due)
            if taken is None:
                continue  # one that was due was added as well, or too many are due: `done` makes up for the permit
            key, since, only_due = taken
            self._taken = self._clock()
            if self._waited is not None:
                self._waited(self._taken - since, only_due)
            self._working[key] = only_due
            return key

    def done(self, key: str) -> None:
        """Give a key back."""
        if self._working.pop(key) and self._waiting.any_due:
            self._ready.release()
        again, due = key in self._again, key in self._due_again
        self._again.discard(key)
        self._due_again.discard(key)
        if (again or due) and not self._done_with(key):
            (self.add if again else self._fall_due)(key)

    def _set_timer(self) -> None:
        """Set the timer for the key that is due first."""
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
            if self._times.get(key) == when:
                del self._times[key]
                if key in self._urgent:
                    self._urgent.discard(key)
                    self.add(key)
                else:
                    self._fall_due(key)
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
