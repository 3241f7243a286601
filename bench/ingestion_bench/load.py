"""Load: pieces of work, so many at a time, and a client that costs next to nothing beside what it calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import httpx

_Item = TypeVar("_Item")


async def per_second(items: Collection[_Item], *, lanes: int, do: Callable[[int, _Item], Awaitable[None]]) -> float:
    """Do something with each item, so many at a time, and return how many were done in a second.

    Args:
        items: in order.
        lanes: how many at a time.
        do: is given the lane's number and the item.
    """
    left = iter(items)

    async def lane(number: int) -> None:
        for item in left:
            await do(number, item)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(lanes):
            group.create_task(lane(number))
    return len(items) / (time.perf_counter() - begun)


class Caller:
    """One connection that stays open. It reads what our API and the baseline's app answer, and nothing else.

    A client for people would need as much of the processor as what it calls, and hide the difference.

    Args:
        reader, writer: the connection.
        head: the headers of each request.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, head: str) -> None:
        self._reader = reader
        self._writer = writer
        self._head = head

    async def call(self, method: str, path: str) -> tuple[int, bytes]:
        """Send a request without a body; return status and body of the answer."""
        length = "" if method == "GET" else "content-length: 0\r\n"
        self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}{length}\r\n".encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        _, _, after = head.lower().partition(b"content-length: ")
        return int(head[9:12]), await self._reader.readexactly(int(after[: after.index(b"\r\n")]))


@asynccontextmanager
async def callers(client: httpx.AsyncClient, *, count: int) -> AsyncIterator[list[Caller]]:
    """Open so many connections to where a client goes, with its key.

    Args:
        client: of our API, or of a baseline's app.
        count: connections.
    """
    url = client.base_url
    head = f"host: {url.host}:{url.port}\r\n"
    if key := client.headers.get("x-api-key"):
        head += f"x-api-key: {key}\r\n"
    async with AsyncExitStack() as stack:
        found = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            stack.callback(writer.close)
            found.append(Caller(reader, writer, head=head))
        yield found
