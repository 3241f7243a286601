"""What is remembered of jobs from one look to the next, by key. To lose any of it costs requests, nothing else."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from ingestion_operator.children import ChildJob
from ingestion_operator.pace import Kept, LastLook, Pace, rest_for

# So much of IngestionJobs is kept, of all together, as JSON; of thousands that run, or of hundreds that are large. In
# memory it takes up to twelve times as much, where it has many small parts.
_MOST_KEPT: Final = 16_000_000
_TRY_TO_TIDY_SECONDS: Final = 600.0
# Enough for what the watch, which is seconds late at worst, may still show of jobs from before they were at rest.
_MOST_FORGOTTEN: Final = 1_000


class Point(Enum):
    """How far a job that is not at rest has come. Those at the same point share the looks.

    HELD: it is suspended, being deleted, or no tenant's: no look follows, so there is none to share.
    BLOCKED: no Job of it runs: it waits for a quota, a policy, or for somebody.
    STARTING: its Job waits for its first pods, or for its queue.
    RUNNING: a pod of its Job is ready or has ended.
    """

    HELD = auto()
    BLOCKED = auto()
    STARTING = auto()
    RUNNING = auto()


@dataclass(slots=True, kw_only=True)
class Memory:
    """What is remembered of jobs. All keys are namespace/name.

    Args:
        monotonic: the clock for pacing, in seconds.
        open: jobs that were not settled when they were last seen.
        to_list: jobs of which the next look is a full one and lists all Jobs, even if they are settled: some Jobs may
            not be recorded. A request to create one can be so long on its way that it arrives when everything is over.
        shown: jobs of which nothing else is remembered and whose next attempt is to begin, as the watch has shown
            them, as far as there is room. The first look is taken at that, without a read.
        littered: jobs with a finished Job that the API server kept from being deleted.
        webhook_failures: how often a webhook has kept something of a job from being done.
    """

    monotonic: Callable[[], float] = time.monotonic
    open: set[str] = field(default_factory=set)
    to_list: set[str] = field(default_factory=set)
    shown: dict[str, Kept] = field(default_factory=dict)
    littered: set[str] = field(default_factory=set)
    webhook_failures: Counter[str] = field(default_factory=Counter)
    _paces: dict[str, Pace] = field(default_factory=dict)
    # How much is kept of jobs, which is in `shown` or was left by their last look.
    _sizes: dict[str, int] = field(default_factory=dict)
    _size: int = 0
    # By what the last look found.
    _crowds: dict[Point, set[str]] = field(default_factory=lambda: {point: set() for point in Point})
    # Jobs that were settled, or gone, with their last resourceVersion.
    _forgotten: dict[str, int] = field(default_factory=dict)

    def of(self, key: str) -> Pace | None:
        """Return what looks have left of a job; None of one that is settled, or was not looked at yet."""
        return self._paces.get(key)

    def pace(self, key: str) -> Pace:
        """Return the same of a job that is being looked at, which may be the first time."""
        pace = self._paces.get(key)
        if pace is None:
            now = self.monotonic()
            pace = self._paces[key] = Pace(looked=now, diagnosed=now)
        return pace

    def remember(self, key: str, kept: Kept) -> None:
        """Take in an IngestionJob as it was just read or written."""
        self.pace(key).remember(kept, self.monotonic())

    # ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────

    def show(self, key: str, kept: Kept) -> None:
        """Keep a job whose next attempt is to begin for its first look, if there is room."""
        self.shown.pop(key, None)
        if self._has_room(key, kept):
            self.shown[key] = kept

    def begin_look(self, key: str) -> tuple[Kept | None, tuple[Kept, ChildJob] | None]:
        """Begin a look, and hand over what is kept for it.

        Returns:
            What the watch has shown of a job that nothing else is remembered of, and what `Pace.begin_look` returns.
        """
        self._make_room(key)
        return self.shown.pop(key, None), self.pace(key).begin_look(self.monotonic())

    def end_look(self, key: str, last: LastLook | None) -> None:
        """End a look, and take what it leaves, if there is room: else the next one reads it again."""
        self.pace(key).end_look(last if last is not None and self._has_room(key, last.kept) else None)

    def _has_room(self, key: str, kept: Kept) -> bool:
        """Return whether there is room to keep a job, and take it: who may make jobs may make many, and large ones."""
        self._make_room(key)
        size = len(kept.job.model_dump_json())
        if self._size + size > _MOST_KEPT:
            return False
        self._sizes[key] = size
        self._size += size
        return True

    def _make_room(self, key: str) -> None:
        self._size -= self._sizes.pop(key, 0)

    # ── what the watch shows, and whether it is time ──────────────────────────────────────────────────────────────

    def is_new(self, key: str, resource_version: str) -> bool:
        """Return whether the watch shows a state of a job that is later than what was forgotten of it.

        Where many jobs run, the watch is seconds late: it may still show what was written before the job was at rest.
        """
        return int(resource_version) > self._forgotten.get(key, 0)  # KEP-5504

    def up_to_date(self, key: str) -> bool:
        """Return whether another look would find nothing new: what was heard is what the last one wrote or left."""
        pace = self._paces.get(key)
        return key not in self.to_list and (pace is None or pace.idle(self.monotonic()) > 0)

    def listing_due(self, pace: Pace) -> bool:
        """Return whether it is time to list all Jobs of a job that is not at rest, although nothing was heard.

        That is for lost watch events, which befall all jobs alike: so all that are not at rest share the lists, and not
        only those at the same point.
        """
        return pace.listing_due(self.monotonic(), rest=rest_for(sum(map(len, self._crowds.values()))))

    # ── sharing the looks ─────────────────────────────────────────────────────────────────────────────────────────

    def join(self, key: str, point: Point | None) -> None:
        """Count a job among those at the same point; None for one at rest, which shares no looks."""
        for crowd in self._crowds.values():
            crowd.discard(key)
        if point is not None:
            self._crowds[point].add(key)
            self.share(key)

    def share(self, key: str) -> None:
        """Have a job rest as long as those at the same point do now."""
        for crowd in self._crowds.values():
            if key in crowd:
                self.pace(key).rest = rest_for(len(crowd))

    # ── forgetting ────────────────────────────────────────────────────────────────────────────────────────────────

    def forget(self, key: str) -> float | None:
        """Forget a job that is settled or gone, unless it has changed under the look; return the delay."""
        if self.pace(key).outdated:
            return 0.0
        resource_versions = self._paces.pop(key).resource_versions
        self.join(key, None)
        self._forgotten.pop(key, None)
        self._forgotten[key] = max(map(int, resource_versions), default=0)
        if len(self._forgotten) > _MOST_FORGOTTEN:
            del self._forgotten[next(iter(self._forgotten))]
        wait = self.tidy_later(key, None)
        if wait is None:
            self.webhook_failures.pop(key, None)
            self.open.discard(key)  # what still happens to its Jobs is no news
        return wait

    def tidy_later(self, key: str, wait: float | None) -> float | None:
        """Return the delay of a job at rest, shorter where a finished Job was left behind that may go by then."""
        if key not in self.littered:
            return wait
        self.littered.discard(key)
        self.to_list.add(key)
        return _TRY_TO_TIDY_SECONDS if wait is None else min(wait, _TRY_TO_TIDY_SECONDS)
