"""A proxy between workers and their object store, and what can go wrong on that way."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import aiohttp
import yarl
from aiohttp import web
from faults.proxy import Act, Answer, Forward, InjectedResetError, ReverseProxy, reset_connection

_REASONS = {
    301: "PermanentRedirect",
    403: "AccessDenied",
    404: "NoSuchUpload",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    500: "InternalError",
    503: "SlowDown",
    507: "InsufficientStorage",
}
# The signature covers `Host`, so it is sent on as the client wrote it.
_DROPPED_HEADERS = {"connection", "content-length", "transfer-encoding", "date", "server"}
_AUTOMATIC_HEADERS = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreCall:
    """A request to the store.

    Args:
        verb: GET, HEAD, PUT, POST, DELETE, or LIST.
        key: the object's key; of a LIST the prefix.
        target: path and query as they were sent.
    """

    verb: str
    key: str
    target: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.verb} {self.key}"


def refuse(status: int, *, code: str = "", message: str = "") -> Act:
    """Answer with an error of S3, laid out as S3 does it, instead of sending the request on."""

    async def act(call: StoreCall, forward: Forward) -> Answer:
        told = f"<Code>{code or _REASONS[status]}</Code><Message>{message or f'injected fault {status}'}</Message>"
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{told}<StringToSign>AWS4</StringToSign></Error>'
        return Answer(status=status, body=body.encode(), content_type="application/xml")

    return act


class StoreProxy(ReverseProxy):
    """The proxy in front of an S3 server."""

    calls: list[StoreCall]

    def __init__(self, *, server: str) -> None:
        super().__init__(server=server)
        self.calls = []

    async def tear(self, call: StoreCall, forward: Forward) -> Answer:
        """Send half of a request's body on; then reset the connections on both sides."""
        parts = urlsplit(self._server)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        lines = [f"{call.verb} {call.target} HTTP/1.1", *(f"{name}: {value}" for name, value in call.headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + call.body[: len(call.body) // 2])
        await writer.drain()
        # Time to arrive: what a reset overtakes was never sent. An early answer is one to a part of the body.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        raise InjectedResetError

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        _, _, key = unquote(request.raw_path.partition("?")[0]).lstrip("/").partition("/")
        listing = request.method == "GET" and not key
        call = StoreCall(
            verb="LIST" if listing else request.method,
            key=request.query.get("prefix", "") if listing else key,
            target=request.raw_path,
            body=await request.read(),
            headers=dict(request.headers),
        )
        self.calls.append(call)
        try:
            answer = await self._answer(call, lambda: self._forward(call))
        except (InjectedResetError, aiohttp.ClientError):
            return reset_connection(request)
        headers = {"Content-Type": answer.content_type, **answer.headers}
        return web.Response(status=answer.status, body=answer.body, headers=headers)

    async def _forward(self, call: StoreCall) -> Answer:
        headers = {name: value for name, value in call.headers.items() if name.lower() not in _DROPPED_HEADERS}
        async with self._session.request(
            "GET" if call.verb == "LIST" else call.verb,
            yarl.URL(self._server + call.target, encoded=True),
            data=io.BytesIO(call.body) if call.body else None,  # of bytes, aiohttp warns over 1 MiB
            headers=headers,
            skip_auto_headers=_AUTOMATIC_HEADERS,
        ) as response:
            kept = {name: value for name, value in response.headers.items() if name.lower() not in _DROPPED_HEADERS}
            if call.verb == "HEAD":
                kept["Content-Length"] = response.headers.get("Content-Length", "0")
            return Answer(status=response.status, body=await response.read(), headers=kept)
