"""How long a Lease is held and waited for, on a clock that the test turns."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest
from ingestion_crds import JsonObject
from ingestion_crds.kube import ApiError, KubeClient, no_answer
from ingestion_operator import leader
from ingestion_operator.leader import LeaderClient, Leadership, Lease


class Leases:
    """An API server that has one Lease."""

    def __init__(self) -> None:
        self.spec: JsonObject | None = None
        self.away = False

    async def request(self, method: str, _: str, *, body: Any = None, **__: Any) -> JsonObject:
        if self.away:
            raise no_answer("away")
        if method != "GET":
            self.spec = dict(body["spec"])
        if self.spec is None:
            raise ApiError(status=404, reason="NotFound", message="")
        return {"metadata": {"name": "operator", "resourceVersion": "1"}, "spec": dict(self.spec)}


async def test_who_cannot_renew_stops_five_seconds_before_another_may_begin() -> None:
    now = 0.0
    client = cast(KubeClient, Leases())
    first, second = (
        Leadership(client=client, lease=Lease(namespace="system", name="operator", identity=who), clock=lambda: now)
        for who in ("first", "second")
    )
    assert await first._step(1)
    assert not await second._step(1)
    for now, works, taken in ((9.9, True, False), (10.1, False, False), (14.9, False, False), (15.1, False, True)):
        assert (first.valid, await second._step(1)) == (works, taken), now


async def test_who_cannot_see_the_lease_for_long_could_not_take_over() -> None:
    now, leases = 0.0, Leases()
    client = cast(KubeClient, leases)
    leading, standing_by = (
        Leadership(client=client, lease=Lease(namespace="system", name="operator", identity=who), clock=lambda: now)
        for who in ("leading", "standing by")
    )
    assert not standing_by.reached
    for now, away, reached in ((0.0, False, True), (29.0, True, True), (31.0, True, False), (33.0, False, True)):
        leases.away = False
        assert await leading._step(1)
        leases.away = away
        assert not await standing_by._step(1)
        assert standing_by.reached == reached, now


async def test_who_has_lost_the_lease_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each write it looks at the clock: a process may have been stopped between looking and writing."""
    now = 0.0
    sent, left = [], []
    client = LeaderClient.__new__(LeaderClient)
    lease = Lease(namespace="system", name="operator", identity="first")
    client.leadership = Leadership(client=cast(KubeClient, Leases()), lease=lease, clock=lambda: now)
    assert await client.leadership._step(1)

    async def send(_: KubeClient, method: str, *__: Any, **___: Any) -> JsonObject:
        sent.append(method)
        return {}

    def leave(reason: str) -> None:
        left.append(reason)
        raise SystemExit

    monkeypatch.setattr(KubeClient, "request", send)
    monkeypatch.setattr(leader, "leave", leave)
    await client.request("PATCH", "/x")
    now = 11.0
    await client.request("GET", "/x")
    with pytest.raises(SystemExit):
        await client.request("PATCH", "/x")
    assert sent == ["PATCH", "GET"]
    assert len(left) == 1


async def test_the_clock_goes_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    slept = 0.0
    gettime = time.clock_gettime

    def suspended(clock: int) -> float:
        return gettime(clock) + (slept if clock == time.CLOCK_BOOTTIME else 0.0)

    monkeypatch.setattr(time, "clock_gettime", suspended)
    lease = Lease(namespace="system", name="operator", identity="first")
    leadership = Leadership(client=cast(KubeClient, Leases()), lease=lease)
    assert await leadership._step(1)
    assert leadership.valid
    slept = 11.0
    assert not leadership.valid
