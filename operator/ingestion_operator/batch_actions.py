"""What the plan of a batch asks for: changes of the cluster."""

from __future__ import annotations

from dataclasses import dataclass

from ingestion_crds import JsonObject

from ingestion_operator.actions import AnswerAnnotation


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateDocumentJob:
    """Create the IngestionJob of a document, whose JSON `body` is."""

    index: int
    body: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchDocumentJob:
    """Merge into the spec, and the annotations, of a document's IngestionJob.

    Args:
        index: the document's.
        name: the job's.
        body: a merge patch. Of a retry, what each field is to be: it is merged into the job as it is found then.
        retries: the generation that the patch raises the job from; None if it does not.
        cancels: the generation that it cancels; None if it does not.
    """

    index: int
    name: str
    body: JsonObject
    retries: int | None = None
    cancels: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteBatch:
    """Delete the IngestionBatch: its time to live is over. The garbage collector takes its jobs."""

    uid: str


BatchAction = CreateDocumentJob | PatchDocumentJob | AnswerAnnotation | DeleteBatch
