"""Retries that are asked for by annotation: which one is to be answered, and what the patch changes that answers it."""

from __future__ import annotations

from ingestion_crds import JsonObject, retry
from ingestion_crds import constants as names
from ingestion_crds.constants import MAX_RETRY_TOKEN_LENGTH, Reason, Trigger
from ingestion_crds.job import IngestionJob
from ingestion_crds.retry import Retryable

from ingestion_operator.actions import AnswerAnnotation, Event


def is_open(job: Retryable) -> bool:
    """True while a retry is asked for that the status does not tell as dealt with."""
    token = _token_of(job)
    return token not in ("", job.status.last_handled_retry_request)


def _token_of(job: Retryable) -> str:
    """Return the token of the retry that is asked for, empty if none was ever."""
    return job.metadata.annotations.get(names.ANNOTATION_RETRY_REQUESTED, "")[:MAX_RETRY_TOKEN_LENGTH]


def unanswered(job: Retryable, *, answered: str) -> tuple[str, str]:
    """Return the token that is to be answered, and the one that is to be recorded as handled; empty for none.

    A token counts as handled by its mark until the status has it. That somebody has taken the mark off then is no
    reason to answer it again.

    Args:
        job: the IngestionJob or IngestionBatch.
        answered: the token that has just been answered, whether its mark is there or not.
    """
    token = _token_of(job)
    handled = answered or job.metadata.annotations.get(names.ANNOTATION_RETRY_HANDLED, "")[:MAX_RETRY_TOKEN_LENGTH]
    if not token or token == handled:
        return "", handled
    return (token if is_open(job) else ""), ""


def answer(job: Retryable, token: str) -> AnswerAnnotation:
    """Return what marks a token handled, and raises the generation if a retry is admitted.

    Args:
        job: the IngestionJob or IngestionBatch.
        token: the annotation's value.
    """
    mark = {"op": "add", "path": _annotation_path(names.ANNOTATION_RETRY_HANDLED), "value": token}
    why_not = retry.why_not(job)
    if why_not is not None:
        told = Event(reason=Reason.RETRY_REFUSED, message=f"Retry refused: {why_not}", warning=True)
        return AnswerAnnotation(token=token, operations=(mark,), told=(told,))
    generation = job.spec.retry_generation + 1
    origin = retry.origin(generation=generation, trigger=Trigger.ANNOTATION)
    operations: list[JsonObject] = [
        mark,
        {"op": "add", "path": _annotation_path(names.ANNOTATION_RETRY_ORIGIN), "value": origin},
        {"op": "replace", "path": "/spec/retryGeneration", "value": generation},
    ]
    if isinstance(job, IngestionJob) and job.spec.retry_segments is not None:
        operations.append({"op": "remove", "path": "/spec/retrySegments"})
    return AnswerAnnotation(token=token, operations=tuple(operations))


def _annotation_path(name: str) -> str:
    return "/metadata/annotations/" + name.replace("~", "~0").replace("/", "~1")
