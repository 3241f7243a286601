"""What is remembered of batches from one look to the next, by key. To lose any of it costs requests, nothing else."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ingestion_crds.constants import Phase

from ingestion_operator.obstacles import Waiting

# A look reads a row for each document: so many in a second, of all batches that are not at rest.
_ROWS_A_SECOND: Final = 200
_SHORTEST_REST_SECONDS: Final = 1.0
_LONGEST_REST_SECONDS: Final = 60.0
# Kubernetes starts some ten pods a second with its usual limits, and each document needs at least one. More would only
# wait in the cluster, and keep operator and API server from those jobs that are to end or to be retried.
_STARTS_A_SECOND: Final = 10
_RESOURCE_VERSIONS: Final = 12


@dataclass(slots=True, kw_only=True)
class BatchPace:
    """What is remembered of one batch that is not settled.

    Args:
        uid: the batch's; empty before its first look.
        looked: when the last look began, in seconds of a monotonic clock.
        rows: how many a look reads: one for each document, none where nothing goes on.
        starting: the last look has left jobs to be made, retried or resumed, and nothing was refused.
        parked: nothing goes on, as the last look has found.
        starts: how many jobs the look may make, retry or resume.
        resource_versions: of it, those that were last read or written. The watch may lag several writes behind.
        heard: the newest that the watch has shown since the last look began and that was neither read nor written
            before; else empty.
        phases: of its jobs, by their names, as the last look has read them.
        told: places of documents, and generations of their jobs, that have been told to stop.
        rejection: what the API server has refused of the last look, first of all.
        refused: places of documents for which it has refused something, in the order of the last time.
        webhook_failures: how often a webhook has kept something of the batch from being done.
        answered: the token of the annotation that the last look has answered.
        answer_refused: when the look began that was refused to answer it.
        stirred: a job of it is no longer at rest, or was heard of for the first time.
    """

    looked: float
    rows: int = 0
    starting: bool = False
    parked: bool = False
    starts: int = 1
    resource_versions: deque[str] = field(default_factory=lambda: deque(maxlen=_RESOURCE_VERSIONS))
    heard: str = ""
    phases: dict[str, Phase] = field(default_factory=dict)
    told: set[tuple[int, int]] = field(default_factory=set)
    rejection: Waiting | None = None
    refused: dict[int, None] = field(default_factory=dict)
    webhook_failures: int = 0
    answered: str = ""
    answer_refused: float = -math.inf
    stirred: bool = False
    uid: str = ""

    def take_up(self, uid: str) -> None:
        """Forget what was told, refused and answered if the batch is another of the same name."""
        if self.uid not in ("", uid):
            self.told, self.refused, self.rejection, self.webhook_failures = set(), {}, None, 0
            self.answered, self.answer_refused = "", -math.inf
        self.uid = uid


@dataclass(slots=True)
class _Share:
    """What the batches of one namespace ask for: rows at each look, and how many of them have jobs to start."""

    rows: int = 0
    starting: int = 0


class BatchMemory:
    """What is remembered of batches. All keys are namespace/name.

    The namespaces share looks and starts, and then the batches of each: who has thousands of batches does not keep
    others' waiting longer than who has one.

    Args:
        monotonic: the clock for pacing, in seconds.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._paces: dict[str, BatchPace] = {}
        self._shares: dict[str, _Share] = {}

    def of(self, key: str) -> BatchPace | None:
        """Return what looks have left of a batch; None of one that is settled, or was not looked at yet."""
        return self._paces.get(key)

    def pace(self, key: str) -> BatchPace:
        """Return the same of a batch that is to be looked at, which may be the first time."""
        if key not in self._paces:
            self._paces[key] = BatchPace(looked=self._monotonic() - _LONGEST_REST_SECONDS)
            self.ask(key, rows=0, starting=True)
        return self._paces[key]

    def ask(self, key: str, *, rows: int, starting: bool) -> None:
        """Take in what a batch asks for from now on: see `BatchPace`."""
        pace, namespace = self._paces[key], key.partition("/")[0]
        share = self._shares.setdefault(namespace, _Share())
        share.rows += rows - pace.rows
        share.starting += starting - pace.starting
        pace.rows, pace.starting = rows, starting
        if share == _Share():
            del self._shares[namespace]

    def begin_look(self, key: str) -> BatchPace:
        """Take in that a look begins: what was heard until now, it reads."""
        pace, now = self.pace(key), self._monotonic()
        # As many as have come up since the look before: those of all batches together are bounded by the second.
        seconds = min(self.rest(key), now - pace.looked)
        pace.starts = max(1, int(_STARTS_A_SECOND * seconds / max(1, self._starting(key))))
        pace.looked = now
        pace.heard = ""
        return pace

    def up_to_date(self, key: str) -> bool:
        """Return whether another look would find nothing new: what was heard is what the last one wrote.

        The watch may show a write before the answer to it has arrived.
        """
        pace = self._paces.get(key)
        return pace is None or (not pace.stirred and (not pace.heard or pace.heard in pace.resource_versions))

    def forget(self, key: str) -> float | None:
        """Forget a batch that is settled or gone, unless there is news of it since; return the delay."""
        if not self.up_to_date(key):
            return self.remaining_rest(key)
        if key in self._paces:
            self.ask(key, rows=0, starting=False)
            del self._paces[key]
        return None

    def rest(self, key: str) -> float:
        """For how many seconds a batch rests after a look: by the documents of those of its namespace that go on.

        And so long that each that has jobs to start may start one.
        """
        sharing = sum(share.rows > 0 for share in self._shares.values())
        rows = self._share(key).rows * max(1, sharing)
        seconds = max(_SHORTEST_REST_SECONDS, rows / _ROWS_A_SECOND, self._starting(key) / _STARTS_A_SECOND)
        return min(_LONGEST_REST_SECONDS, seconds)

    def _starting(self, key: str) -> int:
        """As how many batches that have jobs to start those seem to one of this namespace: its own, by namespaces."""
        return self._share(key).starting * sum(share.starting > 0 for share in self._shares.values())

    def _share(self, key: str) -> _Share:
        return self._shares.get(key.partition("/")[0], _Share())

    def remaining_rest(self, key: str) -> float:
        """Return for how many seconds a batch still rests."""
        return max(0.0, self.pace(key).looked + self.rest(key) - self._monotonic())

    def wait_for_news(self, key: str) -> float:
        """Return after how many seconds a batch is looked at that has changed: 0 for one that does not rest."""
        return min(_SHORTEST_REST_SECONDS, self.remaining_rest(key))
