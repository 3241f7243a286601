"""How requests reach an API server, as its kubeconfig says."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from ingestion_crds import JsonObject
from ingestion_crds.constants import Stage
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient, core_path, find
from ingestion_operator.custom_resources import ConflictError, CustomResources, delete
from kubernetes.aio import client, config
from support.kubeconfig import kubeconfig
from support.worker_builders import answer, http_server

PODS = core_path("pods", "team-a")


class Server:
    """Notes what arrives, and answers {}."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.path, headers, body))
        request.send_response(200)
        request.send_header("content-length", "2")
        request.end_headers()
        request.wfile.write(b"{}")


async def test_bodies_and_addresses_arrive_as_they_were_given(tmp_path: Path) -> None:
    server = Server()
    body: Any = {"text": 'ä\u2028😀\x00"\\', "stage": Stage.PREPARE, "none": None, "values": (1, 2.5, True)}
    query = {"labelSelector": "uid=a,index notin (1,2)", "continue": "a+b/c=%25&d"}
    with http_server(handle=server.handle) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            await kube.request("PATCH", PODS, query=query, body=body, content_type=MERGE_PATCH)
            await kube.request("GET", core_path("pods", "team-a", "a b"))
    (path, headers, sent), (second, _, nothing) = server.seen
    assert path == f"{PODS}?labelSelector=uid%3Da%2Cindex+notin+%281%2C2%29&continue=a%2Bb%2Fc%3D%2525%26d"
    assert (second, nothing) == (f"{PODS}/a%20b", b"")
    assert json.loads(sent) == {**body, "values": [1, 2.5, True]}
    assert headers["content-type"] == MERGE_PATCH
    assert headers["accept"] == "application/json"


async def test_what_orjson_does_not_write_is_for_the_api_server_to_refuse(tmp_path: Path) -> None:
    server = Server()
    body = {"half": "\ud83d", "long": 2**70}
    with http_server(handle=server.handle) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            await kube.request("POST", PODS, body=body)
    [(_, _, sent)] = server.seen
    assert json.loads(sent) == body


async def test_requests_go_through_the_proxy_of_the_kubeconfig(tmp_path: Path) -> None:
    server = Server()
    with http_server(handle=server.handle) as url:
        settings = kubeconfig(tmp_path, "http://api.invalid:6443", **{"proxy-url": url})
        async with await KubeClient.connect(kubeconfig=settings) as kube:
            await kube.request("POST", PODS, body={})
    assert [path for path, _, _ in server.seen] == [f"http://api.invalid:6443{PODS}"]


async def test_credentials_are_sent_and_renewed(tmp_path: Path) -> None:
    """Renewed as the official client renews a pod's token, by a hook that it asks before each request."""
    server, tokens = Server(), iter(["Bearer second", "Bearer third"])

    async def renew(configuration: client.Configuration) -> None:
        configuration.api_key["BearerToken"] = next(tokens)

    with http_server(handle=server.handle) as url:
        settings = kubeconfig(tmp_path, url, user={"token": "first"})
        async with await KubeClient.connect(kubeconfig=settings) as kube:
            await kube.request("GET", PODS)
            kube._api.configuration.refresh_api_key_hook = renew
            await kube.request("GET", PODS)
            await kube.request("POST", PODS, body={})
    sent = [headers["authorization"] for _, headers, _ in server.seen]
    assert sent == ["Bearer first", "Bearer second", "Bearer third"]


@pytest.mark.parametrize(
    "error", [OSError("too many open files"), config.ConfigException("Token file exists but empty.")]
)
async def test_a_token_that_cannot_be_read_is_no_answer(tmp_path: Path, error: Exception) -> None:
    """Whoever asks tries again; anything else would end the task that asks."""

    def fail(_: client.Configuration) -> None:
        raise error

    settings = kubeconfig(tmp_path, "http://127.0.0.1:1", user={"token": "first"})
    async with await KubeClient.connect(kubeconfig=settings) as kube:
        kube._api.configuration.refresh_api_key_hook = fail
        with pytest.raises(ApiError, match=str(error)) as refused:
            await kube.request("GET", PODS)
        assert refused.value.status == 0


@pytest.mark.parametrize(
    ("given", "reason"), [("AlreadyExists", "AlreadyExists"), ("team-a/handbook may not be written", "Unknown")]
)
async def test_a_reason_is_one_word(tmp_path: Path, given: str, reason: str) -> None:
    """Each would be a metric of its own, for ever; the message says the same."""
    status = {"kind": "Status", "reason": given, "message": f'admission webhook "w" denied the request: {given}'}

    def deny(request: BaseHTTPRequestHandler) -> None:
        answer(request, 403, json.dumps(status).encode())

    with http_server(handle=deny) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            with pytest.raises(ApiError) as denied:
                await kube.request("GET", PODS)
    assert (denied.value.reason, denied.value.message) == (reason, status["message"])


POD = core_path("pods", "team-a", "handbook")
MISSING = json.dumps({"kind": "Status", "reason": "NotFound", "message": 'pods "handbook" not found'}).encode()


async def get(kube: KubeClient) -> JsonObject | None:
    return await find(kube, POD)


async def take_away(kube: KubeClient) -> None:
    await delete(kube, POD, "uid")


async def write(kube: KubeClient) -> None:
    pod = {"metadata": {"namespace": "team-a", "name": "handbook", "resourceVersion": "1"}}
    await CustomResources(kube, path=lambda namespace, name, _: core_path("pods", namespace, name)).write_status(
        pod, {}
    )


@pytest.mark.parametrize("ask", [get, take_away, write])
@pytest.mark.parametrize(
    ("said", "reason"),
    [(MISSING, "NotFound"), (b"<html>404 Not Found</html>", "Unknown"), (b"404 page not found\n", "Unknown")],
    ids=["the API server", "HTML", "text"],
)
async def test_only_the_api_server_says_that_an_object_is_gone(
    tmp_path: Path, ask: Callable[[KubeClient], Awaitable[JsonObject | None]], said: bytes, reason: str
) -> None:
    """A proxy that does not know the way to it for a moment says 404 too: no attempt is to end by that."""

    def server(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers.get("content-length", 0)))
        answer(request, 404, said)

    with http_server(handle=server) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            if reason == "Unknown":
                with pytest.raises(ApiError, match=f"404 {reason}"):
                    await ask(kube)
            elif ask is write:
                with pytest.raises(ConflictError):
                    await write(kube)
            else:
                assert await ask(kube) is None
