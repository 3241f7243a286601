"""Search: exact nearest chunks over the live versions of a knowledge base.

Reads what publishing made visible and nothing else: the newest history entry of each document, and the outputs of the
version it names. Outputs never change once live, so they can be cached. How much is in memory at the same time, and how
long a search goes on, is bounded by what the caller gives for it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import re
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ingestion_crds.job import UUID_PATTERN

from ingestion_worker import layout
from ingestion_worker.attempt import EmbeddingSpec
from ingestion_worker.budget import Budget
from ingestion_worker.embedding import Embedder
from ingestion_worker.history import MAX_ENTRY_BYTES, LiveVersion, decode_state, sequence_of
from ingestion_worker.outcome import WorkerError
from ingestion_worker.output import (
    HIT_COLUMNS,
    MAX_OUTPUT_BYTES,
    MAX_READING_BYTES,
    column_types,
    iterate_outputs,
    vector_bytes,
)
from ingestion_worker.pages import list_bytes, read_footer, reading_bytes
from ingestion_worker.store import ObjectMissingError, Store

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

__all__ = ["Hit", "LiveVersion", "SegmentCache", "best_of", "live_versions", "search_text"]

_Item = TypeVar("_Item")

LOG: Final = logging.getLogger(__name__)
_READERS: Final = 8
_BATCH_ROWS: Final = 64
# Of each text that a search reads: the most characters. In memory each takes four bytes as soon as one needs them.
_TEXTS: Final = {"chunk_id": 128, "content": 32_768}
_CHARACTER_BYTES: Final = 4
# What an entry takes in memory with its key, besides the characters of its texts; and each pair of a listing.
_FACT_BYTES: Final = 1350
_PAIR_BYTES: Final = 128
# What reading an entry takes, for each of its bytes: of JSON within JSON, Python makes 38 times as much.
_ENTRY_FACTOR: Final = 48
# Of all entries of a knowledge base: a search has them at the same time.
_MAX_FACTS_BYTES: Final = 192 * 2**20
# Each that waits for a reader takes 2 KB.
_MAX_TASKS: Final = 512
# What an output's vectors take besides themselves, with its key.
_ARRAY_BYTES: Final = 600
# Of so many items that come into a full cache one takes the place of what was used longest ago; others are not kept.
_OLDEST_GOES: Final = 4
# Of embeddings whose embedder is not there so many are named in the log for each search; the rest is counted.
_TOLD_EMBEDDINGS: Final = 10
# What Parquet adds to values, and its footer.
_OVERHEAD_BYTES: Final = 2 * 2**20


class _ForeignError(Exception):
    """An output is none of ours: another worker image may write what it likes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One chunk found.

    Args:
        embedding: of its vector.
        score: cosine similarity, -1…1; compares with that of hits of the same embedding alone.
        start, end: characters, from the beginning of `page` where there are pages, else of the document's text.
        page: where it begins, counted from 1; None for documents without pages.
        (the rest as in the segment's output)
    """

    chunk_id: str
    chunk_index: int
    document_id: str
    version_id: str
    title: str
    content: str
    embedding: EmbeddingSpec
    score: float
    page: int | None
    start: int
    end: int


class SegmentCache:
    """A thread-safe cache of what never changes: history entries, listings and vectors of live outputs.

    Each search goes through the same items in the same order. If what was used longest ago always gave way, a cache
    that is one item too small would have lost each when its turn comes. So mostly what has just come does: a search
    reads anew little more than there is no room for, and what is not used any more goes by and by.

    Args:
        max_bytes: for everything. Vectors go first: without the entries every search would read all of them again.
    """

    def __init__(self, *, max_bytes: int = 256 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._times_full = 0
        self._vectors: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._facts: OrderedDict[tuple[str, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def vectors(self, *, bucket: str, key: str, load: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return an output's vectors, reading them at most once while they stay in the cache.

        Args:
            bucket, key: the output's.
            load: reads them.
        """
        with self._lock:
            found = self._vectors.get((bucket, key))
            if found is not None:
                self._vectors.move_to_end((bucket, key))
                return found
        made = load()
        with self._lock:
            if (bucket, key) not in self._vectors and made.nbytes + _ARRAY_BYTES <= self._max_bytes:
                self._vectors[(bucket, key)] = made
                self._bytes += made.nbytes + _ARRAY_BYTES
                self._shrink()
        return made

    def fact(
        self, *, bucket: str, key: str, load: Callable[[], Any], settled: Callable[[Any], bool] = lambda _: True
    ) -> Any:
        """Return something small, reading it at most once while it stays in the cache.

        Args:
            bucket, key: where it is.
            load: reads it.
            settled: whether what was read will not change any more; nothing else is kept.
        """
        with self._lock:
            if (bucket, key) in self._facts:
                self._facts.move_to_end((bucket, key))
                return self._facts[(bucket, key)]
        made = load()
        if not settled(made):
            return made
        with self._lock:
            if (bucket, key) not in self._facts:
                self._facts[(bucket, key)] = made
                self._bytes += _fact_bytes(made)
                self._shrink()
        return made

    def _shrink(self) -> None:
        if self._bytes <= self._max_bytes:
            return
        self._times_full += 1
        newest = self._times_full % _OLDEST_GOES != 0
        while self._bytes > self._max_bytes and self._vectors:
            _, dropped = self._vectors.popitem(last=newest)
            self._bytes -= dropped.nbytes + _ARRAY_BYTES
        while self._bytes > self._max_bytes and self._facts:
            self._bytes -= _fact_bytes(self._facts.popitem(last=newest)[1])


def _fact_bytes(fact: LiveVersion | list[tuple[int, int]] | None) -> int:
    if not isinstance(fact, LiveVersion):
        return _FACT_BYTES + _PAIR_BYTES * len(fact or ())
    spec = fact.embedding
    ids = (fact.document_id, fact.version_id, fact.job_uid, fact.plan_hash)
    texts = (*ids, fact.title, fact.mode, fact.published_at, spec.provider, spec.model)
    return _FACT_BYTES + sum(len(text) * (1 if text.isascii() else _CHARACTER_BYTES) for text in texts)


def live_versions(
    *,
    store: Store,
    knowledge_base: str,
    cache: SegmentCache | None = None,
    budget: Budget | None = None,
    deadline: float | None = None,
) -> list[LiveVersion]:
    """Return the live version of every document of a knowledge base, ordered by document id.

    One listing, and one small read for each document that has changed since the cache saw it.

    Args:
        store: the tenant's store.
        knowledge_base: its UUID.
        cache: keep one between calls.
        budget: of the bytes that are read at the same time; share one between calls.
        deadline: until when, in monotonic seconds; None goes on without end.

    Raises:
        TimeoutError: at the deadline.
        WorkerError: StoreUnavailable or StoreForbidden; DocumentTooLarge for more entries than a search can have in
            memory; DocumentUnreadable when one is none of ours.
    """
    cache, budget = cache or SegmentCache(), budget or Budget()
    newest: dict[str, tuple[int, str]] = {}
    root = layout.history_root(knowledge_base=knowledge_base)
    for entry in store.list(prefix=root):
        _check_time(deadline)
        document_id, _, _ = entry.key.removeprefix(f"{root}/").partition("/")
        if not re.fullmatch(UUID_PATTERN, document_id):
            continue  # whatever lies there, it is none of ours
        newest[document_id] = max(newest.get(document_id, (0, "")), (sequence_of(key=entry.key), entry.tag))
        _check_facts(len(newest) * _FACT_BYTES)

    def read(document_id: str) -> LiveVersion | None:
        sequence, tag = newest[document_id]
        if sequence == 0:
            return None
        key = layout.history_key(knowledge_base=knowledge_base, document_id=document_id, sequence=sequence)

        def load() -> LiveVersion | None:
            _check_time(deadline)
            body = store.open(key=key, max_bytes=MAX_ENTRY_BYTES)
            with budget.hold(_ENTRY_FACTOR * body.size, deadline=deadline):
                live = decode_state(data=bytes(body.read()), sequence=sequence).live
            if live is not None and live.document_id != document_id:
                raise WorkerError("DocumentUnreadable", f"{key} is the entry of another document")
            return live

        try:
            # With its tag: in a bucket that is restored from a backup, another entry comes to have this key.
            found: LiveVersion | None = cache.fact(bucket=store.bucket, key=f"{key} {tag}", load=load)
        except ObjectMissingError:
            return None
        return found

    def read_all(documents: list[str]) -> list[LiveVersion]:
        return [version for version in map(read, documents) if version is not None]

    taken, live = 0, []
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        for versions in pool.map(read_all, _slices(sorted(newest), size=1 + len(newest) // _MAX_TASKS)):
            taken += sum(map(_fact_bytes, versions))
            _check_facts(taken)
            live += versions
    return live


def _check_facts(size: int) -> None:
    if size > _MAX_FACTS_BYTES:
        raise WorkerError(
            "DocumentTooLarge",
            f"the knowledge base has too many documents for a search: their entries take over {_MAX_FACTS_BYTES} bytes",
        )


def search_text(
    *,
    store: Store,
    knowledge_base: str,
    text: str,
    limit: int,
    embedder_for: Callable[[EmbeddingSpec], Embedder | None],
    cache: SegmentCache | None = None,
    budget: Budget | None = None,
    deadline: float | None = None,
) -> list[Hit]:
    """Search by text: embeds it once for each embedding in use, and returns the `best_of` what each finds.

    An output that is none of ours is left out, and named in the log.

    Args:
        store: the tenant's store.
        knowledge_base: its UUID.
        text: the query.
        limit: hits at most; at least 1.
        embedder_for: gives the embedder of a spec; versions of a spec without one are left out, as the log says.
        cache: keep one between calls.
        budget: of the bytes that are read at the same time; share one between searches.
        deadline: until when, in monotonic seconds; None goes on without end.

    Raises:
        TimeoutError: soon after the deadline: what is asked of the store or an embedder is waited for.
        WorkerError: a Store… or an Embedding… code; DocumentTooLarge for an output or an entry over its bound.
    """
    cache = cache or SegmentCache()
    if not text.strip():
        return []
    budget = budget or Budget()
    versions = live_versions(store=store, knowledge_base=knowledge_base, cache=cache, budget=budget, deadline=deadline)
    by_embedding: dict[EmbeddingSpec, list[LiveVersion]] = {}
    for version in versions:
        by_embedding.setdefault(version.embedding, []).append(version)
    hits: list[Hit] = []
    left_out: list[int] = []
    for spec, chosen in sorted(by_embedding.items(), key=lambda item: repr(item[0])):
        _check_time(deadline)
        embedder = embedder_for(spec)
        if embedder is None:
            left_out.append(len(chosen))
            if len(left_out) <= _TOLD_EMBEDDINGS:
                fields = {"provider": spec.provider, "model": spec.model, "documents": len(chosen)}
                LOG.warning("documents are left out of a search: their embedder is not there", extra=fields)
            continue
        vector = embedder.embed([text])[0]
        hits += _search(
            store=store,
            knowledge_base=knowledge_base,
            versions=chosen,
            query_vector=vector,
            limit=limit,
            cache=cache,
            budget=budget,
            deadline=deadline,
        )
        hits = best_of(hits, limit=limit, hit_of=lambda hit: hit)
    if rest := left_out[_TOLD_EMBEDDINGS:]:
        LOG.warning(
            "documents of further embeddings are left out of a search",
            extra={"embeddings": len(rest), "documents": sum(rest)},
        )
    return hits


def best_of(found: Iterable[_Item], *, limit: int, hit_of: Callable[[_Item], Hit]) -> list[_Item]:
    """Return the best of what was found, best first.

    Scores of two embeddings do not compare, and those of one model may all be above those of another: so the best of
    each embedding comes before the second best of any. What is left out would not come in by more that is found.

    Args:
        found: hits, or what has one.
        limit: how many at most.
        hit_of: gives the hit.
    """
    before: Counter[EmbeddingSpec] = Counter()
    places: list[tuple[int, _Item]] = []
    for item in sorted(found, key=lambda item: -hit_of(item).score):
        embedding = hit_of(item).embedding
        places.append((before[embedding], item))
        before[embedding] += 1
    return [item for _, item in sorted(places, key=itemgetter(0))[:limit]]


def _search(
    *,
    store: Store,
    knowledge_base: str,
    versions: Sequence[LiveVersion],
    query_vector: Sequence[float] | NDArray[np.float32],
    limit: int,
    cache: SegmentCache,
    budget: Budget,
    deadline: float | None,
) -> list[Hit]:
    import numpy as np

    query = np.asarray(query_vector, dtype=np.float32)
    length = float(np.linalg.norm(query))
    if length == 0 or not np.isfinite(query).all():
        return []
    query = query / length
    best: list[tuple[float, str, int]] = []
    owners: dict[str, LiveVersion] = {}

    def scan(item: tuple[LiveVersion, str, int]) -> tuple[str, LiveVersion, list[tuple[float, int]]]:
        version, key, chunks = item
        dimensions = version.embedding.dimensions
        # Until it is scanned, an output is in memory whether the cache keeps it or not: it holds its share till then.
        with ExitStack() as share:

            def load() -> NDArray[np.float32]:
                size = vector_bytes(chunks=chunks, dimensions=dimensions)
                reading = _opened(
                    store=store,
                    key=key,
                    columns=("vector",),
                    made_bytes=size,
                    usual_bytes=list_bytes(values=chunks * dimensions) + min(size, 2 * 2**20),  # and a dictionary
                    budget=budget,
                    deadline=deadline,
                )
                try:
                    file = share.enter_context(reading)
                    return _load_vectors(file=file, chunks=chunks, dimensions=dimensions, deadline=deadline)
                except _ForeignError as error:
                    # Logged once, as long as the cache keeps it; the others still answer.
                    LOG.warning("an output is left out of searches", extra={"key": key, "error": str(error)})
                    return np.zeros((0, dimensions), dtype=np.float32)

            try:
                vectors = cache.vectors(bucket=store.bucket, key=key, load=load)
            except ObjectMissingError:
                # Deleted from outside between the listing and now; the others still answer.
                return key, version, []
            return key, version, _top(vectors=vectors, query=query, limit=limit)

    def read(key: str) -> list[Hit]:
        try:
            reading = _opened(store=store, key=key, columns=HIT_COLUMNS, budget=budget, deadline=deadline)
            with reading as file:
                return _load_hits(file=file, version=owners[key], scores=found[key], deadline=deadline)
        except ObjectMissingError:
            return []  # deleted from outside since its vectors were read
        except _ForeignError as error:
            LOG.warning("an output is left out of a search", extra={"key": key, "error": str(error)})
            return []

    # Outputs are read in slices, so that a search that has no time left does not wait for many.
    with ThreadPoolExecutor(max_workers=_READERS) as pool:
        outputs = _outputs(
            store=store, knowledge_base=knowledge_base, versions=versions, cache=cache, deadline=deadline
        )
        for part in _slices(outputs, size=_READERS * 2):
            _check_time(deadline)
            for key, version, rows in pool.map(scan, part):
                for score, row in rows:
                    owners[key] = version
                    heapq.heappush(best, (score, key, -row))
                    if len(best) > limit:
                        heapq.heappop(best)
        found: dict[str, dict[int, float]] = {}
        for score, key, negative_row in best:
            found.setdefault(key, {})[-negative_row] = score
        return sorted((hit for hits in pool.map(read, found) for hit in hits), key=_rank)


def _check_time(deadline: float | None) -> None:
    if deadline is not None and time.monotonic() > deadline:
        raise TimeoutError("the search has no time left")


def _rank(hit: Hit) -> tuple[float, str, int]:
    return (-hit.score, hit.document_id, hit.chunk_index)


def _outputs(
    *,
    store: Store,
    knowledge_base: str,
    versions: Sequence[LiveVersion],
    cache: SegmentCache,
    deadline: float | None,
) -> Iterator[tuple[LiveVersion, str, int]]:
    """Yield the outputs of versions that have chunks: the version, the key, and the number that its name promises."""
    for version in versions:
        prefix = layout.version_prefix(
            knowledge_base=knowledge_base, document_id=version.document_id, version_id=version.version_id
        )
        for segment, chunks in _counts(store=store, prefix=prefix, version=version, cache=cache, deadline=deadline):
            if chunks:
                key = layout.segment_key(prefix=prefix, plan_hash=version.plan_hash, segment=segment, chunks=chunks)
                yield version, key, chunks


def _counts(
    *, store: Store, prefix: str, version: LiveVersion, cache: SegmentCache, deadline: float | None
) -> list[tuple[int, int]]:
    if version.segments == 1:
        # Its one output's name follows from the history entry: no listing.
        return [(0, version.chunks)]

    def load() -> list[tuple[int, int]]:
        found: dict[int, int] = {}
        for segment, chunks in iterate_outputs(store=store, prefix=prefix, plan_hash=version.plan_hash):
            _check_time(deadline)
            if segment < version.segments:
                found[segment] = chunks
        return sorted(found.items())

    key = layout.segments_prefix(prefix=prefix, plan_hash=version.plan_hash)
    # All were there when it was published: what is missing may be on its way back from a backup.
    counts: list[tuple[int, int]] = cache.fact(
        bucket=store.bucket, key=key, load=load, settled=lambda found: len(found) == version.segments
    )
    if len(counts) < version.segments:
        LOG.warning("%s: %d of %d outputs are there", key, len(counts), version.segments)
    return counts


def _slices(items: Iterable[_Item], *, size: int) -> Iterator[list[_Item]]:
    rest = iter(items)
    while part := list(itertools.islice(rest, size)):
        yield part


def _top(*, vectors: NDArray[np.float32], query: NDArray[np.float32], limit: int) -> list[tuple[float, int]]:
    import numpy as np

    if vectors.shape[0] == 0 or vectors.shape[1] != query.shape[0]:
        return []
    with np.errstate(invalid="ignore", over="ignore"):
        scores = vectors @ query
    scores[~np.isfinite(scores)] = -np.inf  # of vectors with NaN or infinity
    count = min(limit, len(scores))
    rows = np.argpartition(-scores, count - 1)[:count]
    return [(float(scores[row]), int(row)) for row in rows if scores[row] > -np.inf]


@contextmanager
def _opened(
    *,
    store: Store,
    key: str,
    columns: Collection[str],
    made_bytes: int = 0,
    usual_bytes: int = 0,
    budget: Budget,
    deadline: float | None,
) -> Iterator[pq.ParquetFile]:
    """Read an output whole, and hold a share of the budget for it, and what reading it takes, while it is in memory.

    Args:
        store: the tenant's store.
        key: the output's.
        columns: what is wanted of it.
        made_bytes: what will be made of that, where it is known.
        usual_bytes: what reading it will probably take; as much as the file when left out.
        budget: where the share is taken from.
        deadline: until when to wait for that.

    Raises:
        ObjectMissingError: it was deleted from outside.
        TimeoutError: at the deadline.
        WorkerError: DocumentTooLarge over a bound; a Store… code.
        _ForeignError: it is no Parquet, or has other columns than ours.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    needed = 0
    while True:
        _check_time(deadline)
        body = store.open(key=key, max_bytes=MAX_OUTPUT_BYTES)
        room = max(needed, (usual_bytes or body.size) + _OVERHEAD_BYTES)
        with ExitStack() as share:
            share.enter_context(budget.hold(body.size + room, deadline=deadline))
            data = body.read()
            with _whole():
                metadata = read_footer(data=data)
                needed = max(made_bytes, reading_bytes(data=data, metadata=metadata, columns=columns))
            if needed > MAX_READING_BYTES:
                raise WorkerError(
                    "DocumentTooLarge", f"{key} takes {needed} bytes to read; at most {MAX_READING_BYTES} are allowed"
                )
            try:
                share.enter_context(budget.hold(max(0, needed - room), deadline=time.monotonic()))
            except TimeoutError:
                # It takes more than most, and no more is free now. What is held is given back before more is waited
                # for: two searches that kept theirs would wait for each other.
                continue
            with _whole():
                texts = [name for name in _TEXTS if name in columns]
                file = pq.ParquetFile(pa.BufferReader(data), metadata=metadata, read_dictionary=texts)
                _check_types(file=file)
            yield file
            return


def _check_types(*, file: pq.ParquetFile) -> None:
    """Refuse an output whose columns have other types than ours."""
    import pyarrow as pa

    for name, wanted in column_types(dimensions=1).items():
        index = file.schema_arrow.get_field_index(name)
        found = file.schema_arrow.field(index).type if index >= 0 else None
        if isinstance(found, pa.DictionaryType):
            found = found.value_type
        if isinstance(found, pa.ListType):  # whoever reads it looks at the lengths
            found = pa.list_(found.value_type, 1)
        if found != wanted:
            raise _ForeignError(f"its {name} is {found}, not {wanted}")


@contextmanager
def _whole() -> Iterator[None]:
    """Turn damage into `_ForeignError`, also such that shows only when values are read: the others still answer."""
    import pyarrow as pa

    try:
        yield
    except (TimeoutError, MemoryError):  # an OSError, and an ArrowException, and the output may be whole
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise _ForeignError(str(error)) from error


@_whole()
def _load_vectors(*, file: pq.ParquetFile, chunks: int, dimensions: int, deadline: float | None) -> NDArray[np.float32]:
    """Return an output's vectors, and neither read nor make more than its name promises.

    Raises:
        TimeoutError: at the deadline.
        _ForeignError: a row has none, or one of other dimensions, or they are damaged.
    """
    import numpy as np

    vectors = np.empty((chunks, dimensions), dtype=np.float32)
    row = 0
    for batch in file.iter_batches(batch_size=min(chunks, _BATCH_ROWS), columns=["vector"]):
        _check_time(deadline)
        if batch.column(0).null_count:
            raise _ForeignError("its vector is null somewhere")
        if (batch.column(0).value_lengths().to_numpy() != dimensions).any():
            raise _ForeignError(f"its vector has not {dimensions} numbers everywhere")
        part = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, dimensions)[: chunks - row]
        vectors[row : row + len(part)] = part
        row += len(part)
        if row == chunks:
            break
    # What was made for rows that are not there would stay in memory with a view of the others, and count for nothing.
    return vectors if row == chunks else vectors[:row].copy()


@_whole()
def _load_hits(
    *, file: pq.ParquetFile, version: LiveVersion, scores: Mapping[int, float], deadline: float | None
) -> list[Hit]:
    return [
        Hit(
            document_id=version.document_id,
            version_id=version.version_id,
            title=version.title,
            embedding=version.embedding,
            score=scores[row],
            **values,
        )
        for row, values in _rows(file=file, wanted=scores, deadline=deadline)
    ]


def _rows(
    *, file: pq.ParquetFile, wanted: Collection[int], deadline: float | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows that are wanted, and read none after the last of them.

    Raises:
        TimeoutError: at the deadline.
        WorkerError: DocumentTooLarge for a long text.
        _ForeignError: something is null, or a negative number.
    """
    first, last = 0, max(wanted)
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(HIT_COLUMNS)):
        _check_time(deadline)
        for row in wanted:
            if first <= row < first + batch.num_rows:
                yield row, _values(batch.slice(row - first, 1))
        first += batch.num_rows
        if first > last:
            return


def _values(row: pa.RecordBatch) -> dict[str, Any]:
    """Return what is in a row, once its texts are not too long to be made."""
    for name, most in _TEXTS.items():
        text = row.column(name)[0].value
        size = text.as_buffer().size if text.is_valid else 0
        if size > _CHARACTER_BYTES * most:
            raise _long_text(f"{name} has {size} bytes; at most {_CHARACTER_BYTES * most}")
    values: dict[str, Any] = row.to_pylist()[0]
    for name, value in values.items():
        if isinstance(value, str) and len(value) > _TEXTS[name]:
            raise _long_text(f"{name} has {len(value)} characters; at most {_TEXTS[name]}")
        if (value is None and name != "page") or (isinstance(value, int) and value < 0):
            raise _ForeignError(f"its {name} is {'null' if value is None else value} somewhere")
    return values


def _long_text(found: str) -> WorkerError:
    return WorkerError("DocumentTooLarge", f"an output's {found} are read")
