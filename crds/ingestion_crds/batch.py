"""The IngestionBatch resource: a list of documents, and one IngestionJob for each.

What its models share with those of the IngestionJob is in `ingestion_crds.job`. As there, `ingestion_crds.schema` makes
the CRD from them, and a field's description is what `kubectl explain` says.

A document is known by its place in `spec.documents`, which never changes. Sets of documents are index sets.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from ingestion_crds.constants import (
    MAX_DOCUMENTS,
    MAX_FAILURE_MESSAGE_BYTES,
    MAX_FAILURES,
    MAX_RETRY_TOKEN_LENGTH,
    Mode,
    Phase,
)
from ingestion_crds.digest import name_start
from ingestion_crds.indexset import PATTERN as INDEX_SET_PATTERN
from ingestion_crds.job import (
    CODE_LENGTH,
    INT32_MAX,
    MAX_CODES,
    NAME_PATTERN,
    BackoffLimit,
    Condition,
    Count,
    Deadline,
    Document,
    Model,
    Parallelism,
    Pipeline,
    Resource,
    Segmentation,
    Template,
    Time,
    TimeToLive,
    Uuid,
    is_retry_pending,
    known_conditions,
)

# The longest set of documents holds two of every three, in pairs: of 1,000 that takes 3,000 characters.
DOCUMENT_SET_LENGTH: Final = 4_096
# All titles and places of a batch together, in UTF-8. With what else there is of 1,000 documents, 200 bytes each, and a
# full status, a batch stays under 1 MiB.
MAX_DOCUMENTS_TEXT_BYTES: Final = 2**18
# Of the batch's name in the names of its jobs, which are labels' values and prefixes of other names.
_PREFIX_LENGTH: Final = 40

DocumentCount = Annotated[int, Field(ge=0, le=MAX_DOCUMENTS)]
DocumentSet = Annotated[str, Field(max_length=DOCUMENT_SET_LENGTH, pattern=INDEX_SET_PATTERN)]


# ── spec ──────────────────────────────────────────────────────────────────────────────────────────────────────


class BatchSpec(Model):
    """Which documents are to be ingested, how, and which attempt is wanted."""

    knowledge_base: Uuid = Field(description="UUID of the knowledge base. Immutable.")
    documents: list[Document] = Field(
        min_length=1,
        max_length=MAX_DOCUMENTS,
        description="The documents, each ingested by an IngestionJob of its own. Immutable.",
    )
    mode: Mode = Field(
        Mode.AUTO,
        description="Segmented: a pod for each segment. SinglePass: one pod does everything for a document. "
        "Auto: by each document's size. Immutable.",
    )
    segmentation: Segmentation = Field(
        default_factory=Segmentation,
        description="How a document is cut into segments. Immutable.",
        json_schema_extra={"default": {}},
    )
    pipeline: Pipeline = Field(
        default_factory=Pipeline,
        description="How text becomes searchable chunks. Immutable.",
        json_schema_extra={"default": {}},
    )
    template: Template | None = Field(
        None,
        description="The part of the worker pods that a batch may choose. A document's job is given this, and the four"
        " fields that follow, when it is made and with each retry by the batch.",
    )
    parallelism: Parallelism = Field(10, description="Segments of one document that run at the same time at most.")
    segment_backoff_limit: BackoffLimit = Field(
        3, description="How often the cluster runs a transiently failing segment again within one attempt."
    )
    max_failed_segments: Count | None = Field(
        None,
        description="The attempt of a document stops early once more segments than this have failed; no limit when"
        " absent.",
    )
    active_deadline_seconds: Deadline = Field(
        21_600, description="Seconds that one attempt of one document may run, suspension not counted."
    )
    suspend: bool = Field(
        False, description="True stops the pods of all documents and keeps what is done; false goes on."
    )
    retry_generation: int = Field(
        0,
        ge=0,
        le=INT32_MAX,
        description="The attempt that is wanted. Raise it by one to retry the failed documents of a failed or partially"
        " failed batch.",
    )
    cancel_generation: int | None = Field(
        None, ge=0, le=INT32_MAX, description="Attempts of the batch up to and including this one are stopped."
    )
    ttl_seconds_after_finished: TimeToLive | None = Field(
        None, description="Seconds after which a completed batch is deleted, with its jobs; never when absent."
    )


# ── status ────────────────────────────────────────────────────────────────────────────────────────────────────


class Documents(Model):
    """Which documents are done, and how far the others are."""

    total: DocumentCount = Field(0, description="Documents of the batch.")
    made: DocumentSet = Field(
        "",
        description="Index set of the documents whose jobs have been made. One that is deleted is made again by a retry"
        " of the batch, unless its document is completed.",
    )
    completed: DocumentSet = Field(
        "", description="Index set of the completed documents. They are never processed again."
    )
    failed: DocumentSet = Field(
        "", description="Index set of the documents whose last attempt has failed, in whole or in part."
    )
    queued_count: DocumentCount = Field(0, description="Documents that wait to be processed.")
    processing_count: DocumentCount = Field(0, description="Documents that are being processed.")
    completed_count: DocumentCount = Field(0, description="Documents that are completed.")
    partial_failure_count: DocumentCount = Field(0, description="Documents of which some segments have failed.")
    failed_count: DocumentCount = Field(0, description="Documents that have failed.")
    progress: str = Field("0/0", max_length=16, description="completedCount/total.")


class DocumentFailure(Model):
    """Why a document failed."""

    index: int = Field(ge=0, le=MAX_DOCUMENTS, description="The document's place in spec.documents, from 0.")
    job: str = Field("", max_length=253, pattern=NAME_PATTERN, description="Name of its IngestionJob.")
    code: str = Field(
        max_length=CODE_LENGTH, pattern=NAME_PATTERN, description="A code of docs/error-codes.md, the job's first."
    )
    message: str = Field("", max_length=MAX_FAILURE_MESSAGE_BYTES, description="What happened, at most 200 bytes.")


class BatchStatus(Model):
    """What the operator has recorded. Written by the operator alone."""

    job_id: str | None = Field(None, alias="jobID", max_length=64, description="The batch's id in the REST API.")
    observed_generation: int | None = Field(None, ge=0, description="metadata.generation last acted on.")
    observed_retry_generation: int | None = Field(None, ge=0, description="spec.retryGeneration last acted on.")
    passed_on_generation: int | None = Field(
        None,
        ge=0,
        description="The retryGeneration that all documents' jobs have been given that it is for. Less than"
        " observedRetryGeneration while a retry is being passed on.",
    )
    ended_generation: int | None = Field(
        None,
        ge=0,
        description="The last retryGeneration whose attempt has ended; of that, nothing is cancelled any more.",
    )
    passed_on_suspend: bool | None = Field(
        None,
        description="The value of spec.suspend that all unfinished jobs have been given; absent while it is being"
        " passed on.",
    )
    last_handled_retry_request: str | None = Field(
        None,
        max_length=MAX_RETRY_TOKEN_LENGTH,
        description="The last value of the annotation retry-requested-at that was dealt with.",
    )
    phase: Phase = Field(Phase.QUEUED, description="queued, processing, completed, failed or partial_failure.")
    documents: Documents | None = Field(None, description="Which documents are done, and how far the others are.")
    failures: list[DocumentFailure] = Field(
        default_factory=list, max_length=MAX_FAILURES, description="Why documents failed: the first 100."
    )
    failure_summary: dict[str, Count] = Field(
        default_factory=dict, max_length=MAX_CODES, description="Number of failed documents by code, over all of them."
    )
    start_time: Time | None = Field(None, description="When the first attempt began.")
    completion_time: Time | None = Field(None, description="When the last attempt ended; absent while one runs.")
    progress_percent: int = Field(0, ge=0, le=100, description="0 to 100; 100 only when all documents are completed.")
    conditions: Annotated[list[Condition], BeforeValidator(known_conditions)] = Field(
        default_factory=list,
        max_length=16,
        description="Conditions, kstatus's Ready, Reconciling and Stalled among them.",
    )


class IngestionBatch(Resource):
    """Documents on their way into a knowledge base."""

    spec: BatchSpec
    status: BatchStatus = Field(default_factory=BatchStatus)

    @property
    def retry_pending(self) -> bool:
        """True while a retry is recorded that the operator has not taken up."""
        return is_retry_pending(wanted=self.spec.retry_generation, observed=self.status.observed_retry_generation)


def document_job_name(*, name: str, uid: str, index: int) -> str:
    """Return the name of the IngestionJob of one document.

    The batch's UID is in it, hashed: a batch that is deleted and made again under its name takes over no jobs.

    Args:
        name: the batch's.
        uid: the batch's.
        index: the document's place in `spec.documents`.
    """
    return f"{name_start(name=name, uid=uid, length=_PREFIX_LENGTH)}{index}"
