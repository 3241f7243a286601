"""Version numbers: each job gets one, once, however often and however concurrently its pods ask."""

from __future__ import annotations

import json
from typing import Final

from ingestion_worker import layout
from ingestion_worker.history import sequence_of
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import ObjectMissingError, Store

MAX_TRIES: Final = 1000


def claim_number(*, store: Store, knowledge_base: str, document_id: str, job_uid: str) -> int:
    """Return the job's version number, claiming the next free one if it has none.

    Two create-only objects: the number's (so that no two jobs share one) and the job's (so that a job has one). A crash
    between the two leaves a number that its job takes up again, or that nobody has: numbers may have gaps.

    Args:
        store: the tenant's store.
        knowledge_base: its UUID.
        document_id: the document's UUID.
        job_uid: the IngestionJob's.

    Raises:
        WorkerError: StoreUnavailable, also when other jobs were faster each time, or the store writes over what is
            there; StoreForbidden.
        ObjectMissingError: a number was deleted from outside after it was listed.
    """
    claim = layout.claim_key(knowledge_base=knowledge_base, document_id=document_id, job_uid=job_uid)
    prefix = layout.numbers_prefix(knowledge_base=knowledge_base, document_id=document_id)
    owner = json.dumps({"jobUID": job_uid}).encode()
    for _ in range(MAX_TRIES):
        held = _held(store=store, claim=claim)
        if held is not None:
            return held
        newest = max((sequence_of(key=entry.key) for entry in store.list(prefix=prefix)), default=0)
        newest_key = layout.number_key(knowledge_base=knowledge_base, document_id=document_id, number=newest)
        number = newest
        if newest == 0 or store.get(key=newest_key) != owner:
            number = newest + 1
            key = layout.number_key(knowledge_base=knowledge_base, document_id=document_id, number=number)
            if not store.create(key=key, data=owner):
                continue
            # What publishing relies on, each job tries once: this is there, and has other bytes.
            if store.create(key=key, data=owner + b"\n"):
                raise WorkerError(
                    "StoreUnavailable", "the store ignores If-None-Match: *, so a version could replace a newer one"
                )
        store.create(key=claim, data=json.dumps({"number": number}).encode())
        # Read it back: of two pods of this job that claimed two numbers, the first to get here decided for both.
        held = _held(store=store, claim=claim)
        if held is not None:
            return held
    raise WorkerError("StoreUnavailable", f"could not claim a version number for document {document_id}")


def _held(*, store: Store, claim: str) -> int | None:
    try:
        return int(json.loads(store.get(key=claim))["number"])
    except ObjectMissingError:
        return None
