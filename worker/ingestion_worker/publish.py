"""publish_version: checks that every segment's output is there, then makes the version live in one atomic step."""

from __future__ import annotations

import logging
from typing import Any, Final

from ingestion_crds.constants import Mode, VersionState
from ingestion_crds.indexset import IndexSet

from ingestion_worker import history
from ingestion_worker.context import Context
from ingestion_worker.history import LiveVersion
from ingestion_worker.not_read import NotRead
from ingestion_worker.outcome import WorkerError
from ingestion_worker.output import read_listing

LOG: Final = logging.getLogger(__name__)


def publish_version(*, context: Context) -> dict[str, Any]:
    """Publish the attempt's version and return the termination message.

    Raises:
        WorkerError: SegmentsMissing, VersionSuperseded, Fenced, or a Store… code.
    """
    attempt = context.attempt
    version = attempt.require_version()
    total = attempt.require_total_segments()
    state = history.raise_fence(
        store=context.store,
        knowledge_base=attempt.knowledge_base,
        document_id=attempt.document_id,
        job_uid=attempt.job_uid,
        version_id=version.id,
        number=version.number,
        generation=attempt.generation,
        created=attempt.created,
    )
    if state.live is not None and state.live.version_id == version.id:
        LOG.info("the version is live already", extra={"number": state.live.number})
        return published_message(context=context, live=state.live)
    return commit(
        context=context,
        version_id=version.id,
        number=version.number,
        plan_hash=version.plan_hash,
        segments=total,
        mode=Mode.SEGMENTED.value,
    )


def published_message(*, context: Context, live: LiveVersion) -> dict[str, Any]:
    """Return the termination message that says what is live already, whoever published it."""
    prefix = context.version_prefix(version_id=live.version_id)
    _, not_read = read_listing(store=context.store, prefix=prefix, plan_hash=live.plan_hash)
    return _message(live=live, not_read=not_read)


def _message(*, live: LiveVersion, not_read: NotRead) -> dict[str, Any]:
    return {"version": version_message(live=live), "chunks": live.chunks, **not_read.message()}


def version_message(*, live: LiveVersion) -> dict[str, Any]:
    """Return the version as the contract writes it once it is live."""
    return {
        "id": live.version_id,
        "number": live.number,
        "planHash": live.plan_hash,
        "state": VersionState.ACTIVE.value,
    }


def commit(
    *, context: Context, version_id: str, number: int, plan_hash: str, segments: int, mode: str
) -> dict[str, Any]:
    """Check the outputs, publish, and return the termination message that says what is live.

    Args:
        context: the stage's surroundings.
        version_id: the version's UUID.
        number: its number.
        plan_hash: its plan's.
        segments: how many there must be.
        mode: `Segmented` or `SinglePass`.

    Raises:
        WorkerError: SegmentsMissing, naming them; else as `history.publish`.
    """
    attempt = context.attempt
    prefix = context.version_prefix(version_id=version_id)
    found, not_read = read_listing(store=context.store, prefix=prefix, plan_hash=plan_hash)
    missing = IndexSet.of(index for index in range(segments) if index not in found)
    if len(missing):
        raise WorkerError(
            "SegmentsMissing", f"{len(missing)} of {segments} segment outputs are not in the store: {missing}"[:1000]
        )
    live = history.publish(
        store=context.store,
        knowledge_base=attempt.knowledge_base,
        version=LiveVersion(
            document_id=attempt.document_id,
            version_id=version_id,
            number=number,
            job_uid=attempt.job_uid,
            generation=attempt.generation,
            plan_hash=plan_hash,
            segments=segments,
            chunks=sum(found[index] for index in range(segments)),
            title=attempt.title,
            mode=mode,
            embedding=attempt.embedding,
            published_at="",
        ),
        created=attempt.created,
    )
    fields = {"number": live.number, "chunks": live.chunks, "generation_published": live.generation}
    LOG.info("version is live", extra=fields)
    if live.plan_hash != plan_hash:
        # Another pod of this job was faster, and read the source when it was another one.
        return published_message(context=context, live=live)
    return _message(live=live, not_read=not_read)
