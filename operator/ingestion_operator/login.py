"""How kopf connects to the API server, and how it reads what that answers.

Source: https://docs.kopf.dev/en/stable/authentication/#custom-http-sessions
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import aiohttp
import kopf
import orjson
from ingestion_crds import JsonObject
from ingestion_crds.kube import in_pod, parse, without_managed_fields

# Python's own parser goes about 900 levels deep before 3.13; an IngestionJob without its managed fields has ten.
_MOST_BRACKETS: Final = 500

PassesOver = Callable[[JsonObject], bool]
"""Is shown an IngestionJob that has changed, and says whether kopf need not hand that on."""


class _Connection(kopf.ConnectionInfo):
    """What kopf has found of the API server, with the certificates accepted that `KubeClient.connect` accepts."""

    def as_ssl_context(self) -> ssl.SSLContext:
        """Return a context that verifies the API server as client-go does."""
        context = super().as_ssl_context()
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context


class _Lines:
    """The lines of a watch.

    An event that is passed over becomes a bookmark of its resourceVersion, so that kopf knows from where to go on when
    the watch breaks: to hand the event on would cost it several times the processor time. Lines that its parser would
    not take come without managed fields.
    """

    def __init__(self, content: aiohttp.StreamReader, passes_over: PassesOver) -> None:
        self._content = content
        self._passes_over = passes_over

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Yield whole lines."""
        rest = b""
        async for block in self._content.iter_chunked(size):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield self._for_kopf(line) + b"\n"
        if rest:
            yield self._for_kopf(rest)

    def _for_kopf(self, line: bytes) -> bytes:
        if b'"MODIFIED"' not in line[:20]:
            return _readable(line)  # not parsed here too, as all that there are at a start would be
        try:
            event = parse(line)
            if self._passes_over(event["object"]):
                metadata = {"resourceVersion": event["object"]["metadata"]["resourceVersion"]}
                return orjson.dumps({"type": "BOOKMARK", "object": {"metadata": metadata}})
        except (ValueError, LookupError, TypeError):
            pass  # whatever it is, kopf says so
        return _readable(line)


def _readable(line: bytes) -> bytes:
    brackets = line.count(b"{") + line.count(b"[")
    return line if brackets < _MOST_BRACKETS else without_managed_fields(line)


class _Answer(aiohttp.ClientResponse):
    """An answer as kopf is to read it: one odd object must not end the watch of all others, and the process with it.

    kopf takes lists by `json`, and the lines of a watch by `content.iter_chunked`.
    """

    passes_over: PassesOver

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Take in the head."""
        await super().start(connection)
        self.content = _Lines(self.content, self.passes_over)  # type: ignore[assignment]
        return self

    async def json(self, *, loads: Callable[[str], Any] | None = None, **options: Any) -> Any:
        """Return the answer's JSON."""
        return await super().json(loads=loads or (lambda text: parse(text.encode())), **options)


def log_in(settings: kopf.OperatorSettings, *, passes_over: PassesOver) -> kopf.AiohttpSession | None:
    """Return how kopf connects: to the same API server, and with the same trust, as `KubeClient.connect`.

    Args:
        settings: kopf's.
        passes_over: is asked about each change that a watch shows; what it takes in does not come to kopf's handlers.
    """
    login = kopf.login_with_service_account if in_pod() else kopf.login_with_kubeconfig
    found = login(settings=settings)
    if found is None:
        return None
    connection = _Connection(**vars(found))
    return kopf.AiohttpSession(
        server=connection.server,
        default_namespace=connection.default_namespace,
        priority=connection.priority,
        expiration=connection.expiration,
        aiohttp_session=aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=connection.as_ssl_context()),
            headers=connection.as_http_headers(),
            proxy=connection.proxy_url,
            trust_env=connection.trust_env,
            response_class=type("_AnswerToKopf", (_Answer,), {"passes_over": staticmethod(passes_over)}),
        ),
    )
