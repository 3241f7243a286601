"""How often a job is looked at: what is remembered of it from one look to the next.

To lose any of it costs requests, and nothing else.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from ingestion_crds import JsonObject
from ingestion_crds.job import IngestionJob

from ingestion_operator.children import ChildJob
from ingestion_operator.questions import is_news, wants_diagnosis

# A little more than a second, so that with a diagnosis now and then there is at most one read a second.
_LOOK_EVERY_SECONDS: Final = 1.2
# A thousand that run must not keep the operator from those that begin and end. Twice as many, each of which then gets
# half as far in a second, are looked at 2.4 times as rarely: so that a job costs less, the more there are.
_REST_OF_A_HUNDRED_SECONDS: Final = 10.0
_REST_GROWTH: Final = 1.25
_LOOK_AT_LEAST_EVERY_SECONDS: Final = 300.0
# More than the tick by which the queue may be early: a key that is due is not put off again.
_SOON_SECONDS: Final = 0.01
_COUNTS_EVERY_SECONDS: Final = 1.0
# While none of its pods ends; while some do, others that start are ordinary.
_DIAGNOSE_EVERY_SECONDS: Final = 5.0
_DIAGNOSE_AT_LEAST_EVERY_SECONDS: Final = 600.0
_DIAGNOSE_MOVING_SECONDS: Final = 30.0
_CONFIRM_EVERY_SECONDS: Final = 30.0
# Where many jobs share the looks: for so many rests nothing of this is done twice, as it costs more than to count.
_DIAGNOSE_RESTS: Final = 4
_DIAGNOSE_MOVING_RESTS: Final = 10
_CONFIRM_RESTS: Final = 5
_LIST_RESTS: Final = 10
# More than a look and the one after it write.
_VERSIONS: Final = 12


class Kept(NamedTuple):
    """An IngestionJob as the API server has it, and what that is to the planner."""

    raw: JsonObject
    job: IngestionJob


@dataclass(slots=True)
class Pace:
    """The memory of one job that is not settled; all times are seconds of a monotonic clock.

    Args:
        looked, diagnosed, counted: when it was looked at, its pods were diagnosed, its counts were written.
        done, moved: how many of its Job's indexes had ended, and since when.
        versions: the resourceVersions that were last read or written: a watch may lag behind several writes.
        heard: the one that the watch has shown since the last look, unless it was one of them then.
        kept: the IngestionJob as it was last read or written, while its Job runs.
        confirmed: when that was.
        gone: one of its Jobs is gone since the last look, or it is gone itself.
        seen: the one that runs, as it was at the last look; None during a look.
        changed: that one as the watch has shown it since, if it has.
        unwritten: its counts came too soon to be written.
        every: how long it rests after a look while nothing happens to it; see `rest_for`.
        uid, recorded: the IngestionJob's UID, and the names of the Jobs that a look at it reads.
        listed: there are no others, as far as is known; since when.
    """

    looked: float
    diagnosed: float
    counted: float = 0.0
    done: int = 0
    moved: float = 0.0
    versions: deque[str] = field(default_factory=partial(deque, maxlen=_VERSIONS))
    heard: str = ""
    kept: Kept | None = None
    confirmed: float = 0.0
    gone: bool = False
    seen: ChildJob | None = None
    changed: ChildJob | None = None
    unwritten: bool = False
    every: float = _LOOK_EVERY_SECONDS
    uid: str = ""
    recorded: tuple[str, ...] = ()
    listed: float | None = None

    def hear(self, resource_version: str) -> bool:
        """Take in that the watch shows a state of the IngestionJob; False when that one was read or written."""
        if resource_version in self.versions:
            return False
        self.heard = resource_version  # it may still be the answer to a write that is under way
        return True

    def rest(self, now: float) -> float:
        """Return for how many seconds it need not be looked at that the Job runs on."""
        return self._remaining(self.every, now)

    def change(self, child: ChildJob, now: float) -> float | None:
        """Take in that the watch shows a Job that runs on.

        Returns:
            For how many seconds that need not be looked at; None when the status says nothing of what is new.
        """
        known = self.changed or self.seen
        if known is not None and not _is_later(child, known):
            return None
        self.changed = child
        return self.rest(now) if self.stirred else None

    def end(self, child: ChildJob) -> None:
        """Take in that one of its Jobs has ended, as the watch shows it."""
        self.changed = child

    def lose(self) -> None:
        """Take in that one of its Jobs is gone, or it is itself."""
        self.gone = True

    def end_look(self, kept: Kept | None, child: ChildJob | None, *, unwritten: bool) -> None:
        """End a look.

        Args:
            kept: the IngestionJob as it is now; None unless its Job runs.
            child: the Job that runs.
            unwritten: its counts came too soon after the last ones.
        """
        self.kept, self.seen, self.unwritten = kept, child, unwritten
        if self.changed is None or child is None or not _is_later(self.changed, child):
            self.changed = child if unwritten else None

    def idle(self, now: float) -> float:
        """Return for how many seconds there is nothing to look at: the key is due, or woken by what the look wrote."""
        if self.kept is None or self._news or self._ended:
            return 0.0
        return self._remaining(self.every if self.stirred else self._diagnose_every(moving=False), now)

    def begin_look(self, now: float) -> tuple[Kept, ChildJob] | None:
        """Begin a look; return what a look at counts, or at an end, decides from, None when a full look is due.

        That is the IngestionJob, and the Job that ran, as it was last read or the watch has shown it since.
        """
        fresh = now - self.confirmed < max(_CONFIRM_EVERY_SECONDS, _CONFIRM_RESTS * self.every)
        enough = fresh or self._ended  # the write that records an end confirms it
        child, known = self.changed or self.seen, None
        if enough and self.kept is not None and child is not None and not self._news:
            known = self.kept, child
        self.looked, self.kept, self.heard, self.gone = now, None, "", False
        self.seen, self.changed, self.unwritten = None, None, False
        return known

    def remember(self, raw: JsonObject, now: float) -> None:
        """Take in what the API server has just answered."""
        self.versions.append(raw["metadata"]["resourceVersion"])
        self.confirmed = now

    def distrust(self) -> None:
        """Take in that a look failed: the next one reads everything, as what was to be deleted may still be there."""
        self.kept, self.listed = None, None

    def diagnosis_due(self, child: ChildJob, now: float) -> bool:
        """True when it is time to ask why pods do not start: often while none ends, now and then while others do."""
        done = child.succeeded + len(child.failed)
        if done != self.done:
            self.done, self.moved = done, now
        moving = now - self.moved < _DIAGNOSE_EVERY_SECONDS
        return wants_diagnosis(child) and now - self.diagnosed >= self._diagnose_every(moving=moving)

    def listing_due(self, now: float, *, rest: float) -> bool:
        """True when it is time to see whether it has Jobs that nobody recorded, and nobody heard of.

        Args:
            now: seconds.
            rest: how long a job would rest if all that are not at rest were at the same point.
        """
        return self.listed is None or now - self.listed >= _LIST_RESTS * rest

    def counts_wait(self, now: float) -> float:
        """Return for how many seconds running counts are not to be written again; 0 when they are, as of now."""
        left = self.counted + _COUNTS_EVERY_SECONDS - now
        if left > 0:
            return left
        self.counted = now
        return 0.0

    def _remaining(self, seconds: float, now: float) -> float:
        left = self.looked + seconds - now
        return left if left > _SOON_SECONDS else 0.0

    def _diagnose_every(self, *, moving: bool) -> float:
        if moving:
            return max(_DIAGNOSE_MOVING_SECONDS, _DIAGNOSE_MOVING_RESTS * self.every)
        rests = min(_DIAGNOSE_AT_LEAST_EVERY_SECONDS, _DIAGNOSE_RESTS * self.every)
        return max(_DIAGNOSE_EVERY_SECONDS, rests)

    @property
    def outdated(self) -> bool:
        """True when the watch has shown a state of the IngestionJob since the look began that it knows nothing of."""
        return self.heard != "" and self.heard not in self.versions

    @property
    def stirred(self) -> bool:
        """True when the Job that runs has something that its parent's status does not say yet."""
        if self.changed is None:
            return False
        if self.unwritten or self.kept is None or self.seen is None or self.changed.uid != self.seen.uid:
            return True
        return is_news(self.kept.job.status, before=self.seen, after=self.changed)

    @property
    def _ended(self) -> bool:
        return self.changed is not None and self.changed.finished

    @property
    def _news(self) -> bool:
        return self.gone or self.outdated


def rest_for(jobs: int) -> float:
    """Return for how many seconds a job rests between two looks when so many are at the same point."""
    rest = _REST_OF_A_HUNDRED_SECONDS * math.pow(jobs / 100, _REST_GROWTH)
    return min(_LOOK_AT_LEAST_EVERY_SECONDS, max(_LOOK_EVERY_SECONDS, rest))


def _is_later(child: ChildJob, known: ChildJob) -> bool:
    """True for a later state of the same Job, or another one."""
    return child.uid != known.uid or child.resource_version > known.resource_version
