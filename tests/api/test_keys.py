"""API keys while the API server is in trouble."""

from __future__ import annotations

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import yaml
from ingestion_api.auth import KeyRing, new_key
from ingestion_api.problems import ProblemError
from ingestion_crds.kube import KubeClient
from support.worker_builders import answer, http_server

_, KEY = new_key()


def kubeconfig(folder: Path, url: str) -> str:
    """Write one for an API server without TLS; return its path."""
    path = folder / "kubeconfig"
    named = {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(named))
    return str(path)


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
