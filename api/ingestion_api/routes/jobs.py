"""Progress, lists and retries of ingestion jobs."""

from __future__ import annotations

import base64
import json
import re
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from ingestion_crds.batch import IngestionBatch
from ingestion_crds.constants import Phase
from ingestion_crds.kube import ApiError
from ingestion_crds.retry import Retryable

from ingestion_api.auth import BEARER, Caller, KeyedRoute, Principal
from ingestion_api.documents import IngestionJobDocumentResponse, document_view, document_views
from ingestion_api.idempotency import key_digest
from ingestion_api.job_index import Place
from ingestion_api.problems import bad_request, still_listing
from ingestion_api.routes.responses import BAD_REQUEST, NOT_FOUND, UNAUTHORIZED, UNAVAILABLE
from ingestion_api.services import services_of
from ingestion_api.stores import tenant_of
from ingestion_api.views import (
    CursorPage,
    IngestionJobResponse,
    IngestionJobSummaryResponse,
    page_json,
    progress,
)

TAG: Final = "knowledge-base"
_NUMBER: Final = re.compile(r"^[0-9]{1,6}$")
router = APIRouter(prefix="/v1/knowledge-base", tags=[TAG], route_class=KeyedRoute)


@router.post(
    "/ingestion-jobs/{job_id}/retry",
    operation_id="retryIngestionJob",
    summary="Retry a failed ingestion job",
    description=(
        "Run what failed of a job again: the failed segments of a segmented job and nothing else, or a single-pass"
        " job from a fresh ``prepare_document``.\n\nThe answer comes once the retry is recorded; follow it with"
        " ``GET /ingestion-jobs/{job_id}``. Requests at the same time make one retry, and one that is sent again with"
        " its ``Idempotency-Key`` makes none."
    ),
    status_code=202,
    response_model=None,
    # These, no header and no bearer token, to the letter: they are those of the API that the operation is compatible
    # with. Both are taken.
    responses={202: {"content": {"application/json": {"schema": {}}}}, **BAD_REQUEST, **UNAUTHORIZED, **NOT_FOUND},
)
async def retry_ingestion_job(
    request: Request,
    job_id: UUID,
    caller: Caller,
) -> dict[str, str]:
    """Record a retry.

    Raises:
        ProblemError: 400 in a namespace that is no tenant any more, else as `Retries.accept`.
    """
    key = key_digest(request.headers.get("idempotency-key"))
    job = await _find(request, caller, job_id)
    parts = services_of(request)
    try:
        await parts.retries.accept(caller=caller, job=job, key=key)
    except ApiError as error:
        if error.status == 403:  # the API may write in tenants' namespaces alone
            tenant_of(parts.config, namespace=caller.namespace)
        raise
    return {"job_id": str(job_id)}


@router.get(
    "/ingestion-jobs/{job_id}",
    operation_id="getIngestionJobProgress",
    summary="Get the progress of an ingestion job",
    description="The job as it is now. After a retry's 202 it shows ``queued`` until the retry begins.",
    dependencies=[BEARER],
    responses={**BAD_REQUEST, **UNAUTHORIZED, **NOT_FOUND, **UNAVAILABLE},
)
async def get_ingestion_job_progress(request: Request, job_id: UUID, caller: Caller) -> IngestionJobResponse:
    """Return a job's progress."""
    return progress(await _find(request, caller, job_id))


@router.get(
    "/knowledge-bases/{kb_id}/ingestion-jobs",
    operation_id="listIngestionJobs",
    summary="List the ingestion jobs of a knowledge base",
    description="Newest first. ``status`` keeps one phase; ``cursor`` is the ``next_cursor`` of the page before.",
    response_model=CursorPage[IngestionJobSummaryResponse],
    dependencies=[BEARER],
    responses={**BAD_REQUEST, **UNAUTHORIZED, **NOT_FOUND, **UNAVAILABLE},
)
async def list_ingestion_jobs(
    request: Request,
    kb_id: UUID,
    caller: Caller,
    status: Annotated[str | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query()] = None,
) -> Response:
    """Return one page of jobs.

    Raises:
        ProblemError: 400 for a phase or a cursor that is none; 503 until all jobs are listed.
    """
    index = services_of(request).index
    if not index.synced:
        raise still_listing()
    jobs, last = index.page(
        namespace=caller.namespace,
        knowledge_base=str(kb_id),
        phase=_phase(status),
        limit=limit,
        before=_place(cursor),
    )
    page = page_json((job.entry for job in jobs), next_cursor=_cursor(last))
    return Response(page, media_type="application/json")


@router.get(
    "/ingestion-jobs/{job_id}/documents",
    operation_id="listIngestionJobDocuments",
    summary="List the documents of an ingestion job",
    description="In the order of the files of its ingest: those of a batch, or the one of a job. ``cursor`` is the"
    " ``next_cursor`` of the page before.",
    dependencies=[BEARER],
    responses={**BAD_REQUEST, **UNAUTHORIZED, **NOT_FOUND, **UNAVAILABLE},
)
async def list_ingestion_job_documents(
    request: Request,
    job_id: UUID,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Annotated[str | None, Query()] = None,
) -> CursorPage[IngestionJobDocumentResponse]:
    """Return one page of documents.

    Raises:
        ProblemError: 400 for a cursor that is none; 503 until all jobs are listed; else as `Jobs.find`.
    """
    first = _number(cursor)
    job = await _find(request, caller, job_id)
    index = services_of(request).index
    if not isinstance(job, IngestionBatch):
        place = index.document_place(namespace=caller.namespace, job_id=job.job_id)
        return CursorPage(items=[] if first else [document_view(job, index=place)], has_more=False)
    if not index.synced:
        raise still_listing()
    entries = index.documents(namespace=caller.namespace, batch=job.metadata.uid)
    end = min(first + limit, len(job.spec.documents))
    items = document_views(job, entries=entries, places=range(first, end))
    more = end < len(job.spec.documents)
    return CursorPage(items=items, next_cursor=str(end) if more else None, has_more=more)


async def _find(request: Request, caller: Principal, wanted: UUID) -> Retryable:
    """Return a job of the caller's namespace, and name it in the request's log line."""
    request.state.job_id = str(wanted)
    job = await services_of(request).jobs.find(namespace=caller.namespace, wanted=wanted)
    request.state.job = job.key
    return job


def _phase(text: str | None) -> Phase | None:
    if text is None:
        return None
    try:
        return Phase(text)
    except ValueError:
        raise bad_request(f"status: {text[:64]!r} is none of {', '.join(Phase)}") from None


def _cursor(place: Place | None) -> str | None:
    return None if place is None else base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _place(cursor: str | None) -> Place | None:
    if cursor is None:
        return None
    try:
        value: Any = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        moment, uid = value
        return float(moment), str(uid)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise bad_request("cursor: not a next_cursor of this list") from None


def _number(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not _NUMBER.match(cursor):
        raise bad_request("cursor: not a next_cursor of this list")
    return int(cursor)
