"""A document in two versions in a bucket of a real S3 server: the first is live, the second is what the job ingests.

Workers reach the server through a proxy, readers directly. Readers must see one version whole at every moment, and
never the first one again after they saw the second.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import io
import tempfile
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from faults.real_worker import RealWorker
from faults.rig import Run
from faults.store_proxy import StoreProxy
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.indexset import IndexSet
from ingestion_worker import layout
from ingestion_worker.search import search_text
from ingestion_worker.store import Store, StoreConfig
from numpy.typing import NDArray
from support.builders import DOCUMENT, KNOWLEDGE_BASE
from support.s3_server import S3Server
from support.worker_builders import BUILTIN, Worker, sentences

FIRST, SECOND = sentences(count=12, tag=" of the first"), sentences(count=48, tag=" of the second")
# What was put in the place of the second version by mistake; no reader must ever find it.
DRAFT = sentences(count=50, tag=" of a draft")
_KEY: Final = "uploads/handbook.txt"
_CHUNKS: Final = {"chunkSize": 300, "chunkOverlap": 60}
_SEGMENTATION: Final = {"charactersPerSegment": 1024}
_PAUSE_SECONDS: Final = 0.5


def _ingest(worker: Worker, text: str, *, mode: str = "Segmented") -> None:
    uri = worker.upload(data=text.encode(), name="handbook.txt")
    worker.ingest(
        mode=mode,
        job__uid=str(uuid.uuid4()),
        knowledgeBase=KNOWLEDGE_BASE,
        document__id=DOCUMENT,
        document__source__uri=uri,
        segmentation__charactersPerSegment=_SEGMENTATION["charactersPerSegment"],
        pipeline__chunkSize=_CHUNKS["chunkSize"],
        pipeline__chunkOverlap=_CHUNKS["chunkOverlap"],
    )


@functools.cache
def _contents(text: str, mode: str) -> tuple[str, ...]:
    """Return what readers find of a text, learned by ingesting it into a store of its own, without a fault."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(config=StoreConfig(url=f"file://{folder}/bucket"))
        _ingest(Worker(store=store, folder=Path(folder) / "scratch"), text, mode=mode)
        return _found(store)


class _Anything:
    """An embedder whose query finds everything."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.full((len(texts), BUILTIN.dimensions), 1.0, dtype=np.float32)


def _found(store: Store) -> tuple[str, ...]:
    """Return the chunks that a search finds, all of them, in the document's order."""
    hits = search_text(
        store=store, knowledge_base=KNOWLEDGE_BASE, text="*", limit=1000, embedder_for=lambda _: _Anything()
    )
    return tuple(hit.content for hit in sorted(hits, key=lambda hit: hit.chunk_index))


@dataclass(kw_only=True)
class Library:
    """The bucket, those who write it, and those who read it."""

    store: Store
    proxy: StoreProxy
    worker: RealWorker
    mode: str
    looks: int = 0
    newest: int = 0

    async def create(self, run: Run) -> JsonObject:
        """Have the second version ingested."""
        document = {"id": DOCUMENT, "title": "Handbook", "source": {"uri": f"s3://{self.store.bucket}/{_KEY}"}}
        pipeline = {**_CHUNKS, "embedding": dataclasses.asdict(BUILTIN)}
        return await run.create(
            mode=self.mode,
            document=document,
            pipeline=pipeline,
            segmentation=_SEGMENTATION,
            segmentBackoffLimit=0,
        )

    def source(self, text: str = SECOND) -> None:
        """Put a text where the job will read it."""
        self.store.put(key=_KEY, data=text.encode())

    async def look(self) -> int:
        """Read as a user does: return which version was found, after checking that it was found whole."""
        found = await asyncio.to_thread(_found, self.store)
        versions = [_contents(FIRST, "Segmented"), _contents(SECOND, self.mode)]
        assert found in versions, f"neither version, or not the whole of it: {found}"
        version = versions.index(found) + 1
        assert version >= self.newest, "the older version is back"
        self.newest, self.looks = version, self.looks + 1
        return version

    async def watch(self) -> None:
        """Read again and again."""
        while True:
            await self.look()
            await asyncio.sleep(_PAUSE_SECONDS)

    def objects(self, *, under: str = "") -> dict[str, bytes]:
        """Return all that lies in the bucket, or in a folder of it, as another client sees it."""
        prefix = under or "kb"
        return {entry.key: self.store.get(key=entry.key) for entry in self.store.list(prefix=prefix)}

    def check_whole(self, job: JsonObject, *, one_plan: bool = True) -> None:
        """Check that each segment's output is there once and whole, under the version's plan, which is the only one."""
        version, total = job["status"]["version"], job["status"]["segments"]["total"]
        prefix = layout.version_prefix(knowledge_base=KNOWLEDGE_BASE, document_id=DOCUMENT, version_id=version["id"])
        outputs = self.objects(under=layout.segments_prefix(prefix=prefix, plan_hash=version["planHash"]))
        assert len(outputs) == total
        if one_plan:
            left = self.objects(under=prefix).keys() - outputs.keys()
            assert sorted(key.split("/")[-2] for key in left) == ["plans", "sources"], left
        rows = {layout.parse_segment_key(key=key): pq.read_table(io.BytesIO(data)) for key, data in outputs.items()}
        assert {segment for segment, _ in rows} == set(range(total))
        assert all(table.num_rows == chunks for (_, chunks), table in rows.items())


@asynccontextmanager
async def library(run: Run, server: S3Server, *, mode: str = "Segmented") -> AsyncIterator[Library]:
    """Open a library in a bucket of the run's own; readers come and go until it is closed."""
    config = server.config(bucket=run.namespace)
    store = Store(config=config)
    await asyncio.to_thread(_ingest, Worker(store=store, folder=run.folder / "scratch"), FIRST)
    async with StoreProxy(server=server.endpoint) as proxy:
        worker = RealWorker(
            folder=run.folder,
            store={
                names.ENV_STORE_URL: config.url,
                "AWS_ENDPOINT_URL": proxy.url,
                "AWS_REGION": str(config.region),
                "AWS_ACCESS_KEY_ID": server.access,
                "AWS_SECRET_ACCESS_KEY": server.secret,
            },
        )
        run.kubelet.script = worker
        opened = Library(store=store, proxy=proxy, worker=worker, mode=mode)
        opened.source()
        assert await opened.look() == 1
        readers = asyncio.create_task(opened.watch())
        try:
            yield opened
            assert not readers.done(), await readers
        finally:
            worker.end()
            readers.cancel()
            with suppress(asyncio.CancelledError):
                await readers
    await opened.look()


def segments_run(run: Run, generation: int) -> IndexSet:
    """Return the segments that ran in a generation, after checking that each ran once."""
    pods = {key: count for key, count in run.pods_run().items() if key[:2] == ("process_segments", generation)}
    assert set(pods.values()) <= {1}, pods
    return IndexSet.of(segment for _, _, segment in pods)
