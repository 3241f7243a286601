"""A list and then a watch, without end: they feed a view of a collection.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, NoReturn

from ingestion_crds import JsonObject
from ingestion_crds.kube import ApiError, KubeClient, no_answer

PAGE: Final = 500
"""Objects in one answer at most: each takes tens of KB of memory, and there may be thousands."""
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0

Take = Callable[[JsonObject, bool], None]
"""Is given an object, and whether it was deleted."""


async def pages(
    kube: KubeClient, path: str, *, query: Mapping[str, Any] | None = None, most: int | None = None
) -> AsyncIterator[tuple[list[JsonObject], JsonObject]]:
    """Yield a collection page by page: its objects, and the page's metadata.

    Where objects are so large that a page would be too large to read, fewer are asked for. A page is emptied before the
    next one is asked for: two would be twice the memory.

    Args:
        kube: the API server.
        path: the collection's.
        query: parameters such as `labelSelector`.
        most: objects in a page at most; `PAGE` when it is not said.

    Raises:
        ApiError: when a page cannot be had.
    """
    most = most or PAGE
    limit, following = most, ""
    while True:
        wanted = {**(query or {}), "limit": limit, **({"continue": following} if following else {})}
        try:
            answer = await kube.request("GET", path, query=wanted)
        except ApiError as error:
            if not error.too_large or limit == 1:
                raise
            limit = max(1, limit // 4)
            continue
        if "items" not in answer:
            raise no_answer(f"not a list of {path}")
        items, metadata = answer.pop("items"), answer["metadata"]
        yield items, metadata
        items.clear()
        following = metadata.get("continue", "")
        if not following:
            return
        limit = min(most, 2 * limit)


async def follow(
    kube: KubeClient,
    path: str,
    *,
    query: Mapping[str, Any] | None = None,
    most: int | None = None,
    take: Take,
    listed: Callable[[frozenset[str], int], None] | None = None,
    failed: Callable[[ApiError, float], None],
) -> NoReturn:
    """Hand on each object of a collection as it is, and then each change, until cancelled.

    After an error everything is listed again, after ever longer pauses while watches do not last.

    Args:
        kube: the API server.
        path: the collection's.
        query: parameters of list and watch, such as `labelSelector`.
        most: objects in a page of the list at most; `PAGE` when it is not said.
        take: is given each listed object, and each change.
        listed: is given, after each list, the UIDs in it and its resourceVersion: any other object is gone, or newer.
        failed: is given what ended list or watch, and the seconds until they are tried again.
    """
    pause = _FIRST_PAUSE_SECONDS
    while True:
        begun = math.inf
        try:
            resource_version = await _list(kube, path, query or {}, most, take, listed)
            begun = time.monotonic()
            while True:
                resource_version = await _watch(kube, path, query, take, resource_version)
                # A watch that ends at once each time must not become a loop without a pause.
                await asyncio.sleep(_FIRST_PAUSE_SECONDS)
        except ApiError as error:
            if time.monotonic() - begun > _LONGEST_PAUSE_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            wait = pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads replicas, guards nothing
            failed(error, wait)
            await asyncio.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)


async def _list(
    kube: KubeClient,
    path: str,
    query: Mapping[str, Any],
    most: int | None,
    take: Take,
    listed: Callable[[frozenset[str], int], None] | None,
) -> str:
    """List page by page; return the resourceVersion to watch from."""
    seen: set[str] = set()
    resource_version = ""
    async for items, metadata in pages(kube, path, query=query, most=most):
        for item in items:
            seen.add(item["metadata"]["uid"])
            take(item, False)
        resource_version = metadata["resourceVersion"]
    if listed is not None:
        listed(frozenset(seen), int(resource_version))
    return resource_version


async def _watch(
    kube: KubeClient, path: str, query: Mapping[str, Any] | None, take: Take, resource_version: str
) -> str:
    """Follow one watch to its regular end; return the resourceVersion to go on from."""
    async for event in kube.watch(path, resource_version=resource_version, query=query):
        body: JsonObject = event["object"]
        resource_version = body["metadata"]["resourceVersion"]
        if event["type"] != "BOOKMARK":
            take(body, event["type"] == "DELETED")
    return resource_version
