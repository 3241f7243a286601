"""Uploads: a document streams into the tenant's bucket, then a job is made for it."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request
from ingestion_crds.constants import Mode
from ingestion_crds.job import (
    BackoffLimit,
    Count,
    Deadline,
    Document,
    Model,
    Parallelism,
    Pipeline,
    Segmentation,
    Source,
    Spec,
    TimeToLive,
)
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import put_upload
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from ingestion_api.auth import Caller
from ingestion_api.jobs import JobUnknownError
from ingestion_api.middleware import content_length
from ingestion_api.problems import bad_request, too_large
from ingestion_api.routes.jobs import TAG
from ingestion_api.routes.responses import BAD_REQUEST, NOT_FOUND, UNAUTHORIZED
from ingestion_api.services import services_of
from ingestion_api.stores import from_worker_error
from ingestion_api.upload import FilePart, MultipartReader
from ingestion_api.views import IngestResponse, IngestResultItem

# Boundaries, part headers and fields around the file.
_FORM_BYTES: Final = 1024 * 1024
router = APIRouter(prefix="/v1/knowledge-base", tags=[TAG])


class IngestOptions(Model):
    """What a client may choose of a job: the field `options`, a JSON object. Names and bounds are those of `Spec`.

    As in a resource, null is the default. The pod template is left out: who has an API key must not choose what runs in
    the cluster.
    """

    mode: Mode | None = None
    segmentation: Segmentation | None = None
    pipeline: Pipeline | None = None
    parallelism: Parallelism | None = None
    segment_backoff_limit: BackoffLimit | None = None
    max_failed_segments: Count | None = None
    active_deadline_seconds: Deadline | None = None
    ttl_seconds_after_finished: TimeToLive | None = None

    @field_validator("pipeline")
    @classmethod
    def overlap_is_smaller(cls, pipeline: Pipeline | None) -> Pipeline | None:
        """Refuse, before a file is sent, what the CRD's own rule refuses after it."""
        if pipeline is not None and pipeline.chunk_overlap >= pipeline.chunk_size:
            told = f"chunkOverlap ({pipeline.chunk_overlap}) must be less than chunkSize ({pipeline.chunk_size})"
            raise PydanticCustomError("overlap", told)
        return pipeline


class IngestForm(BaseModel):
    """The fields of the form."""

    model_config = ConfigDict(extra="forbid")

    title: str | None = Field(None, max_length=512)
    document_id: UUID | None = None
    mode: Mode | None = None
    options: str | None = None


_BODY: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "title": {"type": "string", "maxLength": 512, "description": "Shown with search results."},
                    "document_id": {
                        "type": "string",
                        "format": "uuid",
                        "description": "Makes a new version of this document; a new document when left out.",
                    },
                    "mode": {"type": "string", "enum": [mode.value for mode in Mode]},
                    "options": {
                        "type": "string",
                        "description": "JSON: parts of the job's spec; see docs/rest-api.md.",
                    },
                    "file": {"type": "string", "format": "binary", "description": "The document."},
                },
            }
        }
    },
}


@router.post(
    "/knowledge-bases/{kb_id}/ingest",
    operation_id="bulkIngest",
    summary="Ingest a document",
    description="One document for each request; fields that come before the file are checked before it is read. The"
    " document streams into the tenant's bucket; the answer comes once its job is recorded.",
    status_code=202,
    responses={**BAD_REQUEST, **UNAUTHORIZED, **NOT_FOUND},
    openapi_extra={"requestBody": _BODY},
)
async def bulk_ingest(request: Request, kb_id: UUID, caller: Caller) -> IngestResponse:
    """Store an upload and make its job.

    Raises:
        ProblemError: 400 for a wrong form or options; 413 for a file that is too large; 429 for too many uploads; 503
            when store or API server does not answer.
    """
    parts = services_of(request)
    limit = parts.config.max_source_bytes
    announced = content_length(request.scope)
    if announced is not None and announced > limit + _FORM_BYTES:
        raise too_large(f"file: at most {limit} bytes are taken")
    store = await parts.stores.of(namespace=caller.namespace)
    async with parts.uploads.one(namespace=caller.namespace):
        reader = MultipartReader(request=request, stall_seconds=parts.options.stall_seconds)
        file = await reader.next_file()
        if file is None:
            raise bad_request("file: the form has none; send the document as a part with a file name")
        form, _ = _read(reader.fields)  # what is wrong with them is said before the file is sent
        document_id = str(form.document_id or uuid.uuid4())
        try:
            upload = await put_upload(
                store=store, document_id=document_id, file_name=file.name, chunks=reader.file(), max_bytes=limit
            )
        except WorkerError as error:
            if error.code == "StoreForbidden":
                await parts.stores.of(namespace=caller.namespace, refresh=True)
            raise from_worker_error(error) from error
        parts.metrics.upload_bytes.inc(upload.size)
        try:
            if await reader.next_file() is not None:
                raise bad_request("file: one document for each request; send the others in requests of their own")
            form, options = _read(reader.fields)
            document_id = str(form.document_id or document_id)  # the file stays where it is
            source = Source(uri=upload.uri, sha256=upload.sha256, content_type=file.content_type)
            spec = _spec(str(kb_id), document_id, form, options, file, source)
            job_id = await parts.jobs.create(namespace=caller.namespace, spec=spec)
        except JobUnknownError:
            raise  # the job may exist, and needs its file
        except (Exception, asyncio.CancelledError):
            with contextlib.suppress(WorkerError):  # what went wrong first is the answer
                await asyncio.to_thread(store.delete, key=upload.key)
            raise
    request.state.job_id = str(job_id)
    request.state.job = f"{caller.namespace}/{job_id}"
    item = IngestResultItem(manifest_index=0, result="queued", document_id=UUID(document_id))
    return IngestResponse(ingestion_job_id=job_id, items=[item])


def _read(fields: dict[str, str]) -> tuple[IngestForm, IngestOptions]:
    try:
        form = IngestForm.model_validate(fields)
    except ValidationError as error:
        raise bad_request(_words(error, "")) from error
    try:
        options = _options(form.options) if form.options else IngestOptions()
    except ValidationError as error:
        raise bad_request(_words(error, "options.")) from error
    return form, options


def _options(text: str) -> IngestOptions:
    """Read `options` as the API server reads a spec: by its own names and types, and nothing that it does not know.

    By themselves the models ignore unknown fields, as a newer release may have written a resource.
    """
    return IngestOptions.model_validate_json(text, strict=True, extra="forbid", by_alias=True, by_name=False)


def _words(error: ValidationError, prefix: str) -> str:
    return "; ".join(f"{prefix}{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())[:2000]


def _spec(
    kb_id: str, document_id: str, form: IngestForm, options: IngestOptions, file: FilePart, source: Source
) -> Spec:
    chosen = options.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
    if form.mode is not None:
        chosen["mode"] = form.mode.value
    document = Document(id=document_id, title=(form.title or file.name or "Untitled")[:512], source=source)
    body = {
        "knowledgeBase": kb_id,
        "document": document.model_dump(mode="json", by_alias=True, exclude_none=True),
        **chosen,
    }
    try:
        return Spec.model_validate(body)
    except ValidationError as error:
        raise bad_request(_words(error, "")) from error
