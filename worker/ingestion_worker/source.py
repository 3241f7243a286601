"""Sources: an object of the tenant's own bucket, or http(s) behind a guard against reaching into the cluster.

What an address is, and whether it may be, is here; `connecting` holds to it. Each redirect is checked again.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from ingestion_crds.constants import MAX_SOURCE_BYTES
from ingestion_crds.errors import Code
from ingestion_crds.logs import redact

from ingestion_worker.outcome import WorkerError
from ingestion_worker.scratch import ScratchFile
from ingestion_worker.store import ObjectMissingError, Store

if TYPE_CHECKING:
    import httpcore

MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# The last is how an upload was framed: some S3 stores keep it, and say it of the plain bytes.
# Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html
_NO_CODINGS: Final = frozenset({"", "identity", "aws-chunked"})
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[[str, int], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Bounds of one download: bytes, and seconds to connect, between two reads, and in total."""

    max_bytes: int = MAX_SOURCE_BYTES
    connect_seconds: float = 10.0
    read_seconds: float = 60.0
    total_seconds: float = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A source that lies in a local file.

    Args:
        path: the file.
        name: the source's file name, for messages and for telling its type.
        sha256: of the bytes, in hex.
        size: in bytes.
        content_type: what an HTTP server said it is, or None.
    """

    path: Path
    name: str
    sha256: str
    size: int
    content_type: str | None = None


class AllowList:
    """Where http(s) sources may be.

    Args:
        text: hosts and networks that they may be on although these are not public (INGESTION_SOURCE_ALLOW).
        deny: networks that count as not public as well (INGESTION_SOURCE_DENY).

    Raises:
        ValueError: `deny` names something that is no network; to pass over it would allow what it was to deny.
    """

    def __init__(self, *, text: str, deny: str = "") -> None:
        self._hosts: set[str] = set()
        self._networks: list[Network] = []
        self._denied = [ipaddress.ip_network(item, strict=False) for item in _items(deny)]
        for item in _items(text):
            try:
                self._networks.append(ipaddress.ip_network(item, strict=False))
            except ValueError:
                self._hosts.add(item)

    def permits(self, *, host: str, address: Address) -> bool:
        """Return whether a connection to this address of this host may be made."""
        if host.lower().rstrip(".") in self._hosts:
            return True
        forms = {address, embedded_address(address=address)}
        if _within(forms, self._networks):
            return True
        return is_public(address=address) and not _within(forms, self._denied)


def _items(text: str) -> list[str]:
    return [item for raw in text.split(",") if (item := raw.strip().lower().rstrip("."))]


def _within(addresses: Iterable[Address], networks: list[Network]) -> bool:
    return any(address in network for address in addresses for network in networks)


def embedded_address(*, address: Address) -> Address:
    """Return the IPv4 address that an IPv6 one carries (v4-mapped, v4-compatible, 6to4, NAT64), else the address."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address in _NAT64 or (int(address) >> 32 == 0 and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(*, address: Address) -> bool:
    """Return whether an address is on the public Internet: global, and neither multicast, reserved nor tunnelled.

    Source: https://www.iana.org/assignments/iana-ipv4-special-registry/ and the IPv6 one, through `ipaddress`
    """
    candidates = [address, embedded_address(address=address)]
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None or address.teredo is not None or address.is_site_local:
            return False
        if candidates[1] is not address:
            # The carrier's own prefix (::ffff:0:0/96 …) is not global by itself; the address inside decides.
            candidates = candidates[1:]
    return all(
        item.is_global and not (item.is_multicast or item.is_reserved or item.is_unspecified or item.is_loopback)
        for item in candidates
    )


def fetch_source(
    *,
    uri: str,
    sha256: str | None,
    store: Store,
    allow: AllowList,
    path: Path,
    limits: FetchLimits | None = None,
    resolver: Resolver | None = None,
) -> Fetched:
    """Copy the source into a local file and check its hash.

    Args:
        uri: `s3://BUCKET/KEY` of the tenant's own bucket, or http(s).
        sha256: what the job promises, in lower-case hex, or None.
        store: the tenant's store.
        allow: what the chart allows beyond public addresses.
        path: the file to write.
        limits: bounds of the download.
        resolver: name resolution, for tests.

    Raises:
        WorkerError: one of the Source… codes, DocumentTooLarge, or the store's codes.
    """
    limits = limits or FetchLimits()
    parts = _split(uri)
    if parts.scheme == "s3":
        fetched = _from_bucket(uri=uri, store=store, path=path, limits=limits)
    elif parts.scheme in ("http", "https"):
        fetched = _from_http(url=uri, allow=allow, path=path, limits=limits, resolver=resolver or system_resolver)
    else:
        raise WorkerError("SourceNotAllowed", f"a source is s3:// or http(s)://, not {parts.scheme or 'a bare path'}")
    if sha256 is not None and fetched.sha256 != sha256:
        raise WorkerError(
            "SourceHashMismatch", f"{fetched.name} has the SHA-256 {fetched.sha256}, but the job promises {sha256}"
        )
    return fetched


def _from_bucket(*, uri: str, store: Store, path: Path, limits: FetchLimits) -> Fetched:
    # Keys are taken literally: no query, no fragment, no percent-encoding.
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if bucket != store.bucket:
        raise WorkerError("SourceNotAllowed", f"the source is in bucket {bucket!r}; only {store.bucket!r} is allowed")
    if not key or key.endswith("/") or any(part in ("", ".", "..") for part in key.split("/")):
        raise WorkerError("SourceNotAllowed", f"{uri} is not the name of an object")
    name = key.rpartition("/")[2]
    try:
        digest = store.download(key=key, path=path, max_bytes=limits.max_bytes)
    except ObjectMissingError as error:
        raise WorkerError("SourceNotFound", f"there is no object {key} in bucket {bucket}") from error
    except ValueError as error:
        raise WorkerError("SourceNotAllowed", f"{uri} is not the name of an object") from error
    return Fetched(path=path, name=name, sha256=digest, size=path.stat().st_size)


def _from_http(*, url: str, allow: AllowList, path: Path, limits: FetchLimits, resolver: Resolver) -> Fetched:
    import httpcore

    from ingestion_worker.connecting import GuardedBackend
    from ingestion_worker.tls import tls_context

    deadline = time.monotonic() + limits.total_seconds
    backend = GuardedBackend(allow=allow, limits=limits, deadline=deadline, resolver=resolver)
    name = "source"
    with httpcore.ConnectionPool(
        ssl_context=tls_context(), network_backend=backend, max_keepalive_connections=0, retries=0
    ) as pool:
        for _ in range(MAX_REDIRECTS + 1):
            _check_url(url)
            name = unquote(urlsplit(url).path).rpartition("/")[2] or name
            try:
                with pool.stream("GET", _ascii(url), headers=_headers(), extensions=_timeouts(limits)) as response:
                    headers = {
                        key.decode("latin-1").lower(): value.decode("latin-1") for key, value in response.headers
                    }
                    if response.status in _REDIRECTS and "location" in headers:
                        url = _redirected(url, headers["location"])
                        continue
                    _check_status(status=response.status, name=name, url=url)
                    return _read_body(
                        response=response, headers=headers, name=name, path=path, limits=limits, deadline=deadline
                    )
            except httpcore.RemoteProtocolError as error:
                code: Code = (
                    "SourceTruncated" if "without sending complete message body" in str(error) else "SourceUnavailable"
                )
                raise WorkerError(code, f"{name}: {_text(error)}") from error
            except (httpcore.ProtocolError, httpcore.UnsupportedProtocol, UnicodeError) as error:
                raise WorkerError("SourceNotAllowed", f"{_shown(url)} cannot be asked for: {_text(error)}") from error
            except httpcore.TimeoutException as error:
                raise WorkerError("SourceUnavailable", f"{_shown(url)} timed out: {_text(error)}") from error
            except (httpcore.NetworkError, ssl.SSLError, OSError) as error:
                raise WorkerError("SourceUnavailable", f"{_shown(url)} did not answer: {_text(error)}") from error
    raise WorkerError("SourceUnavailable", f"{_shown(url)}: more than {MAX_REDIRECTS} redirects")


def _redirected(url: str, location: str) -> str:
    # Where it is more than ASCII, it is UTF-8: https://fetch.spec.whatwg.org/#concept-response-location-url
    text = location.encode("latin-1").decode("utf-8", "replace")
    try:
        return urljoin(url, text)
    except ValueError as error:
        raise WorkerError("SourceNotAllowed", f"{_shown(url)} redirects to what is no URL: {_text(error)}") from error


def _read_body(
    *, response: httpcore.Response, headers: dict[str, str], name: str, path: Path, limits: FetchLimits, deadline: float
) -> Fetched:
    encoding = headers.get("content-encoding", "").strip().lower()
    if not {coding.strip() for coding in encoding.split(",")} <= _NO_CODINGS:
        # Asked for as it is: unpacking on the server's word would let it send a bomb.
        raise WorkerError("SourceUnavailable", f"the server sent {name} with Content-Encoding {encoding}, unasked")
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.max_bytes:
        raise WorkerError("DocumentTooLarge", f"{name} has {announced} bytes; at most {limits.max_bytes} are read")
    digest = hashlib.sha256()
    size = 0
    with ScratchFile(path=path, what=f"the copy of {name}") as file:
        for piece in response.iter_stream():
            size += len(piece)
            if size > limits.max_bytes:
                raise WorkerError("DocumentTooLarge", f"{name} has more than {limits.max_bytes} bytes")
            if time.monotonic() > deadline:
                raise WorkerError("SourceUnavailable", f"{name} was not read within {limits.total_seconds:g} s")
            digest.update(piece)
            file.write(piece)
    if announced.isdigit() and size != int(announced):
        raise WorkerError("SourceTruncated", f"the server announced {announced} bytes of {name} and sent {size}")
    return Fetched(path=path, name=name, sha256=digest.hexdigest(), size=size, content_type=headers.get("content-type"))


def _check_status(*, status: int, name: str, url: str) -> None:
    if status == 200:
        return
    if status in (404, 410):
        raise WorkerError("SourceNotFound", f"{_shown(url)} answered {status}")
    if status in (401, 403, 407):
        raise WorkerError("SourceForbidden", f"{_shown(url)} answered {status}")
    raise WorkerError("SourceUnavailable", f"{_shown(url)} answered {status} for {name}")


def _check_url(url: str) -> None:
    parts = _split(url)
    if parts.scheme not in ("http", "https"):
        raise WorkerError("SourceNotAllowed", f"redirected to {parts.scheme or 'no'}://, which is not http(s)")
    if parts.username is not None or parts.password is not None:
        raise WorkerError(
            "SourceNotAllowed", "the source's URL holds credentials; they would end up in status and logs"
        )
    try:
        port = parts.port
    except ValueError as error:
        raise WorkerError("SourceNotAllowed", "the source's URL has no valid port") from error
    if not parts.hostname or port == 0:
        raise WorkerError("SourceNotAllowed", "the source's URL names no host")


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise WorkerError("SourceNotAllowed", "the source is not a valid URL") from error


def _ascii(url: str) -> str:
    """Return the URL as it goes over the wire: host in IDNA, everything else percent-encoded, no fragment."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
    port = f":{parts.port}" if parts.port else ""
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
    return f"{parts.scheme}://{host}{port}{path}{query}"


def _headers() -> list[tuple[str, str]]:
    return [
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("User-Agent", "ingestion-worker"),
        ("Connection", "close"),
    ]


def _timeouts(limits: FetchLimits) -> dict[str, Any]:
    return {
        "timeout": {
            "connect": limits.connect_seconds,
            "read": limits.read_seconds,
            "write": limits.read_seconds,
            "pool": limits.connect_seconds,
        }
    }


def system_resolver(host: str, port: int) -> list[str]:
    """Return a name's addresses, as the system resolves it."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(item[4][0]) for item in found))


def _shown(url: str) -> str:
    """Return the URL for a message: without credentials, query (it may be signed) or fragment."""
    parts = urlsplit(url)
    host = (parts.netloc or "").rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"[:300]


def _text(error: BaseException) -> str:
    return redact(str(error) or type(error).__name__)[:300]
