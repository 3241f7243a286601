"""A reverse proxy between a client and a server, above all the API server, which does what a test says to requests.

Plain HTTP on loopback in front; the kubeconfig's client certificate behind, where that is the API server. A fault wraps
the way to the server: it may answer itself, send the request on and keep the answer, end the client in between, or
never come back.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml
from aiohttp import web

_SCOPED = ("ingestionjobs", "ingestionbatches", "jobs")
_LONGEST_LINE = 64 * 2**20
_DROPPED_HEADERS = {"host", "accept-encoding", "connection", "content-length", "transfer-encoding"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request.

    Args:
        verb: Kubernetes' verb: get, list, watch, create, update, patch, delete, deletecollection.
        number: its place among the requests that change something, from 1; 0 for one that only reads, or for a Lease.
    """

    verb: str
    resource: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    number: int = 0

    def __str__(self) -> str:
        what = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f"{self.verb} {what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the client gets."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class InjectedResetError(Exception):
    """The client's connection is to be reset instead of an answer."""


Forward = Callable[[], Awaitable[Answer]]
Act = Callable[[Call, Forward], Awaitable[Answer]]
Match = Callable[[Call], bool]
WatchFault = Callable[[Call, AsyncIterator[bytes]], AsyncIterator[bytes]]


@dataclass(slots=True, kw_only=True)
class Fault:
    """What is done to the requests that match.

    Args:
        match: which requests.
        act: what becomes of them.
        times: to how many of them; the others pass. None for all.
    """

    match: Match
    act: Act
    times: int | None = 1
    injected: int = 0

    def takes(self, call: Call) -> bool:
        """Take a request if it matches and it is not enough yet."""
        if (self.times is not None and self.injected >= self.times) or not self.match(call):
            return False
        self.injected += 1
        return True


# ── faults ────────────────────────────────────────────────────────────────────────────────────────────────────


async def reset(call: Call, forward: Forward) -> Answer:
    """Reset the connection; the request was never sent on."""
    raise InjectedResetError


async def lose_answer(call: Call, forward: Forward) -> Answer:
    """Reset the connection after the request was carried out."""
    await forward()
    raise InjectedResetError


def refuse(status: int, *, reason: str = "", retry_after: int | None = None) -> Act:
    """Answer with an error instead of sending the request on."""

    async def act(call: Call, forward: Forward) -> Answer:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        return _error(status, reason=reason, headers=headers)

    return act


def deny(status: int) -> Act:
    """Answer with an error after the request was carried out."""

    async def act(call: Call, forward: Forward) -> Answer:
        await forward()
        return _error(status)

    return act


def hang(release: asyncio.Event) -> Act:
    """Hold a request until it is released or its client leaves; then send it on."""

    async def act(call: Call, forward: Forward) -> Answer:
        await release.wait()
        return await forward()

    return act


def delay(release: asyncio.Event) -> Act:
    """Hold a request on its way: it is carried out once it is released, whether its client still waits or not."""

    async def act(call: Call, forward: Forward) -> Answer:
        async def late() -> Answer:
            await release.wait()
            return await forward()

        return await asyncio.shield(asyncio.ensure_future(late()))

    return act


def crash_before(kill: Callable[[], None]) -> Act:
    """End the client with SIGKILL before its request is sent on."""

    async def act(call: Call, forward: Forward) -> Answer:
        kill()
        raise InjectedResetError

    return act


def crash_after(kill: Callable[[], None]) -> Act:
    """End the client with SIGKILL after its request was carried out and before the answer arrives."""

    async def act(call: Call, forward: Forward) -> Answer:
        await forward()
        kill()
        raise InjectedResetError

    return act


_REASONS = {
    409: "Conflict",
    410: "Expired",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


def _error(status: int, *, reason: str = "", headers: dict[str, str] | None = None) -> Answer:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"injected fault {status}",
        "reason": reason or _REASONS.get(status, "Unknown"),
        "code": status,
    }
    return Answer(status=status, body=json.dumps(body).encode(), headers=headers or {})


# ── the proxy ─────────────────────────────────────────────────────────────────────────────────────────────────


class ReverseProxy:
    """Listens in front of a server and lets faults have what comes in; use it as an async context manager.

    Args:
        server: URL of the server behind.
        tls: how its certificate is checked and what it is shown; None for plain HTTP.
    """

    def __init__(self, *, server: str, tls: ssl.SSLContext | None = None) -> None:
        self._server = server
        self._tls = tls
        self._forwards: set[asyncio.Task[Answer]] = set()
        self.faults: list[Fault] = []

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls or True, limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=_LONGEST_LINE,
        )
        app = web.Application(client_max_size=_LONGEST_LINE)
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        for task in self._forwards:
            task.cancel()
        await asyncio.gather(*self._forwards, return_exceptions=True)
        await self._session.close()
        await asyncio.sleep(0.05)  # TLS connections end in the background

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    def add(self, match: Match, act: Act, *, times: int | None = 1) -> Fault:
        """Have something done to the next requests that match."""
        fault = Fault(match=match, act=act, times=times)
        self.faults.append(fault)
        return fault

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError

    async def _answer(self, call: Any, send: Forward) -> Answer:
        """Have a fault do what it does to a request, or send it on."""

        async def forward() -> Answer:
            # The client's end must not end a request that is under way: its effect has to be known.
            task = asyncio.ensure_future(send())
            self._forwards.add(task)
            task.add_done_callback(self._forwards.discard)
            return await asyncio.shield(task)

        fault = next((fault for fault in self.faults if fault.takes(call)), None)
        return await (fault.act(call, forward) if fault else forward())


class Proxy(ReverseProxy):
    """The proxy in front of the API server.

    Args:
        kubeconfig: of the API server behind.
        folder: where the kubeconfig for the client goes.
        namespace: if given, all that the client sees: cluster-wide lists and watches of IngestionJobs and Jobs are sent
            on for this namespace alone, so that many operators can share one API server.
    """

    def __init__(self, *, kubeconfig: Path, folder: Path, namespace: str = "") -> None:
        server, tls = _connection(kubeconfig)
        super().__init__(server=server, tls=tls)
        self._folder = folder
        self._namespace = namespace
        self.watch_fault: WatchFault | None = None
        self.seen: Counter[str] = Counter()
        self.calls: list[Call] = []
        self.committed: list[Call] = []
        self.created: Counter[str] = Counter()
        self.deleted: set[tuple[str, str]] = set()  # resource and UID

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of the client in front."""
        path = self._folder / f"proxy-{self._runner.addresses[0][1]}.kubeconfig"
        if not path.exists():
            content = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
                "users": [{"name": "nobody", "user": {}}],
                "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "nobody"}}],
                "current-context": "proxy",
            }
            path.write_text(yaml.safe_dump(content))
        return path

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        call = self._read(request)
        self.seen[str(call)] += 1
        if call.verb == "watch":
            return await self._watch(call, request)
        body = await request.read()
        if call.number:
            self.calls.append(call)
        try:
            answer = await self._answer(call, lambda: self._forward(call, request, body))
        except (InjectedResetError, aiohttp.ClientError):
            return reset_connection(request)
        return web.Response(
            status=answer.status, body=answer.body, headers={"Content-Type": answer.content_type, **answer.headers}
        )

    async def _forward(self, call: Call, request: web.Request, body: bytes) -> Answer:
        url, headers = self._target(call, request)
        async with self._session.request(request.method, url, data=body or None, headers=headers) as response:
            answer = Answer(
                status=response.status, body=await response.read(), content_type=response.headers["Content-Type"]
            )
        if call.number and answer.status < 300:
            self._count(call, answer)
        return answer

    async def _watch(self, call: Call, request: web.Request) -> web.StreamResponse:
        fault = next((fault for fault in self.faults if fault.takes(call)), None)
        if fault is not None:

            async def forward() -> Answer:
                raise InjectedResetError  # a watch has no answer that could be kept back

            try:
                answer = await fault.act(call, forward)
            except InjectedResetError:
                return reset_connection(request)
            return web.Response(status=answer.status, body=answer.body, content_type=answer.content_type)
        url, headers = self._target(call, request)
        try:
            async with self._session.get(url, headers=headers) as upstream:
                response = web.StreamResponse(status=upstream.status, headers={"Content-Type": "application/json"})
                await response.prepare(request)
                lines: AsyncIterator[bytes] = aiter(upstream.content)
                async for line in self.watch_fault(call, lines) if self.watch_fault else lines:
                    await response.write(line)
        except (InjectedResetError, aiohttp.ClientError):
            return reset_connection(request)
        return response

    def _read(self, request: web.Request) -> Call:
        parts = request.path.strip("/").split("/")
        parts = parts[2:] if parts[0] == "api" else parts[3:]
        namespace = ""
        if len(parts) > 2 and parts[0] == "namespaces":
            namespace, parts = parts[1], parts[2:]
        resource, name, subresource = (*parts, "", "", "")[:3]
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(request.method, "get")
        if verb == "delete" and not name:
            verb = "deletecollection"
        if verb == "get" and not name:
            verb = "watch" if request.query.get("watch") == "true" else "list"
        reads = verb in ("get", "list", "watch") or resource == "leases"
        return Call(
            verb=verb,
            resource=resource,
            subresource=subresource,
            namespace=namespace,
            name=name,
            number=0 if reads else len(self.calls) + 1,
        )

    def _target(self, call: Call, request: web.Request) -> tuple[str, dict[str, str]]:
        path = request.raw_path
        if self._namespace and not call.namespace and call.resource in _SCOPED:
            path = path.replace(f"/{call.resource}", f"/namespaces/{self._namespace}/{call.resource}", 1)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _DROPPED_HEADERS}
        return self._server + path, headers

    def _count(self, call: Call, answer: Answer) -> None:
        self.committed.append(call)
        if call.verb == "create":
            self.created[call.resource] += 1
        elif call.verb == "delete":
            said = answer.json
            uid = said["details"]["uid"] if said["kind"] == "Status" else said["metadata"]["uid"]
            self.deleted.add((call.resource, uid))
        elif call.verb == "deletecollection":
            self.deleted |= {(call.resource, item["metadata"]["uid"]) for item in answer.json["items"]}


def reset_connection(request: web.Request) -> web.Response:
    """Close the client's connection with RST instead of FIN; the response that is returned reaches nobody."""
    if request.transport is not None:
        sock = request.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response()


def _connection(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """Return the API server's address and the TLS context of the kubeconfig's only user."""
    content = yaml.safe_load(kubeconfig.read_text())
    cluster, user = content["clusters"][0]["cluster"], content["users"][0]["user"]
    tls = ssl.create_default_context(cafile=cluster["certificate-authority"])
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # as the product: KubeClient.connect
    tls.load_cert_chain(user["client-certificate"], user["client-key"])
    return str(cluster["server"]).rstrip("/"), tls
