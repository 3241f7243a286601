"""Retries that are asked for by annotation: what the patch changes that answers one."""

from __future__ import annotations

import json
from typing import TypedDict

from ingestion_crds import JsonObject, retry
from ingestion_crds import constants as names
from ingestion_crds.constants import Reason, Trigger
from ingestion_crds.job import IngestionJob
from ingestion_crds.retry import Retryable

from ingestion_operator.actions import Event


class Answer(TypedDict):
    """A JSON patch of the object that carries the annotation, and what to say once it is made."""

    operations: tuple[JsonObject, ...]
    told: Event | None


def answer(job: Retryable, token: str) -> Answer:
    """Return what marks a token handled, and raises the generation if a retry is admitted.

    Args:
        job: the IngestionJob or IngestionBatch.
        token: the annotation's value.
    """
    mark = {"op": "add", "path": _annotation_path(names.ANNOTATION_RETRY_HANDLED), "value": token}
    why_not = retry.why_not(job)
    if why_not is not None:
        told = Event(reason=Reason.RETRY_REFUSED, message=f"Retry refused: {why_not}", warning=True)
        return Answer(operations=(mark,), told=told)
    generation = job.spec.retry_generation + 1
    origin = json.dumps({"generation": generation, "trigger": Trigger.ANNOTATION.value})
    operations: list[JsonObject] = [
        mark,
        {"op": "add", "path": _annotation_path(names.ANNOTATION_RETRY_ORIGIN), "value": origin},
        {"op": "replace", "path": "/spec/retryGeneration", "value": generation},
    ]
    if isinstance(job, IngestionJob) and job.spec.retry_segments is not None:
        operations.append({"op": "remove", "path": "/spec/retrySegments"})
    return Answer(operations=tuple(operations), told=None)


def _annotation_path(name: str) -> str:
    return "/metadata/annotations/" + name.replace("~", "~0").replace("/", "~1")
