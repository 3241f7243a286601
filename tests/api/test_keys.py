"""API keys while the API server is in trouble."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import pytest
from ingestion_api.auth import KeyEntry, KeyRing, encode_entry, hash_key, new_key
from ingestion_api.problems import ProblemError
from ingestion_crds.kube import KubeClient
from support.kubeconfig import kubeconfig
from support.worker_builders import answer, http_server

_, KEY = new_key()


async def refused(ring: KeyRing) -> bool:
    """Return whether nobody gets in for now."""
    try:
        await ring.authenticate(KEY)
    except ProblemError as problem:
        return problem.status == 503
    return False


async def test_an_api_server_that_hangs_is_asked_once_for_all_who_wait(tmp_path: Path) -> None:
    asked, over = [], threading.Event()

    def hang(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        over.wait(60)

    with http_server(handle=hang) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            ring = KeyRing(kube=kube, namespace="team-a")
            assert all(await asyncio.gather(*(refused(ring) for _ in range(20))))
        over.set()
    assert len(asked) == 1


async def test_strangers_do_not_make_a_failing_api_server_be_asked_more_than_once_a_second(tmp_path: Path) -> None:
    asked = []

    def fail(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        answer(request, 500)

    with http_server(handle=fail) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            ring = KeyRing(kube=kube, namespace="team-a")
            begun = time.monotonic()
            for _ in range(50):
                assert await refused(ring)
            assert len(asked) <= 1 + time.monotonic() - begun


class KeysSecret:
    """An API server that holds one key, or none any more, or does not answer."""

    def __init__(self, key_id: str, key: str) -> None:
        entry = KeyEntry(hash=hash_key(key), namespace="team-a", name="", created=datetime.now(UTC))
        encoded = {"data": {key_id: encode_entry(entry)}}
        self.status, self.body = 200, json.dumps(encoded).encode()

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        answer(request, self.status, self.body, **{"Content-Type": "application/json"})


@pytest.mark.parametrize(
    ("status", "seconds", "refusal"),
    [(200, 4.9, None), (200, 5.1, 401), (500, 29.0, None), (500, 30.1, 503)],
    ids=["revoked, 4.9 s", "revoked, 5.1 s", "no answer, 29 s", "no answer, 30.1 s"],
)
async def test_how_long_a_key_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, seconds: float, refusal: int | None
) -> None:
    key_id, key = new_key()
    secret = KeysSecret(key_id, key)
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("ingestion_api.auth.time", SimpleNamespace(monotonic=lambda: clock.now))
    with http_server(handle=secret) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            ring = KeyRing(kube=kube, namespace="system")
            assert (await ring.authenticate(key)).namespace == "team-a"
            secret.status, secret.body = status, b"{}"
            clock.now += seconds
            if refusal is None:
                assert (await ring.authenticate(key)).namespace == "team-a"
            else:
                with pytest.raises(ProblemError) as refused:
                    await ring.authenticate(key)
                assert refused.value.status == refusal
