"""What a client sees of the documents of a batch, or of the one of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from ingestion_crds.batch import Documents, IngestionBatch
from ingestion_crds.constants import RETRYABLE_PHASES, Phase
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob
from pydantic import BaseModel, Field

from ingestion_api.views import NarrowJob, complaint, shown_phase, starts_over


class IngestionJobDocumentResponse(BaseModel):
    """A document, and how far its own job is."""

    document_id: UUID | None
    version_id: UUID | None = None
    processing_stage: str | None = None
    title: str | None = None
    status: str
    error_message: str | None = None
    segment_count: int | None = None
    processed_segments: int = 0
    pages_not_read: int = Field(0, description="Pages in which no text was found, once the version is published.")
    started_at: datetime | None = None
    completed_at: datetime | None = None
    manifest_index: int = Field(0, description="Its place among the files of its ingest, from 0.")
    ingestion_job_id: UUID | None = Field(
        None, description="Of a batch: the document's own job, whose progress says more; null before it is made."
    )


def document_view(job: NarrowJob | IngestionJob, *, index: int = 0) -> IngestionJobDocumentResponse:
    """Return what is shown of a job's document.

    Args:
        job: its own.
        index: its place in its batch.
    """
    status, waiting, reset = job.status, job.retry_pending, starts_over(job)
    segments = None if reset else status.segments
    return IngestionJobDocumentResponse(
        document_id=UUID(job.spec.document.id),
        version_id=_uuid(status.version.id) if status.version else None,
        processing_stage=None if waiting else status.stage,
        title=job.spec.document.title or None,
        status=shown_phase(job),
        error_message=complaint(job),
        segment_count=(segments.total or None) if segments else None,
        processed_segments=segments.completed_count if segments else 0,
        pages_not_read=status.not_read.page_count if status.not_read else 0,
        started_at=None if reset else status.start_time,
        completed_at=None if waiting else status.completion_time,
        manifest_index=index,
        ingestion_job_id=UUID(job.job_id),
    )


def document_views(
    batch: IngestionBatch, *, entries: Mapping[int, bytes], places: Sequence[int]
) -> list[IngestionJobDocumentResponse]:
    """Return what is shown of documents of a batch.

    Args:
        batch: as it is now.
        entries: of the documents whose jobs are there, by their places: `document_view` as JSON.
        places: those to be shown.
    """
    done = batch.status.documents or Documents()
    completed, failed = IndexSet.parse(done.completed), IndexSet.parse(done.failed)
    # What failed waits until the retry is passed on to its job, and shows so.
    passed_on = batch.status.passed_on_generation
    waiting = batch.retry_pending or (passed_on is not None and passed_on < batch.spec.retry_generation)
    return [_one(batch, place, entries.get(place), place in completed, place in failed, waiting) for place in places]


def _one(
    batch: IngestionBatch, place: int, entry: bytes | None, completed: bool, failed: bool, waiting: bool
) -> IngestionJobDocumentResponse:
    if entry is None:
        document = batch.spec.documents[place]
        phase = Phase.COMPLETED if completed else Phase.FAILED if failed else Phase.QUEUED
        shown = IngestionJobDocumentResponse(
            document_id=UUID(document.id), title=document.title or None, status=phase.value, manifest_index=place
        )
    else:
        shown = IngestionJobDocumentResponse.model_validate_json(entry)
    if waiting and shown.status in RETRYABLE_PHASES:
        waits = {"status": Phase.QUEUED.value, "error_message": None, "completed_at": None, "processing_stage": None}
        if shown.segment_count is None:
            waits["started_at"] = None  # its job will start over
        return shown.model_copy(update=waits)
    return shown


def _uuid(text: str) -> UUID | None:
    """Return a version's id: a status that somebody else wrote may hold what is none."""
    try:
        return UUID(text)
    except ValueError:
        return None
