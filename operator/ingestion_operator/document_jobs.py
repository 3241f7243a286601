"""The IngestionJobs of a batch: how they are built, how they are read back.

They are read as the API server prints them, as a table of the columns that the CRD has: a row has what a batch asks of
a job, in a hundredth of its bytes.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ingestion_crds import JsonObject, retry
from ingestion_crds import constants as names
from ingestion_crds.batch import IngestionBatch, document_job_name
from ingestion_crds.constants import Phase, Trigger

_PHASES: Final = frozenset(Phase)
_COLUMNS: Final = ("Name", "Phase", "Retries", "Attempt", "Reason", "Error", "Message")
_INDEX: Final = re.compile(r"-(0|[1-9][0-9]{0,3})$")
# What a job takes over from its batch, and may be given anew with a retry.
_SETTINGS: Final = {
    "template",
    "parallelism",
    "segment_backoff_limit",
    "max_failed_segments",
    "active_deadline_seconds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentJob:
    """What a batch asks of an IngestionJob of its own.

    Args:
        index: the document's place in the batch.
        name: the job's.
        phase: as its status says.
        generation: the attempt that is wanted.
        begun: the attempt that was begun last; None before the first.
        reason: what it does, waits for, or failed by.
        code: of its first failure; empty without one.
        message: in words.
    """

    index: int
    name: str
    phase: Phase = Phase.QUEUED
    generation: int = 0
    begun: int | None = None
    reason: str = ""
    code: str = ""
    message: str = ""

    @property
    def ended(self) -> bool:
        """True when the attempt that is wanted is over."""
        return self.phase in names.TERMINAL_PHASES and self.begun is not None and self.begun >= self.generation


def read_table(table: Mapping[str, Any], *, batch: IngestionBatch) -> dict[int, DocumentJob]:
    """Return the batch's jobs by their documents' places; what has another name is none of them.

    Args:
        table: of IngestionJobs, as the API server answers it.
        batch: whose they are.

    Raises:
        LookupError: a column is not there: the CRD is an older one.
    """
    at = {column["name"]: place for place, column in enumerate(table["columnDefinitions"])}
    places = [at[name] for name in _COLUMNS]
    rows = (_read_row([row["cells"][place] for place in places], batch) for row in table["rows"] or ())
    return {job.index: job for job in rows if job is not None}


def _read_row(cells: list[Any], batch: IngestionBatch) -> DocumentJob | None:
    name, phase, generation, begun, reason, code, message = cells
    index = index_of(name, batch=batch)
    if index is None:
        return None
    return DocumentJob(
        index=index,
        name=name,
        phase=Phase(phase) if phase in _PHASES else Phase.QUEUED,
        generation=generation or 0,
        begun=begun,
        reason=reason or "",
        code=code or "",
        message=message or "",
    )


def index_of(name: str, *, batch: IngestionBatch) -> int | None:
    """Return the place of the document that the job of this name ingests; None when it is not the batch's."""
    found = _INDEX.search(name)
    index = int(found[1]) if found else len(batch.spec.documents)
    return index if index < len(batch.spec.documents) and name == name_of(batch, index) else None


def name_of(batch: IngestionBatch, index: int) -> str:
    """Return the name of a document's job."""
    return document_job_name(name=batch.metadata.name, uid=batch.metadata.uid, index=index)


def is_owned(body: Mapping[str, Any], *, batch: IngestionBatch) -> bool:
    """Return whether an IngestionJob's controller is this batch."""
    owners = body["metadata"].get("ownerReferences", [])
    return any(owner.get("controller") and owner.get("uid") == batch.metadata.uid for owner in owners)


def build(batch: IngestionBatch, index: int) -> JsonObject:
    """Return the IngestionJob of a document, the same whenever it is built for one generation of the batch.

    It has no time to live: the batch's is that of all of it, and a job that went before the batch had seen it complete
    would be missed.
    """
    spec = batch.spec
    document = spec.documents[index]
    labels = {
        names.LABEL_BATCH_UID: batch.metadata.uid,
        names.LABEL_BATCH_INDEX: str(index),
        names.LABEL_KNOWLEDGE_BASE: spec.knowledge_base,
        names.LABEL_DOCUMENT: document.id,
    }
    if queue := batch.metadata.labels.get(names.LABEL_QUEUE_NAME):
        labels[names.LABEL_QUEUE_NAME] = queue
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": name_of(batch, index),
            "namespace": batch.metadata.namespace,
            "labels": labels,
            "ownerReferences": [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.BATCH_KIND,
                    "name": batch.metadata.name,
                    "uid": batch.metadata.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "knowledgeBase": spec.knowledge_base,
            "document": document.model_dump(mode="json", by_alias=True, exclude_none=True),
            "mode": spec.mode.value,
            "segmentation": spec.segmentation.model_dump(mode="json", by_alias=True),
            "pipeline": spec.pipeline.model_dump(mode="json", by_alias=True),
            **{name: value for name, value in _settings(batch).items() if value is not None},
            "suspend": spec.suspend,
            "parentGeneration": spec.retry_generation,
        },
    }


def retry_patch(batch: IngestionBatch, job: DocumentJob) -> JsonObject:
    """Return what a failed document's job is to have when it is retried for the batch's generation; None for nothing.

    Both generations are to be written by one patch, and a job admits the next of its own from a failure alone. So when
    it was sent twice, or arrives late, it changes nothing more. One that is suspended by itself stays so.
    """
    generation = job.generation + 1
    origin = retry.origin(generation=generation, trigger=Trigger.BATCH)
    return {
        "metadata": {"annotations": {names.ANNOTATION_RETRY_ORIGIN: origin}},
        "spec": {
            "retryGeneration": generation,
            "retrySegments": None,  # an earlier retry of the job alone may have been cut to a subset
            "parentGeneration": batch.spec.retry_generation,
            **_settings(batch),
        },
    }


def _settings(batch: IngestionBatch) -> JsonObject:
    settings = batch.spec.model_dump(mode="json", by_alias=True, include=_SETTINGS)
    if batch.spec.template is not None:
        settings["template"] = batch.spec.template.model_dump(mode="json", by_alias=True, exclude_none=True)
    return settings
