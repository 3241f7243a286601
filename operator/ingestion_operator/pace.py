"""How often a job is looked at, and what one look leaves to the next. To lose any of it costs requests, nothing else.

A look plans from an IngestionJob and its Jobs, writes the status under the IngestionJob's resourceVersion, and acts.
There are five kinds, and what happened decides which one it is (`Reconciler.reconcile`):

    what happened                          look at    what it reads              what it may write
    ─────────────────────────────────────  ─────────  ─────────────────────────  ──────────────────────────────────
    An attempt is to begin: the watch has  beginning  the Jobs, but for one      all, once it has recorded the
    shown an IngestionJob that says so.               that is known to be over   attempt
    The Job that runs has ended.           end        that Job's pods            all, once it has recorded the end
    The Job that runs has changed in what  counts     now and then, the pods     counts, and conditions that say why
    the status says of it; or its pods                that do not start          pods do not start
    are to be asked why they do not start.
    The look before has left pods of an    pods       nothing                    all, but the removal of the pods
    attempt that is over.                                                        comes last
    Anything else.                         full       IngestionJob, Jobs, pods   all

All but the last take the IngestionJob, and three of them the Job, as the watch has shown it or the look before has
left it. That may be outdated, and then the API server refuses the write. Where one of the first three has nothing to
write, or wants to do more than it may, a full look is taken in its place.

"Anything else" is: the watch has shown a state of the IngestionJob that was neither read nor written here, such as a
cancellation; one of its Jobs is gone, or there is one that nobody recorded; the look before failed or left nothing; or
nothing was read or written for a while, and the watch may have lost something.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

from ingestion_crds import JsonObject
from ingestion_crds.job import ChildUid, IngestionJob

from ingestion_operator.children import ChildJob
from ingestion_operator.questions import expected_names, is_news, wants_diagnosis

# A little more than a second, so that with a diagnosis now and then there is at most one read a second.
_LOOK_EVERY_SECONDS: Final = 1.2
# Jobs at the same point share the looks, or a thousand that run would keep the operator from those that begin and end.
# Twice as many rest 2.4 times as long, as each of them gets half as far in a second: all of them together take 10 looks
# a second when they are a hundred, and 6 when they are a thousand.
_REST_OF_A_HUNDRED_SECONDS: Final = 10.0
_REST_GROWTH: Final = 1.25
_LOOK_AT_LEAST_EVERY_SECONDS: Final = 300.0
# More than the tick by which the queue may be early: a key that is due is not put off again.
_SOON_SECONDS: Final = 0.01
_COUNTS_EVERY_SECONDS: Final = 1.0
# How often pods are asked why they do not start: while none of the Job's pods ends, and while some do. In the second
# case it is ordinary that others are starting.
_DIAGNOSE_EVERY_SECONDS: Final = 5.0
_DIAGNOSE_AT_LEAST_EVERY_SECONDS: Final = 600.0
_DIAGNOSE_MOVING_SECONDS: Final = 30.0
_CONFIRM_EVERY_SECONDS: Final = 30.0
# The same in rests, where jobs rest long because they are many: each of these costs more than a look at counts.
_DIAGNOSE_RESTS: Final = 4
_DIAGNOSE_MOVING_RESTS: Final = 10
_CONFIRM_RESTS: Final = 5
_LIST_RESTS: Final = 10
# More than a look and the one after it write.
_RESOURCE_VERSIONS: Final = 12
_IDENTITY: Final = ("namespace", "name", "uid", "resourceVersion")


class Kept(NamedTuple):
    """An IngestionJob as the API server has it, and what that is to the planner.

    Args:
        raw: of the object only what looks use: its names, and its status.
        job: the whole, as far as the models know it.
    """

    raw: JsonObject
    job: IngestionJob

    @classmethod
    def of(cls, body: Mapping[str, Any], job: IngestionJob) -> Kept:
        """Keep of an object what looks use: whoever may write one may fill its metadata with a megabyte.

        Args:
            body: the IngestionJob.
            job: what the models make of it.
        """
        metadata = {name: body["metadata"][name] for name in _IDENTITY}
        return cls({"metadata": metadata, "status": body.get("status", {})}, job)


class LastLook(NamedTuple):
    """What a look leaves to the next one while a Job runs, or while the pods of one that has ended are to be removed.

    Args:
        kept: the IngestionJob, as it was last read or written.
        child: the Job, as the look took it.
        unwritten: its counts are not written yet, as they came too soon after the last ones.
    """

    kept: Kept
    child: ChildJob
    unwritten: bool = False


class Removal(NamedTuple):
    """How far the pods of a Job have been removed.

    Args:
        following: what the next page is asked for with; empty for the first.
        anew: the pages have begun anew, as one was asked for too late, and none behind the first has come since.
        parts: into so many a page is cut, as the answer was too large.
    """

    following: str = ""
    anew: bool = False
    parts: int = 1


@dataclass(slots=True)
class Heard:
    """What the watch has shown since the last look began.

    Args:
        resource_version: the newest of the IngestionJob that was neither read nor written before; else empty.
        child: the Job that runs, or has just ended, if it is in a later state than the one that the look took.
        gone: one of its Jobs is gone, or the IngestionJob itself.
    """

    resource_version: str = ""
    child: ChildJob | None = None
    gone: bool = False


@dataclass(slots=True)
class Pace:
    """What is remembered of one job that is not settled. All times are seconds of a monotonic clock.

    Args:
        looked: when the last look began.
        diagnosed: when its pods were last asked why they do not start.
        counted: when running counts were last written.
        ends: how many indexes of its Job had ended at the last look.
        moved: when that number was last seen to change.
        rest: how many seconds it rests after a look, if nothing but counts is to be done; see `rest_for`.
        uid: the UID of the IngestionJob.
        expected: the names of the Jobs that a look reads.
        resource_versions: of it, those that were last read or written. The watch may lag several writes behind.
        confirmed: when the last of them was read or written.
        listed: when all its Jobs were last listed; None if they are to be listed at the next full look.
        made_in_vain: when a Job was last made that the cluster has changed, so that it was of no use; None if none was.
        patched_in_vain: when a field of a Job was last given a value that the cluster has not kept, by UID and both.
        removals: how far the pods of Jobs have been removed whose removal goes on.
        last: what the last look left; None during a look, and if it left nothing or there was no room for it.
        heard: what the watch has shown since the last look began.
    """

    looked: float
    diagnosed: float
    counted: float = 0.0
    ends: int = 0
    moved: float = 0.0
    rest: float = _LOOK_EVERY_SECONDS

    uid: str = ""
    expected: tuple[str, ...] = ()
    resource_versions: deque[str] = field(default_factory=partial(deque, maxlen=_RESOURCE_VERSIONS))
    confirmed: float = 0.0
    listed: float | None = None
    made_in_vain: float | None = None
    patched_in_vain: dict[tuple[ChildUid, str, Any], float] = field(default_factory=dict)
    removals: dict[ChildUid, Removal] = field(default_factory=dict)

    last: LastLook | None = None
    heard: Heard = field(default_factory=Heard)

    # ── what the watch shows ──────────────────────────────────────────────────────────────────────────────────────

    def knows(self, resource_version: str) -> bool:
        """Return whether a state of the IngestionJob was read or written."""
        return resource_version in self.resource_versions

    def on_job_seen(self, resource_version: str) -> bool:
        """Take in that the watch shows a state of the IngestionJob; False when that one was read or written."""
        if self.knows(resource_version):
            return False
        self.heard.resource_version = resource_version  # it may still be the answer to a write that is under way
        return True

    def on_child_changed(self, child: ChildJob, now: float) -> float | None:
        """Take in that the watch shows a Job that runs on.

        Returns:
            For how many seconds that need not be looked at; None when the status says nothing of what is new.
        """
        known = self._child
        if known is not None and not _is_later(child, known):
            return None
        self.heard.child = child
        return self.remaining_rest(now) if self.child_has_news else None

    def on_child_ended(self, child: ChildJob) -> None:
        """Take in that the watch shows that one of its Jobs has ended."""
        self.heard.child = child

    def on_gone(self) -> None:
        """Take in that one of its Jobs is gone, or the IngestionJob itself."""
        self.heard.gone = True

    def expects(self, child: ChildJob) -> bool:
        """Return whether a Job is no reason to list: a look reads it by its name, or it has another owner."""
        return self.uid != "" and (child.name in self.expected or child.owner_uid != self.uid)

    # ── looks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin_look(self, now: float) -> tuple[Kept, ChildJob] | None:
        """Begin a look.

        Returns:
            What a look at counts, an end or pods is taken from: the IngestionJob as the last look left it, and the Job
            as the watch has shown it since, or else as it was left. None when a full look is due.
        """
        fresh = now - self.confirmed < max(_CONFIRM_EVERY_SECONDS, _CONFIRM_RESTS * self.rest)
        enough = fresh or self._child_ended  # the write that records an end confirms it
        last, child, known = self.last, self._child, None
        if enough and last is not None and child is not None and not self._full_look_due:
            known = last.kept, child
        self.looked, self.last, self.heard = now, None, Heard()
        return known

    def remember(self, kept: Kept, now: float) -> None:
        """Take in the IngestionJob as it was just read or written."""
        self.uid, self.expected = kept.job.metadata.uid, expected_names(kept.job)
        self.resource_versions.append(kept.raw["metadata"]["resourceVersion"])
        self.confirmed = now

    def end_look(self, last: LastLook | None) -> None:
        """End a look, and take what it leaves, if anything."""
        self.last = last
        child = self.heard.child
        if child is not None and (last is None or not _is_later(child, last.child)):
            self.heard.child = None

    def distrust(self) -> None:
        """Take in that a look failed: the next one reads everything, as what was to be deleted may still be there."""
        self.last, self.listed = None, None

    # ── when to look, and at what ─────────────────────────────────────────────────────────────────────────────────

    def idle(self, now: float) -> float:
        """Return for how many seconds there is nothing to look at; 0 when there is, or no Job runs."""
        if self.last is None or self._full_look_due or self._child_ended:
            return 0.0
        return self._remaining(self.rest if self.child_has_news else self._diagnose_every(moving=False), now)

    def remaining_rest(self, now: float) -> float:
        """Return for how many seconds it still rests, if nothing but counts is to be done."""
        return self._remaining(self.rest, now)

    def diagnosis_due(self, child: ChildJob, now: float) -> bool:
        """True when it is time to ask why pods do not start: often while none ends, now and then while others do."""
        ends = child.succeeded + len(child.failed)
        if ends != self.ends:
            self.ends, self.moved = ends, now
        moving = now - self.moved < _DIAGNOSE_EVERY_SECONDS
        return wants_diagnosis(child) and now - self.diagnosed >= self._diagnose_every(moving=moving)

    def listing_due(self, now: float, *, rest: float) -> bool:
        """True when it is time to see whether it has Jobs that nobody recorded, and nobody heard of.

        Args:
            now: seconds.
            rest: how many seconds a job would rest if all that are not at rest were at the same point.
        """
        return self.listed is None or now - self.listed >= _LIST_RESTS * rest

    def counts_wait(self, now: float) -> float:
        """Return for how many seconds running counts are not to be written again; 0 when they are, as of now."""
        left = self.counted + _COUNTS_EVERY_SECONDS - now
        if left > 0:
            return left
        self.counted = now
        return 0.0

    @property
    def outdated(self) -> bool:
        """True when the watch has shown a state of the IngestionJob since the look began that it knows nothing of."""
        return self.heard.resource_version != "" and not self.knows(self.heard.resource_version)

    @property
    def child_has_news(self) -> bool:
        """True when the Job that runs has something that its parent's status does not say yet."""
        last, child = self.last, self.heard.child
        if last is not None and last.unwritten:
            return True
        if child is None:
            return False
        if last is None or child.uid != last.child.uid:
            return True
        return is_news(last.kept.job.status, before=last.child, after=child)

    @property
    def _child(self) -> ChildJob | None:
        """The Job that runs, or has just ended, in the latest state that is known."""
        if self.heard.child is not None:
            return self.heard.child
        return self.last.child if self.last is not None else None

    @property
    def _child_ended(self) -> bool:
        return self._child is not None and self._child.finished

    @property
    def _full_look_due(self) -> bool:
        """True when what was heard is more than a look at counts, or at an end, may decide."""
        return self.heard.gone or self.outdated

    def _remaining(self, seconds: float, now: float) -> float:
        left = self.looked + seconds - now
        return left if left > _SOON_SECONDS else 0.0

    def _diagnose_every(self, *, moving: bool) -> float:
        if moving:
            return max(_DIAGNOSE_MOVING_SECONDS, _DIAGNOSE_MOVING_RESTS * self.rest)
        rests = min(_DIAGNOSE_AT_LEAST_EVERY_SECONDS, _DIAGNOSE_RESTS * self.rest)
        return max(_DIAGNOSE_EVERY_SECONDS, rests)


def rest_for(jobs: int) -> float:
    """Return for how many seconds a job rests between two looks when so many are at the same point."""
    rest = _REST_OF_A_HUNDRED_SECONDS * math.pow(jobs / 100, _REST_GROWTH)
    return min(_LOOK_AT_LEAST_EVERY_SECONDS, max(_LOOK_EVERY_SECONDS, rest))


def _is_later(child: ChildJob, known: ChildJob) -> bool:
    """True for a later state of the same Job, or another one."""
    return child.uid != known.uid or child.resource_version > known.resource_version
