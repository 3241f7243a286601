"""The CRD of IngestionBatches against a real API server: what is accepted, what is refused, what the refusal says."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from ingestion_crds import JsonObject
from ingestion_crds.batch import MAX_DOCUMENTS_TEXT_BYTES, IngestionBatch
from ingestion_crds.constants import MAX_DOCUMENTS
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient, batch_path, ingestion_path
from ingestion_crds.schema import batch_resource_definition
from support.builders import KNOWLEDGE_BASE, ingestion_batch, ingestion_job

pytestmark = pytest.mark.controlplane

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/ingestionbatches.ingestion-operator.io"
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


async def test_the_crd_is_stored_as_it_is_written(kube: KubeClient) -> None:
    written = batch_resource_definition()["spec"]
    stored = (await kube.request("GET", CRD))["spec"]
    assert {name: stored[name] for name in written} == written


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("knowledgeBase", "11111111-2222-4333-8444-555555555555"),
        ("pipeline", {"chunkSize": 500}),
        ("mode", "SinglePass"),
        ("segmentation", {"pagesPerSegment": 1}),
    ],
)
async def test_what_the_versions_are_made_from_is_immutable(
    kube: KubeClient, namespace: str, field: str, value: Any
) -> None:
    await create(kube, namespace)
    with pytest.raises(ApiError, match=f"{field} is immutable: make a new batch"):
        await patch(kube, namespace, {"spec": {field: value}})


async def test_documents_are_neither_added_nor_changed_nor_swapped(kube: KubeClient, namespace: str) -> None:
    documents = (await create(kube, namespace))["spec"]["documents"]
    for others in (documents[:2], documents[::-1], [*documents, documents[0]], [{**documents[0], "title": "B"}]):
        with pytest.raises(ApiError, match="documents is immutable"):
            await patch(kube, namespace, {"spec": {"documents": others}})


@pytest.mark.parametrize(
    ("phase", "observed", "wanted", "admitted"),
    [
        ("failed", 0, 1, True),
        ("partial_failure", 0, 1, True),
        ("partial_failure", 0, 2, False),
        ("partial_failure", None, 1, False),
        ("processing", 0, 1, False),
        ("completed", 0, 1, False),
    ],
)
async def test_a_retry_is_admitted_from_failure_only(
    kube: KubeClient, namespace: str, phase: str, observed: int | None, wanted: int, admitted: bool
) -> None:
    """Invariant 4."""
    await create(kube, namespace)
    await patch(kube, namespace, {"status": {"phase": phase, "observedRetryGeneration": observed}}, "status")
    if admitted:
        assert (await patch(kube, namespace, {"spec": {"retryGeneration": wanted}}))["spec"]["retryGeneration"] == 1
    else:
        with pytest.raises(ApiError, match="only while the batch is failed"):
            await patch(kube, namespace, {"spec": {"retryGeneration": wanted}})


async def test_the_biggest_batch_fits(kube: KubeClient, namespace: str) -> None:
    """As many documents as there may be, with as much text as there may be, all of it failed."""
    share = MAX_DOCUMENTS_TEXT_BYTES // MAX_DOCUMENTS
    body = ingestion_batch(documents=MAX_DOCUMENTS, namespace=namespace)
    for document in body["spec"]["documents"]:
        document["title"] = ""
        document["source"] = {"uri": "s3://team-a/".ljust(share, "x"), "sha256": "0" * 64}
    await kube.request("POST", batch_path(namespace), body=body)
    scattered = ",".join(f"{index}-{index + 1}" for index in range(0, MAX_DOCUMENTS, 3))
    failures = [{"index": 999, "job": "n" * 60, "code": "EmbeddingRejected", "message": "m" * 200}] * 100
    sets = {"total": MAX_DOCUMENTS, "made": f"0-{MAX_DOCUMENTS - 1}", "completed": scattered, "failed": scattered}
    batch = await patch(kube, namespace, {"status": {"documents": sets, "failures": failures}}, "status")
    assert len(orjson.dumps(batch)) < 2**20


async def test_texts_that_are_too_long_together_are_refused(kube: KubeClient, namespace: str) -> None:
    body = ingestion_batch(documents=MAX_DOCUMENTS_TEXT_BYTES // URI_LENGTH + 1, namespace=namespace)
    for document in body["spec"]["documents"]:
        document["source"]["uri"] = "https://example.com/".ljust(URI_LENGTH, "x")
    with pytest.raises(ApiError, match="make several batches"):
        await kube.request("POST", batch_path(namespace), body=body)


@pytest.mark.parametrize("selector", ["status.phase=queued", f"spec.knowledgeBase={KNOWLEDGE_BASE}"])
async def test_batches_are_listed_by_selectable_fields(kube: KubeClient, namespace: str, selector: str) -> None:
    await create(kube, namespace)
    found = await kube.request("GET", batch_path(namespace), query={"fieldSelector": selector})
    assert len(found["items"]) == 1


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
