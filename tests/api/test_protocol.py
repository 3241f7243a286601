"""What a client may do to a connection: an app of two routes, served as the API is."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from ingestion_api.main import server_options
from ingestion_api.metrics import Metrics
from ingestion_api.middleware import AccessLog, Limits
from ingestion_api.options import Options
from ingestion_api.protocol import BoundedHttp
from ingestion_api.routes.search import TakenResponse, UntilSent
from local_cluster import ports
from support.machine import has_ipv6

from .conftest import serve

HEAD_BYTES = 16 * 1024
SECONDS = 1
# More than kernels keep of a connection.
LARGE = 32 * 2**20
# Bytes are sent on by the kernel: what hangs up is seen some of them later.
WITHOUT_END = 400
UPGRADES = {
    "h2c": b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "websocket": b"connection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n",
}
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextmanager
def served(
    *, connections: int = 100, keep_alive_seconds: int = SECONDS, sent: list[float] | None = None
) -> Iterator[int]:
    """Serve the app; yield its port. When each large answer was asked for is noted in `sent` once that was taken."""
    app = FastAPI()
    app.state.metrics = Metrics()
    app.add_middleware(Limits, upload_suffix="/echo")
    app.add_middleware(AccessLog, metrics=app.state.metrics)
    sent = [] if sent is None else sent

    @app.get("/healthz")
    async def healthz() -> dict[str, bool]:
        return {"healthy": True}

    @app.post("/echo")
    async def echo(request: Request) -> dict[str, str]:
        await request.body()
        return dict(request.headers)

    @app.post("/hold")
    async def hold() -> None:
        time.sleep(SECONDS)  # nothing is taken in meanwhile

    @app.api_route("/body", methods=["GET", "POST"])
    async def body(request: Request) -> str:
        return (await request.body()).decode()

    @app.get("/large")
    async def large(until_sent: UntilSent) -> Response:
        until_sent.callback(sent.append, time.monotonic())
        return TakenResponse(b"x" * LARGE)

    (port,) = ports.free(count=1)
    bounds = {"connections": connections, "keep_alive_seconds": keep_alive_seconds, "header_bytes": HEAD_BYTES}
    server = serve(app, Options(namespace="system", **bounds), port)
    next(server)
    yield port
    next(server, None)


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Client]:
    """Connect, once the server listens."""
    deadline = time.monotonic() + 30
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    yield reader, writer
    writer.close()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Read one answer."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), timeout=30)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: bytes) -> bytes | None:
    """Send a piece again and again until the server hangs up; return what it has said, None if that was lost."""
    try:
        for _ in range(WITHOUT_END):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        raise AssertionError(f"{WITHOUT_END * len(piece)} bytes, and it goes on")
    except (ConnectionError, BrokenPipeError):
        pass
    try:
        return await asyncio.wait_for(reader.read(), timeout=30)
    except ConnectionError:
        return None


@pytest.mark.parametrize("path", [b"GET /healthz", b"POST /echo"], ids=["answered", "waiting"])
async def test_trailers_without_an_end_are_cut_off(path: bytes) -> None:
    with served() as port:
        async with client(port) as (reader, writer):
            writer.write(path + b" HTTP/1.1\r\nhost: api\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n")
            await cut_off(reader, writer, b"x-more: " + b"a" * 4096 + b"\r\n")


async def test_a_trailer_without_an_end_is_cut_off() -> None:
    with served() as port:
        async with client(port) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: api\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx-more: ")
            assert (await answer_of(reader))[0] == 200
            await cut_off(reader, writer, b"a" * 4096)


async def test_a_trailer_is_no_header() -> None:
    """What the middlewares have checked is what routes see."""
    with served() as port:
        async with client(port) as (reader, writer):
            head = b"POST /echo HTTP/1.1\r\nhost: api\r\ntransfer-encoding: chunked\r\n\r\n"
            writer.write(head + b"2\r\nab\r\n0\r\nx-api-key: mine\r\n\r\n")
            status, body = await answer_of(reader)
            assert status == 200
            assert json.loads(body) == {"host": "api", "transfer-encoding": "chunked"}


async def test_a_body_is_no_head_however_large_its_pieces() -> None:
    with served() as port:
        async with client(port) as (reader, writer):
            writer.write(b"POST /echo HTTP/1.1\r\nhost: api\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(20):
                writer.write(b"4000\r\n" + b"a" * 0x4000 + b"\r\n")
            writer.write(b"0\r\n\r\n")
            assert (await answer_of(reader))[0] == 200


@pytest.mark.parametrize("drip", [b"", b"\r\n", b"x"], ids=["silent", "empty lines", "a byte now and then"])
async def test_a_connection_without_a_request_is_closed(drip: bytes) -> None:
    """At its beginning, and after an answer."""
    with served() as port:
        for first in (b"", b"GET /healthz HTTP/1.1\r\nhost: api\r\n\r\n"):
            async with client(port) as (reader, writer):
                writer.write(first)
                if first:
                    assert (await answer_of(reader))[0] == 200
                begun = time.monotonic()
                ended = asyncio.create_task(reader.read())
                while not ended.done():
                    assert time.monotonic() - begun < 20 * SECONDS, "it stays"
                    if drip and not writer.is_closing():
                        writer.write(drip)
                    await asyncio.wait([ended], timeout=SECONDS / 4)
                assert ended.exception() is None or isinstance(ended.exception(), ConnectionError)


async def test_an_answered_connection_stays_longer_than_a_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a proxy that keeps it for 90 s, as those in Go do, sends a request into one that is just being closed."""
    assert Options(namespace="system").keep_alive_seconds > 90
    monkeypatch.setattr("ingestion_api.protocol._FIRST_HEAD_SECONDS", 1.0)
    head = b"GET /healthz HTTP/1.1\r\nhost: api\r\n\r\n"
    with served(keep_alive_seconds=60) as port:
        async with client(port) as (reader, writer), client(port) as (silent, _):
            writer.write(head)
            assert (await answer_of(reader))[0] == 200
            assert await asyncio.wait_for(silent.read(), timeout=30) == b""
            writer.write(head)
            assert (await answer_of(reader))[0] == 200


async def test_probes_are_answered_however_many_connections_there_are() -> None:
    with served(connections=2) as port:
        async with client(port), client(port), client(port) as (reader, writer):
            writer.write(b"GET /healthz?verbose HTTP/1.1\r\nhost: api\r\n\r\n")
            assert (await answer_of(reader))[0] == 200
            writer.write(b"POST /echo HTTP/1.1\r\nhost: api\r\ncontent-length: 0\r\n\r\n")
            status, body = await answer_of(reader)
            assert status == 503
            assert json.loads(body)["error"] == "unavailable"
            assert await reader.read() == b"", "who is refused keeps others out"


async def test_who_is_without_a_request_for_longest_makes_room() -> None:
    """A probe's request comes at once; who has one is served to its end."""
    head = b"POST /echo HTTP/1.1\r\nhost: api\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"
    async with AsyncExitStack() as stack:
        port = stack.enter_context(served(connections=2, keep_alive_seconds=60))
        busy, sends = await stack.enter_async_context(client(port))
        sends.write(head)
        assert b" 100 " in await busy.readuntil(b"\r\n\r\n")
        silent = []
        for _ in range(20):
            reader, writer = await stack.enter_async_context(client(port))
            writer.write(head[:-2])
            silent.append(asyncio.create_task(reader.read()))
            async with client(port) as (probe, asks):
                asks.write(b"GET /healthz HTTP/1.1\r\nhost: api\r\n\r\n")
                assert (await answer_of(probe))[0] == 200
        async with asyncio.timeout(10):
            await asyncio.gather(*silent[:-3], return_exceptions=True)
        sends.write(b"ab")
        assert (await answer_of(busy))[0] == 200
        for task in silent:
            task.cancel()
        await asyncio.gather(*silent, return_exceptions=True)


async def test_a_probe_is_answered_in_a_burst_of_connections() -> None:
    """That of a request which came with them, and before the others."""
    async with AsyncExitStack() as stack:
        port = stack.enter_context(served(connections=32))
        reader, writer = await stack.enter_async_context(client(port))
        writer.write(b"POST /hold HTTP/1.1\r\nhost: api\r\ncontent-length: 0\r\n\r\n")
        await asyncio.sleep(SECONDS / 4)
        probe, asks = await stack.enter_async_context(client(port))
        asks.write(b"GET /healthz HTTP/1.1\r\nhost: api\r\n\r\n")
        burst = [asyncio.create_task(asyncio.open_connection("127.0.0.1", port)) for _ in range(200)]
        assert (await answer_of(probe))[0] == 200
        assert (await answer_of(reader))[0] == 200
        for task in burst:
            task.cancel()
        for opened in await asyncio.gather(*burst, return_exceptions=True):
            if not isinstance(opened, BaseException):
                opened[1].close()


@pytest.mark.parametrize("more", [b"", *UPGRADES.values()], ids=["plain", *UPGRADES])
async def test_no_more_headers_are_kept_than_are_read(more: bytes) -> None:
    """Whether the head ends or not: each is a few bytes to its sender, and some hundred here."""
    own, end = more.count(b"\r\n"), b"\r\n"
    with served() as port:
        async with client(port) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\n" + more + b"a:\r\n" * (64 - own) + end)
            assert (await answer_of(reader))[0] == 200
        for sent in (b"a:\r\n" * (65 - own) + end, b"a:\r\n" * 4_000):
            async with client(port) as (reader, writer):
                writer.write(b"GET /healthz HTTP/1.1\r\n" + more + sent)
                status, body = await answer_of(reader)
                assert (status, json.loads(body)["error"]) == (431, "too_many_headers")
                assert await reader.read() == b""


async def test_a_slow_upload_that_is_refused_reads_why() -> None:
    """It takes longer to send than a connection without a request stays."""
    with served() as port:
        async with client(port) as (reader, writer):
            pieces = 12
            writer.write(b"POST /refused HTTP/1.1\r\nhost: api\r\ncontent-length: %d\r\n\r\n" % pieces)
            for _ in range(pieces):
                await asyncio.sleep(SECONDS / 4)
                writer.write(b"a")
                await writer.drain()
            assert (await answer_of(reader))[0] == 404


async def test_pieces_of_a_body_that_is_answered_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer for each of a byte would keep a replica from all others, whoever sends them."""
    waits = 0
    wait = BoundedHttp._wait_for_head

    def counted(connection: BoundedHttp, seconds: float) -> None:
        nonlocal waits
        waits += 1
        wait(connection, seconds)

    monkeypatch.setattr(BoundedHttp, "_wait_for_head", counted)
    with served() as port:
        async with client(port) as (reader, writer):
            writer.write(b"POST /no/echo HTTP/1.1\r\nhost: api\r\ntransfer-encoding: chunked\r\n\r\n")
            assert (await answer_of(reader))[0] == 404
            writer.write(b"1\r\na\r\n" * 10_000 + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nhost: api\r\n\r\n")
            assert (await answer_of(reader))[0] == 200
    assert waits < 100


@pytest.mark.parametrize("more", [b"", *UPGRADES.values()], ids=["plain", *UPGRADES])
async def test_requests_sent_ahead_without_an_end_are_cut_off(more: bytes) -> None:
    """However many come with one read: each is a few bytes to its sender, and kilobytes here."""
    many = 10_000
    with served() as port:
        async with client(port) as (reader, writer):
            writer.write((b"GET /healthz HTTP/1.1\r\n" + more + b"\r\n") * many)
            answers = 0
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while answers < many:
                    assert (await answer_of(reader))[0] == 200
                    answers += 1
            assert answers < 100


async def test_a_few_requests_sent_ahead_are_answered_in_turn() -> None:
    """And any number of them one after the other."""
    with served() as port:
        async with client(port) as (reader, writer):
            for _ in range(20):
                for number in range(8):
                    writer.write(b"POST /echo HTTP/1.1\r\ncontent-length: 2\r\nx-number: %d\r\n\r\nab" % number)
                for number in range(8):
                    status, body = await answer_of(reader)
                    assert (status, json.loads(body)["x-number"]) == (200, str(number))


BODY = b"POST /echo HTTP/1.1\r\nhost: smuggled\r\n\r\n"
FRAMED = {
    "whole": b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "chunked": b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
}


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("framed", FRAMED.values(), ids=FRAMED)
async def test_a_client_that_offers_another_protocol_is_answered_in_this_one(upgrade: bytes, framed: bytes) -> None:
    """Wherever its request is cut: what comes after the head is its body, and no request of a stranger's making."""
    sent = b"POST /body HTTP/1.1\r\nhost: api\r\n" + upgrade + framed
    body = sent.index(b"\r\n\r\n") + 4
    with served() as port:
        for cut in (0, 60, body, body + 20, len(sent)):
            async with client(port) as (reader, writer):
                writer.write(sent[:cut])
                await asyncio.sleep(0.05)
                writer.write(sent[cut:] + sent + b"GET /healthz HTTP/1.1\r\nconnection: close\r\n\r\n")
                for _ in range(2):
                    assert await answer_of(reader) == (200, json.dumps(BODY.decode()).encode())
                assert await answer_of(reader) == (200, b'{"healthy":true}')
                assert await reader.read() == b""


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES)
async def test_who_offers_another_protocol_is_held_to_the_same_rules(upgrade: bytes) -> None:
    with served() as port:
        async with client(port) as (reader, writer):
            for number in range(8):
                writer.write(b"GET /body?%d HTTP/1.1\r\n%s\r\n" % (number, upgrade))
            for _ in range(8):
                assert await answer_of(reader) == (200, b'""')
            writer.write(b"POST /body HTTP/1.1\r\n%sexpect: 100-continue\r\ncontent-length: 2\r\n\r\n" % upgrade)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"ab")
            assert await answer_of(reader) == (200, b'"ab"')
            large = b"x-large: " + b"a" * (HEAD_BYTES * 3 // 4)
            writer.write(b"POST /body HTTP/1.0\r\n%s%s\r\ncontent-length: 2\r\n\r\nab" % (upgrade, large))
            assert await answer_of(reader) == (200, b'"ab"')
            assert await reader.read() == b"", "HTTP/1.0"


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /body HTTP/1.1\r\n" + UPGRADES["h2c"] + b"transfer-encoding: chunked\r\n\r\nno chunk\r\n",
        b"CONNECT /body HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY),
        b"CONNECT api:80 HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY),
    ],
    ids=["what follows is no body", "a tunnel", "a tunnel to a host"],
)
async def test_the_connection_is_closed_after_what_cannot_be_read(sent: bytes) -> None:
    with served() as port:
        async with client(port) as (reader, writer):
            writer.write(sent)
            status, body = await answer_of(reader)
            assert (status, json.loads(body)["error"]) == (400, "bad_request")
            assert await reader.read() == b""


async def test_it_listens_on_ipv6_too_where_there_is_any() -> None:
    """By itself: pods of some clusters have no other address."""
    (port,) = ports.free(count=1)
    server = uvicorn.Server(uvicorn.Config(FastAPI(), **server_options(Options(namespace="system", port=port))))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        for host in ("127.0.0.1", "::1") if has_ipv6() else ("127.0.0.1",):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    finally:
        server.should_exit = True
        thread.join(30)


async def test_what_is_no_request_gets_an_error_like_any_other() -> None:
    with served() as port:
        async with client(port) as (reader, writer):
            writer.write(b"NONSENSE\r\n\r\n")
            status, body = await answer_of(reader)
            assert (status, json.loads(body)["error"]) == (400, "bad_request")
            assert await reader.read() == b""


async def test_an_answer_that_nobody_reads_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its connection, and the memory that it takes."""
    monkeypatch.setattr("ingestion_api.protocol._UNREAD_SECONDS", 0.2)
    with served(connections=2) as port:
        async with client(port) as (_, stalled):
            stalled.transport.pause_reading()  # type: ignore[attr-defined]
            stalled.write(b"GET /large HTTP/1.1\r\nhost: api\r\n\r\n")
            status, deadline = 503, time.monotonic() + 30
            while status == 503 and time.monotonic() < deadline:
                await asyncio.sleep(0.1)
                async with client(port) as (reader, writer):
                    writer.write(b"POST /echo HTTP/1.1\r\nhost: api\r\ncontent-length: 0\r\n\r\n")
                    status, _ = await answer_of(reader)
            assert status == 200


@pytest.mark.parametrize(("seconds", "whole"), [(60.0, True), (1.0, False)], ids=["in time", "too slowly"])
async def test_an_answer_is_read_to_its_end_in_time_or_given_up(
    monkeypatch: pytest.MonkeyPatch, seconds: float, whole: bool
) -> None:
    """A little of it now and then does not keep it in memory. What it holds is held until then."""
    monkeypatch.setattr("ingestion_api.protocol._UNREAD_SECONDS", seconds)
    sent: list[float] = []
    with served(sent=sent) as port:
        async with client(port) as (reader, writer):
            for _ in range(2 if whole else 1):  # the time is each answer's own
                writer.write(b"GET /large HTTP/1.1\r\nhost: api\r\n\r\n")
                left, begun = LARGE, time.monotonic()
                await reader.readuntil(b"\r\n\r\n")
                assert sent == []
                with suppress(ConnectionError, asyncio.IncompleteReadError):
                    while left > 0:
                        left -= len(await reader.readexactly(min(left, 2**20)))
                        await asyncio.sleep(0.1)
                assert (left == 0, time.monotonic() - begun > 1.0) == (whole, True)
                while not sent:
                    assert time.monotonic() - begun < 30
                    await asyncio.sleep(0.05)
                sent.clear()
