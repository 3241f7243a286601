"""process_segment: one slice of a document becomes one Parquet file of chunks and vectors."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Final

from ingestion_crds.indexset import IndexSet

from ingestion_worker import history, layout
from ingestion_worker.chunking import Chunk, chunk_pages, chunk_text
from ingestion_worker.context import Context
from ingestion_worker.not_read import record_attachments, record_pages
from ingestion_worker.outcome import WorkerError
from ingestion_worker.output import check_vectors, encode_segment, find_output
from ingestion_worker.parsing.guard import run_parser
from ingestion_worker.plan import Cut, Plan, check_pipeline, hash_of, read_plan
from ingestion_worker.store import ObjectMissingError

LOG: Final = logging.getLogger(__name__)
_MAX_CHARACTER_BYTES: Final = 4
# Beyond the overlap, so that the prefix can begin with a whole word.
_WORD_SLACK: Final = 64


def process_segment(*, context: Context, segment: int) -> dict[str, Any]:
    """Run one segment and return the termination message.

    Output that is there already ends it at once: the work of another pod, or of this one before it was killed.

    Raises:
        WorkerError: VersionSuperseded, PipelineChanged, InvalidAttempt, SegmentsMissing, PageUnreadable, a Document…,
            an Embedding… or a Store… code.
    """
    version = context.attempt.require_version()
    prefix = context.version_prefix(version_id=version.id)
    done = _done(context=context, prefix=prefix, plan_hash=version.plan_hash, segment=segment)
    if done is not None:
        return {"segment": segment, "chunks": done}
    # Vectors can cost money, and those of a version that is superseded are for nothing.
    history.check_superseded(
        store=context.store,
        knowledge_base=context.attempt.knowledge_base,
        document_id=context.attempt.document_id,
        version_id=version.id,
        number=version.number,
        created=context.attempt.created,
    )
    plan = read_plan(store=context.store, prefix=prefix, plan_hash=version.plan_hash)
    check_pipeline(plan=plan, attempt=context.attempt)
    if len(plan.cuts) != context.attempt.require_total_segments():
        raise WorkerError(
            "InvalidAttempt", f"the attempt says {context.attempt.total_segments} segments, the plan {len(plan.cuts)}"
        )
    chunks = run_segment(
        context=context, plan=plan, plan_hash=version.plan_hash, version_id=version.id, segment=segment, local=None
    )
    return {"segment": segment, "chunks": chunks}


def run_segment(
    *, context: Context, plan: Plan, plan_hash: str, version_id: str, segment: int, local: Path | None
) -> int:
    """Parse, chunk, embed and write one segment; return its number of chunks.

    Output that has come meanwhile is left as it is.

    Args:
        context: the stage's surroundings.
        plan: the version's plan.
        plan_hash: its hash.
        version_id: the version's id.
        segment: the segment's index.
        local: the canonical copy, if this container has it already.

    Raises:
        WorkerError: as `process_segment`.
    """
    chunks, blank, attachments = _read_chunks(context=context, plan=plan, segment=segment, local=local)
    embedding = context.attempt.embedding
    check_vectors(chunks=len(chunks), dimensions=embedding.dimensions)
    embedder = context.make_embedder()
    try:
        vectors = embedder.embed([chunk.content for chunk in chunks])
    finally:
        embedder.close()
    data = encode_segment(
        version_id=version_id, segment=segment, chunks=chunks, vectors=vectors, dimensions=embedding.dimensions
    )
    prefix = context.version_prefix(version_id=version_id)
    # Another pod may have written it meanwhile, and an endpoint need not give the same vectors twice.
    done = _done(context=context, prefix=prefix, plan_hash=plan_hash, segment=segment)
    if done is not None:
        return done
    if blank:
        record_pages(store=context.store, prefix=prefix, plan_hash=plan_hash, segment=segment, pages=blank)
    if attachments:
        record_attachments(store=context.store, prefix=prefix, plan_hash=plan_hash, segment=segment, count=attachments)
    key = layout.segment_key(prefix=prefix, plan_hash=plan_hash, segment=segment, chunks=len(chunks))
    context.store.put(key=key, data=data)
    LOG.info("segment written", extra={"chunks": len(chunks), "bytes": len(data)})
    return len(chunks)


def _done(*, context: Context, prefix: str, plan_hash: str, segment: int) -> int | None:
    done = find_output(store=context.store, prefix=prefix, plan_hash=plan_hash, segment=segment)
    if done is not None:
        LOG.info("the output is there already", extra={"chunks": done})
    return done


def _read_chunks(
    *, context: Context, plan: Plan, segment: int, local: Path | None
) -> tuple[list[Chunk], IndexSet, int]:
    """Return a segment's chunks, which of its pages have no text, and how many files are attached to its pages."""
    cut = plan.cuts[segment]
    size, overlap = context.attempt.chunk_size, context.attempt.chunk_overlap
    if plan.unit == "bytes":
        begin = first_byte(cut=cut, overlap=overlap)
        data = _read_range(context=context, plan=plan, local=local, start=begin, end=cut.end)
        if hash_of(data=data) != cut.digest:
            raise WorkerError("SegmentsMissing", f"the text {plan.canonical_key} was changed after it was written")
        # Only the first character of what lies before can be cut in two; the segment's own bounds never are.
        before = data[: cut.start - begin].decode("utf-8", "ignore")
        text = data[cut.start - begin :].decode("utf-8")
        chunks = chunk_text(text=text, before=before, start=cut.character, chunk_size=size, overlap=overlap)
        return chunks, IndexSet(), 0
    path = local or _download(context=context, plan=plan)
    wants_before = bool(overlap and cut.start)
    pages = _pages(context=context, plan=plan, path=path, cut=cut, before=wants_before)
    before = pages.pop(0)[0] if wants_before else ""
    texts = [text for text, _ in pages]
    # Scanned, or blank: only a person with the document can tell.
    blank = IndexSet.of(number for number, text in enumerate(texts, cut.start + 1) if not text.strip())
    if blank:
        LOG.warning("pages without text", extra={"document": plan.name, "pages": str(blank)})
    attachments = sum(count for _, count in pages)
    if attachments:
        LOG.warning("attachments are not read", extra={"document": plan.name, "attachments": attachments})
    chunks = chunk_pages(pages=texts, before=before, first=cut.start, chunk_size=size, overlap=overlap)
    return chunks, blank, attachments


def first_byte(*, cut: Cut, overlap: int) -> int:
    """Return where in a canonical text a segment begins to read: before its cut, by what it overlaps."""
    reach = (overlap + _WORD_SLACK) * _MAX_CHARACTER_BYTES if overlap else 0
    return max(0, cut.start - reach)


def _pages(*, context: Context, plan: Plan, path: Path, cut: Cut, before: bool) -> list[tuple[str, int]]:
    output = context.scratch / "pages.jsonl"
    run_parser(
        operation="pdf_pages",
        name=plan.name,
        arguments={
            "path": str(path),
            "output": str(output),
            "first": cut.start,
            "last": cut.end,
            "before": before,
        },
        limits=context.parser_limits,
    )
    with output.open("rb") as file:
        return [json.loads(line) for line in file]


def _download(*, context: Context, plan: Plan) -> Path:
    path = context.scratch / "canonical"
    try:
        limit = context.fetch_limits.max_bytes
        digest = context.store.download(key=plan.canonical_key, path=path, max_bytes=limit)
    except ObjectMissingError as error:
        raise WorkerError("SegmentsMissing", f"the copy {plan.canonical_key} is not in the store") from error
    if digest != plan.canonical_sha256:
        raise WorkerError("SegmentsMissing", f"the copy {plan.canonical_key} was changed after it was written")
    return path


def _read_range(*, context: Context, plan: Plan, local: Path | None, start: int, end: int) -> bytes:
    if local is not None:
        with local.open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
    else:
        try:
            data = context.store.get_range(key=plan.canonical_key, start=start, end=end)
        except ObjectMissingError as error:
            raise WorkerError("SegmentsMissing", f"the text {plan.canonical_key} is not in the store") from error
    return data
