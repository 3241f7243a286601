"""What HTTP asks of each answer (RFC 9110), whatever is asked for: the whole app, before a cluster that is played."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from ingestion_api.app import create_app
from ingestion_api.auth import KeyEntry, encode_entry, hash_key, new_key
from ingestion_api.options import Options
from ingestion_crds.config import Config
from ingestion_crds.constants import BATCH_PLURAL
from local_cluster import ports
from support.builders import KNOWLEDGE_BASE
from support.kubeconfig import kubeconfig
from support.worker_builders import answer, http_server

from .conftest import serve
from .test_answers import configuration, retryable, services, stored
from .test_protocol import client

PREFIX = "/v1/knowledge-base"
INGEST = f"{PREFIX}/knowledge-bases/{KNOWLEDGE_BASE}/ingest"
JOB = "11111111-1111-4111-8111-111111111111"
RETRY = f"{PREFIX}/ingestion-jobs/{JOB}/retry"
CONNECTIONS = 8


class Cluster:
    """Has one job, and knows one key."""

    def __init__(self) -> None:
        key_id, self.key = new_key()
        created = datetime.datetime.now(tz=datetime.UTC)
        entry = KeyEntry(hash=hash_key(self.key), namespace="team-a", name="", created=created)
        self.secret = {"data": {key_id: encode_entry(entry)}}
        self.job = stored(JOB)
        self.ended = threading.Event()

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        path, _, query = request.path.partition("?")
        if "/secrets/" in path:
            body = self.secret
        elif path.endswith(f"/{JOB}") and BATCH_PLURAL not in path:
            body = self.job
        elif path.endswith("s") and "watch=true" not in query:
            items = [] if path.endswith(BATCH_PLURAL) else [self.job]
            body = {"metadata": {"resourceVersion": "1"}, "items": items}
        elif path.endswith("s"):
            self.ended.wait(30)
            return
        else:
            answer(request, 404, b'{"kind": "Status", "reason": "NotFound"}')
            return
        answer(request, 200, json.dumps(body).encode(), Content_Type="application/json")


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running API, and a client of it that has a key."""

    port: int
    http: httpx.AsyncClient


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """An API's port, and a key."""
    folder, cluster, (port,) = tmp_path_factory.mktemp("api"), Cluster(), ports.free(count=1)
    with http_server(handle=cluster) as url:
        options = Options(namespace="system", kubeconfig=kubeconfig(folder, url), connections=CONNECTIONS)
        server = serve(create_app(options, Config.model_validate(configuration(folder))), options, port)
        next(server)
        yield port, cluster.key
        next(server, None)
        cluster.ended.set()


@pytest_asyncio.fixture
async def api(served: tuple[int, str]) -> AsyncIterator[Served]:
    port, key = served
    url, headers = f"http://127.0.0.1:{port}", {"x-api-key": key}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False) as http:
        deadline, ready = time.monotonic() + 30, False
        while not ready:
            assert time.monotonic() < deadline
            with suppress(httpx.TransportError):
                ready = (await http.get("/readyz")).status_code == 200
            await asyncio.sleep(0.02)
        yield Served(port=port, http=http)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/healthz", 200),
        ("/readyz", 200),
        ("/metrics", 200),
        ("/openapi.json", 200),
        (f"{PREFIX}/ingestion-jobs/{JOB}", 200),
        (f"{PREFIX}/ingestion-jobs/{JOB}/documents", 200),
        (f"{PREFIX}/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs", 200),
        (f"{PREFIX}/ingestion-jobs/{KNOWLEDGE_BASE}", 404),
        (f"{PREFIX}/search", 405),
    ],
)
async def test_what_can_be_got_answers_head_without_a_body(api: Served, path: str, status: int) -> None:
    """And names HEAD where it is allowed."""
    head = f"HEAD {path} HTTP/1.1\r\nhost: api\r\nx-api-key: {api.http.headers['x-api-key']}\r\n"
    async with client(api.port) as (reader, writer):
        writer.write(f"{head}connection: close\r\n\r\n".encode())
        lines = (await reader.read()).removesuffix(b"\r\n\r\n").decode().split("\r\n")  # to the end: no body
    assert lines[0].split()[1] == str(status)
    told = {name for name, _, _ in (line.partition(":") for line in lines)}
    got = await api.http.get(path)
    assert got.status_code == status
    assert {*got.headers} - {"date"} <= told | {"connection"}
    if path != "/metrics":  # which has counted the one before
        assert f"content-length: {got.headers['content-length']}" in lines
    allowed = (await api.http.put(path)).headers["allow"]
    assert {*allowed.split(", ")} == ({"POST"} if status == 405 else {"GET", "HEAD"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/metrics", 200),
        ("GET", f"{PREFIX}/ingestion-jobs/{JOB}", 200),
        ("GET", f"{PREFIX}/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs", 200),
        ("GET", "/nowhere", 404),
        ("GET", f"/?{'q' * 5000}", 414),
        ("POST", f"{PREFIX}/search", 415),
    ],
)
async def test_no_answer_is_kept_by_a_cache(api: Served, method: str, path: str, status: int) -> None:
    """The key is in a header that shared caches do not know."""
    got = await api.http.request(method, path)
    assert (got.status_code, got.headers["cache-control"]) == (status, "no-store")


@pytest.mark.parametrize(
    ("path", "code", "status"),
    [(RETRY, 500, 503), (RETRY, 400, 500), *((INGEST, code, 503) for code in (404, 409, 429, 500))],
)
async def test_why_the_api_server_fails_is_in_the_log_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str, code: int, status: int
) -> None:
    """With the id of the request."""
    monkeypatch.setattr("ingestion_api.jobs._PAUSES_SECONDS", (0.0,))
    cluster, failed = Cluster(), {"kind": "Status", "message": 'failed calling webhook "w"' + 2000 * "."}
    cluster.job = retryable(name=JOB)

    def server(request: BaseHTTPRequestHandler) -> None:
        if request.command in ("PATCH", "POST"):
            request.rfile.read(int(request.headers["Content-Length"]))
            answer(request, code, json.dumps(failed).encode())
        else:
            cluster(request)

    async with services(tmp_path, server) as parts:
        app = create_app(parts.options, parts.config)
        app.state.services = parts
        parts.index.synced = True
        transport, headers = httpx.ASGITransport(app), {"x-api-key": cluster.key, "x-request-id": "mine"}
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as http:
            told = await http.post(path, files={"file": ("a.txt", b"abc")} if path == INGEST else None)
    assert (told.status_code, "webhook" in told.text) == (status, False)
    (line,) = (record for record in caplog.records if 'webhook "w"' in record.getMessage())
    assert (line.levelname, vars(line)["request_id"], len(line.getMessage()) < 1100) == ("WARNING", "mine", True)
    assert cluster.key not in caplog.text


async def counted(api: Served, code: int) -> float:
    """Return how many requests were answered so."""
    sample = f'ingestion_api_requests_total{{code="{code}",'
    while (scraped := await api.http.get("/metrics")).status_code != 200:  # a connection too many still
        await asyncio.sleep(0.02)
    lines = scraped.text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(sample))


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\nNONSENSE\r\n\r\n", 400),
        (b"GET /v1 HTTP/1.1\r\n\r\n", 503),
        (b"GET /v1 HTTP/1.1\r\n" + b"a:\r\n" * 66, 431),
    ],
    ids=["what is no request", "and comes right behind one", "one connection too many", "many headers"],
)
async def test_what_never_comes_to_a_route_has_an_id_and_a_line_and_is_counted(
    api: Served, caplog: pytest.LogCaptureFixture, sent: bytes, code: int
) -> None:
    caplog.set_level("INFO", "ingestion_api")
    before = await counted(api, code)
    async with AsyncExitStack() as stack:
        for _ in range(CONNECTIONS):  # besides that of `api`
            reader, writer = await stack.enter_async_context(client(api.port))
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        assert int(head.split()[1]) == code
        assert {b"cache-control: no-store", b"connection: close"} < set(head.splitlines())
        assert json.loads(await reader.read()).keys() == {"error", "message"}
    assert await counted(api, code) > before
    (line,) = (record for record in caplog.records if vars(record).get("status") == code)
    request_id = head.partition(b"x-request-id: ")[2].split()[0].decode()
    assert (line.name, vars(line)["request_id"], vars(line)["client"]) == (
        "ingestion_api.access",
        request_id,
        "127.0.0.1",
    )


@pytest.mark.parametrize("own", ["mine", "no id"])
@pytest.mark.parametrize("begun", [True, False], ids=["while it is read", "before it is"])
async def test_what_breaks_off_a_request_is_the_answer_to_it(
    api: Served, caplog: pytest.LogCaptureFixture, begun: bool, own: str
) -> None:
    """Under its id, and told and counted once."""
    caplog.set_level("INFO", "ingestion_api.access")
    key, kind = api.http.headers["x-api-key"], "multipart/form-data; boundary=b"
    headers = f"x-api-key: {key}\r\nx-request-id: {own}\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n"
    sent = f"POST {INGEST} HTTP/1.1\r\n{headers}\r\n5\r\n--b\r\n\r\n".encode()
    before = await counted(api, 400)
    async with client(api.port) as (reader, writer):
        if begun:
            writer.write(sent)
            await asyncio.sleep(0.2)
            sent = b""
        writer.write(sent + b"no chunk\r\n")
        answered = await asyncio.wait_for(reader.read(), timeout=30)
    request_id = answered.partition(b"x-request-id: ")[2].split()[0].decode()
    assert (answered.split()[1], request_id == own) == (b"400", own == "mine")
    deadline = time.monotonic() + 30
    while not (lines := [vars(record) for record in caplog.records if vars(record).get("path") == INGEST]):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert [(line["request_id"], line["status"]) for line in lines] == [(request_id, 400)]
    assert not [record for record in caplog.records if record.msg == "no request"]
    assert await counted(api, 400) == before + 1


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"{PREFIX}/search", "{"),
        ("POST", f"{PREFIX}/search", "[1]"),
        ("POST", f"{PREFIX}/knowledge-bases/none/ingest", ""),
        ("POST", f"{PREFIX}/ingestion-jobs/none/retry", "{"),
        ("GET", f"{PREFIX}/ingestion-jobs/none", ""),
        ("GET", f"{PREFIX}/ingestion-jobs/none/documents?limit=none", ""),
        ("GET", f"{PREFIX}/knowledge-bases/none/ingestion-jobs", ""),
    ],
)
async def test_who_asks_comes_before_what_is_asked(api: Served, method: str, path: str, body: str) -> None:
    headers = {"content-type": "application/json", "x-api-key": ""}
    refused = await api.http.request(method, path, content=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-api-key": "KEY"}, 200),
        ({"authorization": "Bearer KEY"}, 200),
        ({"authorization": "bearer  KEY"}, 200),
        ({"authorization": "Bearer KEY", "x-api-key": "KEY"}, 200),
        ({"authorization": "Bearer", "x-api-key": "KEY"}, 200),
        ({"authorization": "Basic OTHER", "x-api-key": "KEY"}, 200),
        ({"authorization": "Bearer OTHER", "x-api-key": "KEY"}, 200),
        ({"authorization": "Bearer KEY", "x-api-key": "OTHER"}, 401),
        ({"authorization": "Bearer OTHER"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Basic KEY"}, 401),
        ({"authorization": "KEY"}, 401),
        ({}, 401),
    ],
)
async def test_a_key_may_come_as_a_bearer_token(
    api: Served, headers: dict[str, str], status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """An x-api-key beside it is what counts: gateways add tokens. Neither answers nor the log repeat one."""
    key, (_, other) = api.http.headers["x-api-key"], new_key()
    headers = {name: value.replace("KEY", key).replace("OTHER", other) for name, value in headers.items()}
    caplog.set_level(logging.INFO, "ingestion_api")
    async with httpx.AsyncClient(base_url=api.http.base_url, headers=headers, trust_env=False) as http:
        got = await http.get(f"{PREFIX}/ingestion-jobs/{JOB}")
    assert got.status_code == status
    if status == 401:
        assert got.json()["error"] == "unauthorized"
        assert {"APIKey", "Bearer"} <= {*got.headers["www-authenticate"].replace(",", "").split()}
    async with asyncio.timeout(10):
        while not [record for record in caplog.records if record.name == "ingestion_api.access"]:
            await asyncio.sleep(0.01)
    told = f"{got.text} {got.headers} {[vars(record) for record in caplog.records]}"
    assert [secret for secret in (key, other) if secret.split("_", 2)[2] in told] == []


@pytest.mark.parametrize(
    ("path", "accepted", "kind"),
    [
        *((f"{PREFIX}/search", "application/json", kind) for kind in ("", "application/x-www-form-urlencoded")),
        *((f"{PREFIX}/search", "application/json", kind) for kind in ("text/json", "application/jsonx")),
        *((INGEST, "multipart/form-data with a boundary", kind) for kind in ("", "application/json")),
    ],
)
async def test_a_body_of_another_type_is_told_which_is_read(api: Served, path: str, accepted: str, kind: str) -> None:
    body = json.dumps({"query": "q", "kb_ids": [KNOWLEDGE_BASE]})
    refused = await api.http.post(path, content=body, headers={"content-type": kind})
    message = f"content-type: send {accepted}"
    assert (refused.status_code, refused.json()) == (415, {"error": "unsupported_media_type", "message": message})


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON", "application/a+json"])
async def test_json_by_any_of_its_types_is_read(api: Served, kind: str) -> None:
    body = json.dumps({"query": "q", "kb_ids": [KNOWLEDGE_BASE]})
    found = await api.http.post(f"{PREFIX}/search", content=body, headers={"content-type": kind})
    assert (found.status_code, found.json()["total_results"]) == (200, 0)
