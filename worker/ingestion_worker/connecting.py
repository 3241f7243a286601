"""Connections to sources on the web: only to addresses that may be, and no longer than until a deadline.

A name is resolved once, every address is checked, and the very address that was checked is connected to: a name that
resolves differently the second time (DNS rebinding) has no second time.
"""

from __future__ import annotations

import ipaddress
import queue
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpcore

from ingestion_worker.outcome import WorkerError

if TYPE_CHECKING:
    from ingestion_worker.source import AllowList, FetchLimits, Resolver


class GuardedBackend(httpcore.NetworkBackend):
    """Resolves, checks, and connects to what it checked.

    It raises httpcore's errors; for an address that may not be, as `checked_addresses`.

    Args:
        allow: addresses that may be besides public ones.
        limits: seconds to connect, and for messages.
        deadline: in monotonic seconds; every wait ends there.
        resolver: name resolution.
    """

    def __init__(self, *, allow: AllowList, limits: FetchLimits, deadline: float, resolver: Resolver) -> None:
        self._allow = allow
        self._connect_seconds = limits.connect_seconds
        self._deadline = _Deadline(at=deadline, seconds=limits.total_seconds)
        self._resolver = resolver
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to the first address that answers."""
        found = _resolve(host=host, port=port, resolver=self._resolver, seconds=self._connect_seconds)
        problem: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in checked_addresses(host=host, addresses=found, allow=self._allow):
            left = self._deadline.left(timeout, httpcore.ConnectTimeout)
            try:
                stream = self._inner.connect_tcp(address, port, left, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
            else:
                return _Stream(stream, self._deadline)
        raise problem

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Refuse: no source is there."""
        raise httpcore.ConnectError("no unix sockets")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Deadline:
    """When every wait ends.

    Args:
        at: in monotonic seconds.
        seconds: how long that was from the beginning, for messages.
    """

    at: float
    seconds: float

    def left(self, timeout: float | None, error: type[Exception]) -> float:
        """Return for how many seconds may be waited: for `timeout`, or less; raises the error when there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise error(f"not read within {self.seconds:g} s")
        return left if timeout is None else min(left, timeout)


class _Stream(httpcore.NetworkStream):
    """A connection whose every wait ends at the deadline: a server that drips bytes cannot hold it."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._deadline.left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._deadline.left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def checked_addresses(*, host: str, addresses: Iterable[str], allow: AllowList) -> list[str]:
    """Return the addresses if every one may be connected to.

    Args:
        host: whose they are.
        addresses: as it was resolved.
        allow: what may be besides public ones.

    Raises:
        WorkerError: SourceNotAllowed naming the first that may not: a name with one inner address is not half trusted.
    """
    result = []
    for text in addresses:
        address = ipaddress.ip_address(text)
        if not allow.permits(host=host, address=address):
            raise WorkerError(
                "SourceNotAllowed", f"{host} is at {address}, which is not public and not on the allow-list"
            )
        result.append(text)
    return result


def _resolve(*, host: str, port: int, resolver: Resolver, seconds: float) -> list[str]:
    """Resolve in a thread: getaddrinfo has no timeout of its own."""
    bare = host.strip("[]")
    try:
        return [str(ipaddress.ip_address(bare))]
    except ValueError:
        pass
    answers: queue.Queue[list[str] | Exception] = queue.Queue()

    def work() -> None:
        try:
            answers.put(resolver(bare, port))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise httpcore.ConnectTimeout(f"{host} was not resolved within {seconds:g} s") from None
    if isinstance(answer, Exception):
        raise httpcore.ConnectError(f"{host} cannot be resolved: {answer}") from answer
    return answer
