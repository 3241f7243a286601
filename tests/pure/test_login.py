"""What of a watch comes to kopf."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

import kopf
import pytest
from ingestion_crds import JsonObject
from ingestion_operator.login import _Lines
from kopf._cogs.clients import watching
from kopf._cogs.clients.api import iter_jsonlines
from kopf._cogs.structs.references import Resource


def event(kind: str, version: int, **metadata: Any) -> bytes:
    body = {"metadata": {"name": "handbook", "resourceVersion": str(version), **metadata}}
    return json.dumps({"type": kind, "object": body}).encode()


def is_own(body: JsonObject) -> bool:
    return bool(body["metadata"]["name"] == "handbook" and int(body["metadata"]["resourceVersion"]) >= 10)


def lines(*blocks: bytes) -> Any:
    """Return the content of a watch that comes in these blocks."""

    async def iter_chunked(_: int) -> AsyncIterator[bytes]:
        for block in blocks:
            yield block

    return _Lines(cast(Any, SimpleNamespace(iter_chunked=iter_chunked)), is_own)


async def test_what_is_passed_over_comes_as_a_bookmark() -> None:
    foreign, own, gone = event("MODIFIED", 9), event("MODIFIED", 10), event("DELETED", 11)
    sent = b"\n".join([event("ADDED", 10), foreign, own, gone]) + b"\n"
    shown = [line async for line in iter_jsonlines(lines(*(sent[at : at + 50] for at in range(0, len(sent), 50))))]
    assert [shown[0], shown[1], shown[3]] == [event("ADDED", 10), foreign, gone]
    assert json.loads(shown[2]) == {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "10"}}}
    assert len(shown) == 4


@pytest.mark.parametrize(
    "odd",
    [
        b"{",
        b"[]",
        b'"MODIFIED"',
        b"{}",
        b'{"type":"MODIFIED"}',
        b'{"type":"MODIFIED","object":[]}',
        b'{"type":"MODIFIED","object":{"metadata":{"name":"handbook","resourceVersion":"x"}}}',
        b'{"type":"ERROR","object":{"code":410}}',
        event("BOOKMARK", 10),
    ],
)
async def test_what_is_odd_comes_as_it_is(odd: bytes) -> None:
    assert [line async for line in iter_jsonlines(lines(odd + b"\n"))] == [odd]


async def test_a_watch_that_breaks_goes_on_from_what_was_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else own writes would come again, and older ones than are remembered would be news."""
    since: list[str | None] = []
    pause: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def stream(*, url: str, **_: Any) -> AsyncIterator[Any]:
        since.append(parse_qs(urlsplit(url).query).get("resourceVersion", [None])[0])
        if len(since) == 2:
            pause.set_result(None)
            return
        async for line in iter_jsonlines(lines(event("ADDED", 5) + b"\n" + event("MODIFIED", 17) + b"\n")):
            yield json.loads(line)

    monkeypatch.setattr(watching.api, "stream", stream)
    settings = kopf.OperatorSettings()
    settings.watching.initial_streaming = True
    watch = watching.continuous_watch(
        settings=settings,
        resource=Resource("example.com", "v1", "ingestionjobs", namespaced=True),
        namespace=None,
        operator_pause_waiter=cast(Any, pause),
    )
    async for _ in watch:
        pass
    assert since == [None, "17"]
