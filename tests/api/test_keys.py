"""API keys: while the API server is in trouble, and on a command line that does not find it."""

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
from ingestion_api.keys import run
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

    def __init__(self, key_id: str, key: str, **others: str) -> None:
        entry = KeyEntry(hash=hash_key(key), namespace="team-a", name="", created=datetime.now(UTC))
        encoded = {"data": {**others, key_id: encode_entry(entry)}}
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


@pytest.mark.parametrize("odd", ["/w==", "YQ=="], ids=["no text", "no entry"])
async def test_an_entry_that_cannot_be_read_is_named_and_harms_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, odd: str
) -> None:
    key_id, key = new_key()
    with http_server(handle=KeysSecret(key_id, key, odd=odd)) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            assert (await KeyRing(kube=kube, namespace="system").authenticate(key)).namespace == "team-a"
    assert [vars(record).get("key_id") for record in caplog.records] == ["odd"]


def listed(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, *where: str) -> str:
    """Return what `ingestion-keys list` complains of."""
    assert run(arguments=["list", *where]) == 1
    output = capsys.readouterr()
    assert not output.out
    assert not caplog.records  # without a handler, as on the command line, they would stand in front of it
    assert output.err.startswith("ingestion-keys: ")
    return output.err


def test_a_kubeconfig_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    missing = str(tmp_path / "none")
    assert listed(capsys, caplog, "--kubeconfig", missing) == f"ingestion-keys: there is no kubeconfig at {missing}\n"


@pytest.mark.parametrize("content", ["", "hello", "a: [", "current-context: none\n"])
def test_a_file_that_is_no_kubeconfig_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, content: str
) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(content)
    assert str(file) in listed(capsys, caplog, "--kubeconfig", str(file))


@pytest.mark.parametrize(("in_pod", "what"), [(False, "no kubeconfig"), (True, "the pod's ServiceAccount")])
def test_without_any_access_to_a_cluster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    in_pod: bool,
    what: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr("kubernetes.aio.config.incluster_config.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.setenv(name, "1") if in_pod else monkeypatch.delenv(name, raising=False)
    assert what in listed(capsys, caplog)
