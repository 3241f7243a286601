"""One segment in a process of its own: through the worker, or as the library calls that it comes to.

`python -m ingestion_bench.segment_run worker|libraries` prints the CPU seconds of the work as JSON. Whatever can be
imported and loaded before is, and does not count.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pypdfium2
from ingestion_crds import logs
from ingestion_crds.constants import Stage
from ingestion_worker import segment
from ingestion_worker.attempt import read_attempt
from ingestion_worker.context import Context
from ingestion_worker.embedding import BuiltinEmbedder
from ingestion_worker.parsing.guard import run_parser
from ingestion_worker.store import Store, StoreConfig
from semantic_text_splitter import TextSplitter

PAGES: Final = 32
INDEX: Final = 1
"""Not the first: it begins with the end of the page before."""


def cpu() -> float:
    """Return the CPU seconds of this process and of the children that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def worker(context: Context, document: Path) -> float:
    """Return the CPU seconds of `process_segment`, without those in which its parser's process starts."""
    empty = {"path": str(document), "output": str(context.scratch / "none"), "first": 0, "last": 0, "before": False}

    def start_parser() -> None:
        run_parser(operation="pdf_pages", name="empty", arguments=empty)

    started = _timed(start_parser)
    return _timed(lambda: segment.process_segment(context=context, segment=INDEX)) - started


def libraries(context: Context, document: Path) -> float:
    """Return the CPU seconds of parsing, splitting, embedding, encoding and storing the same pages."""
    embedder = context.make_embedder()
    assert isinstance(embedder, BuiltinEmbedder)
    tokenizer, weights = embedder._load()
    store = Store(config=StoreConfig.from_env(env=os.environ))._backend

    def work() -> None:
        pdf = pypdfium2.PdfDocument(document)
        pages = range(INDEX * PAGES, (INDEX + 1) * PAGES)
        text = "\n\n".join(pdf[page].get_textpage().get_text_range() for page in pages)
        attempt = context.attempt
        chunks = TextSplitter(attempt.chunk_size, overlap=attempt.chunk_overlap).chunk_indices(text)
        texts = [content for _, content in chunks]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        vectors = np.stack([weights[encoding.ids].astype(np.float32).mean(axis=0) for encoding in encodings])
        flat = pa.array(vectors.reshape(-1))
        table = pa.table(
            {
                "start": pa.array([start for start, _ in chunks]),
                "content": pa.array(texts),
                "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        obstore.put(store, "libraries.parquet", buffer.getvalue())

    return _timed(work)


def _timed(work: Callable[[], object]) -> float:
    before = cpu()
    work()
    return cpu() - before


def _main() -> None:
    what, document = sys.argv[1:]
    logs.configure(logger="ingestion_worker")
    attempt = read_attempt(command="process_segment", env=os.environ)
    assert attempt.stage is Stage.SEGMENTS
    embedder = BuiltinEmbedder(spec=attempt.embedding)
    embedder.embed(["loaded before the work"])
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
            attempt=attempt,
            store=Store(config=StoreConfig.from_env(env=os.environ)),
            scratch=Path(scratch),
            make_embedder=lambda: embedder,
        )
        run = {"worker": worker, "libraries": libraries}[what]
        print(json.dumps({"seconds": run(context, Path(document))}))


if __name__ == "__main__":
    _main()
