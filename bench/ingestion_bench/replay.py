"""The bare client of the storm: it sends what it is told on stdin, a line of requests for each job.

It decides nothing and looks at nothing, but for the resourceVersion that its next write of the IngestionJob needs.
The first one stands before the requests. Events are sent as the operator sends them: one after the other, and nothing
waits for them. Its loop and its garbage collection are the operator's too.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

import orjson
import uvloop
from ingestion_crds.kube import ApiError, KubeClient
from ingestion_operator.main import GARBAGE_THRESHOLDS, WORKERS


async def send(
    kube: KubeClient, requests: list[dict[str, Any]], *, resource_version: str, events: asyncio.Queue[dict[str, Any]]
) -> None:
    """Send the requests of one job, whose resourceVersion is given, one after the other; Events are only handed on."""
    for request in requests:
        if request["path"].endswith("/events"):
            events.put_nowait(request)
            continue
        body = request.get("body")
        if isinstance(body, dict) and "resourceVersion" in body.get("metadata", {}):
            body["metadata"]["resourceVersion"] = resource_version
        try:
            answer = await kube.request(**request)
        except ApiError as error:
            if request["method"] == "DELETE" and error.not_found:
                continue
            raise
        if "/ingestionjobs/" in request["path"]:
            resource_version = answer["metadata"]["resourceVersion"]


async def work() -> None:
    """Send line after line, so many at a time, until stdin ends."""
    reader = asyncio.StreamReader(limit=2**22)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def worker() -> None:
        async with turn:
            line = await reader.readline()
        while line:
            resource_version, _, requests = line.partition(b" ")
            await send(kube, orjson.loads(requests), resource_version=resource_version.decode(), events=events)
            async with turn:
                line = await reader.readline()

    async def tell() -> None:
        while True:
            await kube.request(**await events.get())
            events.task_done()

    turn = asyncio.Lock()  # a stream has one reader at a time
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    async with await KubeClient.connect() as kube, asyncio.TaskGroup() as telling:
        teller = telling.create_task(tell())
        async with asyncio.TaskGroup() as group:
            print("ready", flush=True)
            for _ in range(WORKERS):
                group.create_task(worker())
        await events.join()
        teller.cancel()


if __name__ == "__main__":
    gc.freeze()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    uvloop.run(work())
