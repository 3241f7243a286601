"""Search: what it finds, what it has in memory meanwhile, and that it ends in time."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingestion_worker import layout
from ingestion_worker.budget import Budget
from ingestion_worker.chunking import Chunk
from ingestion_worker.embedding import EmbeddingSpec
from ingestion_worker.history import State, decode_state
from ingestion_worker.outcome import WorkerError
from ingestion_worker.output import MAX_VECTOR_BYTES, check_vectors, column_types, encode_segment
from ingestion_worker.pages import read_footer, reading_bytes
from ingestion_worker.search import Hit, LiveVersion, SegmentCache, live_versions, search_text
from ingestion_worker.store import Body, Entry, Store
from support.worker_builders import BUILTIN, DOCUMENTS, KB, Worker, builtin, pdf, sentences

NUMBERS = (pa.int32(), pa.int64())
# Far beyond what any of this takes.
PATIENCE = 30.0


def find(store: Store, text: str = "lighthouse", **more: Any) -> list[Hit]:
    options = {"limit": 1000, "embedder_for": lambda _: builtin(), "knowledge_base": KB, **more}
    return search_text(store=store, text=text, **options)


def change_entry(worker: Worker, field: str, value: Any) -> None:
    """Write another value into the history entry of the first document."""
    key = layout.history_key(knowledge_base=KB, document_id=DOCUMENTS[0], sequence=1)
    entry = json.loads(worker.store.get(key=key))
    owner = entry["live"]["embedding"] if field in ("model", "dimensions") else entry["live"]
    owner[field] = value
    worker.store.put(key=key, data=json.dumps(entry).encode())


def ingest(worker: Worker, *, documents: int = 1, sentences_each: int = 100) -> None:
    """Ingest documents of one segment each."""
    for number in range(documents):
        text = sentences(count=sentences_each, tag=f" of document {number}")
        uri = worker.upload(data=text.encode(), name=f"{number}.txt")
        worker.ingest(
            document__source__uri=uri, document__id=DOCUMENTS[number], job__uid=f"job-{number}", mode="SinglePass"
        )


def outputs(store: Store) -> list[str]:
    return [entry.key for entry in store.list(prefix=f"kb/{KB}/versions") if entry.key.endswith(".parquet")]


def refused(run: Callable[[], Any]) -> str:
    with pytest.raises(WorkerError) as caught:
        run()
    assert caught.value.code == "DocumentTooLarge"
    return caught.value.message


def over_once(monkeypatch: pytest.MonkeyPatch, begun: Callable[[], bool]) -> float:
    """Return a deadline that is far off, until something has begun: then it is past."""
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + (2 * PATIENCE if begun() else 0))
    monkeypatch.setattr("ingestion_worker.search.time", clock)
    return time.monotonic() + PATIENCE


class Watched:
    """Counts the outputs that are read, how many at the same time, and takes its time for each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, seconds: float = 0.0) -> None:
        self.read = self.most = self._now = 0
        self._lock = threading.Lock()
        read = Body.read

        def watched(body: Body) -> memoryview:
            if not body._key.endswith(".parquet"):
                return read(body)
            with self._lock:
                self.read, self._now = self.read + 1, self._now + 1
                self.most = max(self.most, self._now)
            time.sleep(seconds)
            with self._lock:
                self._now -= 1
            return read(body)

        monkeypatch.setattr(Body, "read", watched)


def test_every_chunk_of_a_long_segment_is_found_with_its_own_score(worker: Worker) -> None:
    ingest(worker, sentences_each=900)
    hits = find(worker.store)
    assert len(hits) > 3 * 64
    assert [hit.chunk_index for hit in sorted(hits, key=lambda hit: hit.chunk_index)] == list(range(len(hits)))
    (query,) = builtin().embed(["lighthouse"])
    assert np.allclose(builtin().embed([hit.content for hit in hits]) @ query, [hit.score for hit in hits], atol=1e-5)


def test_an_output_that_is_gone_is_passed_over(worker: Worker) -> None:
    ingest(worker, documents=2)
    worker.store.delete(key=outputs(worker.store)[0])
    assert len({hit.document_id for hit in find(worker.store)}) == 1


def replace_output(store: Store, *, rows: int = 1, dimensions: int = 256) -> tuple[str, int]:
    """Put an output of equal vectors in the place of the only one; return its key and how many chunks that promises.

    Args:
        store: where it is.
        rows: for each chunk that it promises.
        dimensions: of the vectors.
    """
    (key,) = outputs(store)
    chunks = layout.parse_segment_key(key=key)[1]
    data = encode_segment(
        version_id="v",
        segment=0,
        chunks=[Chunk(content="The lighthouse.", start=0, end=15, page=None, page_end=None)] * (rows * chunks),
        vectors=np.ones((rows * chunks, dimensions), dtype=np.float32),
        dimensions=dimensions,
    )
    store.put(key=key, data=data)
    return key, chunks


def test_outputs_that_are_brought_back_from_a_backup_are_found_again(
    worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    uri = worker.upload(data=sentences(count=300, tag=" lighthouse").encode(), name="a.txt")
    worker.ingest(document__source__uri=uri, mode="Segmented", segmentation__charactersPerSegment=1_024)
    cache = SegmentCache()
    key, *others = outputs(worker.store)
    assert others
    lost = worker.store.get(key=key)
    worker.store.delete(key=key)
    some = find(worker.store, cache=cache)
    assert f"{len(others)} of {len(others) + 1} outputs are there" in caplog.text
    worker.store.put(key=key, data=lost)
    every = find(worker.store, cache=cache)
    assert len(every) > len(some) > 0
    assert every == find(worker.store)


def test_what_is_ingested_after_a_restore_is_found(
    any_store: Store, worker_on: Callable[[Store], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its history entry has the number of one that the backup did not hold yet."""
    worker, cache = worker_on(any_store), SegmentCache()
    for job in ("lost", "again"):
        uri = worker.upload(data=f"The lighthouse is {job}.".encode(), name="a.txt")
        worker.ingest(document__source__uri=uri, job__uid=job)
        assert [hit.content for hit in find(any_store, cache=cache)] == [f"The lighthouse is {job}."]
        with monkeypatch.context() as patched:
            patched.setattr(Store, "get", pytest.fail)  # what is in the cache is not read again
            assert find(any_store, cache=cache)
        for entry in [*any_store.list(prefix="kb")]:
            any_store.delete(key=entry.key)


def test_vectors_of_other_dimensions_than_the_version_says_are_passed_over(worker: Worker) -> None:
    ingest(worker)
    replace_output(worker.store, dimensions=8)
    assert find(worker.store) == []


def test_no_more_vectors_are_made_than_an_outputs_name_promises(worker: Worker) -> None:
    ingest(worker)
    key, chunks = replace_output(worker.store, rows=10)
    cache = SegmentCache()
    assert len(find(worker.store, cache=cache)) == chunks
    assert cache.vectors(bucket=worker.store.bucket, key=key, load=pytest.fail).shape == (chunks, 256)


def test_of_an_output_of_fewer_rows_than_its_name_promises_no_more_is_kept(worker: Worker) -> None:
    """What was made for the others would stay in memory, and count for nothing."""
    ingest(worker)
    (key,) = outputs(worker.store)
    table, buffer = pq.read_table(io.BytesIO(worker.store.get(key=key))), io.BytesIO()
    pq.write_table(table.slice(1), buffer)
    worker.store.put(key=key, data=buffer.getvalue())
    cache = SegmentCache()
    assert len(find(worker.store, cache=cache)) == len(table) - 1
    kept = cache.vectors(bucket=worker.store.bucket, key=key, load=pytest.fail)
    assert kept.shape == (len(table) - 1, 256)
    assert kept.base is None


def test_memory_that_is_not_there_says_nothing_of_an_output(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is searched again when there is some; what is damaged would be left out for good."""
    ingest(worker)
    cache = SegmentCache()
    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetFile, "iter_batches", Mock(side_effect=pa.ArrowMemoryError("malloc failed")))
        with pytest.raises(MemoryError):
            find(worker.store, cache=cache)
    assert find(worker.store, cache=cache)


def test_embedders_that_are_not_there_take_little_time_and_few_lines(
    worker: Worker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may write to the bucket may name as many as there are documents."""
    ingest(worker)
    (live,) = live_versions(store=worker.store, knowledge_base=KB)
    versions = [replace(live, embedding=replace(live.embedding, model=f"m{number}")) for number in range(500)] * 2
    monkeypatch.setattr("ingestion_worker.search.live_versions", lambda **_: versions)
    question = {"store": worker.store, "knowledge_base": KB, "text": "lighthouse", "limit": 3}
    assert search_text(**question, embedder_for=lambda _: None) == []
    assert 0 < caplog.text.count("their embedder is not there") <= 10
    last = caplog.records[-1]
    assert (last.embeddings, last.documents) == (490, 980)
    with pytest.raises(TimeoutError):
        search_text(**question, embedder_for=lambda _: None, deadline=time.monotonic() - 1)


def test_an_output_over_the_bound_is_refused_before_its_bytes_are_read(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(worker)
    monkeypatch.setattr("ingestion_worker.search.MAX_OUTPUT_BYTES", 1000)
    watched = Watched(monkeypatch)
    assert "at most 1000 are read" in refused(lambda: find(worker.store))
    assert watched.read == 0


def test_an_output_that_takes_more_to_read_than_the_bound_is_refused(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(worker)
    key, chunks = replace_output(worker.store)
    # The same vector again and again takes next to nothing in the file.
    assert worker.store.size(key=key) < chunks * 256
    monkeypatch.setattr("ingestion_worker.search.MAX_READING_BYTES", chunks * 256 * 4 - 1)
    takes = int(refused(lambda: find(worker.store)).partition(" takes ")[2].split()[0])
    monkeypatch.setattr("ingestion_worker.search.MAX_READING_BYTES", takes)
    assert len(find(worker.store)) == chunks


def test_one_long_text_in_many_rows_is_refused_before_it_is_repeated(worker: Worker) -> None:
    ingest(worker)
    (key,) = outputs(worker.store)
    chunks, length = layout.parse_segment_key(key=key)[1], 8 * 2**20
    data = encode_segment(
        version_id="v",
        segment=0,
        chunks=[Chunk(content="x" * length, start=0, end=length, page=None, page_end=None)] * chunks,
        vectors=np.ones((chunks, 256), dtype=np.float32),
        dimensions=256,
    )
    assert len(data) < 2**20
    worker.store.put(key=key, data=data)
    usual = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(watched)
    try:
        assert f"has {length} bytes" in refused(lambda: find(worker.store))
    finally:
        pa.set_memory_pool(usual)
    # Once in its page, and once in the dictionary that is made of that; not once for each of the rows.
    assert watched.max_memory() < 8 * length


@pytest.mark.parametrize(("column", "most"), [("content", 32_768), ("chunk_id", 128)])
@pytest.mark.parametrize("more", [0, 1])
def test_a_text_of_more_characters_than_one_of_ours_may_have_is_refused(
    worker: Worker, column: str, most: int, more: int
) -> None:
    ingest(worker)
    (key,) = outputs(worker.store)
    worker.store.put(key=key, data=parquet(columns_of(1, **{column: pa.array(["x" * (most + more)])})))
    if more:
        assert f"{column} has {most + 1} characters" in refused(lambda: find(worker.store))
    else:
        assert len(find(worker.store)) == 1


def test_of_versions_of_many_embeddings_only_the_best_chunks_are_kept(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [EmbeddingSpec(provider="local", model=str(number), dimensions=2) for number in range(16)]
    place = {"chunk_id": "", "chunk_index": 0, "document_id": "", "version_id": "", "title": "", "page": None}
    size, limit = 100_000, 10

    def search(**_: Any) -> list[Hit]:
        return [Hit(**place, start=0, end=1, content="x" * size, embedding=BUILTIN, score=1.0) for _ in range(limit)]

    monkeypatch.setattr("ingestion_worker.search._search", search)
    monkeypatch.setattr(
        "ingestion_worker.search.live_versions", lambda **_: [SimpleNamespace(embedding=spec) for spec in specs]
    )
    builtin().embed(["x"])  # is loaded once, and large
    tracemalloc.start()
    try:
        assert len(find(worker.store, limit=limit)) == limit
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3 * limit * size


def test_no_embedding_hides_what_another_has_found(worker: Worker) -> None:
    """Some models give even to what is unrelated scores that others give to nothing."""
    generous = replace(BUILTIN, provider="local")
    for number, spec in enumerate((BUILTIN, generous)):
        uri = worker.upload(data=sentences(count=100, tag=f" of document {number}").encode(), name="a.txt")
        which = {"document__id": DOCUMENTS[number], "job__uid": f"job-{number}", "pipeline__embedding": asdict(spec)}
        worker.ingest(document__source__uri=uri, **which)
    alike = find(worker.store)[-1].content

    class Generous:
        def embed(self, texts: Sequence[str]) -> Any:
            return builtin().embed([alike] * len(texts))

        def close(self) -> None:
            pass

    def embedder_for(spec: EmbeddingSpec) -> Any:
        return Generous() if spec == generous else builtin()

    hits = find(worker.store, limit=6, embedder_for=embedder_for)
    assert [hit.embedding for hit in hits] == [generous, BUILTIN] * 3
    for spec in (BUILTIN, generous):
        own = [hit.score for hit in hits if hit.embedding == spec]
        assert own == sorted(own, reverse=True)
    assert hits[4].score > hits[1].score


def batches_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list in which the first column of each batch that is read is noted."""
    read: list[str] = []
    iter_batches = pq.ParquetFile.iter_batches

    def watched(file: pq.ParquetFile, *, columns: list[str], **more: Any) -> Iterator[pa.RecordBatch]:
        for batch in iter_batches(file, columns=columns, **more):
            read.append(columns[0])
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    return read


def test_an_output_is_read_no_further_than_what_is_wanted_of_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows beyond that take hardly any bytes, but time."""
    ingest(worker)
    _, chunks = replace_output(worker.store, rows=20)
    assert chunks < 64
    read = batches_of(monkeypatch)
    assert len(find(worker.store)) == chunks
    assert read == ["vector", "chunk_id"]


@pytest.mark.parametrize("column", ["vector", "chunk_id"])
def test_a_search_ends_within_an_output(worker: Worker, monkeypatch: pytest.MonkeyPatch, column: str) -> None:
    ingest(worker, sentences_each=900)
    read = batches_of(monkeypatch)
    assert len(find(worker.store)) > 3 * 64
    assert read.count(column) > 3
    read.clear()
    with pytest.raises(TimeoutError):
        find(worker.store, deadline=over_once(monkeypatch, lambda: column in read))
    assert read.count(column) == 1


class Held:
    """Watches how much of budgets is held, and what Arrow takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = self._now = 0
        self._lock = threading.Lock()
        hold = Budget.hold

        @contextmanager
        def watched(budget: Budget, size: int, **more: Any) -> Iterator[None]:
            with hold(budget, size, **more):
                self._add(size)
                try:
                    yield
                finally:
                    self._add(-size)

        monkeypatch.setattr(Budget, "hold", watched)

    def _add(self, size: int) -> None:
        with self._lock:
            self._now += size
            self.most = max(self.most, self._now)

    @contextmanager
    def arrow(self) -> Iterator[pa.MemoryPool]:
        """Count what Arrow takes."""
        usual = pa.default_memory_pool()
        pool = pa.proxy_memory_pool(usual)
        pa.set_memory_pool(pool)
        try:
            yield pool
        finally:
            pa.set_memory_pool(usual)


def columns_of(rows: int, **other: pa.Array) -> pa.Table:
    """A table of rows that are all the same, but for columns that are given."""
    types = column_types(dimensions=256)
    made = {
        "chunk_id": pa.array(["x"] * rows),
        "content": pa.array(["The lighthouse."] * rows),
        "vector": pa.FixedSizeListArray.from_arrays(np.ones(rows * 256, dtype=np.float32), 256),
    }
    numbers = {
        name: pa.array(np.ones(rows, dtype=np.int64)).cast(kind) for name, kind in types.items() if kind in NUMBERS
    }
    made = {**numbers, **made, **other}
    return pa.table({name: made[name] for name in types})


def parquet(table: pa.Table, *, said: bytes | None = None, **options: Any) -> bytes:
    """Return a file that says of its columns' types what ours say, whatever it holds."""
    said = said or base64.b64encode(pa.schema(column_types(dimensions=256)).serialize().to_pybytes())
    buffer = io.BytesIO()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"ARROW:schema": said})
    pq.write_table(table, buffer, **{"compression": "zstd", "store_schema": False, **options})
    return buffer.getvalue()


def one_list(values: int = 30_000_000) -> bytes:
    """A vector that does not end: runs of the same take a few bytes."""
    vector = pa.ListArray.from_arrays(pa.array([0, values], pa.int32()), np.zeros(values, np.float32))
    return parquet(columns_of(1, vector=vector))


def lying_page(rows: int = 2_000) -> bytes:
    """A page that says in its header that it unpacks to more than it does, and than the file says at its end."""
    written = parquet(columns_of(rows), use_dictionary=False, data_page_size=2**30)
    start = pq.ParquetFile(io.BytesIO(written)).metadata.row_group(0).column(8).data_page_offset
    _, first, *_ = header = written[start : start + 8]
    assert first == 0  # its kind
    assert header[2] & 15 == 5  # how much it unpacks to, in four bytes
    return written[: start + 3] + b"\xfe\xff\xff\x7f" + written[start + 7 :]


def many_texts(count: int = 100_000) -> bytes:
    """As many short ones as fit into a dictionary."""
    texts = pa.array([f"{number:x}" for number in range(count)])
    return parquet(columns_of(count, content=texts), dictionary_pagesize_limit=2**30)


def long_texts(count: int = 200, *, dictionary: bool) -> bytes:
    """In one page, or in one dictionary."""
    texts = pa.array([f"{number:04}" + "x" * 100_000 for number in range(count)])
    return parquet(
        columns_of(count, content=texts),
        use_dictionary=dictionary,
        dictionary_pagesize_limit=2**30,
        data_page_size=2**30,
    )


@pytest.mark.parametrize(
    ("make", "column", "takes"),
    [
        (one_list, "vector", 270 * 2**20),
        (lying_page, "vector", 128 * 2**20),
        (many_texts, "content", 17 * 2**20),
        (lambda: long_texts(dictionary=True), "content", 110 * 2**20),
        (lambda: long_texts(dictionary=False), "content", 90 * 2**20),
    ],
    ids=["a list without an end", "a page that lies", "many texts", "a large dictionary", "a large page"],
)
def test_what_reading_an_output_takes_is_held_however_it_is_made(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, make: Callable[[], bytes], column: str, takes: int
) -> None:
    """As it was measured: of a file of kilobytes it can be gigabytes."""
    ingest(worker)
    (key,) = outputs(worker.store)
    data = make()
    assert len(data) < 2**20
    metadata = read_footer(data=memoryview(data))
    assert reading_bytes(data=memoryview(data), metadata=metadata, columns=(column,)) >= takes
    worker.store.put(key=key, data=data)
    held = Held(monkeypatch)
    with held.arrow() as pool, suppress(WorkerError):  # it is refused if that is too much
        find(worker.store)
    assert pool.max_memory() <= held.most


def varint(number: int) -> bytes:
    """A number as Parquet has it in its headers."""
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])


# What a data page says of itself: kind, sizes unpacked and packed; and of its values: number, encodings.
SAID = {1: 0, 2: 1_000, 3: 10}
OF_VALUES = b"\x15" + varint(2 * 256) + 3 * b"\x15\x00" + b"\x00"


def header(*, said: dict[int, int] = SAID, values: bytes = b"\x2c" + OF_VALUES, more: bytes = b"") -> bytes:
    """The header of a data page."""
    return b"".join(b"\x15" + varint(2 * number) for number in said.values()) + values + more + b"\x00"


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (header(), None),
        # An id is a number of 16 bits to Arrow. Once more it is 2 here: it would unpack to a gigabyte.
        (header(more=b"\xf1" * 4_368 + b"\xd1" + b"\x15" + varint(2**31)), "has a field 35"),
        (header(more=b"\x1c\x00" * 2), "two others"),
        (header(more=b"\x19\x18\x00"), "field of type 9"),
        (header(values=b"\x2c\x1c\x00" + b"\x15\x00" + b"\x00"), "is damaged"),
        (header(values=b"\x2c\x15\x02\x1c\x00" + b"\x00"), "is damaged"),
    ],
    ids=["ours", "ids that start again", "many structs", "a list", "a struct for a number", "a struct for an encoding"],
)
def test_the_header_of_a_page_is_read_as_arrow_does_or_not_at_all(made: bytes, told: str | None) -> None:
    written = parquet(columns_of(1), use_dictionary=False)
    metadata = read_footer(data=memoryview(written))
    size = int.from_bytes(written[-8:-4], "little")
    data = memoryview(written[: metadata.row_group(0).column(8).data_page_offset] + made + written[-8 - size :])
    if told is None:
        assert reading_bytes(data=data, metadata=metadata, columns=["vector"]) >= SAID[2]
        return
    with pytest.raises(ValueError, match=told):
        reading_bytes(data=data, metadata=metadata, columns=["vector"])


def test_the_end_of_an_output_is_small(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    """What Arrow makes of it is a multiple: of each column that it names, and of each type."""
    ingest(worker)
    (key,) = outputs(worker.store)
    groups = parquet(columns_of(33), row_group_size=1)
    many = parquet(columns_of(1).replace_schema_metadata({"x": "x" * 2**16}), store_schema=True)
    for data, told in ((groups, "deserialize"), (many, "its footer has")):
        worker.store.put(key=key, data=data)
        caplog.clear()
        assert find(worker.store) == []
        (line,) = [line for line in caplog.records if "left out" in line.message]
        assert told in line.error
    said = base64.b64encode(pa.schema({"odd": pa.int8()}).serialize().to_pybytes())
    worker.store.put(key=key, data=parquet(columns_of(1), said=said))
    assert find(worker.store), "what it says of its own types is not looked at"


def test_what_takes_more_than_is_usual_is_read_once_if_there_is_room_and_else_again(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(worker)
    (key,) = outputs(worker.store)
    chunks = layout.parse_segment_key(key=key)[1]
    texts = [f"{number:06d}" * 5000 for number in range(chunks)]
    data = encode_segment(
        version_id="v",
        segment=0,
        chunks=[Chunk(content=text, start=0, end=len(text), page=None, page_end=None) for text in texts],
        vectors=np.ones((chunks, 256), dtype=np.float32),
        dimensions=256,
    )
    worker.store.put(key=key, data=data)
    watched, held = Watched(monkeypatch), Held(monkeypatch)
    monkeypatch.setattr("ingestion_worker.search._OVERHEAD_BYTES", 0)
    assert sorted(hit.content for hit in find(worker.store)) == texts
    assert (watched.read, held.most >= len(data) + sum(map(len, texts))) == (2, True)
    assert sorted(hit.content for hit in find(worker.store, budget=Budget(max_bytes=2 * len(data)))) == texts
    assert watched.read == 2 + 3


@pytest.mark.parametrize(("field", "length"), [("title", 513), ("published_at", 257), ("model", 257)])
def test_a_history_entry_with_a_longer_text_than_ours_is_refused(worker: Worker, field: str, length: int) -> None:
    ingest(worker)
    change_entry(worker, field, "x" * length)
    with pytest.raises(WorkerError, match=f"DocumentUnreadable: .*{field} is no text or number of at most"):
        find(worker.store)


@pytest.mark.parametrize("value", ["1", 1.0, None, True])
@pytest.mark.parametrize("field", ["segments", "chunks", "number", "dimensions"])
def test_a_history_entry_of_other_kinds_than_ours_is_refused(worker: Worker, field: str, value: Any) -> None:
    ingest(worker)
    change_entry(worker, field, value)
    with pytest.raises(WorkerError, match=f"DocumentUnreadable: .*{field}"):
        find(worker.store)


def test_a_history_entry_of_another_document_is_refused(worker: Worker) -> None:
    ingest(worker, documents=2)
    keys = [layout.history_key(knowledge_base=KB, document_id=document, sequence=1) for document in DOCUMENTS[:2]]
    worker.store.put(key=keys[0], data=worker.store.get(key=keys[1]))
    with pytest.raises(WorkerError, match=r"DocumentUnreadable: .*another document"):
        find(worker.store)


def test_what_lies_beside_the_documents_is_passed_over(worker: Worker) -> None:
    ingest(worker)
    key = layout.history_key(knowledge_base=KB, document_id=DOCUMENTS[0], sequence=1)
    entry = json.loads(worker.store.get(key=key))
    entry["live"]["document_id"] = "copy"
    stray = layout.history_key(knowledge_base=KB, document_id="copy", sequence=1)
    before = find(worker.store)
    worker.store.put(key=stray, data=json.dumps(entry).encode())
    assert find(worker.store) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("chunks", -5), ("segments", -1), ("dimensions", -1), ("dimensions", 10**15), ("title", "\ud800")),
        *(("plan_hash", "a/b"), ("plan_hash", ".."), ("version_id", "a\nb"), ("version_id", "")),
    ],
)
def test_a_history_entry_of_values_that_none_of_ours_has_is_refused(worker: Worker, field: str, value: Any) -> None:
    ingest(worker)
    change_entry(worker, field, value)
    with pytest.raises(WorkerError, match="DocumentUnreadable"):
        find(worker.store)


def test_an_output_of_more_chunks_than_a_name_has_room_for_is_not_there(worker: Worker) -> None:
    ingest(worker, documents=2)
    change_entry(worker, "chunks", 2**31 - 1)
    assert {hit.document_id for hit in find(worker.store)} == {DOCUMENTS[1]}


def test_an_output_whose_name_promises_less_than_nothing_is_passed_over(worker: Worker) -> None:
    uri = worker.upload(data=sentences(count=300, tag=" lighthouse").encode(), name="a.txt")
    worker.ingest(document__source__uri=uri, mode="Segmented", segmentation__charactersPerSegment=1_024)
    key, *others = outputs(worker.store)
    worker.store.put(key=f"{key.rpartition('/')[0]}/-000005.parquet", data=worker.store.get(key=key))
    worker.store.delete(key=key)
    assert others
    assert find(worker.store)


@pytest.mark.parametrize(
    "data", [b"[]", b"nothing", b'{"format": 1}', b'{"format": 1, "live": {"title": ["x"]}}', b"[" * 2**20]
)
def test_a_history_entry_that_is_none_of_ours_is_said(worker: Worker, data: bytes) -> None:
    ingest(worker)
    key = layout.history_key(knowledge_base=KB, document_id=DOCUMENTS[0], sequence=1)
    if b"title" in data:
        entry = json.loads(worker.store.get(key=key))
        entry["live"]["title"] = ["x" * 1_000_000]
        data = json.dumps(entry).encode()
    worker.store.put(key=key, data=data)
    with pytest.raises(WorkerError, match="DocumentUnreadable"):
        find(worker.store)


@pytest.mark.parametrize("column", ["start", "page", "content", "vector"])
def test_an_output_of_other_columns_than_ours_is_not_read(
    worker: Worker, column: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A number that is a long text would be made once for each row. The others are found, as if it were not there."""
    ingest(worker, documents=2)
    key = next(key for key in outputs(worker.store) if f"/{DOCUMENTS[0]}/" in key)
    others_hits = [hit for hit in find(worker.store) if hit.document_id == DOCUMENTS[1]]
    table = pq.read_table(io.BytesIO(worker.store.get(key=key)))
    index = table.schema.get_field_index(column)
    assert table.schema.types == list(column_types(dimensions=256).values())
    others = pa.array([["x"]] * len(table), pa.list_(pa.string()))
    for changed in (table.set_column(index, column, others), table.drop_columns([column]), None):
        buffer = io.BytesIO(b"no Parquet")
        if changed is not None:
            pq.write_table(changed, buffer)
        worker.store.put(key=key, data=buffer.getvalue())
        cache = SegmentCache()
        caplog.clear()
        for _ in range(2):
            # Its vectors are like theirs: it takes no place among the best.
            assert find(worker.store, cache=cache, limit=len(others_hits)) == others_hits
        (line,) = [line for line in caplog.records if "left out" in line.message]
        assert (line.levelname, line.key) == ("WARNING", key)
        assert changed is None or column in line.error


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *((name, None) for name in ("chunk_id", "chunk_index", "content", "start", "end", "vector")),
        *((name, -1) for name in ("start", "end", "page")),
        ("vector", [math.nan] * 256),
        ("vector", [math.inf] * 256),
        ("vector", [None] * 256),
    ],
)
def test_an_output_of_values_that_none_of_ours_has_is_passed_over(worker: Worker, column: str, value: Any) -> None:
    """Wherever in it they are; the other document is found."""
    ingest(worker, documents=2)
    key = next(key for key in outputs(worker.store) if f"/{DOCUMENTS[0]}/" in key)
    table = pq.read_table(io.BytesIO(worker.store.get(key=key)))
    place = table.schema.get_field_index(column)
    values = [*table.column(place).to_pylist()[:-1], value]
    changed = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.types[place]))
    buffer = io.BytesIO()
    pq.write_table(changed, buffer)
    before = find(worker.store)
    worker.store.put(key=key, data=buffer.getvalue())
    hits = find(worker.store)
    left = len(table) - 1 if isinstance(value, list) else 0
    assert [hit for hit in hits if hit.document_id == DOCUMENTS[1]] == [
        hit for hit in before if hit.document_id == DOCUMENTS[1]
    ]
    assert len([hit for hit in hits if hit.document_id == DOCUMENTS[0]]) == left
    assert all(math.isfinite(hit.score) for hit in hits)


def test_a_damaged_output_fails_no_search(worker: Worker) -> None:
    """Its end, which is read first, is whole, and the rest of it is not; or a text is no UTF-8."""
    ingest(worker, documents=2)
    key = next(key for key in outputs(worker.store) if f"/{DOCUMENTS[0]}/" in key)
    others_hits = [hit for hit in find(worker.store) if hit.document_id == DOCUMENTS[1]]
    written = worker.store.get(key=key)
    table = pq.read_table(io.BytesIO(written))
    place = table.schema.get_field_index("content")
    texts = [*(text.encode() for text in table.column(place).to_pylist()[:-1]), b"\xff"]
    odd = io.BytesIO()
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(texts, pa.binary()).view("string")), odd)
    pages = bytes(byte ^ 255 for byte in written[40:140])
    for data in (odd.getvalue(), written[:40] + pages + written[140:]):
        worker.store.put(key=key, data=data)
        assert find(worker.store) == others_hits


def test_no_bit_of_an_outputs_footer_ends_the_process() -> None:
    """As pyarrow does where it is asked for what does not fit the file's schema."""
    written = parquet(columns_of(1))
    for place in range(len(written) - 8 - int.from_bytes(written[-8:-4], "little"), len(written)):
        for bit in range(8):
            data = memoryview(written[:place] + bytes([written[place] ^ 1 << bit]) + written[place + 1 :])
            with suppress(pa.ArrowException, OSError, ValueError, LookupError):  # these leave the output out
                reading_bytes(data=data, metadata=read_footer(data=data), columns=["content", "vector"])


def test_an_output_that_is_changed_into_none_of_ours_while_it_is_searched_is_passed_over(worker: Worker) -> None:
    ingest(worker)
    cache = SegmentCache()
    assert find(worker.store, cache=cache)
    worker.store.put(key=outputs(worker.store)[0], data=b"no Parquet")
    assert find(worker.store, cache=cache) == []


def test_the_cache_counts_entries_and_listings_too_and_gives_vectors_up_first() -> None:
    cache = SegmentCache(max_bytes=100_000)
    vectors = np.zeros((10, 1000), dtype=np.float32)
    cache.vectors(bucket="b", key="vectors", load=lambda: vectors)
    cache.fact(bucket="b", key="listing", load=lambda: [(number, 1) for number in range(500)])
    assert cache.fact(bucket="b", key="listing", load=pytest.fail) != []
    with pytest.raises(ZeroDivisionError):  # they are gone
        cache.vectors(bucket="b", key="vectors", load=lambda: 1 // 0)
    for number in range(100):
        cache.fact(bucket="b", key=str(number), load=lambda: [(0, 1)])
    with pytest.raises(ZeroDivisionError):
        cache.fact(bucket="b", key="listing", load=lambda: 1 // 0)
    kept = [number for number in reversed(range(100)) if cache.fact(bucket="b", key=str(number), load=list)]
    assert 0 < len(kept) < 100


def live_version(number: int, *, text: str = "x") -> LiveVersion:
    """A version whose texts are equal, each in a place of its own in memory."""
    fields = ("version_id", "job_uid", "plan_hash", "title", "mode", "published_at")
    texts = {field: "".join(text) for field in fields}
    numbers = dict.fromkeys(("number", "generation", "segments", "chunks"), 1)
    spec = EmbeddingSpec(provider="".join(text), model="".join(text), dimensions=256)
    return LiveVersion(document_id=f"2b1d0000-0000-4000-8000-{number:012d}", **texts, **numbers, embedding=spec)


def test_the_cache_counts_all_texts_of_an_entry() -> None:
    """One that is no ASCII takes four bytes for each character."""
    cache = SegmentCache(max_bytes=2**20)

    def load(number: int) -> LiveVersion:
        return live_version(number, text=f"\N{GRINNING FACE}{number:0255}")

    tracemalloc.start()
    try:
        for number in range(1_000):
            cache.fact(bucket="b", key=str(number), load=lambda number=number: load(number))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 2**20


def test_a_search_has_no_more_entries_in_memory_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there are many of them, or much in each. What waits to be read takes hardly any."""
    count = 5_000
    store = SimpleNamespace(bucket="b", list=lambda **_: iter(entries))
    entries = [
        Entry(key=layout.history_key(knowledge_base=KB, document_id=version.document_id, sequence=1), tag="t")
        for version in map(live_version, range(count))
    ]
    every = [live_version(number) for number in range(count)]
    versions = {f"{entry.key} t": version for entry, version in zip(entries, every, strict=True)}
    cache = SimpleNamespace(fact=lambda *, key, **_: versions[key])
    which = {"store": store, "knowledge_base": KB, "cache": cache}
    tracemalloc.start()
    try:
        assert live_versions(**which) == every
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 5 * 2**20
    monkeypatch.setattr("ingestion_worker.search._MAX_FACTS_BYTES", count * 1_400)
    assert live_versions(**which) == every
    versions = dict.fromkeys(versions, live_version(0, text="x" * 50))
    refused(lambda: live_versions(**which))
    cache.fact = pytest.fail
    monkeypatch.setattr("ingestion_worker.search._MAX_FACTS_BYTES", count * 1_300)
    assert "too many documents" in refused(lambda: live_versions(**which))


def test_the_cache_counts_what_an_output_without_vectors_takes() -> None:
    cache = SegmentCache(max_bytes=100_000)
    for number in range(10_000):
        cache.vectors(bucket="b", key=str(number), load=lambda: np.zeros((0, 8), dtype=np.float32))
    kept = 0
    for number in range(10_000):
        with suppress(ZeroDivisionError):
            cache.vectors(bucket="b", key=str(number), load=lambda: 1 // 0)
            kept += 1
    assert 150 <= kept <= 170


@pytest.mark.parametrize("kind", ["vectors", "fact"])
def test_of_a_little_more_than_a_cache_holds_a_search_reads_little_anew(kind: str) -> None:
    """It read all of it, as what it comes to next had always just given way."""
    size = 1024 + 600 if kind == "vectors" else 1350
    cache = SegmentCache(max_bytes=100 * size)
    loaded: list[int] = []

    def search(numbers: range) -> int:
        loaded.clear()
        for number in numbers:
            getattr(cache, kind)(bucket="b", key=str(number), load=lambda number=number: load(number))
        return len(loaded)

    def load(number: int) -> Any:
        loaded.append(number)
        return np.zeros((1, 256), dtype=np.float32) if kind == "vectors" else []

    assert [search(range(100)) for _ in range(3)] == [100, 0, 0]
    for count, most in ((101, 2), (110, 15), (150, 75)):
        assert max([search(range(count)) for _ in range(20)][10:]) <= most
    others = [search(range(200, 300)) for _ in range(20)]
    assert others[1] < 80
    assert others[-1] == 0


def test_a_listing_without_end_is_left_at_the_deadline(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = worker.upload(data=pdf(pages=["The lighthouse."] * 70))
    worker.ingest(document__source__uri=uri, mode="Segmented")
    assert len(outputs(worker.store)) > 1

    def endless(**_: Any) -> Any:
        while True:
            yield 10**9, 1

    monkeypatch.setattr("ingestion_worker.search.iterate_outputs", endless)
    with pytest.raises(TimeoutError):
        find(worker.store, deadline=time.monotonic() + 0.2)


def test_a_history_entry_over_the_bound_is_refused(worker: Worker) -> None:
    ingest(worker)
    key = layout.history_key(knowledge_base=KB, document_id=DOCUMENTS[0], sequence=1)
    worker.store.put(key=key, data=b"[" * (2**20 + 1))
    assert key in refused(lambda: find(worker.store))


@pytest.mark.parametrize("piece", ['{"":' * 60 + "0" + "}" * 60, '{"":{}}', "[]", '"\u0100"'])
def test_what_reading_a_history_entry_takes_is_held_whatever_is_in_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, piece: str
) -> None:
    """What is none of ours in it is passed over, and is in memory until then."""
    ingest(worker)
    key = layout.history_key(knowledge_base=KB, document_id=DOCUMENTS[0], sequence=1)
    entry, size = worker.store.get(key=key), 2**18
    which = {"store": worker.store, "knowledge_base": KB}
    before = live_versions(**which)
    pieces = ",".join([piece] * (size // len(piece)))
    worker.store.put(key=key, data=entry.removesuffix(b"}") + f', "more": [{pieces}]}}'.encode())
    held = Held(monkeypatch)
    tracemalloc.start()
    try:
        assert live_versions(**which) == before
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most + size <= held.most  # and once more as it came


def test_history_entries_are_read_as_memory_comes_back(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(worker, documents=4)
    now, most = 0, 0

    def decode(**which: Any) -> State:
        nonlocal now, most
        now, most = now + 1, max(most, now + 1)
        time.sleep(0.02)
        now -= 1
        return decode_state(**which)

    monkeypatch.setattr("ingestion_worker.search.decode_state", decode)
    for budget, together in ((Budget(max_bytes=1), False), (Budget(), True)):
        now, most = 0, 0
        assert len(live_versions(store=worker.store, knowledge_base=KB, budget=budget)) == 4
        assert (most > 1) == together


def test_a_segment_of_too_many_vectors_is_refused_with_what_is_allowed() -> None:
    most = MAX_VECTOR_BYTES // (256 * 4)
    check_vectors(chunks=most, dimensions=256)
    with pytest.raises(WorkerError) as caught:
        check_vectors(chunks=most + 1, dimensions=256)
    assert caught.value.code == "DocumentTooComplex"
    assert "smaller segments or larger chunks" in caught.value.message
    assert len(caught.value.message) < 200  # what a job's status keeps of it


def test_a_share_is_what_an_output_takes_with_the_vectors_made_of_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(worker, documents=6)
    watched = Watched(monkeypatch, seconds=0.02)
    for key in outputs(worker.store):
        share = worker.store.size(key=key) + layout.parse_segment_key(key=key)[1] * 256 * 4
    # For the vectors of all, two at a time, and then for the text of the best chunk.
    assert len(find(worker.store, limit=1, budget=Budget(max_bytes=share * 5 // 2))) == 1
    assert watched.read == 7
    assert watched.most <= 2


def test_searches_together_read_no_more_at_the_same_time_than_they_share(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(worker, documents=3)
    alone = find(worker.store)
    watched = Watched(monkeypatch, seconds=0.01)
    budget = Budget(max_bytes=1)
    with ThreadPoolExecutor(max_workers=4) as pool:
        found = [pool.submit(find, worker.store, budget=budget) for _ in range(4)]
        assert all(future.result() == alone for future in found)
    assert (watched.read, watched.most) == (4 * 6, 1)


def test_a_budget_is_shared_and_its_shares_come_back() -> None:
    budget = Budget(max_bytes=10)
    with budget.hold(4), budget.hold(6):
        with pytest.raises(TimeoutError), budget.hold(1, deadline=time.monotonic() + 0.01):
            pytest.fail("there was nothing left")
        with pytest.raises(TimeoutError), budget.hold(1, deadline=time.monotonic() - 1):
            pytest.fail("there was nothing left, nor time")
    with pytest.raises(RuntimeError), budget.hold(10):
        raise RuntimeError
    with budget.hold(99), pytest.raises(TimeoutError), budget.hold(1, deadline=time.monotonic() + 0.01):
        pytest.fail("the large one is not alone")


def test_who_waits_for_a_share_gets_it_when_it_comes_back() -> None:
    budget, got = Budget(max_bytes=10), threading.Event()

    def wait() -> None:
        with budget.hold(99, deadline=time.monotonic() + PATIENCE):
            got.set()

    with ExitStack() as first:
        first.enter_context(budget.hold(10))
        thread = threading.Thread(target=wait)
        thread.start()
        assert not got.wait(0.05)
    assert got.wait(PATIENCE)
    thread.join()


@pytest.mark.parametrize("known", [False, True], ids=["for the entries", "for the outputs"])
def test_a_search_waits_for_memory_no_longer_than_it_may(worker: Worker, known: bool) -> None:
    ingest(worker)
    budget, cache = Budget(max_bytes=10), SegmentCache()
    if known:
        live_versions(store=worker.store, knowledge_base=KB, cache=cache)
    with ExitStack() as others:
        others.enter_context(budget.hold(10))
        too_late = threading.Timer(PATIENCE / 3, others.close)
        too_late.start()
        with pytest.raises(TimeoutError):
            find(worker.store, cache=cache, budget=budget, deadline=time.monotonic() + 0.5)
        assert too_late.is_alive()
        too_late.cancel()
    assert find(worker.store, budget=budget)


def test_a_search_that_has_no_time_left_reads_nothing(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(worker)
    watched = Watched(monkeypatch)
    with pytest.raises(TimeoutError):
        find(worker.store, deadline=time.monotonic() - 1)
    assert watched.read == 0


def test_a_search_ends_between_outputs(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(worker, documents=40, sentences_each=3)
    watched = Watched(monkeypatch)
    with pytest.raises(TimeoutError):
        find(worker.store, deadline=over_once(monkeypatch, lambda: watched.read > 0))
    assert 0 < watched.read <= 8  # what was under way


def test_a_search_ends_between_embeddings(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(worker)
    other = EmbeddingSpec(provider="local", model="m", dimensions=256)
    uri = worker.upload(data=b"The other lighthouse.", name="other.txt")
    worker.ingest(
        document__source__uri=uri, document__id=DOCUMENTS[1], job__uid="other", pipeline__embedding=asdict(other)
    )
    asked: list[EmbeddingSpec] = []

    class Watching:
        def __init__(self, spec: EmbeddingSpec) -> None:
            self._spec = spec

        def embed(self, texts: Sequence[str]) -> Any:
            asked.append(self._spec)
            return builtin().embed(texts)

        def close(self) -> None:
            pass

    assert len({hit.document_id for hit in find(worker.store)}) == 2
    with pytest.raises(TimeoutError):
        find(worker.store, embedder_for=Watching, deadline=over_once(monkeypatch, lambda: bool(asked)))
    assert asked == [BUILTIN]
