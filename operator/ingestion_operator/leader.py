"""Leadership: of several replicas one works, the one that holds the Lease.

The protocol is client-go's. The official Python client has it too, but its Lease lock cannot create a Lease, and its
loop goes on leading while a request hangs and when the work has died (docs/decisions/0006-lease.md).

Nothing rests on the Lease but speed: two operators at once lose races, they do no harm (resourceVersions, names).

Source: https://pkg.go.dev/k8s.io/client-go/tools/leaderelection
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

from ingestion_crds import JsonObject
from ingestion_crds.config import ConfigError
from ingestion_crds.constants import ENV_POD_NAMESPACE
from ingestion_crds.kube import JSON_PATCH, ApiError, KubeClient, find, lease_path

# client-go's defaults: a dead leader is replaced in less than 20 s.
LEASE_SECONDS: Final = 15
RENEW_DEADLINE_SECONDS: Final = 10
RETRY_SECONDS: Final = 2
# Half the deadline, so that one request that hangs leaves time for another.
_STEP_SECONDS: Final = 5.0
# Several steps: one that fails does not mean that this replica could not take over.
_REACHED_SECONDS: Final = 30.0

log = logging.getLogger(__name__)


def boot_time() -> float:
    """Return seconds that go on while the machine is suspended, as those of `time.monotonic` do not."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseLostError(Exception):
    """The Lease is another's, or could not be renewed in time: stop working at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """Which Lease, and who claims it.

    Args:
        namespace: where the Lease is.
        name: of the Lease; all replicas name the same.
        identity: of this replica, unique among them. A restarted container of one pod keeps it, and goes on at once.
    """

    namespace: str
    name: str
    identity: str

    @classmethod
    def from_env(cls, *, env: Mapping[str, str]) -> Lease | None:
        """Read what the chart sets; None where it names no Lease: an operator started by hand, which leads alone.

        Raises:
            ConfigError: naming the variable that is missing.
        """
        name = env.get("INGESTION_LEASE_NAME")
        if not name:
            return None
        for variable in (ENV_POD_NAMESPACE, "POD_NAME"):
            if not env.get(variable):
                raise ConfigError(f"{variable}: not set; with INGESTION_LEASE_NAME it is needed")
        return cls(namespace=env[ENV_POD_NAMESPACE], name=name, identity=env["POD_NAME"])


class Leadership:
    """A replica's claim to the Lease.

    A leader that cannot renew stops after 10 s; nobody else takes the Lease before 15 s are over.

    Args:
        client: a connection for the Lease alone, so that no other request can hold up its renewal.
        lease: what is claimed.
        clock: seconds that only grow; for tests.
    """

    def __init__(self, *, client: KubeClient, lease: Lease, clock: Callable[[], float] = boot_time) -> None:
        self._client = client
        self._lease = lease
        self._path = lease_path(lease.namespace, lease.name)
        self._collection = lease_path(lease.namespace)
        self._clock = clock
        self._valid_until = float("-inf")
        self._seen: JsonObject | None = None
        self._seen_at = float("-inf")
        self._reached_at = float("-inf")

    @property
    def valid(self) -> bool:
        """True while this replica leads for certain. It turns false by time alone, though process or machine slept."""
        return self._clock() < self._valid_until

    @property
    def reached(self) -> bool:
        """True while the Lease can be read or written: it was, not long ago."""
        return self._clock() - self._reached_at < _REACHED_SECONDS

    async def acquire(self) -> None:
        """Return once this replica leads."""
        while True:
            if await self._step(_STEP_SECONDS):
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def hold(self, *, healthy: Callable[[], bool]) -> None:
        """Renew the Lease until the work is not healthy any more.

        Args:
            healthy: says whether the work that the Lease is for goes on. It is asked in the loop that the work runs
                in, so that a loop that stands still renews nothing either.

        Raises:
            LeaseLostError: nothing may be written any more.
        """
        while healthy():
            await self._renew()
            await asyncio.sleep(RETRY_SECONDS)

    async def release(self) -> None:
        """Give the Lease up, if it is held, so that another replica need not wait for its end.

        The work has to be over before.
        """
        if not self.valid:
            return
        self._valid_until = float("-inf")
        operations: list[JsonObject] = [
            {"op": "test", "path": "/spec/holderIdentity", "value": self._lease.identity},
            {"op": "replace", "path": "/spec/holderIdentity", "value": ""},
        ]
        try:
            await self._client.request(
                "PATCH", self._path, body=operations, content_type=JSON_PATCH, timeout=_STEP_SECONDS
            )
        except ApiError as error:
            log.warning("the Lease is not released, and ends by itself: %s", error)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def _renew(self) -> None:
        while (left := self._valid_until - self._clock()) > 0:
            if await self._step(min(_STEP_SECONDS, left)):
                return
            holder = (self._seen or {}).get("holderIdentity")
            if holder != self._lease.identity:
                raise LeaseLostError(f"the Lease is held by {holder or 'nobody'}")
            await asyncio.sleep(min(RETRY_SECONDS, max(0.0, self._valid_until - self._clock())))
        raise LeaseLostError(f"the Lease was not renewed within {RENEW_DEADLINE_SECONDS} s")

    async def _step(self, seconds: float) -> bool:
        """Take or renew the Lease, if that can be done now; return whether this replica holds it for certain."""
        begun = self._clock()
        try:
            async with asyncio.timeout(seconds):
                taken = await self._claim()
        except ApiError as error:
            # Renewed or not, nobody knows: the deadline decides what that means.
            log.warning("the Lease cannot be reached: %s", error)
            return False
        except TimeoutError:
            log.warning("the Lease cannot be reached: no answer within %.0f s", seconds)
            return False
        self._reached_at = begun
        if taken:
            self._valid_until = begun + RENEW_DEADLINE_SECONDS
        return taken

    async def _claim(self) -> bool:
        found = await find(self._client, self._path) or {"metadata": {"name": self._lease.name}, "spec": {}}
        spec = found.get("spec") or {}
        if spec != self._seen:
            # Times are compared on this replica's own clock: how long the Lease has not changed.
            self._seen, self._seen_at = spec, self._clock()
        holder = spec.get("holderIdentity")
        if holder and holder != self._lease.identity and self._clock() < self._seen_at + LEASE_SECONDS:
            return False
        return await self._write(found, self._renewed(spec))

    async def _write(self, found: JsonObject, spec: JsonObject) -> bool:
        """Write the Lease as it was found but for its spec; return False when another was faster."""
        method, path = ("PUT", self._path) if "resourceVersion" in found["metadata"] else ("POST", self._collection)
        try:
            await self._client.request(method, path, body={**found, "spec": spec})
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        self._seen, self._seen_at = spec, self._clock()
        return True

    def _renewed(self, spec: JsonObject) -> JsonObject:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        renewed = {**spec, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": now}
        if spec.get("holderIdentity") != self._lease.identity:
            transitions = spec.get("leaseTransitions", -1) + 1
            renewed |= {"holderIdentity": self._lease.identity, "acquireTime": now, "leaseTransitions": transitions}
        return renewed


class LeaderClient(KubeClient):
    """A client that writes only while this replica leads; else it ends the process.

    A process that was stopped, or whose machine slept, may come back in the middle of its work, with the Lease long
    another's. Before the next renewal can find that out, the work may want to write.
    """

    leadership: Leadership | None = None

    async def request(self, method: str, path: str, **rest: Any) -> JsonObject:
        """As `KubeClient.request`."""
        if method != "GET" and self.leadership is not None and not self.leadership.valid:
            leave("the Lease ran out before a write")
        return await super().request(method, path, **rest)


def leave(reason: str) -> NoReturn:
    """End the process at once, sending nothing more: the simplest way to stop working that cannot fail."""
    log.error("leaving: %s", reason)
    logging.shutdown()
    os._exit(1)
