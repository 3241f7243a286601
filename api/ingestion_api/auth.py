"""API keys: their form, the Secret that holds their hashes, and who a request comes from."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, Request, Response
from fastapi.openapi.models import APIKey, APIKeyIn, HTTPBearer
from fastapi.openapi.models import SecurityBase as Scheme
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from ingestion_crds.constants import API_KEYS_SECRET
from ingestion_crds.job import Time
from ingestion_crds.kube import ApiError, KubeClient
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import Headers

from ingestion_api.kube_secrets import READ_SECONDS, read_secret
from ingestion_api.problems import ProblemError, unauthorized, unavailable

LOG: Final = logging.getLogger("ingestion_api.auth")
FRESH_SECONDS: Final = 5.0
# An unknown key has the Secret read at once. Strangers must not cause more than one read a second that way.
REREAD_SECONDS: Final = 1.0
# So long what was read last is believed while the API server does not answer; then nobody gets in.
STALE_SECONDS: Final = 30.0
_HEADER: Final = "x-api-key"
ID_PATTERN: Final = "[a-z0-9]{4,32}"
_KEY: Final = re.compile(rf"^ik_({ID_PATTERN})_([A-Za-z0-9_-]{{43}})$")
_ID_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH: Final = 10
NAMESPACE_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_DUMMY_HASH: Final = hashlib.sha256(b"no such key").hexdigest()


class KeyEntry(BaseModel):
    """What the Secret keeps of a key: never the key."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    namespace: str = Field(pattern=NAMESPACE_PATTERN)
    name: str = Field("", max_length=128)
    created: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who a request comes from.

    Args:
        key_id: the public part of the key.
        namespace: the tenant; the only namespace that the request may touch.
    """

    key_id: str
    namespace: str


def new_key() -> tuple[str, str]:
    """Return a fresh key's id and the whole key; 256 bits of it are random."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
    return key_id, f"ik_{key_id}_{secrets.token_urlsafe(32)}"


def hash_key(key: str) -> str:
    """Return the SHA-256 of the whole key in hex. A slow hash is for passwords; these are 256 random bits."""
    return hashlib.sha256(key.encode()).hexdigest()


def encode_entry(entry: KeyEntry) -> str:
    """Return an entry as the Secret's `data` wants it: JSON in base64."""
    return base64.b64encode(entry.model_dump_json().encode()).decode()


def decode_entries(values: Mapping[str, str | None]) -> dict[str, KeyEntry]:
    """Return the entries of the keys' Secret by key id; those that cannot be read are left out and named in the log.

    Args:
        values: from `read_secret`.
    """
    entries: dict[str, KeyEntry] = {}
    for key_id, text in values.items():
        try:
            entries[key_id] = KeyEntry.model_validate_json(text or "")
        except ValidationError:
            LOG.warning("unreadable API key entry", extra={"key_id": key_id})
    return entries


class KeyRing:
    """The keys of the Secret, read through the API server and kept for a few seconds.

    A new key works at once (an unknown key makes the Secret be read again, at most once a second); a revoked one
    stops within 5 s, or 30 s while the API server does not answer.

    Args:
        kube: the cluster.
        namespace: where the Secret is.
    """

    def __init__(self, *, kube: KubeClient, namespace: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._entries: dict[str, KeyEntry] = {}
        self._read_at = -STALE_SECONDS
        self._tried_at = -STALE_SECONDS
        self._lock = asyncio.Lock()
        self.failing = False
        """True from a read that failed to the next one that does not."""

    async def authenticate(self, key: str) -> Principal:
        """Return whose key this is.

        Raises:
            ProblemError: 401 when it is not valid; 503 when the Secret cannot be read.
        """
        match = _KEY.match(key)
        key_id = match[1] if match else ""
        given = hash_key(key)
        await self._refresh(older_than=FRESH_SECONDS)
        principal = self._look(key_id, given)
        if principal is None and match:
            await self._refresh(older_than=REREAD_SECONDS)
            principal = self._look(key_id, given)
        if principal is None:
            raise unauthorized("the API key is not valid")
        return principal

    async def readable(self) -> bool:
        """Return whether a request with a key would be decided now; reads the Secret if one would."""
        try:
            await self._refresh(older_than=FRESH_SECONDS)
        except ProblemError:
            return False
        return True

    def _look(self, key_id: str, given: str) -> Principal | None:
        entry = self._entries.get(key_id)
        # Compared in constant time, for unknown ids too, so that the answer's time tells nothing.
        equal = hmac.compare_digest(given, entry.hash if entry else _DUMMY_HASH)
        return Principal(key_id=key_id, namespace=entry.namespace) if entry and equal else None

    async def _refresh(self, *, older_than: float) -> None:
        if time.monotonic() - self._read_at < older_than:
            return
        async with self._lock:
            now = time.monotonic()
            if now - self._read_at < older_than:
                return
            if now - self._tried_at >= REREAD_SECONDS and await self._read():
                self._read_at = now
            elif now - self._read_at >= STALE_SECONDS:
                raise unavailable("the API keys cannot be read from the cluster; try again")

    async def _read(self) -> bool:
        """Read the Secret and return True; False when the API server does not give it: what was read before stands."""
        try:
            values = await read_secret(
                self._kube, namespace=self._namespace, name=API_KEYS_SECRET, timeout=READ_SECONDS
            )
        except ApiError as error:
            LOG.warning("API keys not readable", extra={"error": str(error)})
            self.failing = True
            return False
        finally:
            # The time of its end: after a try that hung, those who waited for it must not hang in one more each.
            self._tried_at = time.monotonic()
        self.failing = False
        self._entries = decode_entries(values or {})
        return True


def key_of(headers: Headers) -> str:
    """Return the key that a request carries: as a bearer token only where there is no x-api-key.

    A gateway may add a token of its own, which is not for this API.

    Raises:
        ProblemError: 401 when it carries none.
    """
    if key := headers.get(_HEADER):
        return key
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and (key := token.strip()):
        return key
    raise unauthorized("send an API key in the header x-api-key, or as a bearer token")


class KeyedRoute(APIRoute):
    """Authenticates a request before its body is parsed; FastAPI asks its dependencies after that.

    The id of its key goes into the log, the key never.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request."""
        handle = super().get_route_handler()

        async def authenticated(request: Request) -> Response:
            ring: KeyRing = request.app.state.services.keys
            caller = request.state.caller = await ring.authenticate(key_of(request.headers))
            request.state.key_id = caller.key_id
            request.state.namespace = caller.namespace
            return await handle(request)

        return authenticated


class TenantKey(SecurityBase):
    """Declares a way to send the key, and gives who a `KeyedRoute` has found a request to come from.

    One dependency, not one for the header and one for what it means: FastAPI takes its time over each.

    Args:
        name: the scheme's, in the OpenAPI document.
        model: the scheme.
    """

    def __init__(self, name: str, model: Scheme) -> None:
        self.model = model
        self.scheme_name = name

    async def __call__(self, request: Request) -> Principal:
        """Return who a request comes from."""
        caller: Principal = request.state.caller
        return caller


Caller = Annotated[Principal, Depends(TenantKey("APIKeyHeader", APIKey(**{"in": APIKeyIn.header}, name=_HEADER)))]
BEARER: Final = Depends(TenantKey("HTTPBearer", HTTPBearer()))
