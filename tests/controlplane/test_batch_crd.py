"""The CRD of IngestionBatches against a real API server: what it does not have in common with that of jobs."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from ingestion_crds import JsonObject
from ingestion_crds.batch import MAX_DOCUMENTS_TEXT_BYTES, IngestionBatch
from ingestion_crds.constants import MAX_DOCUMENTS
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient, batch_path, ingestion_path
from support.builders import ingestion_batch, ingestion_job

pytestmark = pytest.mark.controlplane

URI_LENGTH = 2048


async def create(kube: KubeClient, namespace: str, documents: int = 3, **spec: Any) -> JsonObject:
    body = ingestion_batch(documents=documents, namespace=namespace, **spec)
    return await kube.request("POST", batch_path(namespace), body=body)


async def patch(kube: KubeClient, namespace: str, body: JsonObject, subresource: str = "") -> JsonObject:
    path = batch_path(namespace, "manuals", subresource)
    return await kube.request("PATCH", path, body=body, content_type=MERGE_PATCH)


async def test_defaults_and_a_fresh_status(kube: KubeClient, namespace: str) -> None:
    batch = await create(kube, namespace)
    assert batch["spec"]["parallelism"] == 10
    assert batch["spec"]["documents"][1]["title"] == "Manual 1"
    assert batch["status"]["phase"] == "queued"
    assert IngestionBatch.model_validate(batch).spec.documents[2].source.uri == f"s3://{namespace}/manual-2.pdf"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"documents": 0}, "spec.documents"),
        ({"documents": MAX_DOCUMENTS + 1}, "spec.documents"),
        ({"cancelGeneration": 1}, "cancelGeneration must not be greater than retryGeneration"),
        ({"pipeline": {"chunkSize": 100, "chunkOverlap": 100}}, "chunkOverlap must be less than chunkSize"),
    ],
)
async def test_a_wrong_spec_is_refused_by_name(kube: KubeClient, namespace: str, spec: JsonObject, words: str) -> None:
    with pytest.raises(ApiError, match=words) as refused:
        await create(kube, namespace, **spec)
    assert refused.value.status == 422


async def test_documents_are_neither_added_nor_changed_nor_swapped(kube: KubeClient, namespace: str) -> None:
    documents = (await create(kube, namespace))["spec"]["documents"]
    for others in (documents[:2], documents[::-1], [*documents, documents[0]], [{**documents[0], "title": "B"}]):
        with pytest.raises(ApiError, match="documents is immutable"):
            await patch(kube, namespace, {"spec": {"documents": others}})


def biggest(namespace: str) -> JsonObject:
    """Return as many documents as there may be, with as much text as there may be."""
    share = MAX_DOCUMENTS_TEXT_BYTES // MAX_DOCUMENTS
    body = ingestion_batch(documents=MAX_DOCUMENTS, namespace=namespace)
    for document in body["spec"]["documents"]:
        document["title"] = ""
        document["source"] = {"uri": "s3://team-a/".ljust(share, "x"), "sha256": "0" * 64}
    return body


@pytest.mark.parametrize("applied", [False, True], ids=["created", "applied by the server"])
async def test_the_biggest_batch_fits(kube: KubeClient, namespace: str, *, applied: bool) -> None:
    """Also once all of it has failed."""
    if applied:
        path, query = batch_path(namespace, "manuals"), {"fieldManager": "kubectl"}
        body, content_type = biggest(namespace), "application/apply-patch+yaml"
        await kube.request("PATCH", path, query=query, body=body, content_type=content_type)
    else:
        await kube.request("POST", batch_path(namespace), body=biggest(namespace))
    scattered = ",".join(f"{index}-{index + 1}" for index in range(0, MAX_DOCUMENTS, 3))
    failures = [{"index": 999, "job": "n" * 60, "code": "EmbeddingRejected", "message": "m" * 200}] * 100
    sets = {"total": MAX_DOCUMENTS, "made": f"0-{MAX_DOCUMENTS - 1}", "completed": scattered, "failed": scattered}
    batch = await patch(kube, namespace, {"status": {"documents": sets, "failures": failures}}, "status")
    assert len(orjson.dumps(batch)) < 2**20


async def test_the_biggest_batch_is_too_long_for_the_annotation_of_a_client_side_apply(
    kube: KubeClient, namespace: str
) -> None:
    """So the page says to apply a batch with --server-side."""
    body = biggest(namespace)
    copy = {"kubectl.kubernetes.io/last-applied-configuration": orjson.dumps(body).decode()}
    body["metadata"]["annotations"] = copy
    with pytest.raises(ApiError, match="annotations: Too long"):
        await kube.request("POST", batch_path(namespace), body=body)


async def test_texts_that_are_too_long_together_are_refused(kube: KubeClient, namespace: str) -> None:
    body = ingestion_batch(documents=MAX_DOCUMENTS_TEXT_BYTES // URI_LENGTH + 1, namespace=namespace)
    for document in body["spec"]["documents"]:
        document["source"]["uri"] = "https://example.com/".ljust(URI_LENGTH, "x")
    with pytest.raises(ApiError, match="make several batches"):
        await kube.request("POST", batch_path(namespace), body=body)


async def test_the_parent_s_generation_of_a_job_is_never_lowered(kube: KubeClient, namespace: str) -> None:
    await kube.request("POST", ingestion_path(namespace), body=ingestion_job(namespace=namespace, parentGeneration=2))
    for generation in (1, None):
        with pytest.raises(ApiError, match="parentGeneration cannot be lowered"):
            await kube.request(
                "PATCH",
                ingestion_path(namespace, "handbook"),
                body={"spec": {"parentGeneration": generation}},
                content_type=MERGE_PATCH,
            )
    query = {"fieldSelector": "status.phase!=completed,spec.parentGeneration!=2"}
    assert (await kube.request("GET", ingestion_path(namespace), query=query))["items"] == []
    query = {"fieldSelector": "status.phase!=completed,spec.parentGeneration!=3"}
    assert len((await kube.request("GET", ingestion_path(namespace), query=query))["items"]) == 1
