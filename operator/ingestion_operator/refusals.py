"""Why a Job's pods are not created: what its FailedCreate Events say, asked for all Jobs of a namespace at once.

Events are many, and in no cache of the API server: whatever is asked for, it reads all of the namespace from etcd and
decodes them. With tens of thousands that takes seconds, and a thousand Jobs that have no pods yet would each ask again
every few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ingestion_operator.cluster import Cluster

_KNOWN_SECONDS: Final = 2.0
# So that one is on its way for at most a twentieth of the time.
_KNOWN_TIMES: Final = 20.0


@dataclass(slots=True)
class _Known:
    """What is known of a namespace: messages by the Job's UID, and until when it is not asked for again."""

    until: float = 0.0
    messages: dict[str, str] = field(default_factory=dict)
    asking: bool = False


class Refusals:
    """What Events say of pods that were refused.

    Args:
        cluster: the API server.
        monotonic: seconds that only grow.
    """

    def __init__(self, *, cluster: Cluster, monotonic: Callable[[], float]) -> None:
        self._cluster = cluster
        self._monotonic = monotonic
        self._known: dict[str, _Known] = {}

    async def of(self, *, namespace: str, job_uid: str) -> str | None:
        """Return the newest message about a Job, as it was known a moment ago; None when there is none.

        Raises:
            ApiError: when the API server does not say.
        """
        known = self._known.setdefault(namespace, _Known())
        begun = self._monotonic()
        if begun >= known.until and not known.asking:
            known.asking = True
            try:
                events = await self._cluster.list_creation_failures(namespace=namespace)
            finally:
                known.asking = False
                took = self._monotonic() - begun
                known.until = begun + took + max(_KNOWN_SECONDS, _KNOWN_TIMES * took)
            events.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
            known.messages = {event["involvedObject"]["uid"]: event.get("message", "") for event in events}
        return known.messages.get(job_uid)
