"""Why a Job's pods are not created: what its FailedCreate Events say, asked for all Jobs of a namespace at once.

Events are many, and in no cache of the API server: whatever is asked for, it reads all of the namespace from etcd and
decodes them. With tens of thousands that takes seconds, and a thousand Jobs that have no pods yet would each ask again
every few seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from ingestion_crds.job import ChildUid
from ingestion_crds.kube import ApiError

from ingestion_operator.cluster import KubeCluster

_KNOWN_SECONDS: Final = 2.0
# The pause is so many times as long as a request takes, so that one is under way for at most a twentieth of the time.
# But a new quota is to be seen within a minute or so.
_KNOWN_TIMES: Final = 20.0
_KNOWN_AT_MOST_SECONDS: Final = 60.0
# A failure that goes on is told again and again, every five minutes at the rarest: client-go's limit for one object.
_HOLDS: Final = timedelta(minutes=10)


@dataclass(slots=True)
class _Known:
    """What is known of a namespace.

    Args:
        until: when it is asked for again.
        messages: the newest ones, by the Job's UID; None while nothing has been answered.
        error: why nothing has.
    """

    until: float = 0.0
    messages: dict[ChildUid, str] | None = None
    error: ApiError | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class CreationFailures:
    """What Events say of pods that could not be created.

    Args:
        cluster: the API server.
        monotonic: seconds that only grow.
    """

    def __init__(self, *, cluster: KubeCluster, monotonic: Callable[[], float]) -> None:
        self._cluster = cluster
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}

    async def of(self, *, namespace: str, child_uid: ChildUid, now: datetime) -> str | None:
        """Return the newest message about a Job, as it was known a moment ago; None when there is none.

        Args:
            namespace: the Job's.
            child_uid: its UID.
            now: the time: what was told long ago may be over.

        Raises:
            ApiError: when the API server does not say.
        """
        known = self._known.setdefault(namespace, _Known())
        # While a request is under way, others take what was known before, if anything was.
        if known.messages is None or not known.asking.locked():
            async with known.asking:
                if self._monotonic() >= known.until:
                    await self._ask(namespace, known, since=now - _HOLDS)
        if known.messages is None:
            assert known.error is not None
            raise known.error
        return known.messages.get(child_uid)

    async def _ask(self, namespace: str, known: _Known, *, since: datetime) -> None:
        begun = self._monotonic()
        try:
            known.messages = await self._cluster.list_creation_failures(namespace=namespace, since=since)
        except ApiError as error:
            known.error, known.until = error, self._monotonic() + _KNOWN_SECONDS
            if error.refused:
                known.messages = None  # or one job after the other would say so, and each take it back
            raise
        pause = _KNOWN_TIMES * (self._monotonic() - begun)
        known.until = self._monotonic() + min(max(_KNOWN_SECONDS, pause), _KNOWN_AT_MOST_SECONDS)
