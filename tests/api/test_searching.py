"""Searches as the API runs them: with a real API server for the providers' keys, over a store in a folder."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingestion_api.options import Options
from ingestion_api.problems import ProblemError
from ingestion_api.searching import Searches
from ingestion_api.stores import TenantStores
from ingestion_crds.config import Config
from ingestion_crds.kube import MERGE_PATCH, KubeClient, core_path
from ingestion_worker.embedding import EmbeddingSpec, make_embedder
from ingestion_worker.store import Body, Store, StoreConfig
from support.worker_builders import BUILTIN, KB, Worker, answer, http_server

pytestmark = pytest.mark.controlplane

# The knowledge base whose vectors are a provider's; those of KB are the built-in embedder's.
REMOTE = "2b1d0000-0000-4000-8000-000000000009"
LOCAL = EmbeddingSpec(provider="local", model="m", dimensions=2)
# Far beyond what a search takes.
PATIENCE = 60.0


@dataclass(kw_only=True)
class Endpoint:
    """An embedding endpoint that hangs, takes some seconds for each request, or answers what it is told."""

    status: int = 200
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    keys: list[str | None] = field(default_factory=list)
    goes_on: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.goes_on.set()

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        count = len(json.loads(request.rfile.read(int(request.headers["Content-Length"])))["input"])
        self.keys.append(request.headers["Authorization"])
        self.goes_on.wait(PATIENCE)
        time.sleep(self.seconds)
        body = json.dumps({"data": [{"embedding": [1.0, 2.0]}] * count}).encode()
        answer(request, self.status, body, **self.headers)


@dataclass(kw_only=True)
class Stand:
    """Two knowledge bases of one tenant, and the endpoint of one of them."""

    kube: KubeClient
    namespace: str
    folder: Path
    url: str
    endpoint: Endpoint
    worker: Worker

    @contextmanager
    def searches(self, *, secret: str | None = None, tenants: Sequence[str] = (), **options: Any) -> Iterator[Searches]:
        """Open the searches of an API process.

        Args:
            secret: with the provider's key.
            tenants: their namespaces, which are their buckets too; one when left out.
            options: of the process.
        """
        config = Config.model_validate(
            {
                "workerImage": "worker:test",
                "store": {"endpoint": f"file://{self.folder}"},
                "tenants": [{"namespace": name, "bucket": name} for name in tenants or [self.namespace]],
                "embeddingProviders": [{"name": "local", "url": self.url, "secretName": secret}],
            }
        )
        made = Searches(
            kube=self.kube,
            config=config,
            stores=TenantStores(kube=self.kube, config=config),
            options=Options(**{"namespace": self.namespace, "search_seconds": PATIENCE, **options}),
        )
        try:
            yield made
        finally:
            self.endpoint.goes_on.set()
            made.close()

    async def found(self, searches: Searches, knowledge_base: str) -> int:
        """Search, and return the number of hits."""
        which = {"namespace": self.namespace, "knowledge_bases": [knowledge_base]}
        async with searches.best(**which, query="lighthouse", limit=9) as hits:
            return len(hits)

    async def refused(self, searches: Searches, knowledge_base: str) -> ProblemError:
        """Search, and return how it was refused."""
        with pytest.raises(ProblemError) as caught:
            await self.found(searches, knowledge_base)
        return caught.value

    async def write_secret(self, **data: str | bytes) -> None:
        """Make the provider's Secret, or change it."""
        encoded = {
            name: base64.b64encode(value.encode() if isinstance(value, str) else value).decode()
            for name, value in data.items()
        }
        body = {"metadata": {"name": "local-key"}, "data": encoded}
        path = core_path("secrets", self.namespace)
        if any(item["metadata"]["name"] == "local-key" for item in (await self.kube.request("GET", path))["items"]):
            await self.kube.request("PATCH", f"{path}/local-key", body=body, content_type=MERGE_PATCH)
        else:
            await self.kube.request("POST", path, body=body)


@pytest.fixture
def stand(kube: KubeClient, namespace: str, tmp_path: Path) -> Iterator[Stand]:
    endpoint = Endpoint()
    with http_server(handle=endpoint) as url:
        store = Store(config=StoreConfig(url=f"file://{tmp_path}/{namespace}"))
        worker = Worker(store=store, folder=tmp_path / "scratch")
        uri = worker.upload(data=b"The lighthouse.", name="a.txt")
        worker.prepare(document__source__uri=uri)
        worker.more["make_embedder"] = lambda: make_embedder(spec=LOCAL, url=url)
        remote = {"knowledgeBase": REMOTE, "job__uid": "remote", "pipeline__embedding": asdict(LOCAL)}
        worker.prepare(document__source__uri=uri, **remote)
        endpoint.keys.clear()
        yield Stand(kube=kube, namespace=namespace, folder=tmp_path, url=url, endpoint=endpoint, worker=worker)


async def test_both_embedders_find(stand: Stand) -> None:
    with stand.searches() as searches:
        assert await stand.found(searches, KB) == await stand.found(searches, REMOTE) == 1


async def test_a_provider_that_hangs_takes_no_other_searches_with_it(stand: Stand) -> None:
    with stand.searches(searches=4) as patient:
        assert await stand.found(patient, KB) == 1  # what is loaded once is loaded
    with stand.searches(searches=4, search_seconds=5.0) as searches:
        stand.endpoint.goes_on.clear()
        for _ in range(2):
            refused = await asyncio.gather(*(stand.refused(searches, REMOTE) for _ in range(4)))
            assert {problem.status for problem in refused} == {503}
        assert await stand.found(searches, KB) == 1
        assert len(stand.endpoint.keys) <= 2 * 4  # one try each


async def test_a_provider_that_has_to_load_its_model_is_waited_for(stand: Stand) -> None:
    """Asked again after less, it would begin anew."""
    with stand.searches() as patient:
        assert await stand.found(patient, REMOTE) == 1  # what is loaded once is loaded
    stand.endpoint.keys.clear()
    stand.endpoint.seconds = 3.0
    with stand.searches(search_seconds=12.0) as searches:
        assert await stand.found(searches, REMOTE) == 1
    assert len(stand.endpoint.keys) == 1


async def test_a_provider_that_asks_to_come_back_later_is_not_waited_for(stand: Stand) -> None:
    stand.endpoint.status, stand.endpoint.headers = 429, {"Retry-After": "60"}
    with stand.searches(search_seconds=3.0) as searches:
        began = time.monotonic()
        refused = await stand.refused(searches, REMOTE)
        assert time.monotonic() - began < PATIENCE / 2
    assert (refused.status, refused.error) == (503, "unavailable")
    assert "EmbeddingRateLimited" in refused.message


async def test_a_search_out_of_time_has_its_slot_until_its_thread_ends(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    goes_on = threading.Event()

    def search_text(**_: Any) -> list[Any]:
        goes_on.wait(PATIENCE)
        raise RuntimeError("nobody hears this")

    async def refused_until_free() -> None:
        while (await stand.refused(searches, KB)).status == 429:
            pass

    with stand.searches(searches=1, search_seconds=0.2) as searches, monkeypatch.context() as patched:
        patched.setattr("ingestion_worker.search.search_text", search_text)
        assert "longer than" in (await stand.refused(searches, KB)).message
        assert [(await stand.refused(searches, KB)).status for _ in range(3)] == [429] * 3
        goes_on.set()
        with pytest.raises(RuntimeError):  # a search comes through, once the slot is free
            await asyncio.wait_for(refused_until_free(), PATIENCE)
    gc.collect()
    assert "never retrieved" not in caplog.text


async def test_a_search_has_its_slot_until_what_it_found_is_let_go_of(stand: Stand) -> None:
    with stand.searches(searches=1, search_seconds=10.0) as searches:
        which = {"namespace": stand.namespace, "query": "lighthouse", "limit": 9}
        async with searches.best(**which, knowledge_bases=[KB, REMOTE]) as hits:
            assert {base for base, _ in hits} == {KB, REMOTE}
            assert (await stand.refused(searches, KB)).status == 429
        assert await stand.found(searches, KB) == 1


async def test_a_key_that_is_replaced_is_used_at_once(stand: Stand) -> None:
    with stand.searches(secret="local-key") as searches:
        for key in ("first", "first", "second"):
            await stand.write_secret(apiKey=key)
            assert await stand.found(searches, REMOTE) == 1
    assert stand.endpoint.keys == ["Bearer first", "Bearer first", "Bearer second"]


@pytest.mark.parametrize("data", [None, {"otherKey": "x"}, {"apiKey": b"\xff"}])
async def test_a_key_that_is_not_there_matters_to_those_who_need_it(
    stand: Stand, data: dict[str, str | bytes] | None
) -> None:
    if data:
        await stand.write_secret(**data)
    with stand.searches(secret="local-key") as searches:
        assert await stand.found(searches, KB) == 1
        refused = await stand.refused(searches, REMOTE)
        assert (refused.status, refused.error, refused.retry_after) == (503, "unavailable", None)
        assert "provider local" in refused.message
        await stand.write_secret(apiKey="k")
        assert await stand.found(searches, REMOTE) == 1


async def test_only_so_many_embedders_are_kept(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last 32 that were used."""
    bases = [f"2b1d0000-0000-4000-8000-0000000001{number:02}" for number in range(40)]
    made = []

    class Fixed:
        def embed(self, texts: Sequence[str]) -> Any:
            return np.array([[1.0, 2.0]] * len(texts), dtype=np.float32)

        def close(self) -> None:
            pass

    stand.worker.more["make_embedder"] = Fixed
    uri = stand.worker.upload(data=b"The lighthouse.", name="a.txt")
    for base in bases:
        embedding = {**asdict(LOCAL), "model": base}
        stand.worker.prepare(
            document__source__uri=uri, knowledgeBase=base, job__uid=base, pipeline__embedding=embedding
        )

    def making(*, spec: EmbeddingSpec, **_: Any) -> Any:
        made.append(spec.model)
        return Fixed()

    monkeypatch.setattr("ingestion_worker.embedding.make_embedder", making)
    with stand.searches() as searches:
        for base in bases:
            for wanted in (base, base, bases[0]):
                assert await stand.found(searches, wanted) == 1
        assert made == bases
        for base in (*bases[9:], bases[0], bases[8]):
            assert await stand.found(searches, base) == 1
        assert made == [*bases, bases[8]]


def test_the_built_in_embedder_stays_whatever_tenants_say_of_theirs(tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "workerImage": "worker:test",
            "store": {"endpoint": f"file://{tmp_path}"},
            "embeddingProviders": [{"name": "local", "url": "http://localhost:9"}],
        }
    )
    kube: Any = None
    stores = TenantStores(kube=kube, config=config)
    searches = Searches(kube=kube, config=config, stores=stores, options=Options(namespace="api"))
    first = searches._embedder(BUILTIN, {})
    for number in range(40):
        assert searches._embedder(replace(LOCAL, model=str(number)), {})
        assert searches._embedder(replace(BUILTIN, model=str(number)), {}) is None
    assert searches._embedder(BUILTIN, {}) is first
    searches.close()


async def test_what_the_last_four_tenants_searched_is_kept(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an output that is kept, only the chunks that were found are read again."""
    reads: list[str] = []
    read = Body.read

    def watched(body: Body) -> memoryview:
        if body._key.endswith(".parquet"):
            reads.append(body._key)
        return read(body)

    monkeypatch.setattr(Body, "read", watched)
    first, *others = tenants = [stand.namespace, *(f"{stand.namespace}-{number}" for number in range(4))]
    for other in others:
        shutil.copytree(stand.folder / first, stand.folder / other)
    with stand.searches(tenants=tenants) as searches:

        async def reads_for(tenant: str) -> int:
            reads.clear()
            async with searches.best(namespace=tenant, knowledge_bases=[KB], query="lighthouse", limit=9) as hits:
                assert hits
            return len(reads)

        assert [await reads_for(tenant) for tenant in (*tenants[:4], *tenants[:4])] == [2] * 4 + [1] * 4
        assert [await reads_for(tenant) for tenant in (others[3], first, others[3], first)] == [2, 2, 1, 1]


async def test_a_segment_over_the_bound_is_413(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestion_worker.search.MAX_OUTPUT_BYTES", 1000)
    with stand.searches() as searches:
        refused = await stand.refused(searches, KB)
    assert (refused.status, refused.error) == (413, "too_large")
