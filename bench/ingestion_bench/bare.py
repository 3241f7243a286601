"""What a retry comes to without the product: the same patch, ConfigMap and Indexed Job, sent by hand."""

from __future__ import annotations

import copy
from typing import Final

from ingestion_crds import JsonObject, retry
from ingestion_crds import constants as names
from ingestion_crds.constants import Trigger
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import MERGE_PATCH, ingestion_path
from ingestion_operator.actions import CreateChild

from ingestion_bench.past import next_child
from ingestion_bench.stand import Stand, fresh_name

LABEL: Final = "bench"


def bare_child(stand: Stand, job: IngestionJob) -> CreateChild:
    """Return what the next retry of a failed job would create, under a new name and nobody's.

    The operator does not see it: it has neither its labels nor an owner, but the label `bench` with its name.
    """
    child = copy.deepcopy(next_child(job, config=stand.config))
    name = fresh_name("bare")
    for body in (child.config_map, child.body):
        _disown(body["metadata"], name)
        del body["metadata"]["ownerReferences"]
        body["metadata"]["name"] = name
    template = child.body["spec"]["template"]
    _disown(template["metadata"], name)
    (volume,) = (volume for volume in template["spec"]["volumes"] if "configMap" in volume)
    volume["configMap"]["name"] = name
    return child


def retry_patch(live: JsonObject) -> JsonObject:
    """Return what the API sends for a retry of a job as it is now."""
    generation = live["spec"]["retryGeneration"] + 1
    origin = retry.origin(generation=generation, trigger=Trigger.REST, requested_by="key:abcdefghij")
    return {
        "metadata": {
            "resourceVersion": live["metadata"]["resourceVersion"],
            "annotations": {names.ANNOTATION_RETRY_ORIGIN: origin},
        },
        "spec": {"retryGeneration": generation, "retrySegments": None},
    }


async def ask(stand: Stand, job: IngestionJob) -> JsonObject:
    """Ask for the first retry of a job that is as it was read, and return it as it is then."""
    live = {"metadata": {"resourceVersion": job.metadata.resource_version}, "spec": {"retryGeneration": 0}}
    return await _patch(stand, job, live)


async def get_and_ask(stand: Stand, job: IngestionJob) -> None:
    """Ask for a retry of a job, whatever it is like now."""
    await _patch(stand, job, await stand.get(job.metadata.name))


async def _patch(stand: Stand, job: IngestionJob, live: JsonObject) -> JsonObject:
    path = ingestion_path(stand.namespace, job.metadata.name)
    return await stand.kube.request("PATCH", path, body=retry_patch(live), content_type=MERGE_PATCH)


def _disown(metadata: JsonObject, name: str) -> None:
    metadata["labels"] = {LABEL: name}
