"""One watch of a collection, and who waits for something to be seen in it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Self

from ingestion_crds import JsonObject
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import KubeClient

Wish = Callable[[JsonObject], bool]


class Feed:
    """Follows a collection from now on; use it as an async context manager.

    Args:
        kube: the client.
        path: the collection's.
        selector: a label selector, or empty.
    """

    def __init__(self, kube: KubeClient, path: str, *, selector: str = "") -> None:
        self._kube = kube
        self._path = path
        self._query = {"labelSelector": selector} if selector else {}
        self._waiting: dict[asyncio.Future[float], Wish] = {}

    async def __aenter__(self) -> Self:
        listed = await self._kube.request("GET", self._path, query={**self._query, "limit": 1})
        self._task = asyncio.create_task(self._follow(listed["metadata"]["resourceVersion"]))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def expect(self, wish: Wish) -> asyncio.Future[float]:
        """Return a future of the moment, by `time.perf_counter`, at which an event is seen that fulfils the wish."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[future] = wish
        return future

    async def _follow(self, resource_version: str) -> None:
        try:
            while True:
                async for event in self._kube.watch(self._path, resource_version=resource_version, query=self._query):
                    resource_version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        self._see(event)
        except Exception as error:
            for future in self._waiting:
                if not future.done():
                    future.set_exception(error)
            raise

    def _see(self, event: JsonObject) -> None:
        for future, wish in list(self._waiting.items()):
            if future.done() or wish(event):
                del self._waiting[future]
                if not future.done():
                    future.set_result(time.perf_counter())


def of(job: IngestionJob, wish: Wish) -> Wish:
    """Return the wish for an event of this job; the other one is asked about its object."""
    return lambda event: event["object"]["metadata"]["uid"] == job.metadata.uid and wish(event["object"])


def counted(count: int) -> Wish:
    """Return the wish that so many objects were created."""
    seen = 0

    def wish(event: JsonObject) -> bool:
        nonlocal seen
        seen += int(event["type"] == "ADDED")
        return seen >= count

    return wish
