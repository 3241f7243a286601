"""What a client sees of a job, or a batch: the resource's state in the API's field names.

A retry that is recorded but not taken up yet shows as `queued`, so that no GET after the 202 shows the state before.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar
from uuid import UUID

from ingestion_crds.batch import BatchStatus, DocumentFailure, Documents, IngestionBatch
from ingestion_crds.constants import (
    BATCH_KIND,
    LABEL_BATCH_INDEX,
    TERMINAL_PHASES,
    ConditionType,
    Mode,
    Phase,
    Stage,
    Trigger,
    VersionState,
)
from ingestion_crds.job import (
    Attempt,
    Document,
    Failure,
    IngestionJob,
    Model,
    Status,
    Version,
    is_retry_pending,
    job_id_of,
)
from pydantic import BaseModel, Field
from pydantic_core import to_json

JOB_TYPE: Final = "document"
BATCH_TYPE: Final = "batch"
_PLACE: Final = re.compile(r"^[0-9]{1,4}$")
Item = TypeVar("Item")
Known = TypeVar("Known", bound=StrEnum)
OrText = Annotated[Known | str, Field(union_mode="left_to_right")]
"""One of ours, else the text that it is: an operator newer than this API may write more of them."""


class _NarrowOwner(Model):
    kind: str = ""
    uid: str = ""
    controller: bool = False


class _NarrowLabels(Model):
    batch_index: str = Field("", alias=LABEL_BATCH_INDEX)


class _NarrowMetadata(Model):
    # Without annotations: what `kubectl apply` leaves there is as large as the job.
    name: str
    namespace: str
    uid: str
    resource_version: str
    creation_timestamp: datetime
    labels: _NarrowLabels = Field(default_factory=_NarrowLabels)
    owner_references: list[_NarrowOwner] = Field(default_factory=list)

    @property
    def batch(self) -> tuple[str, int | None] | None:
        """The UID of the batch that has made this job, and the document's place in it; None of any other job.

        It is told by its owner, as a label may be anybody's. All jobs of a batch share one copy of the UID.
        """
        place = self.labels.batch_index
        for owner in self.owner_references:
            if owner.controller and owner.kind == BATCH_KIND:
                return sys.intern(owner.uid), int(place) if _PLACE.match(place) else None
        return None


class _NarrowSpec(Model):
    knowledge_base: str = ""
    retry_generation: int = 0


class _NarrowCondition(Model):
    # As plain text, as all that is merely shown.
    type: str
    status: str
    message: str = ""
    last_transition_time: datetime | None = None


class _NarrowVersion(Model):
    id: str = ""


class _NarrowSegments(Model):
    total: int = 0
    completed_count: int = 0


class _NarrowNotRead(Model):
    page_count: int = 0


class _NarrowStatus(Model):
    observed_retry_generation: int | None = None
    phase: OrText[Phase] = Phase.QUEUED
    mode: OrText[Mode] | None = None
    stage: str | None = None
    version: _NarrowVersion | None = None
    segments: _NarrowSegments | None = None
    not_read: _NarrowNotRead | None = None
    start_time: datetime | None = None
    completion_time: datetime | None = None
    progress_percent: int = 0
    conditions: list[_NarrowCondition] = Field(default_factory=list)


class _Narrow(Model):
    metadata: _NarrowMetadata
    spec: _NarrowSpec
    status: _NarrowStatus = Field(default_factory=_NarrowStatus)

    @property
    def job_id(self) -> str:
        """As an IngestionJob's, or an IngestionBatch's."""
        return job_id_of(self.metadata.name, self.metadata.uid)

    @property
    def retry_pending(self) -> bool:
        """As an IngestionJob's, or an IngestionBatch's."""
        return is_retry_pending(wanted=self.spec.retry_generation, observed=self.status.observed_retry_generation)


class _NarrowDocument(Model):
    id: str = ""
    title: str = ""


class _NarrowJobSpec(_NarrowSpec):
    document: _NarrowDocument = Field(default_factory=_NarrowDocument)


class NarrowJob(_Narrow):
    """The part of an IngestionJob that lists show; validating it costs a fraction of the whole."""

    spec: _NarrowJobSpec = Field(default_factory=_NarrowJobSpec)


class _NarrowBatchSpec(_NarrowSpec):
    documents: list[Any] = Field(default_factory=list)


class _NarrowDocuments(Model):
    completed_count: int = 0


class _NarrowBatchStatus(_NarrowStatus):
    documents: _NarrowDocuments | None = None


class NarrowBatch(_Narrow):
    """The part of an IngestionBatch that lists show."""

    spec: _NarrowBatchSpec = Field(default_factory=_NarrowBatchSpec)
    status: _NarrowBatchStatus = Field(default_factory=_NarrowBatchStatus)


class _NarrowAttempt(Model):
    # Its Jobs are not shown.
    generation: int
    trigger: str
    requested_by: str | None = None
    segments: int = 0
    completed: int = 0
    failed: int = 0
    codes: dict[str, int] | None = None
    reason: str | None = None
    start_time: datetime
    completion_time: datetime | None = None


class _ShownSpec(_NarrowSpec):
    document: Document


class _ShownVersion(Version):
    state: str = VersionState.PENDING  # type: ignore[assignment]


class _ShownFailure(Failure):
    stage: str  # type: ignore[assignment]


class _ShownStatus(Status):
    phase: OrText[Phase] = Phase.QUEUED  # type: ignore[assignment]
    stage: str | None = None  # type: ignore[assignment]
    mode: OrText[Mode] | None = None  # type: ignore[assignment]
    version: _ShownVersion | None = None
    failures: list[_ShownFailure] = Field(default_factory=list)  # type: ignore[assignment]
    conditions: list[_NarrowCondition] = Field(default_factory=list)  # type: ignore[assignment]
    attempts: list[_NarrowAttempt] = Field(default_factory=list)  # type: ignore[assignment]


class ShownJob(IngestionJob):
    """An IngestionJob to be shown or retried, whatever a newer release has written: what that needs, and no more."""

    spec: _ShownSpec  # type: ignore[assignment]
    status: _ShownStatus = Field(default_factory=_ShownStatus)


class _ShownBatchSpec(_NarrowBatchSpec):
    documents: list[Document]


class _ShownBatchStatus(BatchStatus):
    phase: OrText[Phase] = Phase.QUEUED  # type: ignore[assignment]
    conditions: list[_NarrowCondition] = Field(default_factory=list)  # type: ignore[assignment]


class ShownBatch(IngestionBatch):
    """The same of an IngestionBatch."""

    spec: _ShownBatchSpec  # type: ignore[assignment]
    status: _ShownBatchStatus = Field(default_factory=_ShownBatchStatus)


AnyJob = NarrowJob | IngestionJob | NarrowBatch | IngestionBatch


def shown_phase(job: AnyJob) -> str:
    """Return the phase that clients see: queued while a retry waits."""
    return Phase.QUEUED if job.retry_pending else job.status.phase


def starts_over(job: NarrowJob | IngestionJob) -> bool:
    """Return whether a retry waits that keeps nothing: a segmented job keeps what is done, all else does not."""
    return job.retry_pending and job.status.mode is not Mode.SEGMENTED


class VersionView(BaseModel):
    """The version of the document that the job makes."""

    id: str
    number: int | None = None
    state: str = Field(description=f"One of {', '.join(VersionState)}.")


class NotReadView(BaseModel):
    """What of the document is not in the version."""

    page_count: int = Field(0, description="Pages in which no text was found.")
    pages: str = Field("", description="Which pages these are, such as 2-4,6; of very many only some.")
    attachments: int = Field(0, description="Files that are attached to the document.")


class FailureView(BaseModel):
    """Why a segment, or a stage, failed."""

    segment: int | None = None
    stage: str = Field(description=f"One of {', '.join(Stage)}.")
    code: str
    retryable: bool
    message: str = ""
    exit_code: int | None = None
    attempt: int

    @classmethod
    def of(cls, failure: Failure) -> Self:
        """Return the view of one entry of status.failures."""
        return cls(**failure.model_dump())


class DocumentFailureView(BaseModel):
    """Why a document of a batch failed."""

    manifest_index: int = Field(description="The document's place among the files of its ingest, from 0.")
    document_id: UUID
    title: str | None = None
    code: str
    message: str = ""


class AttemptView(BaseModel):
    """What one retry generation ran, and how it ended."""

    generation: int = Field(description="The retry generation; 0 is the first run.")
    trigger: str = Field(description=f"One of {', '.join(Trigger)}.")
    requested_by: str | None = Field(None, description="`key:` and the key's id, for a retry by REST.")
    segments: int = Field(0, description="Segments that were run.")
    completed: int = Field(0, description="Of these, completed.")
    failed: int = Field(0, description="Of these, failed.")
    failure_summary: dict[str, int] = Field(default_factory=dict, description="Failures by code.")
    reason: str | None = Field(None, description="How it ended; null while it runs.")
    started_at: datetime
    completed_at: datetime | None = None

    @classmethod
    def of(cls, attempt: Attempt | _NarrowAttempt) -> Self:
        """Return the view of one entry of status.attempts."""
        return cls(
            generation=attempt.generation,
            trigger=attempt.trigger,
            requested_by=attempt.requested_by,
            segments=attempt.segments,
            completed=attempt.completed,
            failed=attempt.failed,
            failure_summary=attempt.codes or {},
            reason=attempt.reason,
            started_at=attempt.start_time,
            completed_at=attempt.completion_time,
        )


class IngestionJobSummaryResponse(BaseModel):
    """A job in a list."""

    id: UUID
    job_type: str
    status: str
    knowledge_base_id: UUID | None = None
    item_title: str | None = None
    total_documents: int | None = None
    processed_count: int = 0
    error_message: str | None = None
    progress_pct: float = 0.0
    created_at: datetime
    updated_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None


class CursorPage(BaseModel, Generic[Item]):
    """One page of a list."""

    items: list[Item]
    next_cursor: str | None = None
    has_more: bool


class IngestionJobResponse(BaseModel):
    """A job's progress."""

    id: UUID
    job_type: str
    status: str
    knowledge_base_id: UUID | None = None
    total_documents: int | None = None
    completed: int = 0
    duplicate: int = 0
    failed: int = 0
    partial_failure: int = 0
    processing: int = 0
    queued: int = 0
    segment_count: int | None = None
    processed_segments: int = 0
    progress_pct: float = 0.0
    created_at: datetime
    updated_at: datetime | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    stage: str | None = Field(
        None, description=f"The stage that runs, or that ended the attempt: one of {', '.join(Stage)}."
    )
    version: VersionView | None = Field(
        None, description="The version that the job makes; searches see the newest active one."
    )
    error_message: str | None = Field(None, description="Why the job failed, or what it waits for.")
    failure_summary: dict[str, int] = Field(
        default_factory=dict, description="Failures by code, over all segments; of a batch, over all documents."
    )
    failures: list[FailureView] = Field(default_factory=list, description="The first 100 failures.")
    document_failures: list[DocumentFailureView] = Field(
        default_factory=list, description="Of a batch: the first 100 documents that failed."
    )
    retry_generation: int = Field(0, description="How often a retry was accepted.")
    attempts: list[AttemptView] = Field(
        default_factory=list, description="The last 20 attempts, oldest first: what failed before a retry, too."
    )
    not_read: NotReadView | None = Field(
        None, description="What of the document is not in the published version; null when all is."
    )
    document_id: UUID | None = Field(None, description="To be sent with an ingest that makes a new version of it.")


class IngestResultItem(BaseModel):
    """What became of one uploaded document."""

    manifest_index: int
    result: Literal["queued", "duplicate"]
    document_id: UUID | None = None
    duplicate_of_document_id: UUID | None = None
    duplicate_of_version_id: UUID | None = None
    duplicate_of_document_title: str | None = None


class IngestResponse(BaseModel):
    """The job that ingests the upload."""

    ingestion_job_id: UUID
    items: list[IngestResultItem]


def summary(job: NarrowJob | NarrowBatch) -> IngestionJobSummaryResponse:
    """Return the entry in a list of a job, or a batch."""
    return _batch_summary(job) if isinstance(job, NarrowBatch) else _job_summary(job)


def _batch_summary(batch: NarrowBatch) -> IngestionJobSummaryResponse:
    status = batch.status
    return IngestionJobSummaryResponse(
        id=UUID(batch.job_id),
        job_type=BATCH_TYPE,
        status=shown_phase(batch),
        knowledge_base_id=UUID(batch.spec.knowledge_base),
        total_documents=len(batch.spec.documents),
        processed_count=status.documents.completed_count if status.documents else 0,
        error_message=complaint(batch),
        progress_pct=float(status.progress_percent),
        created_at=batch.metadata.creation_timestamp,
        updated_at=_updated(batch),
        started_at=status.start_time,
        completed_at=None if batch.retry_pending else status.completion_time,
    )


def _job_summary(job: NarrowJob) -> IngestionJobSummaryResponse:
    status, waiting = job.status, job.retry_pending
    phase, reset = shown_phase(job), starts_over(job)
    return IngestionJobSummaryResponse(
        id=UUID(job.job_id),
        job_type=JOB_TYPE,
        status=phase,
        knowledge_base_id=UUID(job.spec.knowledge_base),
        item_title=job.spec.document.title or None,
        total_documents=1,
        processed_count=int(phase is Phase.COMPLETED),
        error_message=complaint(job),
        progress_pct=0.0 if reset else float(status.progress_percent),
        created_at=job.metadata.creation_timestamp,
        updated_at=_updated(job),
        started_at=None if reset else status.start_time,
        completed_at=None if waiting else status.completion_time,
    )


def page_json(entries: Iterable[bytes], *, next_cursor: str | None) -> bytes:
    """Return a `CursorPage` as JSON, put together from its entries."""
    cursor, more = to_json(next_cursor), to_json(next_cursor is not None)
    return b'{"items":[' + b",".join(entries) + b'],"next_cursor":' + cursor + b',"has_more":' + more + b"}"


def progress(job: IngestionJob | IngestionBatch) -> IngestionJobResponse:
    """Return the progress of a job, or a batch."""
    return _batch_progress(job) if isinstance(job, IngestionBatch) else _job_progress(job)


def _batch_progress(batch: IngestionBatch) -> IngestionJobResponse:
    status, waiting, total = batch.status, batch.retry_pending, len(batch.spec.documents)
    done = status.documents or Documents()
    # Those that a retry is for wait.
    failed, partial = (0, 0) if waiting else (done.failed_count, done.partial_failure_count)
    return IngestionJobResponse(
        id=UUID(batch.job_id),
        job_type=BATCH_TYPE,
        status=shown_phase(batch),
        knowledge_base_id=UUID(batch.spec.knowledge_base),
        total_documents=total,
        completed=done.completed_count,
        failed=failed,
        partial_failure=partial,
        processing=done.processing_count,
        queued=max(0, total - done.completed_count - failed - partial - done.processing_count),
        progress_pct=float(status.progress_percent),
        created_at=batch.metadata.creation_timestamp,
        updated_at=_updated(batch),
        started_at=status.start_time,
        completed_at=None if waiting else status.completion_time,
        error_message=complaint(batch),
        failure_summary={} if waiting else status.failure_summary,
        # A status that was brought back by hand may speak of documents that are not there.
        document_failures=[
            _document_failure(batch, failure) for failure in status.failures if not waiting and failure.index < total
        ],
        retry_generation=batch.spec.retry_generation,
    )


def _document_failure(batch: IngestionBatch, failure: DocumentFailure) -> DocumentFailureView:
    document = batch.spec.documents[failure.index]
    return DocumentFailureView(
        manifest_index=failure.index,
        document_id=UUID(document.id),
        title=document.title or None,
        code=failure.code,
        message=failure.message,
    )


def _job_progress(job: IngestionJob) -> IngestionJobResponse:
    status, waiting = job.status, job.retry_pending
    phase, reset = shown_phase(job), starts_over(job)
    segments = None if reset else status.segments
    return IngestionJobResponse(
        id=UUID(job.job_id),
        job_type=JOB_TYPE,
        status=phase,
        knowledge_base_id=UUID(job.spec.knowledge_base),
        total_documents=1,
        completed=int(phase is Phase.COMPLETED),
        failed=int(phase is Phase.FAILED),
        partial_failure=int(phase is Phase.PARTIAL_FAILURE),
        processing=int(phase is Phase.PROCESSING),
        queued=int(phase is Phase.QUEUED),
        segment_count=(segments.total or None) if segments else None,
        processed_segments=segments.completed_count if segments else 0,
        progress_pct=0.0 if reset else float(status.progress_percent),
        created_at=job.metadata.creation_timestamp,
        updated_at=_updated(job),
        started_at=None if reset else status.start_time,
        completed_at=None if waiting else status.completion_time,
        stage=None if waiting else status.stage,
        version=_version(status.version, waiting=waiting),
        error_message=complaint(job),
        failure_summary={} if waiting else status.failure_summary,
        failures=[] if waiting else [FailureView.of(failure) for failure in status.failures],
        retry_generation=job.spec.retry_generation,
        attempts=[AttemptView.of(attempt) for attempt in status.attempts],
        not_read=NotReadView(**status.not_read.model_dump()) if status.not_read else None,
        document_id=UUID(job.spec.document.id),
    )


def _version(version: Version | None, *, waiting: bool) -> VersionView | None:
    if version is None:
        return None
    state = VersionState.PENDING if waiting else version.state
    return VersionView(id=version.id, number=version.number, state=state)


def complaint(job: AnyJob) -> str | None:
    """Return what needs a person, or what an open job waits for; None of an attempt that is to be retried."""
    ended = job.status.phase in TERMINAL_PHASES
    if job.retry_pending and ended:
        return None  # the operator has not looked at the retry yet
    conditions = {condition.type: condition for condition in job.status.conditions}
    stalled, reconciling = conditions.get(ConditionType.STALLED), conditions.get(ConditionType.RECONCILING)
    if stalled is not None and stalled.status == "True":
        return stalled.message or None
    if reconciling is not None and reconciling.status == "False" and not ended:
        return reconciling.message or None
    return None


def _updated(job: AnyJob) -> datetime:
    status = job.status
    moments = [condition.last_transition_time for condition in status.conditions]
    moments += [status.start_time, status.completion_time]
    return max([job.metadata.creation_timestamp, *(moment for moment in moments if moment)])
