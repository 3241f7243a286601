"""The annotation that says who has asked for a retry."""

from __future__ import annotations

import pytest
from ingestion_crds import constants as names
from ingestion_crds.constants import Trigger
from ingestion_crds.job import IngestionJob
from ingestion_crds.retry import origin, read_origin
from support.builders import ingestion_job


def asked_for(annotation: str) -> IngestionJob:
    body = ingestion_job(retryGeneration=2)
    metadata = {
        "uid": "11111111-1111-1111-1111-111111111111",
        "creationTimestamp": "2026-10-01T00:00:00Z",
        "annotations": {names.ANNOTATION_RETRY_ORIGIN: annotation},
    }
    return IngestionJob.model_validate({**body, "metadata": {**body["metadata"], **metadata}})


def test_it_is_written_as_releases_before_this_one_read_it() -> None:
    assert origin(generation=2, trigger=Trigger.BATCH) == '{"generation": 2, "trigger": "Batch"}'
    by_rest = origin(generation=2, trigger=Trigger.REST, requested_by="key:k1")
    assert by_rest == '{"generation": 2, "trigger": "REST", "requestedBy": "key:k1"}'


@pytest.mark.parametrize(
    ("annotation", "read"),
    [
        (origin(generation=2, trigger=Trigger.REST, requested_by="key:k1"), (Trigger.REST, "key:k1")),
        (origin(generation=2, trigger=Trigger.ANNOTATION), (Trigger.ANNOTATION, None)),
        (origin(generation=1, trigger=Trigger.REST, requested_by="key:k1"), (Trigger.PATCH, None)),
        ('{"generation": 2, "trigger": "REST", "requestedBy": 7}', (Trigger.REST, None)),
        ('{"generation": 2, "trigger": "Telepathy"}', (Trigger.PATCH, None)),
        ('{"generation": 2, "trigger": {}}', (Trigger.PATCH, None)),
        ('["REST"]', (Trigger.PATCH, None)),
        pytest.param("[" * 4_000, (Trigger.PATCH, None), id="too deep"),
        ("", (Trigger.PATCH, None)),
    ],
)
def test_what_it_does_not_say_of_this_generation_was_a_patch(annotation: str, read: tuple[Trigger, str | None]) -> None:
    assert read_origin(asked_for(annotation)) == read
