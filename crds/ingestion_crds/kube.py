"""The one place that talks to a Kubernetes API server: dicts in, raw JSON out.

It wraps the official client's connection handling (configuration, TLS, token refresh, pooling) and leaves
its typed models aside: they cost about 25 times as much and drop fields they do not know on a round trip.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import aiohttp
import orjson
import yaml
from kubernetes.aio import client, config
from kubernetes.aio.client.rest import RESTClientObject, RESTResponse
from yarl import URL

from ingestion_crds import JsonObject
from ingestion_crds.config import ConfigError
from ingestion_crds.constants import BATCH_PLURAL, GROUP, PLURAL, VERSION

TABLE: Final = "application/json;as=Table;g=meta.k8s.io;v=v1"
"""What a list answers with as kubectl prints it."""
_JSON: Final = "application/json"
JSON_PATCH: Final = "application/json-patch+json"
MERGE_PATCH: Final = "application/merge-patch+json"
REQUEST_TIMEOUT_SECONDS: Final = 30.0
# The server ends a watch after so long, and the next one goes on from there. Until then it need not send anything: not
# even bookmarks are promised. Silence for longer means that the other end is gone.
WATCH_SECONDS: Final = 120
_WATCH_GRACE_SECONDS: Final = 30
_TLS_SHUTDOWN_SECONDS: Final = 0.1
# Of one answer. Of 1.5 MiB that etcd stores, JSON may make six times as much.
_MOST_BYTES: Final = 16 * 2**20
# Of one answer too, by its commas, and its brackets twice: in Python, a value takes some 100 bytes, and a dict twice
# that, however few characters it has in JSON. That makes 100 MB; a page of 500 ordinary objects takes a third.
_MOST_VALUES: Final = 1_000_000
# So long may an answer be that it need not be counted: none takes more than 24 times its length.
_FEW_BYTES: Final = 4 * 2**20
_FIELDS: Final = b'"fieldsV1":{'
# What stands before a bracket that opens, and those that close after it. No repetition gives back what it has taken.
_BRACES: Final = re.compile(rb'(?:[^"{}]++|"(?:[^"\\]++|\\.)*+")*+(\{?)(\}*+)', re.DOTALL)
# How the API server tells of webhooks, and of policies (ValidatingAdmissionPolicy).
_DENIED: Final = re.compile(r"\bdenied (the )?request\b")
# A webhook that denies a request may put its whole sentence in the place of one word, and metrics count by that.
_REASON: Final = re.compile(r"[A-Za-z]{1,63}")
_KUBECONFIG: Final = "~/.kube/config"
# The library looks at little of a kubeconfig before it uses it, so what is wrong shows in many ways.
_NOT_USABLE: Final = (
    config.ConfigException,
    yaml.YAMLError,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
)


class ApiError(Exception):
    """The API server answered with an error, or (status 0) did not answer.

    Args:
        status: HTTP status; 0 when there was no answer, so that the effect is unknown.
        reason: the machine-readable reason of the Status object, such as `Conflict`.
        message: the Status object's message, or the connection's error.
    """

    def __init__(self, *, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def not_found(self) -> bool:
        """True when there is nothing at this path: an object is not there, nobody serves it, or a proxy says so."""
        return self.status == 404 and not self.denied

    @property
    def missing(self) -> bool:
        """True when the API server itself says that there is no such object."""
        return self.not_found and self.reason == "NotFound"

    @property
    def too_large(self) -> bool:
        """True for an answer that is not taken in: fewer objects are to be asked for at once."""
        return self.status == 0 and self.reason == "TooLarge"

    @property
    def conflict(self) -> bool:
        """True for a lost race: the object has another resourceVersion, or UID, than it was to have."""
        return self.status == 409 and self.reason != "AlreadyExists" and not self.denied

    @property
    def refused(self) -> bool:
        """True when validation, admission, a quota or a namespace that is being deleted does not let it through."""
        return self.status in (400, 403, 422) or self.denied

    @property
    def expired(self) -> bool:
        """True when the next page of a list is asked for too late: what it is a list of is forgotten."""
        return self.status == 410

    @property
    def denied(self) -> bool:
        """True when an admission webhook or policy does not want it, whoever asks; False for a lack of access.

        With what status, they say themselves. Of a webhook that names none it is 400.
        """
        return 400 <= self.status < 500 and _DENIED.search(self.message) is not None

    @property
    def webhook_failed(self) -> bool:
        """True when an admission webhook does not answer, or denies because it has failed itself."""
        return self.status >= 500 and "webhook" in self.message

    @property
    def already_exists(self) -> bool:
        """True when there is an object of that name already."""
        return self.status == 409 and self.reason == "AlreadyExists" and not self.denied


def in_pod() -> bool:
    """Return whether this process connects by its pod's ServiceAccount: it has a pod, and no KUBECONFIG."""
    return "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" in os.environ


def core_path(resource: str, namespace: str, name: str = "") -> str:
    """Return the path of a namespaced core/v1 resource.

    Args:
        resource: `pods`, `configmaps`, `events` or `secrets`.
        namespace: where it is.
        name: of one object; empty for all.
    """
    return _join(f"/api/v1/namespaces/{quote(namespace)}/{resource}", name)


def child_path(namespace: str = "", name: str = "") -> str:
    """Return the path of the Jobs (batch/v1) that are made for IngestionJobs; of all namespaces when none is given."""
    return _join(f"/apis/batch/v1/{_scope(namespace)}jobs", name)


def lease_path(namespace: str, name: str = "") -> str:
    """Return the path of coordination/v1 Leases."""
    return _join(f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace)}/leases", name)


def ingestion_path(namespace: str = "", name: str = "", subresource: str = "") -> str:
    """Return the path of IngestionJobs.

    Args:
        namespace: where they are; empty for all namespaces.
        name: of one job; empty for all.
        subresource: `status`, or empty for the job itself.
    """
    return _resource_path(PLURAL, namespace, name, subresource)


def batch_path(namespace: str = "", name: str = "", subresource: str = "") -> str:
    """Return the path of IngestionBatches; the arguments are those of `ingestion_path`."""
    return _resource_path(BATCH_PLURAL, namespace, name, subresource)


def _resource_path(plural: str, namespace: str, name: str, subresource: str) -> str:
    path = _join(f"/apis/{GROUP}/{VERSION}/{_scope(namespace)}{plural}", name)
    return f"{path}/{subresource}" if subresource else path


def _scope(namespace: str) -> str:
    return f"namespaces/{quote(namespace)}/" if namespace else ""


def _join(path: str, name: str) -> str:
    return f"{path}/{quote(name)}" if name else path


class KubeClient:
    """An asynchronous client of one API server.

    Use it as an async context manager, or call `close`.

    Args:
        api: a configured client; `connect` makes one.
    """

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls, *, kubeconfig: str | None = None, pool_size: int = 100) -> Self:
        """Connect by a kubeconfig, or inside a pod by its ServiceAccount.

        Args:
            kubeconfig: a file's path; None means KUBECONFIG or ~/.kube/config, unless in a pod.
            pool_size: the number of connections at most.

        Raises:
            ConfigError: the kubeconfig, or the ServiceAccount, is not there or cannot be used.
        """
        settings = client.Configuration()
        settings.connection_pool_maxsize = pool_size
        # As client-go: Python from 3.13 on insists on key identifiers, which the certificates of many clusters lack,
        # Amazon's among them (https://github.com/kubernetes-client/python/issues/2394). Chain and name are verified.
        settings.disable_strict_ssl_verification = True
        # Else each request looks for a .netrc and for proxies, in two threads.
        settings.client_session_kwargs = {"trust_env": False}
        by_service_account = kubeconfig is None and in_pod()
        place = kubeconfig or os.environ.get("KUBECONFIG") or _KUBECONFIG
        if not by_service_account and not _exists(place):
            raise ConfigError(f"there is no kubeconfig at {place}")
        try:
            if by_service_account:
                config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
            else:
                await config.load_kube_config(config_file=place, client_configuration=settings)  # type: ignore[no-untyped-call]
            api = client.ApiClient(configuration=settings)
            api.rest_client = _Connections(settings)
            return cls(api)
        except _NOT_USABLE as error:
            what = "the pod's ServiceAccount" if by_service_account else f"the kubeconfig {place}"
            raise ConfigError(f"{what} gives no access to a cluster: {error}") from error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call]
        # TLS connections end in the background; a loop that stops before leaves them open.
        # Source: https://docs.aiohttp.org/en/stable/client_advanced.html#graceful-shutdown
        await asyncio.sleep(_TLS_SHUTDOWN_SECONDS)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = _JSON,
        accept: str = _JSON,
        timeout: float = REQUEST_TIMEOUT_SECONDS,
    ) -> JsonObject:
        """Send one request and return the answer's JSON.

        Args:
            method: GET, POST, PATCH, PUT or DELETE.
            path: from `core_path`, `child_path`, `ingestion_path`.
            query: query parameters.
            body: what to send as JSON.
            content_type: the body's type; a PATCH must name its kind.
            accept: the answer's type, such as `TABLE`.
            timeout: seconds for the whole request.

        Raises:
            ApiError: on any status of 400 or more, and with status 0 when no answer came, none that is JSON, or one of
                more than 16 MiB; and for a list of which fewer objects may be asked for (`limit`), where it would take
                too much memory, or no parser takes it.
        """
        limit = aiohttp.ClientTimeout(total=timeout)
        response = await self._send(method, path, query, body, content_type, limit, accept)
        try:
            raw = await _read(response.response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _no_answer(error) from error
        if response.status >= 400:
            raise _api_error(response.status, raw)
        return _decoded(raw, several=int((query or {}).get("limit", 1)) > 1) if raw else {}

    async def watch(
        self, path: str, *, resource_version: str, query: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[JsonObject, None]:
        """Yield watch events (`type`, `object`) until the server ends the stream.

        Args:
            path: a collection's path.
            resource_version: where to begin, from the list before.
            query: further parameters, such as `labelSelector`.

        Raises:
            ApiError: when the stream cannot be opened, breaks, or reports an error (410: list again).
        """
        parameters = {
            **(query or {}),
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": WATCH_SECONDS,
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SECONDS + _WATCH_GRACE_SECONDS)
        response = await self._send("GET", path, parameters, None, _JSON, timeout)
        stream: aiohttp.ClientResponse = response.response
        try:
            if response.status >= 400:
                raise _api_error(response.status, await response.read())
            if stream.content_type != _JSON:  # asked first: no line may follow for long
                raise no_answer(f"{stream.content_type} is no stream of events")
            buffer = bytearray()
            async for block in stream.content.iter_any():
                buffer += block
                *lines, rest = buffer.split(b"\n")
                buffer = bytearray(rest)
                for line in lines:
                    event = _decoded(line, wanted="object")
                    if event["type"] == "ERROR":
                        raise _status_error(event["object"])
                    yield event
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _no_answer(error) from error
        finally:
            stream.close()

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Any,
        content_type: str,
        timeout: aiohttp.ClientTimeout,
        accept: str = _JSON,
    ) -> Any:
        url = self._api.configuration.host + path
        if query:
            url += "?" + urlencode(query)
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": "ingestion-operator"}
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            return await self._api.call_api(method, url, headers, body, _request_timeout=timeout)
        except (aiohttp.ClientError, TimeoutError, OSError, config.ConfigException) as error:  # or no token to be read
            raise _no_answer(error) from error


async def find(kube: KubeClient, path: str, *, timeout: float = REQUEST_TIMEOUT_SECONDS) -> JsonObject | None:
    """Return an object, or None when there is none.

    Args:
        kube: the API server.
        path: of one object.
        timeout: seconds for the whole request.

    Raises:
        ApiError: as `KubeClient.request`, but for `missing`.
    """
    try:
        return await kube.request("GET", path, timeout=timeout)
    except ApiError as error:
        if error.missing:
            return None
        raise


class _Connections(RESTClientObject):
    """The official client's connections: it would write bodies by Python's json, and quote each URL a second time."""

    async def request(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        post_params: Any = None,
        _request_timeout: aiohttp.ClientTimeout | None = None,
    ) -> RESTResponse:
        """Send one request.

        Source: `RESTClientObject.request`, for JSON and without retries.
        """
        if self.pool_manager is None:
            self.pool_manager = self._create_pool_manager()
        response = await self.pool_manager.request(
            method,
            URL(url, encoded=True),
            headers=headers,
            data=None if body is None else _encoded(body),
            timeout=_request_timeout,
            server_hostname=self.configuration.tls_server_name,
            proxy=self.proxy,
            proxy_headers=self.proxy_headers,
        )
        return RESTResponse(response)


def _encoded(body: Any) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # half of a surrogate pair, or a number of more than 64 bits: the API server says what is wrong
        return json.dumps(body).encode()


async def _read(response: aiohttp.ClientResponse) -> bytearray:
    """Read an answer.

    Raises:
        ApiError: TooLarge.
    """
    raw = bytearray()
    async for block in response.content.iter_any():
        raw += block
        if len(raw) > _MOST_BYTES:
            response.close()
            raise _too_large(f"more than {_MOST_BYTES} bytes")
    return raw


def _exists(kubeconfig: str) -> bool:
    """Return whether one of the files is there that a kubeconfig's path names, as KUBECONFIG may name several."""
    return any(Path(path).expanduser().exists() for path in kubeconfig.split(os.pathsep) if path)


def _decoded(raw: bytes | bytearray, *, wanted: str = "", several: bool = False) -> JsonObject:
    """Return the JSON of an answer. A proxy may have sent anything in place of the API server."""
    try:
        answer = parse(raw, several=several)
    except orjson.JSONDecodeError as error:
        raise _no_answer(error) from error
    if not isinstance(answer, dict) or (wanted and wanted not in answer):
        raise no_answer("JSON, but not of the API server")
    return answer


def parse(raw: bytes | bytearray, *, several: bool = False) -> Any:
    """Return JSON of the API server's; without what managedFields say where it costs much, or no parser takes it.

    Args:
        raw: an object, or a list of them.
        several: it is a list of which fewer objects may be asked for.

    Raises:
        orjson.JSONDecodeError: it is no JSON.
        ApiError: TooLarge, of several.
    """
    costs_much = len(raw) > _FEW_BYTES and _values(raw) > _MOST_VALUES
    if costs_much and several:
        raise _too_large("it would take too much memory")
    try:
        return orjson.loads(without_managed_fields(raw) if costs_much else raw)
    except orjson.JSONDecodeError as error:
        if several and _FIELDS in raw:
            raise _too_large(str(error)) from error  # to look for the end of all managed fields takes seconds
        return orjson.loads(without_managed_fields(raw))


def _values(raw: bytes | bytearray) -> int:
    return raw.count(b",") + 2 * (raw.count(b"{") + raw.count(b"["))


def without_managed_fields(raw: bytes | bytearray) -> bytes:
    """Return JSON without what managedFields say.

    Whoever may write one object may nest that ten thousand levels deep, and fill it with bytes that are no text: the
    API server keeps both. One such object must not hide all others.
    """
    kept: list[bytes | bytearray] = []
    position = 0
    while (found := raw.find(_FIELDS, position)) >= 0:
        start = found + len(_FIELDS) - 1
        kept += [raw[position:start], b"{}"]
        position, depth = len(raw), 0
        for braces in _BRACES.finditer(raw, start):
            depth += braces.end(1) - braces.start(1)
            closed = braces.end(2) - braces.start(2)
            if closed >= depth:
                position = braces.start(2) + depth
                break
            depth -= closed
    kept.append(raw[position:])
    return b"".join(kept).decode(errors="replace").encode()


def _too_large(why: str) -> ApiError:
    return ApiError(status=0, reason="TooLarge", message=f"the answer is too large: {why}")


def no_answer(why: str) -> ApiError:
    """Return the error of a request that got no answer, or one that is not the API server's."""
    return ApiError(status=0, reason="NoAnswer", message=why)


def _no_answer(error: BaseException) -> ApiError:
    return no_answer(f"{type(error).__name__}: {error}")


def _api_error(status: int, raw: bytes | bytearray) -> ApiError:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict) or body.get("kind") != "Status":
        return ApiError(status=status, reason="Unknown", message=raw[:500].decode(errors="replace"))
    return _status_error({**body, "code": status})


def _status_error(status: JsonObject) -> ApiError:
    reason = str(status.get("reason", ""))
    return ApiError(
        status=int(status.get("code", 500)),
        reason=reason if _REASON.fullmatch(reason) else "Unknown",
        message=str(status.get("message", "")),
    )
