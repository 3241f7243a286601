"""HTTP/1.1 by uvicorn's fast parser, with the bounds that it lacks on what a stranger sends.

Its other parser, h11, has some of them, and takes several times as long over each request (docs/performance.md).
"""

from __future__ import annotations

import asyncio
import uuid
from http import HTTPStatus
from typing import Any, Final
from weakref import WeakKeyDictionary

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ingestion_api.middleware import ACCESS, REFUSAL, headers_of_all, request_id_of
from ingestion_api.problems import ProblemError, bad_request, unavailable

# By these a cluster decides whether to end the process, and many clients are no reason for that.
_PROBES: Final = frozenset({b"/healthz", b"/readyz"})
# In memory each of a few bytes takes some hundred.
_MAX_HEADERS: Final = 64
# For each that may have a request, so many connections are kept at all.
_CONNECTIONS_FACTOR: Final = 2
# Requests beside the one that is being answered. Few clients send any; one of 18 bytes becomes kilobytes in memory.
_MOST_WAITING: Final = 8
# Of a connection that has just been made.
_FIRST_HEAD_SECONDS: Final = 15.0
# An answer stays in memory until it is read, to its end.
_UNREAD_SECONDS: Final = 60.0
# Of each server: the connections that are without a whole head, since longest first.
_WITHOUT_HEAD: Final[WeakKeyDictionary[Config, dict[BoundedHttp, None]]] = WeakKeyDictionary()


class _Parser(httptools.HttpRequestParser):
    """Reads a request that asks to go on with another protocol (RFC 9110, 7.8) as if it did not.

    httptools takes all that follows such a head for the other protocol, even the body that it announces. uvicorn then
    takes it for requests: a stranger could put requests into a body.
    """

    def __init__(self, protocol: BoundedHttp) -> None:
        self._protocol = protocol
        self._begin()

    def feed_data(self, data: bytes) -> None:  # type: ignore[override]
        """Parse bytes. A head with `Upgrade` is parsed a second time, without it.

        Raises:
            httptools.HttpParserError: they are no request that can be answered.
        """
        while True:
            try:
                super().feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                method = self.get_method()
                if method == b"CONNECT":  # there is no header to leave out
                    raise httptools.HttpParserError("CONNECT") from None
                head = [b"%s %s HTTP/%s" % (method, self._protocol.url, self.get_http_version().encode())]
                head += [b"%s: %s" % header for header in self._protocol.headers if header[0] != b"upgrade"]
                data = b"\r\n".join([*head, b"", b""]) + data[upgrade.args[0] :]
                self._begin()

    def _begin(self) -> None:
        super().__init__(self._protocol)  # forgets what was parsed
        self.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does, to answer those who close


class BoundedHttp(HttpToolsProtocol):
    """Hangs up on a client that keeps a connection busy without a request, or would fill memory with what is no body.

    - Over `h11_max_incomplete_event_size` bytes of request line and headers, or of what stands between and after the
      pieces of a body: 400 if that can still be answered. Bytes are counted as they come: the parser does not
      tell of a header before its end.
    - Over 64 headers: 431, whether more of the head comes or not.
    - No whole head within 15 seconds from the beginning of the connection, or `timeout_keep_alive` seconds from the
      last answer, or the last piece of a body that was answered before it had come.
    - Over `limit_concurrency` connections: 503 and hung up, but for probes. Over twice as many: for each that comes,
      that one is hung up which has been without a whole head for longest; the new one may be a probe's.
    - Over 8 requests that wait for the answer to the one before: hung up.
    - An answer that is not taken to its end within 60 seconds: hung up.

    Trailers are dropped (RFC 9110, 6.5.1): they would count as headers, without having been checked as such.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.parser = _Parser(self)
        self._most_bytes = self.config.h11_max_incomplete_event_size
        self._most_connections = self.config.limit_concurrency
        self.limit_concurrency = None  # uvicorn's own answer is plain text, to probes too
        self._bytes = 0
        """How many came since a head began, or since the last piece of a body."""
        self._in_head = True
        self._body_came = False
        self._problem: ProblemError | None = None
        self._without_head = _WITHOUT_HEAD.setdefault(self.config, {})
        self._no_head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        if self._most_connections is not None and len(self.connections) >= _CONNECTIONS_FACTOR * self._most_connections:
            self._make_room()
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # to be told once all is taken
        self._wait_for_head(min(_FIRST_HEAD_SECONDS, self.timeout_keep_alive))

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._stop_waiting()
        self._stop_watching()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """More is to be sent than the client takes at the moment."""
        super().pause_writing()
        self._unread = self.loop.call_later(_UNREAD_SECONDS, self._give_up)

    def resume_writing(self) -> None:
        """The client has taken all of it."""
        super().resume_writing()
        self._stop_watching()

    def data_received(self, data: bytes) -> None:
        """Take in bytes."""
        self._bytes += len(data)
        self._body_came = False
        super().data_received(data)
        if self._body_came and self._no_head is not None:
            self._wait_for_head(self.timeout_keep_alive)
        if self._most_bytes is not None and self._bytes > self._most_bytes and not self.transport.is_closing():
            self.logger.warning("Request line and headers are too large.")
            self.send_400_response("request line and headers are too large")

    def on_message_begin(self) -> None:
        """A head begins.

        Raises:
            BufferError: too many wait already. It ends the parser, which has up to 256 KiB of them at hand; who called
                the parser then hangs up.
        """
        if len(self.pipeline) >= _MOST_WAITING:
            self.logger.warning("too many requests sent ahead")
            raise BufferError("too many requests sent ahead")
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header is whole, or a trailer.

        Raises:
            BufferError: there are too many; who called the parser answers that.
        """
        if not self._in_head:
            return
        if len(self.headers) == _MAX_HEADERS:
            told = f"at most {_MAX_HEADERS} headers are read"
            self._problem = ProblemError(status=431, error="too_many_headers", message=told)
            raise BufferError(told)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A head is whole."""
        if self.parser.should_upgrade():
            return  # it is read again
        self._bytes, self._in_head = 0, False
        self._stop_waiting()
        busy = max(len(self.connections), len(self.tasks))
        full = self._most_connections is not None and busy >= self._most_connections
        if full and self.url.partition(b"?")[0] not in _PROBES:
            self.logger.warning("too many connections: %d", busy)
            refusal = unavailable("too many connections; try again").response()
            refusal.headers["connection"] = "close"  # or those who are refused keep the others out
            self.scope["state"][REFUSAL] = refusal
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body has come. The request may be answered already, before its client has read that.

        It may be one of 40,000 that come at once, of a byte each: a timer is set after the last of them.
        """
        self._bytes, self._body_came = 0, True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole; the next head may begin."""
        if self.parser.should_upgrade():
            return  # only its head is, which is read again
        self._bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is sent."""
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_head(self.timeout_keep_alive)

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read, and hang up; without an answer where another one is half sent.

        One that breaks off a request is the answer to that, of which the access log tells by itself.
        """
        cycle: Any = self.cycle
        waits = cycle is not None and not cycle.response_complete
        if not self.pipeline and not (waits and cycle.response_started):
            broken_off = waits and cycle.more_body
            problem = self._problem or bad_request(msg)
            request_id = request_id_of(cycle.scope) if broken_off else self._no_request(problem.status)
            answer = problem.response()
            headers = [*answer.raw_headers, *headers_of_all(request_id), (b"connection", b"close")]
            status = f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}".encode()
            head = [status, *(b"%s: %s" % header for header in headers), b"", b""]
            self.transport.write(b"\r\n".join(head) + bytes(answer.body))
        self.transport.close()

    def _no_request(self, status: int) -> str:
        """Count and log what is no request, and return an id for it."""
        request_id = uuid.uuid4().hex
        app: Any = self.config.app
        app.state.metrics.requests.labels(operation="other", code=str(status)).inc()
        client = self.client[0] if self.client else None
        ACCESS.info("no request", extra={"request_id": request_id, "status": status, "client": client})
        return request_id

    def _wait_for_head(self, seconds: float) -> None:
        self._stop_waiting()
        self._without_head[self] = None
        self._no_head = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        self._without_head.pop(self, None)
        if self._no_head is not None:
            self._no_head.cancel()
            self._no_head = None

    def _make_room(self) -> None:
        self.logger.warning("too many connections without a request: %d", len(self._without_head))
        longest = next((each for each in self._without_head if each._unread is None), None)
        if longest is not None:
            longest._stop_waiting()
            longest.transport.abort()

    def _give_up(self) -> None:
        self.logger.warning("an answer is not read")
        self.transport.abort()

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
