"""Kubernetes Events, for people: they are sent in the background, so that no job waits for what only tells of it.

Large clusters keep Events in an etcd of their own (`--etcd-servers-overrides`), and webhooks may look at each: either
may be slow, or hang, while all else goes well.

The shape is that of client-go's EventRecorder: https://pkg.go.dev/k8s.io/client-go/tools/record
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.job import format_time
from ingestion_crds.kube import ApiError, KubeClient, core_path

from ingestion_operator.actions import Event

# Some 8 MB at most.
_MOST_WAITING: Final = 5_000
_MESSAGE_CHARACTERS: Final = 1_000
_REQUEST_SECONDS: Final = 10.0
_FLUSH_SECONDS: Final = 2.0

log = logging.getLogger(__name__)


class EventRecorder:
    """Events about resources of one kind, sent one after the other.

    Args:
        client: the connection.
        kind: of the resources.
    """

    def __init__(self, client: KubeClient, *, kind: str) -> None:
        self._client = client
        self._kind = kind
        self._waiting: asyncio.Queue[JsonObject] = asyncio.Queue(_MOST_WAITING)

    def tell(self, raw: JsonObject, events: tuple[Event, ...], *, now: datetime) -> None:
        """Put events into the log, and have them sent. Of those that thousands wait before, only the log tells.

        Args:
            raw: the resource that they are about.
            events: in order. Of a message, what goes beyond 1,000 characters is cut off.
            now: the time.
        """
        metadata = raw["metadata"]
        for event in events:
            fields = {"job": f"{metadata['namespace']}/{metadata['name']}", "reason": event.reason.value}
            log.log(logging.WARNING if event.warning else logging.INFO, event.message, extra=fields)
            body = {
                "metadata": {"generateName": f"{metadata['name'][:200]}.", "namespace": metadata["namespace"]},
                "involvedObject": {
                    "apiVersion": names.API_VERSION,
                    "kind": self._kind,
                    "namespace": metadata["namespace"],
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
                "type": "Warning" if event.warning else "Normal",
                "reason": event.reason.value,
                "message": event.message[:_MESSAGE_CHARACTERS],
                "source": {"component": names.MANAGED_BY},
                "firstTimestamp": format_time(now),
                "lastTimestamp": format_time(now),
                "count": 1,
            }
            try:
                self._waiting.put_nowait(body)
            except asyncio.QueueFull:
                log.warning("event not sent: %d wait already", _MOST_WAITING, extra=fields)

    async def send(self) -> None:
        """Send events until cancelled. One that cannot be sent is logged."""
        while True:
            await self._send(await self._waiting.get())

    async def flush(self) -> None:
        """Send those that wait, as far as that takes two seconds; `send` must have ended."""
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                while not self._waiting.empty():
                    await self._send(self._waiting.get_nowait())
        except TimeoutError:
            log.warning("events not sent, as the operator ends: %d", 1 + self._waiting.qsize())

    async def _send(self, body: JsonObject) -> None:
        about = body["involvedObject"]
        try:
            path = core_path("events", about["namespace"])
            await self._client.request("POST", path, body=body, timeout=_REQUEST_SECONDS)
        except ApiError as error:
            fields = {"job": f"{about['namespace']}/{about['name']}", "reason": body["reason"]}
            log.warning("event not sent: %s", error, extra=fields)
