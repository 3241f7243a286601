"""A list and then a watch, without end, of a real API server, with what may happen to them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
from faults.proxy import Answer, Call, Forward, Proxy
from faults.watch_faults import Ended, Failing, WatchFault
from ingestion_crds import JsonObject
from ingestion_crds import follow as following
from ingestion_crds import kube as kubernetes
from ingestion_crds.follow import follow
from ingestion_crds.kube import ApiError, KubeClient, core_path
from local_cluster.control_plane import ControlPlane
from support.kubeconfig import kubeconfig
from support.worker_builders import http_server

pytestmark = pytest.mark.controlplane


class View:
    """What was told of the ConfigMaps of a namespace."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []
        self.lists: list[frozenset[str]] = []
        self.failures: list[ApiError] = []

    def take(self, body: JsonObject, deleted: bool) -> None:
        self.told.append((body["metadata"]["name"], deleted))

    async def until(self, name: str, *, deleted: bool = False) -> None:
        async with asyncio.timeout(30):
            while (name, deleted) not in self.told:
                await asyncio.sleep(0.02)


@asynccontextmanager
async def viewing(
    *, control_plane: ControlPlane, folder: Path, namespace: str, fault: WatchFault | None = None
) -> AsyncIterator[tuple[View, Proxy]]:
    view = View()
    async with Proxy(kubeconfig=control_plane.kubeconfig, folder=folder) as proxy:
        proxy.watch_fault = fault
        async with await KubeClient.connect(kubeconfig=str(proxy.kubeconfig)) as kube:
            work = follow(
                kube,
                core_path("configmaps", namespace),
                query={"labelSelector": "seen=yes"},
                take=view.take,
                listed=lambda uids, _: view.lists.append(uids),
                failed=lambda error, _: view.failures.append(error),
            )
            task = asyncio.create_task(work)
            yield view, proxy
            assert not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def create(kube: KubeClient, namespace: str, name: str, *, seen: str = "yes") -> str:
    body = {"metadata": {"name": name, "labels": {"seen": seen}}}
    made = await kube.request("POST", core_path("configmaps", namespace), body=body)
    return str(made["metadata"]["uid"])


async def test_it_lists_page_by_page_and_goes_on_with_each_change(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PAGE", 2)
    uids = {await create(kube, namespace, f"old-{number}") for number in range(5)}
    await create(kube, namespace, "another", seen="no")
    async with viewing(control_plane=control_plane, folder=tmp_path, namespace=namespace) as (view, proxy):
        await view.until("old-4")
        await create(kube, namespace, "new")
        await view.until("new")
        await kube.request("DELETE", core_path("configmaps", namespace, "old-2"))
        await view.until("old-2", deleted=True)
        assert proxy.seen["list configmaps"] == 3
    assert view.lists == [uids]
    old = {(f"old-{number}", False) for number in range(5)}
    assert set(view.told) == {*old, ("new", False), ("old-2", True)}
    assert len(view.told) == 7


async def post(proxy: Proxy, path: str, body: bytes) -> None:
    """Create an object of which no Python client can write the JSON."""
    async with httpx.AsyncClient(trust_env=False) as client:
        made = await client.post(proxy.url + path, content=body, headers={"content-type": "application/json"})
    assert made.status_code == 201, made.text


@pytest.mark.parametrize(
    "fields", [b'{"f:a":' * 1_100 + b"{}" + b"}" * 1_100, b'{"f:\xff}":{}}'], ids=["nested deeply", "no text"]
)
async def test_an_object_with_odd_managed_fields_hides_no_other(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path, fields: bytes
) -> None:
    """Whoever may write one chooses them, and the API server keeps what Python's parsers refuse."""
    entry = b'"manager":"m","operation":"Update","apiVersion":"v1","fieldsType":"FieldsV1","fieldsV1":' + fields
    odd = b'{"metadata":{"name":"odd","labels":{"seen":"yes"},"managedFields":[{%s}]}}' % entry
    for folder in (tmp_path / "watched", tmp_path / "listed"):
        folder.mkdir()
        async with viewing(control_plane=control_plane, folder=folder, namespace=namespace) as (view, proxy):
            if folder.name == "watched":
                await post(proxy, core_path("configmaps", namespace), odd)
                await create(kube, namespace, "new")
            await view.until("odd")
            await view.until("new")
        assert view.failures == []


async def test_of_large_objects_fewer_are_asked_for_at_once(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "_MOST_BYTES", 64 * 1024)
    names = [f"large-{number}" for number in range(10)]
    for name in names:
        metadata = {"name": name, "labels": {"seen": "yes"}, "annotations": {"note": "x" * 20_000}}
        await kube.request("POST", core_path("configmaps", namespace), body={"metadata": metadata})
    async with viewing(control_plane=control_plane, folder=tmp_path, namespace=namespace) as (view, _):
        await view.until(names[-1])
    assert [name for name, _ in view.told] == names
    assert view.failures == []
    with pytest.raises(ApiError, match="more than 65536 bytes"):
        await kube.request("GET", core_path("configmaps", namespace))


async def test_after_an_error_in_the_stream_it_lists_again(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    await create(kube, namespace, "old")
    fault = Failing(resource="configmaps", times=2, code=410, reason="Expired")
    async with viewing(control_plane=control_plane, folder=tmp_path, namespace=namespace, fault=fault) as (view, proxy):
        for name in ("first", "second", "third"):
            await view.until("old")
            await create(kube, namespace, name)
            await view.until(name)
        assert proxy.seen["list configmaps"] == len(view.lists) == 3
    assert [error.status for error in view.failures] == [410, 410]


async def test_half_an_event_at_the_end_of_a_stream_is_told_by_the_next_one(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    fault = Ended(resource="configmaps", times=2)
    async with viewing(control_plane=control_plane, folder=tmp_path, namespace=namespace, fault=fault) as (view, _):
        for name in ("first", "second", "third"):
            await create(kube, namespace, name)
            await view.until(name)
    assert fault.injected == 2


@pytest.mark.parametrize("verb", ["list", "watch"])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/html", b"<html></html>"),
        ("application/json", b"<html>\n"),
        ("application/json", b"[]\n"),
        ("application/json", b"{}\n"),
    ],
    ids=["HTML", "no JSON", "no object", "another object"],
)
async def test_after_an_answer_of_somebody_else_it_lists_again(
    control_plane: ControlPlane,
    kube: KubeClient,
    namespace: str,
    tmp_path: Path,
    verb: str,
    content_type: str,
    body: bytes,
) -> None:
    """What stands in front of the API server may answer 200 in its place."""

    async def somebody_else(call: Call, forward: Forward) -> Answer:
        return Answer(status=200, body=body, content_type=content_type)

    async with viewing(control_plane=control_plane, folder=tmp_path, namespace=namespace) as (view, proxy):
        proxy.add(lambda call: str(call) == f"{verb} configmaps", somebody_else)
        async with asyncio.timeout(30):
            while not view.failures:
                await asyncio.sleep(0.02)
        await create(kube, namespace, "new")
        await view.until("new")
    assert [error.status for error in view.failures] == [0]


async def test_a_watch_whose_other_end_is_gone_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word, as when a node in between loses its power."""
    silent_seconds = kubernetes.WATCH_SECONDS + kubernetes._WATCH_GRACE_SECONDS
    assert silent_seconds <= 150
    monkeypatch.setattr(kubernetes, "WATCH_SECONDS", 1)
    monkeypatch.setattr(kubernetes, "_WATCH_GRACE_SECONDS", 1)
    asked, over = [], threading.Event()

    def begin_and_fall_silent(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        over.wait(60)

    with http_server(handle=begin_and_fall_silent) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            begun = time.monotonic()
            with pytest.raises(ApiError) as noticed:
                await anext(kube.watch(core_path("configmaps", "team-a"), resource_version="1"))
            assert 1.5 < time.monotonic() - begun < 15
        over.set()
    assert noticed.value.status == 0
    assert "timeoutSeconds=1" in asked[0]


async def test_lists_that_take_long_to_fail_are_asked_for_more_and_more_rarely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a watch that has lasted shows that the API server is well again."""
    monkeypatch.setattr(following, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(following, "_LONGEST_PAUSE_SECONDS", 0.2)
    pauses = list[float]()
    enough = asyncio.Event()

    def fail(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.3)
        request.send_error(500)

    def failed(_: ApiError, pause: float) -> None:
        pauses.append(pause)
        if len(pauses) == 5:
            enough.set()

    with http_server(handle=fail) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            task = asyncio.create_task(
                follow(kube, core_path("configmaps", "team-a"), take=lambda *_: None, failed=failed)
            )
            async with asyncio.timeout(60):
                await enough.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert pauses[-1] >= 0.05
