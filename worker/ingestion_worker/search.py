"""Search: exact nearest chunks over the live versions of a knowledge base.

Reads what publishing made visible and nothing else: the newest history entry of each document, and the outputs of the
version it names. Outputs never change once live, so they can be cached.
"""

from __future__ import annotations

import heapq
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ingestion_worker import layout
from ingestion_worker.attempt import EmbeddingSpec
from ingestion_worker.embedding import Embedder
from ingestion_worker.history import LiveVersion, decode_state, sequence_of
from ingestion_worker.output import list_outputs
from ingestion_worker.store import ObjectMissingError, Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Hit", "LiveVersion", "SegmentCache", "live_versions", "search", "search_text"]

MAX_LIMIT: Final = 1000
_READERS: Final = 8
_CACHED_ENTRIES: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One chunk found.

    Args:
        score: cosine similarity, -1…1.
        start, end: characters, from the beginning of `page` where there are pages, else of the document's text.
        page, page_end: counted from 1; None for documents without pages.
        (the rest as in the segment's output)
    """

    chunk_id: str
    chunk_index: int
    segment: int
    document_id: str
    version_id: str
    version_number: int
    title: str
    content: str
    score: float
    page: int | None
    page_end: int | None
    start: int
    end: int


class SegmentCache:
    """A thread-safe cache of what never changes: history entries, listings and vectors of live outputs.

    Args:
        max_bytes: for the vectors.
    """

    def __init__(self, *, max_bytes: int = 256 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._vectors: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._facts: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def vectors(self, *, bucket: str, key: str, load: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return an output's vectors, reading them at most once while they stay in the cache."""
        with self._lock:
            found = self._vectors.get((bucket, key))
            if found is not None:
                self._vectors.move_to_end((bucket, key))
                return found
        made = load()
        with self._lock:
            if (bucket, key) not in self._vectors and made.nbytes <= self._max_bytes:
                self._vectors[(bucket, key)] = made
                self._bytes += made.nbytes
                while self._bytes > self._max_bytes:
                    _, dropped = self._vectors.popitem(last=False)
                    self._bytes -= dropped.nbytes
        return made

    def fact(self, *, bucket: str, key: str, load: Callable[[], Any]) -> Any:
        """Return something small and immutable, reading it at most once while it stays in the cache."""
        with self._lock:
            if (bucket, key) in self._facts:
                self._facts.move_to_end((bucket, key))
                return self._facts[(bucket, key)]
        made = load()
        with self._lock:
            self._facts[(bucket, key)] = made
            while len(self._facts) > _CACHED_ENTRIES:
                self._facts.popitem(last=False)
        return made


def live_versions(*, store: Store, knowledge_base: str, cache: SegmentCache | None = None) -> list[LiveVersion]:
    """Return the live version of every document of a knowledge base, ordered by document id.

    One listing, and one small read for each document that has changed since the cache saw it.

    Raises:
        WorkerError: StoreUnavailable or StoreForbidden.
    """
    cache = cache or SegmentCache()
    newest: dict[str, int] = {}
    root = layout.history_root(knowledge_base=knowledge_base)
    for entry in store.list(prefix=root):
        document_id, _, _ = entry.key.removeprefix(f"{root}/").partition("/")
        newest[document_id] = max(newest.get(document_id, 0), sequence_of(key=entry.key))

    def read(document_id: str) -> LiveVersion | None:
        sequence = newest[document_id]
        if sequence == 0:
            return None
        key = layout.history_key(knowledge_base=knowledge_base, document_id=document_id, sequence=sequence)

        def load() -> LiveVersion | None:
            return decode_state(data=store.get(key=key), sequence=sequence).live

        try:
            found: LiveVersion | None = cache.fact(bucket=store.bucket, key=key, load=load)
        except ObjectMissingError:
            return None
        return found

    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        return [version for version in pool.map(read, sorted(newest)) if version is not None]


def search_text(
    *,
    store: Store,
    knowledge_base: str,
    text: str,
    limit: int,
    embedder_for: Callable[[EmbeddingSpec], Embedder | None],
    cache: SegmentCache | None = None,
    document_ids: Collection[str] | None = None,
) -> list[Hit]:
    """Search by text: embeds it once for each embedding in use and merges by score.

    Args:
        store: the tenant's store.
        knowledge_base: its UUID.
        text: the query.
        limit: hits at most.
        embedder_for: gives the embedder of a spec; versions of a spec without one are left out.
        cache: keep one between calls.
        document_ids: only these documents.

    Raises:
        WorkerError: a Store… or an Embedding… code.
    """
    cache = cache or SegmentCache()
    if not text.strip():
        return []
    versions = live_versions(store=store, knowledge_base=knowledge_base, cache=cache)
    hits: list[Hit] = []
    for spec in sorted({version.embedding for version in versions}, key=repr):
        embedder = embedder_for(spec)
        if embedder is None:
            continue
        chosen = [version for version in versions if version.embedding == spec]
        vector = embedder.embed([text])[0]
        hits += _search(
            store=store,
            knowledge_base=knowledge_base,
            versions=chosen,
            query_vector=vector,
            limit=limit,
            cache=cache,
            document_ids=document_ids,
        )
    return sorted(hits, key=_rank)[: _bounded(limit)]


def search(
    *,
    store: Store,
    knowledge_base: str,
    query_vector: Sequence[float] | NDArray[np.float32],
    embedding: EmbeddingSpec,
    limit: int,
    cache: SegmentCache | None = None,
    document_ids: Collection[str] | None = None,
) -> list[Hit]:
    """Search by vector among the live versions made with the same embedding.

    Args:
        query_vector: of `embedding.dimensions` numbers; it need not be normalised.
        (the rest as in `search_text`)

    Raises:
        ValueError: the vector has another length.
        WorkerError: a Store… code.
    """
    if len(query_vector) != embedding.dimensions:
        raise ValueError(f"the query has {len(query_vector)} dimensions, not {embedding.dimensions}")
    cache = cache or SegmentCache()
    versions = live_versions(store=store, knowledge_base=knowledge_base, cache=cache)
    return _search(
        store=store,
        knowledge_base=knowledge_base,
        versions=[version for version in versions if version.embedding == embedding],
        query_vector=query_vector,
        limit=limit,
        cache=cache,
        document_ids=document_ids,
    )


def _search(
    *,
    store: Store,
    knowledge_base: str,
    versions: Sequence[LiveVersion],
    query_vector: Sequence[float] | NDArray[np.float32],
    limit: int,
    cache: SegmentCache,
    document_ids: Collection[str] | None,
) -> list[Hit]:
    import numpy as np

    query = np.asarray(query_vector, dtype=np.float32)
    length = float(np.linalg.norm(query))
    if length == 0 or not np.isfinite(query).all():
        return []
    query = query / length
    wanted = [version for version in versions if document_ids is None or version.document_id in document_ids]
    best: list[tuple[float, str, int]] = []
    owners: dict[str, LiveVersion] = {}

    def scan(item: tuple[LiveVersion, str]) -> tuple[str, LiveVersion, list[tuple[float, int]]]:
        version, key = item
        vectors = cache.vectors(bucket=store.bucket, key=key, load=lambda: _load_vectors(store=store, key=key))
        return key, version, _top(vectors=vectors, query=query, limit=_bounded(limit))

    # Outputs are read in slices, so that no more than a few are in memory beside the cache.
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        for part in _slices(_outputs(store=store, knowledge_base=knowledge_base, versions=wanted, cache=cache)):
            for key, version, rows in pool.map(scan, part):
                for score, row in rows:
                    owners[key] = version
                    heapq.heappush(best, (score, key, -row))
                    if len(best) > _bounded(limit):
                        heapq.heappop(best)
        found: dict[str, list[tuple[int, float]]] = {}
        for score, key, negative_row in best:
            found.setdefault(key, []).append((-negative_row, score))
        loaded = pool.map(lambda key: _load_hits(store=store, key=key, version=owners[key], rows=found[key]), found)
        return sorted((hit for hits in loaded for hit in hits), key=_rank)


def _bounded(limit: int) -> int:
    return max(1, min(limit, MAX_LIMIT))


def _rank(hit: Hit) -> tuple[float, str, int]:
    return (-hit.score, hit.document_id, hit.chunk_index)


def _outputs(
    *, store: Store, knowledge_base: str, versions: Sequence[LiveVersion], cache: SegmentCache
) -> Iterator[tuple[LiveVersion, str]]:
    for version in versions:
        prefix = layout.version_prefix(
            knowledge_base=knowledge_base, document_id=version.document_id, version_id=version.version_id
        )
        for segment, chunks in _counts(store=store, prefix=prefix, version=version, cache=cache):
            if chunks:
                yield (
                    version,
                    layout.segment_key(prefix=prefix, plan_hash=version.plan_hash, segment=segment, chunks=chunks),
                )


def _counts(*, store: Store, prefix: str, version: LiveVersion, cache: SegmentCache) -> list[tuple[int, int]]:
    if version.segments == 1:
        # Its one output's name follows from the history entry: no listing.
        return [(0, version.chunks)]

    def load() -> list[tuple[int, int]]:
        found = list_outputs(store=store, prefix=prefix, plan_hash=version.plan_hash)
        return sorted((segment, chunks) for segment, chunks in found.items() if segment < version.segments)

    key = layout.segments_prefix(prefix=prefix, plan_hash=version.plan_hash)
    counts: list[tuple[int, int]] = cache.fact(bucket=store.bucket, key=key, load=load)
    return counts


def _slices(items: Iterator[tuple[LiveVersion, str]]) -> Iterator[list[tuple[LiveVersion, str]]]:
    part: list[tuple[LiveVersion, str]] = []
    for item in items:
        part.append(item)
        if len(part) == _READERS * 2:
            yield part
            part = []
    if part:
        yield part


def _top(*, vectors: NDArray[np.float32], query: NDArray[np.float32], limit: int) -> list[tuple[float, int]]:
    import numpy as np

    if vectors.shape[0] == 0 or vectors.shape[1] != query.shape[0]:
        return []
    scores = vectors @ query
    count = min(limit, len(scores))
    rows = np.argpartition(-scores, count - 1)[:count]
    return [(float(scores[row]), int(row)) for row in rows]


def _load_vectors(*, store: Store, key: str) -> NDArray[np.float32]:
    import numpy as np
    import pyarrow.parquet as pq

    try:
        data = store.get(key=key)
    except ObjectMissingError:
        # Deleted from outside between the listing and now; the others still answer.
        return np.zeros((0, 0), dtype=np.float32)
    column = pq.read_table(io.BytesIO(data), columns=["vector"]).column("vector").combine_chunks()
    width = column.type.list_size
    vectors: NDArray[np.float32] = np.array(column.values.to_numpy(zero_copy_only=False), dtype=np.float32)
    return vectors.reshape(-1, width)


def _load_hits(*, store: Store, key: str, version: LiveVersion, rows: list[tuple[int, float]]) -> list[Hit]:
    import pyarrow.parquet as pq

    columns = ["chunk_id", "chunk_index", "segment", "content", "start", "end", "page", "page_end"]
    try:
        table = pq.read_table(io.BytesIO(store.get(key=key)), columns=columns)
    except ObjectMissingError:
        return []
    taken = table.take([row for row, _ in rows]).to_pylist()
    return [
        Hit(
            document_id=version.document_id,
            version_id=version.version_id,
            version_number=version.number,
            title=version.title,
            score=score,
            **values,
        )
        for values, (_, score) in zip(taken, rows, strict=True)
    ]
