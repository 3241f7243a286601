"""A segment's output: one Parquet file, the same bytes on every run."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ingestion_worker import layout
from ingestion_worker.chunking import Chunk, chunk_id, chunk_index
from ingestion_worker.store import Store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    positions = range(len(chunks))
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1), type=pa.float32())
    columns: dict[str, Any] = {
        "chunk_id": pa.array(
            [chunk_id(version_id=version_id, segment=segment, position=position) for position in positions], pa.string()
        ),
        "chunk_index": pa.array(
            [chunk_index(segment=segment, position=position) for position in positions], pa.int64()
        ),
        "segment": pa.array([segment] * len(chunks), pa.int32()),
        "content": pa.array([chunk.content for chunk in chunks], pa.string()),
        "start": pa.array([chunk.start for chunk in chunks], pa.int64()),
        "end": pa.array([chunk.end for chunk in chunks], pa.int64()),
        "page": pa.array([chunk.page for chunk in chunks], pa.int32()),
        "page_end": pa.array([chunk.page_end for chunk in chunks], pa.int32()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, dimensions),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd", version="2.6")
    return buffer.getvalue()


def find_output(*, store: Store, prefix: str, plan_hash: str, segment: int) -> int | None:
    """Return the number of chunks of a segment's output, or None if there is no output yet."""
    folder = layout.segment_prefix(prefix=prefix, plan_hash=plan_hash, segment=segment)
    for entry in store.list(prefix=folder):
        return layout.parse_segment_key(key=entry.key)[1]
    return None


def list_outputs(*, store: Store, prefix: str, plan_hash: str) -> dict[int, int]:
    """Return {segment: chunks} of every output under a plan, by listing (1,000 segments per request on S3)."""
    found: dict[int, int] = {}
    for entry in store.list(prefix=layout.segments_prefix(prefix=prefix, plan_hash=plan_hash)):
        try:
            segment, chunks = layout.parse_segment_key(key=entry.key)
        except ValueError:
            continue
        found[segment] = chunks
    return found
