"""What happens to every request before a route sees it: an id, a log line, limits on query and body."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingestion_api.metrics import Metrics
from ingestion_api.problems import ProblemError, bad_request, too_large, unavailable

ACCESS: Final = logging.getLogger("ingestion_api.access")
MAX_JSON_BYTES: Final = 64 * 1024
MAX_QUERY_BYTES: Final = 4096
BODY_SECONDS: Final = 10.0
REFUSAL: Final = "refusal"
"""In a request's state: the answer to it, whatever it asks for."""
_REQUEST_ID: Final = re.compile(rb"^[A-Za-z0-9._-]{1,64}$")
# Probes would drown the log.
_QUIET: Final = frozenset({"/healthz", "/readyz", "/metrics"})


def headers_of_all(request_id: str) -> list[tuple[bytes, bytes]]:
    """Return the headers that each answer has. Shared caches know no `x-api-key`, and would take it for anybody's.

    Args:
        request_id: the request's.
    """
    return [(b"x-request-id", request_id.encode()), (b"cache-control", b"no-store")]


def request_id_of(scope: Scope) -> str:
    """Return a request's id: the client's own, or one that is made for it.

    Args:
        scope: the request's, whose state keeps it.
    """
    state: dict[str, Any] = scope.setdefault("state", {})
    if "request_id" not in state:
        given = _header(scope, b"x-request-id")
        state["request_id"] = given.decode() if given and _REQUEST_ID.match(given) else uuid.uuid4().hex
    request_id: str = state["request_id"]
    return request_id


class AccessLog:
    """Give every request an id, log it as one record, count it, and answer what nobody caught: 500, or 503 at the end.

    HEAD is served as GET is (RFC 9110, 9.3.2); uvicorn leaves the body out, by its own scope.
    The record has the key's id, the job and its id where a route has set them; never a header or a query.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request_id = request_id_of(scope)
        state: dict[str, Any] = scope["state"]
        served = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *headers_of_all(request_id)]}
            await send(message)

        try:
            await self._app(served, receive, sending)
        except asyncio.CancelledError:
            # The request took longer than a shutdown may. uvicorn's own answer would be a plain 500.
            if status:
                raise
            await unavailable("the API is being restarted; try again").response()(scope, receive, sending)
        except Exception:
            ACCESS.exception("unexpected error", extra={"request_id": request_id})
            if status == 0:
                problem = ProblemError(
                    status=500, error="internal", message=f"unexpected error; the log has it under {request_id}"
                )
                await problem.response()(scope, receive, sending)
        finally:
            operation = getattr(served.get("route"), "operation_id", None) or "other"
            self._record(scope, state, operation, status, time.monotonic() - began)

    def _record(self, scope: Scope, state: dict[str, Any], operation: str, status: int, seconds: float) -> None:
        self._metrics.requests.labels(operation=operation, code=str(status)).inc()
        self._metrics.seconds.labels(operation=operation).observe(seconds)
        if scope["path"] in _QUIET:
            return
        client = scope.get("client")
        fields = {
            "request_id": state["request_id"],
            "method": scope["method"],
            "path": scope["path"][:512],
            "operation": operation,
            "status": status,
            "milliseconds": round(seconds * 1000, 1),
            "client": client[0] if client else None,
            "key_id": state.get("key_id"),
            "namespace": state.get("namespace"),
            "job": state.get("job"),
            "job_id": state.get("job_id"),
            "api_error": state.get("api_error"),
        }
        ACCESS.info("request", extra={name: value for name, value in fields.items() if value is not None})


class Limits:
    """Refuse what is too large before any of it is parsed, and what the protocol has put a refusal to.

    Bodies of all routes but the upload are read here, whole, up to 64 KiB and for at most 10 s, whoever sends them: of
    one that is too large that is said, and not that a key is missing. The upload's own reader bounds its body as it
    streams.

    Args:
        upload_suffix: the end of the upload's path.
    """

    def __init__(self, app: ASGIApp, *, upload_suffix: str) -> None:
        self._app = app
        self._suffix = upload_suffix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if (refusal := scope["state"].get(REFUSAL)) is not None:
            await refusal(scope, receive, send)
            return
        try:
            if len(scope.get("query_string", b"")) > MAX_QUERY_BYTES:
                told = f"at most {MAX_QUERY_BYTES} bytes of query"
                raise ProblemError(status=414, error="query_too_long", message=told)
            if scope["method"] != "GET" and not scope["path"].endswith(self._suffix):
                receive = _replay(await _whole_body(scope, receive), receive)
        except ProblemError as problem:
            await problem.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def content_length(scope: Scope) -> int | None:
    """Return the announced length of the body in bytes, None when none is announced.

    Raises:
        ProblemError: 400 when it is no number.
    """
    value = _header(scope, b"content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > 18:
        raise bad_request("content-length: not a number")
    return int(value)


async def _whole_body(scope: Scope, receive: Receive) -> bytes:
    over = too_large(f"the body has more than {MAX_JSON_BYTES} bytes")
    announced = content_length(scope)
    if announced is not None and announced > MAX_JSON_BYTES:
        raise over
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise bad_request("the connection ended before the body did")
                body += message.get("body", b"")
                if len(body) > MAX_JSON_BYTES:
                    raise over
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise ProblemError(
            status=408, error="timeout", message=f"the body did not arrive within {BODY_SECONDS:.0f} s"
        ) from None


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)
