"""The bare client of the storm: it sends what it is told on stdin, a line of requests for each job.

It decides nothing and looks at nothing, but for the resourceVersion that its next write of the IngestionJob needs.
The first one stands before the requests.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import orjson
from ingestion_crds.kube import ApiError, KubeClient
from ingestion_operator.main import WORKERS


async def send(kube: KubeClient, requests: list[dict[str, Any]], *, resource_version: str) -> None:
    """Send the requests of one job, whose resourceVersion is given, one after the other."""
    for request in requests:
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
            await send(kube, orjson.loads(requests), resource_version=resource_version.decode())
            async with turn:
                line = await reader.readline()

    turn = asyncio.Lock()  # a stream has one reader at a time
    async with await KubeClient.connect() as kube, asyncio.TaskGroup() as group:
        print("ready", flush=True)
        for _ in range(WORKERS):
            group.create_task(worker())


if __name__ == "__main__":
    asyncio.run(work())
