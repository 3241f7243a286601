"""A segment's output: one Parquet file, the same bytes for the same chunks and vectors."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from ingestion_worker import layout
from ingestion_worker.chunking import Chunk, chunk_id, chunk_index
from ingestion_worker.not_read import NotRead
from ingestion_worker.outcome import WorkerError
from ingestion_worker.pages import reading_bytes
from ingestion_worker.store import Store

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

# A search reads an output whole: what is over these bounds is neither written nor read.
MAX_VECTOR_BYTES: Final = 64 * 2**20
MAX_OUTPUT_BYTES: Final = 128 * 2**20
# A few KB of Parquet can take gigabytes.
MAX_READING_BYTES: Final = 256 * 2**20
# The columns that a search reads of the chunks it has found; it reads the vectors before, by themselves.
HIT_COLUMNS: Final = ("chunk_id", "chunk_index", "content", "start", "end", "page")
_FLOAT_BYTES: Final = 4


def vector_bytes(*, chunks: int, dimensions: int) -> int:
    """Return how much memory the vectors of so many chunks take."""
    return chunks * dimensions * _FLOAT_BYTES


def check_vectors(*, chunks: int, dimensions: int) -> None:
    """Refuse a segment of more vectors than a search can read.

    Raises:
        WorkerError: DocumentTooComplex, saying what is allowed.
    """
    size = vector_bytes(chunks=chunks, dimensions=dimensions)
    if size > MAX_VECTOR_BYTES:
        raise WorkerError(
            "DocumentTooComplex",
            f"{chunks} chunks of {dimensions} dimensions have {size} bytes of vectors; a segment has at most"
            f" {MAX_VECTOR_BYTES}: use smaller segments or larger chunks",
        )


def column_types(*, dimensions: int) -> dict[str, pa.DataType]:
    """Return what the columns of a segment's output hold, by name."""
    import pyarrow as pa

    return {
        "chunk_id": pa.string(),
        "chunk_index": pa.int64(),
        "segment": pa.int32(),
        "content": pa.string(),
        "start": pa.int64(),
        "end": pa.int64(),
        "page": pa.int32(),
        "page_end": pa.int32(),
        "vector": pa.list_(pa.float32(), dimensions),
    }


def encode_segment(
    *, version_id: str, segment: int, chunks: Sequence[Chunk], vectors: NDArray[np.float32], dimensions: int
) -> bytes:
    """Return the Parquet bytes of a segment (zstd).

    Args:
        version_id: the version's UUID.
        segment: the segment's index.
        chunks: in order; none is fine (blank pages).
        vectors: shape (len(chunks), dimensions).
        dimensions: length of a vector.

    Raises:
        WorkerError: DocumentTooComplex when it is more than a search can read.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = column_types(dimensions=dimensions)
    positions = range(len(chunks))
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1), type=pa.float32())
    columns: dict[str, Any] = {
        "chunk_id": [chunk_id(version_id=version_id, segment=segment, position=position) for position in positions],
        "chunk_index": [chunk_index(segment=segment, position=position) for position in positions],
        "segment": [segment] * len(chunks),
        "content": [chunk.content for chunk in chunks],
        "start": [chunk.start for chunk in chunks],
        "end": [chunk.end for chunk in chunks],
        "page": [chunk.page for chunk in chunks],
        "page_end": [chunk.page_end for chunk in chunks],
        "vector": pa.FixedSizeListArray.from_arrays(flat, dimensions),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns, schema=pa.schema(types)), buffer, compression="zstd", version="2.6")
    if buffer.tell() > MAX_OUTPUT_BYTES:
        raise WorkerError(
            "DocumentTooComplex",
            f"the segment's output has {buffer.tell()} bytes; at most {MAX_OUTPUT_BYTES} are written: use smaller"
            " segments",
        )
    metadata = pq.ParquetFile(buffer).metadata
    reading = reading_bytes(data=buffer.getbuffer(), metadata=metadata, columns=HIT_COLUMNS)
    if reading > MAX_READING_BYTES:
        raise WorkerError(
            "DocumentTooComplex",
            f"the segment's output takes {reading} bytes to read; at most {MAX_READING_BYTES} are allowed: use smaller"
            " segments or a smaller overlap of chunks",
        )
    return buffer.getvalue()


def find_output(*, store: Store, prefix: str, plan_hash: str, segment: int) -> int | None:
    """Return the number of chunks of a segment's output, or None if there is no output yet.

    Args:
        store: the tenant's store.
        prefix: the version's.
        plan_hash: the plan's.
        segment: the segment's index.

    Raises:
        WorkerError: StoreUnavailable, StoreForbidden.
    """
    folder = layout.segment_prefix(prefix=prefix, plan_hash=plan_hash, segment=segment)
    return next((chunks for _, chunks in _outputs(store=store, folder=folder)), None)


def iterate_outputs(*, store: Store, prefix: str, plan_hash: str) -> Iterator[tuple[int, int]]:
    """Yield (segment, chunks) of every output under a plan, as they are listed (1,000 per request on S3).

    Args:
        store: the tenant's store.
        prefix: the version's.
        plan_hash: the plan's.

    Raises:
        WorkerError: StoreUnavailable, StoreForbidden.
    """
    return _outputs(store=store, folder=layout.segments_prefix(prefix=prefix, plan_hash=plan_hash))


def read_listing(*, store: Store, prefix: str, plan_hash: str) -> tuple[dict[int, int], NotRead]:
    """Return the number of chunks of every output under a plan, by segment, and what of the document was not read.

    Args:
        store: the tenant's store.
        prefix: the version's.
        plan_hash: the plan's.

    Raises:
        WorkerError: StoreUnavailable, StoreForbidden.
    """
    chunks: dict[int, int] = {}
    not_read = NotRead()
    for entry in store.list(prefix=layout.segments_prefix(prefix=prefix, plan_hash=plan_hash)):
        not_read.take(key=entry.key)
        with contextlib.suppress(ValueError):
            segment, chunks[segment] = layout.parse_segment_key(key=entry.key)
    return chunks, not_read


def _outputs(*, store: Store, folder: str) -> Iterator[tuple[int, int]]:
    """Yield (segment, chunks) of the outputs in a folder; what else lies there is passed over."""
    for entry in store.list(prefix=folder):
        with contextlib.suppress(ValueError):
            yield layout.parse_segment_key(key=entry.key)
