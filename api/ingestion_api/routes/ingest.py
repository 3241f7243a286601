"""Uploads: documents stream into the tenant's bucket, then a job is made for one, or a batch for several."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request
from ingestion_crds.batch import MAX_DOCUMENTS_TEXT_BYTES
from ingestion_crds.constants import MAX_DOCUMENTS, MAX_TITLE_LENGTH, Mode
from ingestion_crds.job import Document, Source
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store, Upload, put_upload
from pydantic import ValidationError

from ingestion_api.auth import BEARER, Caller, KeyedRoute
from ingestion_api.forms import DocumentFields, IngestForm, document_of, read_form, words
from ingestion_api.idempotency import KEY_PATTERN, key_digest
from ingestion_api.jobs import JobUnknownError, Making
from ingestion_api.middleware import content_length
from ingestion_api.problems import bad_request, too_large, unavailable
from ingestion_api.routes.jobs import TAG
from ingestion_api.routes.responses import BAD_REQUEST, BODY_REFUSED, BUSY, NOT_FOUND, UNAUTHORIZED, UNAVAILABLE
from ingestion_api.services import Services, services_of
from ingestion_api.stores import from_worker_error
from ingestion_api.upload import FilePart, MultipartReader
from ingestion_api.views import IngestResponse, IngestResultItem

# Boundaries, part headers and fields around the files.
_FORM_BYTES: Final = 5 * 1024 * 1024
TOTAL_FACTOR: Final = 4
"""All files of one request are so many times as large as one may be: it is one connection, which a roll-out of the API
or a bad line cuts, and 4 GiB take six minutes at 100 Mbit/s."""
_DELETES: Final = 16
router = APIRouter(prefix="/v1/knowledge-base", tags=[TAG], route_class=KeyedRoute)

_IDEMPOTENCY_KEY: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "A request that is sent again with the same one makes nothing new.",
    "schema": {"type": "string", "pattern": KEY_PATTERN},
}
_BODY: Final[dict[str, Any]] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "title": {
                        "type": "string",
                        "maxLength": MAX_TITLE_LENGTH,
                        "description": "Shown with search results.",
                    },
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
                    "manifest": {
                        "type": "string",
                        "description": "JSON: of each file, in their order, an object with its `title` and"
                        " `document_id`, either of which may be left out.",
                    },
                    "file": {
                        "type": "array",
                        "items": {"type": "string", "format": "binary"},
                        "minItems": 1,
                        "maxItems": MAX_DOCUMENTS,
                        "description": "The document; several of them, each a part of its own, are one batch.",
                    },
                },
            }
        }
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A file that is in the tenant's bucket."""

    part: FilePart
    document_id: str
    upload: Upload


@router.post(
    "/knowledge-bases/{kb_id}/ingest",
    operation_id="bulkIngest",
    summary="Ingest documents",
    description="One document, or several as one batch; fields that come before a file are checked before it is read."
    " The documents stream into the tenant's bucket; the answer comes once their job is recorded, and its items are"
    " in the order of the files. A request that is sent again with its ``Idempotency-Key`` makes nothing new while its"
    " job is there.",
    status_code=202,
    dependencies=[BEARER],
    responses={**BAD_REQUEST, **UNAUTHORIZED, **NOT_FOUND, **BODY_REFUSED, **BUSY, **UNAVAILABLE},
    openapi_extra={"parameters": [_IDEMPOTENCY_KEY], "requestBody": _BODY},
)
async def bulk_ingest(request: Request, kb_id: UUID, caller: Caller) -> IngestResponse:
    """Store uploads and make their job.

    Raises:
        ProblemError: 400 for a wrong form or options; 413 for a file that is too large; 429 for too many uploads; 503
            when store or API server does not answer.
    """
    parts = services_of(request)
    key = key_digest(request.headers.get("idempotency-key"))
    making = Making.of(namespace=caller.namespace, knowledge_base=str(kb_id), key=key)
    most = TOTAL_FACTOR * parts.config.max_source_bytes
    announced = content_length(request.scope)
    if announced is not None and announced > most + _FORM_BYTES:
        raise too_large(f"file: at most {most} bytes are taken in one request")
    store = await parts.stores.of(namespace=caller.namespace)
    if (made := await parts.jobs.made(making)) is not None:
        return _answer(request, caller.namespace, making, made)
    async with parts.uploads.one(namespace=caller.namespace):
        reader = MultipartReader(request=request, stall_seconds=parts.options.stall_seconds)
        stored: list[_Stored] = []
        try:
            form = await _store(parts, store, reader, making, stored)
            documents = [_document(form.fields_of(index), each) for index, each in enumerate(stored)]
            made = await parts.jobs.create(making, documents, form.chosen())
        except JobUnknownError:
            raise  # the job may exist, and needs its files
        except ValidationError as error:
            await _remove(store, stored)
            raise bad_request(words(error, "")) from error
        except (Exception, asyncio.CancelledError):
            await _remove(store, stored)
            raise
    if _places(made) != _places(documents):
        await _remove(store, stored)
    return _answer(request, caller.namespace, making, made)


async def _store(
    parts: Services, store: Store, reader: MultipartReader, making: Making, stored: list[_Stored]
) -> IngestForm:
    """Read the form to its end, and store its files.

    Args:
        parts: the connected parts.
        store: the tenant's.
        reader: of the form.
        making: what is to be made of it.
        stored: is given each file once it is stored.

    Raises:
        ProblemError: the form, or a file, is not taken; what is in `stored` is to be removed.
    """
    room, text = TOTAL_FACTOR * parts.config.max_source_bytes, 0
    read, form = -1, read_form({})
    while (part := await reader.next_file()) is not None:
        if len(stored) == MAX_DOCUMENTS:
            raise bad_request(f"file: at most {MAX_DOCUMENTS} documents are taken in one request")
        if len(reader.fields) != read:
            # What is wrong with them is said before the file is sent.
            read, form = len(reader.fields), read_form(reader.fields)
        form.check_own(files=len(stored) + 1)
        if len(stored) == 1:
            await parts.jobs.check_quota(making, _document(form.fields_of(0), stored[0]))
        fields = form.fields_of(len(stored))
        document_id = str(fields.document_id or uuid.uuid4())
        upload = await _store_one(parts, store, reader, making.namespace, part, document_id, room)
        parts.metrics.upload_bytes.inc(upload.size)
        stored.append(_Stored(part=part, document_id=document_id, upload=upload))
        room -= upload.size
        title = (fields.title or part.name)[:MAX_TITLE_LENGTH]
        text += len(title.encode()) + len(upload.uri) + len(part.content_type or "")
        if stored[1:] and text > MAX_DOCUMENTS_TEXT_BYTES:
            told = f"titles, types and places of all files have more than {MAX_DOCUMENTS_TEXT_BYTES} bytes"
            raise bad_request(f"file: {told}; send them in several requests")
    if not stored:
        raise bad_request("file: the form has none; send the document as a part with a file name")
    if len(reader.fields) != read:
        form = read_form(reader.fields)
    form.check(files=len(stored))
    return form


async def _store_one(
    parts: Services, store: Store, reader: MultipartReader, namespace: str, part: FilePart, document_id: str, room: int
) -> Upload:
    limit = parts.config.max_source_bytes
    try:
        return await put_upload(
            store=store,
            document_id=document_id,
            file_name=part.name,
            chunks=reader.file(),
            max_bytes=min(limit, room),
        )
    except WorkerError as error:
        if error.code == "DocumentTooLarge" and room < limit:
            raise too_large(f"file: at most {TOTAL_FACTOR * limit} bytes are taken in one request") from error
        if error.code == "StoreForbidden":
            await parts.stores.of(namespace=namespace, refresh=True)  # for the next one
            raise unavailable(str(error)) from error
        raise from_worker_error(error) from error


def _document(fields: DocumentFields, stored: _Stored) -> Document:
    upload = stored.upload
    return document_of(
        fields,
        document_id=stored.document_id,  # the file stays where it is, whatever came after it
        file_name=stored.part.name,
        source=Source(uri=upload.uri, sha256=upload.sha256, content_type=stored.part.content_type),
    )


def _places(documents: Sequence[Document]) -> list[str]:
    return [document.source.uri for document in documents]


async def _remove(store: Store, stored: Sequence[_Stored]) -> None:
    """Delete files that no job will read, to the end even if this is cancelled; what went wrong first is the answer."""
    await asyncio.to_thread(_delete, store, [each.upload.key for each in stored])


def _delete(store: Store, keys: Sequence[str]) -> None:
    """Delete objects, a group at the same time; a store that fails with all of a group is left alone."""
    with ThreadPoolExecutor(_DELETES) as threads:
        for first in range(0, len(keys), _DELETES):
            deletes = [threads.submit(store.delete, key=key) for key in keys[first : first + _DELETES]]
            if all(delete.exception() is not None for delete in deletes):
                return


def _answer(request: Request, namespace: str, making: Making, documents: Sequence[Document]) -> IngestResponse:
    request.state.job_id = making.name
    request.state.job = f"{namespace}/{making.name}"
    items = [
        IngestResultItem(manifest_index=index, result="queued", document_id=UUID(document.id))
        for index, document in enumerate(documents)
    ]
    return IngestResponse(ingestion_job_id=UUID(making.name), items=items)
