"""prepare_document: reads the source, claims a version number, writes the canonical copy and the plan.

A small document is done here whole: parsed, chunked, embedded, written and published in one pod.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ingestion_crds.constants import MAX_SEGMENTS, Mode

from ingestion_worker import history, layout
from ingestion_worker.attempt import Segmentation
from ingestion_worker.context import Context
from ingestion_worker.history import LiveVersion
from ingestion_worker.not_read import record_attachments
from ingestion_worker.outcome import WorkerError
from ingestion_worker.output import find_output
from ingestion_worker.parsing.guard import run_parser
from ingestion_worker.parsing.types import DocumentType, detect_type
from ingestion_worker.plan import Cut, Plan, fingerprint, hash_of, write_plan
from ingestion_worker.publish import commit, published_message, version_message
from ingestion_worker.segment import first_byte, run_segment
from ingestion_worker.source import Fetched, fetch_source
from ingestion_worker.store import ObjectMissingError
from ingestion_worker.versions import claim_number

LOG: Final = logging.getLogger(__name__)
_READ_CHARACTERS: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Canonical:
    """The copy that segments read: a PDF's own bytes, or one UTF-8 text of any other document."""

    path: Path
    unit: str
    sha256: str
    suffix: str
    pages: int
    characters: int
    attachments: int = 0


def prepare_document(*, context: Context) -> dict[str, Any]:
    """Prepare the attempt's document and return the termination message.

    Every step can be repeated: the version's id is a function of the job, its number is claimed once, and copy, plan
    and outputs are named by their content.

    Raises:
        WorkerError: VersionSuperseded, Fenced, a Source…, Document…, Store… or, in a single pass, any later stage's
            code.
    """
    attempt = context.attempt
    version_id = attempt.version_id
    claimed = claim_number(
        store=context.store,
        knowledge_base=attempt.knowledge_base,
        document_id=attempt.document_id,
        job_uid=attempt.job_uid,
    )
    state = history.raise_fence(
        store=context.store,
        knowledge_base=attempt.knowledge_base,
        document_id=attempt.document_id,
        job_uid=attempt.job_uid,
        version_id=version_id,
        number=claimed,
        generation=attempt.generation,
        created=attempt.created,
    )
    if state.live is not None and state.live.version_id == version_id:
        LOG.info("the version is live already", extra={"number": state.live.number})
        return _already_live(context=context, live=state.live)
    fetched = fetch_source(
        uri=attempt.source.uri,
        sha256=attempt.source.sha256,
        store=context.store,
        allow=context.allow,
        path=context.scratch / "source",
        limits=context.fetch_limits,
        resolver=context.resolver,
    )
    LOG.info("source read", extra={"bytes": fetched.size, "sha256": fetched.sha256})
    canonical = _canonical(context=context, fetched=fetched)
    mode, cuts = _cuts(context=context, canonical=canonical, name=fetched.name)
    prefix = context.version_prefix(version_id=version_id)
    key = layout.source_key(prefix=prefix, sha256=canonical.sha256, suffix=canonical.suffix)
    plan = Plan(
        name=fetched.name[:200],
        unit=canonical.unit,
        source_sha256=fetched.sha256,
        canonical_key=key,
        canonical_sha256=canonical.sha256,
        cuts=cuts,
        pipeline=fingerprint(attempt=attempt),
        mode=mode.value,
    )
    _copy(context=context, key=key, path=canonical.path)
    digest = write_plan(store=context.store, prefix=prefix, plan=plan)
    LOG.info("plan written", extra={"mode": mode.value, "segments": len(cuts), "plan_hash": digest})
    if canonical.attachments:
        record_attachments(
            store=context.store, prefix=prefix, plan_hash=digest, segment=None, count=canonical.attachments
        )
    if mode is Mode.SEGMENTED:
        version = {"id": version_id, "number": claimed, "planHash": digest}
        return {"mode": mode.value, "segments": len(cuts), "version": version}
    return _single_pass(
        context=context, plan=plan, plan_hash=digest, version_id=version_id, number=claimed, local=canonical.path
    )


def _single_pass(
    *, context: Context, plan: Plan, plan_hash: str, version_id: str, number: int, local: Path
) -> dict[str, Any]:
    prefix = context.version_prefix(version_id=version_id)
    if find_output(store=context.store, prefix=prefix, plan_hash=plan_hash, segment=0) is None:
        run_segment(context=context, plan=plan, plan_hash=plan_hash, version_id=version_id, segment=0, local=local)
    published = commit(
        context=context,
        version_id=version_id,
        number=number,
        plan_hash=plan_hash,
        segments=1,
        mode=Mode.SINGLE_PASS.value,
    )
    return {"mode": Mode.SINGLE_PASS.value, "segments": 1, **published}


def _already_live(*, context: Context, live: LiveVersion) -> dict[str, Any]:
    if live.mode == Mode.SINGLE_PASS.value:
        return {"mode": live.mode, "segments": 1, **published_message(context=context, live=live)}
    # The later stages find their outputs and the live version, and end at once.
    version = version_message(live=live)
    version.pop("state")
    return {"mode": live.mode, "segments": live.segments, "version": version}


def _canonical(*, context: Context, fetched: Fetched) -> Canonical:
    if fetched.size == 0:
        raise WorkerError("DocumentEmpty", f"{fetched.name} has no bytes")
    kind = detect_type(
        path=fetched.path,
        name=fetched.name,
        content_type=context.attempt.source.content_type,
        served_type=fetched.content_type,
    )
    limits = context.parser_limits
    if kind is DocumentType.PDF:
        result = run_parser(
            operation="pdf_inspect", name=fetched.name, arguments={"path": str(fetched.path)}, limits=limits
        )
        if result["attachments"]:
            # Of a portfolio they are the document, and its only page says what to open it with.
            LOG.warning(
                "attachments are not read", extra={"document": fetched.name, "attachments": result["attachments"]}
            )
        return Canonical(
            path=fetched.path,
            unit="pages",
            sha256=fetched.sha256,
            suffix="pdf",
            pages=result["pages"],
            characters=0,
            attachments=result["attachments"],
        )
    output = context.scratch / "canonical.txt"
    arguments: dict[str, Any] = {"path": str(fetched.path), "output": str(output)}
    if kind is DocumentType.XHTML:
        arguments["xml"] = True
    if kind is not DocumentType.DOCX:
        charset = _charset(context.attempt.source.content_type) or _charset(fetched.content_type)
        if charset:
            arguments["charset"] = charset
    operation = {DocumentType.DOCX: "docx", DocumentType.HTML: "html", DocumentType.XHTML: "html"}.get(kind, "text")
    result = run_parser(operation=operation, name=fetched.name, arguments=arguments, limits=limits)
    with output.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Canonical(path=output, unit="bytes", sha256=digest, suffix="txt", pages=0, characters=result["characters"])


def _charset(content_type: str | None) -> str | None:
    for parameter in (content_type or "").split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return value.strip().strip("\"'") or None
    return None


def _cuts(*, context: Context, canonical: Canonical, name: str) -> tuple[Mode, tuple[Cut, ...]]:
    sizes = context.attempt.segmentation
    mode = _mode(mode=context.attempt.mode, sizes=sizes, canonical=canonical)
    if canonical.unit == "pages":
        step = canonical.pages if mode is Mode.SINGLE_PASS else sizes.pages_per_segment
        _check_count(count=-(-canonical.pages // step), name=name)
        return mode, tuple(
            Cut(start=start, end=min(canonical.pages, start + step)) for start in range(0, canonical.pages, step)
        )
    if mode is Mode.SINGLE_PASS:
        cuts = [Cut(start=0, end=canonical.path.stat().st_size)]
    else:
        _check_count(count=canonical.characters // sizes.characters_per_segment, name=name)
        cuts = list(cut_text(path=canonical.path, characters=sizes.characters_per_segment))
        _check_count(count=len(cuts), name=name)
    return mode, tuple(_with_digests(cuts=cuts, path=canonical.path, overlap=context.attempt.chunk_overlap))


def _mode(*, mode: Mode, sizes: Segmentation, canonical: Canonical) -> Mode:
    if mode is not Mode.AUTO:
        return mode
    if canonical.unit == "pages":
        small = canonical.pages <= sizes.single_pass_max_pages
    else:
        small = canonical.characters <= sizes.single_pass_max_characters
    return Mode.SINGLE_PASS if small else Mode.SEGMENTED


def _check_count(*, count: int, name: str) -> None:
    if count > MAX_SEGMENTS:
        raise WorkerError("DocumentTooLarge", f"{name} makes {count} segments; at most {MAX_SEGMENTS} are run")


def cut_text(*, path: Path, characters: int) -> Iterator[Cut]:
    """Cut a UTF-8 text into runs of at most `characters`, each after a line end in its second half if it has one, else
    after a space there.

    Works on characters, so no cut falls into one; the cuts are in bytes.
    """
    buffer = ""
    start = character = 0
    with path.open("r", encoding="utf-8", newline="") as file:
        while True:
            while len(buffer) < characters + 1:
                piece = file.read(max(_READ_CHARACTERS, characters))
                if not piece:
                    break
                buffer += piece
            if not buffer:
                return
            position = 0
            # Cut all but what may still grow; slicing once per fill keeps this linear.
            while len(buffer) - position > characters:
                half = (position + characters // 2, position + characters)
                last = buffer.rfind("\n", *half)
                if last < 0:
                    last = buffer.rfind(" ", *half)
                stop = last + 1 if last >= 0 else position + characters
                size = len(buffer[position:stop].encode("utf-8"))
                yield Cut(start=start, end=start + size, character=character)
                start, character, position = start + size, character + stop - position, stop
            buffer = buffer[position:]
            if len(buffer) <= characters and not (piece := file.read(_READ_CHARACTERS)):
                size = len(buffer.encode("utf-8"))
                yield Cut(start=start, end=start + size, character=character)
                return
            buffer += piece


def _with_digests(*, cuts: Iterable[Cut], path: Path, overlap: int) -> Iterator[Cut]:
    with path.open("rb") as file:
        for cut in cuts:
            begin = first_byte(cut=cut, overlap=overlap)
            file.seek(begin)
            yield replace(cut, digest=hash_of(data=file.read(cut.end - begin)))


def _copy(*, context: Context, key: str, path: Path) -> None:
    # The key is the content's hash; an object of the right size under it is the copy, as objects appear whole.
    try:
        if context.store.size(key=key) == path.stat().st_size:
            return
    except ObjectMissingError:
        pass
    context.store.put_file(key=key, path=path)
