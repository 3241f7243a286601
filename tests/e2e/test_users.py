"""Claims about users, on a real cluster: real pods, documents, object store; side by side, each with a tenant."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from ingestion_worker.outcome import WorkerError
from local_cluster import install
from local_cluster.errors import LocalClusterError
from support.worker_builders import pdf

from .conftest import RELEASE, SYSTEM, Tenant

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

SEGMENTS = 6
RETRY_REQUESTED = "ingestion-operator.io/retry-requested-at"
SEGMENTED = {"mode": "Segmented", "segmentation": {"charactersPerSegment": 1024}}


def new_word() -> str:
    """Return a word that the provider refuses, and that no other test takes back."""
    return f"REFUSE-{uuid.uuid4().hex}"


def document(*, bad: set[int], word: str = "harmless", segments: int = SEGMENTS) -> str:
    """Return a text of so many segments of 1,024 characters; the bad ones hold what the provider refuses."""
    parts = []
    for segment in range(segments):
        thing = word if segment in bad else "harmless"
        line = f"Part {segment} is about the {thing} thing number {segment}.\n"
        parts.append((line * 40)[:1023] + "\n")
    return "".join(parts)


def upload(tenant: Tenant, *, word: str, bad: set[int], segments: int = SEGMENTS) -> tuple[str, str]:
    text = document(bad=bad, word=word, segments=segments)
    return tenant.upload(text, file="parts.txt", content_type="text/plain", **SEGMENTED)


def pods_of(tenant: Tenant, name: str, generation: int) -> dict[str, Any]:
    uid = tenant.get("ingestionjob", name)["metadata"]["uid"]
    selector = f"ingestion-operator.io/job-uid={uid},ingestion-operator.io/generation={generation}"
    return {pod["metadata"]["uid"]: pod for pod in tenant.get("pods", selector=selector)["items"]}


def by_rest(tenant: Tenant, name: str) -> str:
    tenant.rest.retry(name)
    assert tenant.rest.job(name)["status"] != "partial_failure"
    return "REST"


def by_annotation(tenant: Tenant, name: str) -> str:
    tenant.kubectl("annotate", f"ij/{name}", f"{RETRY_REQUESTED}={time.time_ns()}", "--overwrite")
    return "Annotation"


def by_patch(tenant: Tenant, name: str) -> str:
    tenant.patch(name, {"retryGeneration": 1})
    return "Patch"


@pytest.mark.parametrize("way", [by_rest, by_annotation, by_patch])
def test_a_retry_runs_only_the_failed_segments(tenant: Tenant, way: Callable[[Tenant, str], str]) -> None:
    """Invariants 1, 2, 4, 6."""
    word = new_word()
    name, knowledge_base = upload(tenant, word=word, bad={1, 4})
    job = tenant.ended(name, "partial_failure")
    segments = job["status"]["segments"]
    failed = segments["failedCount"]
    assert 2 <= failed < segments["total"], segments
    assert job["status"]["failureSummary"] == {"EmbeddingRejected": failed}
    assert "content rejected" in job["status"]["failures"][0]["message"]
    assert len(pods_of(tenant, name, 0)) == failed  # kept for their logs
    assert tenant.rest.search(knowledge_base=knowledge_base, query="thing number 2") == []
    tenant.installation.switch.mend(word)
    trigger = way(tenant, name)
    job = tenant.ended(name, "completed", generation=1)
    last = job["status"]["attempts"][-1]
    assert (last["trigger"], last["segments"], last["completed"]) == (trigger, failed, failed)
    hits = tenant.rest.search(knowledge_base=knowledge_base, query="the thing number 4")
    assert hits
    assert hits[0]["version_id"] == job["status"]["version"]["id"]


def test_a_single_pass_job_starts_over_in_a_new_pod(tenant: Tenant) -> None:
    word = new_word()
    name, knowledge_base = tenant.upload(f"# Title\n\n{word}, a short text.\n")
    job = tenant.ended(name, "failed")
    assert job["status"]["failures"][0]["code"] == "EmbeddingRejected"
    before = pods_of(tenant, name, 0)
    assert len(before) == 1
    tenant.installation.switch.mend(word)
    tenant.rest.retry(name)
    shown = tenant.rest.job(name)
    assert shown["status"] in ("queued", "processing")
    assert shown["processed_segments"] == 0
    assert shown["version"]["state"] in ("pending", "processing")
    seen: set[str] = set()
    while tenant.rest.job(name)["status"] not in ("completed", "failed"):
        seen |= set(pods_of(tenant, name, 1))
    job = tenant.ended(name, "completed", generation=1)
    assert job["status"]["mode"] == "SinglePass"
    assert seen
    assert not seen & set(before)
    assert tenant.rest.search(knowledge_base=knowledge_base, query="a short text")


def test_all_segments_failed(tenant: Tenant) -> None:
    name, _ = upload(tenant, word=new_word(), bad=set(range(3)), segments=3)
    job = tenant.ended(name, "failed")
    assert job["status"]["segments"]["completedCount"] == 0


def test_a_failed_publish_is_retried_alone(tenant: Tenant) -> None:
    """Invariant 6: with an output missing nothing is published."""
    word = new_word()
    name, knowledge_base = upload(tenant, word=word, bad={2})
    job = tenant.ended(name, "partial_failure")
    store = tenant.store()
    plan = job["status"]["version"]["planHash"]
    outputs = [
        entry.key for entry in store.list(prefix="kb") if f"/{plan}/" in entry.key and entry.key.endswith(".parquet")
    ]
    saved = store.get(key=outputs[0])
    store.delete(key=outputs[0])
    tenant.installation.switch.mend(word)
    tenant.rest.retry(name)
    job = tenant.ended(name, "failed", generation=1)
    assert job["status"]["failures"][0]["code"] == "SegmentsMissing"
    assert tenant.rest.search(knowledge_base=knowledge_base, query="thing") == []
    store.put(key=outputs[0], data=saved)
    tenant.rest.retry(name)
    job = tenant.ended(name, "completed", generation=2)
    assert [record["stage"] for record in job["status"]["attempts"][-1]["jobs"]] == ["publish_version"]


def test_pages_without_text_are_told_after_a_retry_too(tenant: Tenant) -> None:
    """Their segments are not run again, and nothing is left of the pods that found them."""
    word = new_word()
    pages = ["The harbour lies in fog.", "", "", "Boats wait.", f"A {word} thing.", "The tide turns.", "", "Gulls."]
    options = {"mode": "Segmented", "segmentation": {"pagesPerSegment": 2}}
    name, knowledge_base = tenant.upload(pdf(pages=pages), file="scan.pdf", content_type="application/pdf", **options)
    job = tenant.ended(name, "partial_failure")
    assert (job["status"]["segments"]["failed"], job["status"].get("notRead")) == ("2", None)
    tenant.installation.switch.mend(word)
    tenant.rest.retry(name)
    job = tenant.ended(name, "completed", generation=1)
    assert job["status"]["notRead"] == {"pageCount": 3, "pages": "2-3,7", "attachments": 0}
    assert "pages without text: 3" in tenant.kubectl("get", "ij", name, "--output", "wide")
    assert tenant.rest.job(name)["not_read"] == {"page_count": 3, "pages": "2-3,7", "attachments": 0}
    (shown,) = tenant.rest.documents(name)
    assert shown["pages_not_read"] == 3
    assert tenant.rest.search(knowledge_base=knowledge_base, query="the tide turns")


def test_a_batch_retries_the_documents_that_failed_and_no_others(
    tenant: Tenant, make_tenant: Callable[[], Tenant]
) -> None:
    """Invariants 2, 4, 9: three documents in one request, of which one fails in part."""
    word = new_word()
    texts = {
        "good.txt": document(bad=set()),
        "bad.txt": document(bad={1, 4}, word=word),
        "notes.md": "# A\n\nHarmless.\n",
    }
    batch, knowledge_base = tenant.upload_several(texts, **SEGMENTED)
    shown = tenant.rest.ended(batch)
    counts = (shown["total_documents"], shown["completed"], shown["partial_failure"], shown["failed"])
    assert (shown["status"], *counts) == ("partial_failure", 3, 2, 1, 0), shown
    failures = [(item["manifest_index"], item["title"], item["code"]) for item in shown["document_failures"]]
    assert failures == [(1, "bad.txt", "EmbeddingRejected")]
    uid = tenant.get("ingestionbatch", batch)["metadata"]["uid"]
    selector = f"ingestion-operator.io/batch-uid={uid}"

    def jobs() -> dict[str, dict[str, Any]]:
        return {job["metadata"]["uid"]: job for job in tenant.get("ingestionjobs", selector=selector)["items"]}

    before = jobs()
    deadline = time.monotonic() + 30
    while True:  # the list of documents may be a moment old
        documents = {item["ingestion_job_id"]: item["status"] for item in tenant.rest.documents(batch)}
        if list(documents.values()) == ["completed", "partial_failure", "completed"]:
            break
        assert time.monotonic() < deadline, documents
        time.sleep(0.2)
    assert documents.keys() == before.keys()
    (bad,) = (job_id for job_id, status in documents.items() if status == "partial_failure")
    neighbour = make_tenant()
    for refused in (neighbour.rest.job, neighbour.rest.retry, neighbour.rest.documents):
        with pytest.raises(LocalClusterError, match="404"):
            refused(batch)
    tenant.installation.switch.mend(word)
    tenant.rest.retry(batch)
    assert tenant.rest.job(batch)["status"] != "partial_failure"
    shown = tenant.rest.ended(batch, generation=1)
    assert (shown["status"], shown["completed"], shown["document_failures"]) == ("completed", 3, [])
    after = jobs()
    assert after.keys() == before.keys()
    for job_id, job in after.items():
        name, again = job["metadata"]["name"], job_id == bad
        assert len(job["status"]["attempts"]) == 1 + again, name
        assert bool(job["spec"].get("retryGeneration")) == again, name
        assert job_id == bad or not pods_of(tenant, name, 1), name
    attempt = after[bad]["status"]["attempts"][-1]
    assert attempt["segments"] == before[bad]["status"]["segments"]["failedCount"]
    assert "3/3" in tenant.kubectl("get", "ib", batch)
    assert tenant.rest.search(knowledge_base=knowledge_base, query="the thing number 4")
    tenant.kubectl("delete", "ib", batch)
    deadline = time.monotonic() + 240
    while tenant.get("ingestionjobs,jobs,pods", selector=selector)["items"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_one_tenant_cannot_reach_the_other(tenant: Tenant, make_tenant: Callable[[], Tenant]) -> None:
    """Invariant 9."""
    neighbour = make_tenant()
    name, knowledge_base = tenant.upload("# Title\n\nHarmless.\n")
    with pytest.raises(LocalClusterError, match="404"):
        neighbour.rest.job(name)
    with pytest.raises(LocalClusterError, match="404"):
        neighbour.rest.retry(name)
    assert list(neighbour.store().list(prefix="uploads")) == []
    with pytest.raises(WorkerError) as refused:
        list(neighbour.store(bucket=tenant.namespace).list(prefix="uploads"))
    assert refused.value.code == "StoreForbidden"
    url = f"{tenant.installation.url}/v1/knowledge-base/ingestion-jobs/{name}"
    assert httpx.get(url, trust_env=False).status_code == 401
    tenant.ended(name, "completed")
    assert tenant.rest.search(knowledge_base=knowledge_base, query="harmless")
    assert neighbour.rest.search(knowledge_base=knowledge_base, query="harmless") == []


@pytest.fixture
def source(tenant: Tenant) -> str:
    return tenant.put("parts.txt", document(bad=set()).encode())


def test_a_missing_image_is_a_reason_and_can_be_cancelled(tenant: Tenant, source: str) -> None:
    """Invariant 5."""
    tenant.apply("no-image", uri=source, template={"image": "registry.invalid/none:1"})

    def stalled(job: dict[str, Any]) -> bool:
        conditions = {item["type"]: item for item in job.get("status", {}).get("conditions", [])}
        return conditions.get("Stalled", {}).get("reason") == "ImageUnavailable"

    tenant.until("no-image", stalled)
    tenant.patch("no-image", {"cancelGeneration": 0, "template": {"image": None}})
    job = tenant.ended("no-image", "failed")
    assert job["status"]["attempts"][0]["reason"] == "Cancelled"
    by_patch(tenant, "no-image")
    tenant.ended("no-image", "completed", generation=1)


def test_a_segment_over_its_memory_limit(tenant: Tenant, source: str) -> None:
    """Enough memory to prepare (some 16 MiB), too little for a segment with the built-in model (some 70 MiB)."""
    template = {"resources": {"limits": {"memory": "48Mi"}, "requests": {"memory": "16Mi"}}}
    tenant.apply("small-memory", uri=source, template=template, **SEGMENTED)
    job = tenant.ended("small-memory", "failed")
    total = job["status"]["segments"]["total"]
    failures = job["status"]["failures"]
    assert {(item["stage"], item["exitCode"]) for item in failures} == {("process_segments", 137)}
    # Of a container killed right after its start containerd may say no more than that it was killed.
    # Source: https://github.com/containerd/containerd/issues/8180
    assert {item["code"] for item in failures} - {"ContainerError"} == {"OOMKilled"}, failures
    assert job["status"]["segments"]["failedCount"] == total == len(failures)
    tenant.patch("small-memory", {"retryGeneration": 1, "template": None})
    job = tenant.ended("small-memory", "completed", generation=1)
    assert job["status"]["attempts"][-1]["segments"] == total


def test_delete_while_running_and_recreate_under_one_name(tenant: Tenant, source: str) -> None:
    """Invariant 7."""
    tenant.apply("again", uri=source, **SEGMENTED)
    first = tenant.until("again", lambda job: job.get("status", {}).get("stage") == "process_segments")
    tenant.kubectl("delete", "ij", "again")
    uid = first["metadata"]["uid"]
    deadline = time.monotonic() + 240
    while tenant.get("jobs,pods,configmaps", selector=f"ingestion-operator.io/job-uid={uid}")["items"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    tenant.apply("again", uri=source, **SEGMENTED)
    job = tenant.ended("again", "completed")
    assert job["metadata"]["uid"] != uid
    assert job["status"]["version"]["id"] != first["status"]["version"]["id"]
    assert job["status"]["attempts"][0]["segments"] == job["status"]["segments"]["total"]


@pytest.mark.alone
def test_a_store_that_is_away(tenant: Tenant, source: str) -> None:
    store = f"deployment/{RELEASE}-store"
    tenant.installation.kubectl("scale", store, "--replicas=0", "--namespace", SYSTEM)
    tenant.apply("no-store", uri=source)
    [failure] = tenant.ended("no-store", "failed")["status"]["failures"]
    assert failure["code"] == "StoreUnavailable"
    assert failure["retryable"] is True
    with pytest.raises(LocalClusterError, match="503"):
        tenant.upload("# Title\n\nHarmless.\n")
    tenant.installation.kubectl("scale", store, "--replicas=1", "--namespace", SYSTEM)
    tenant.installation.kubectl("rollout", "status", store, "--namespace", SYSTEM, f"--timeout={install.TIMEOUT}")
    by_patch(tenant, "no-store")
    tenant.ended("no-store", "completed", generation=1)
