"""Claims about users, on a real cluster: real pods, real documents, a real object store."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx
import pytest
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store, StoreConfig
from local_cluster.errors import LocalClusterError

from .conftest import TENANTS, Installation

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

TENANT = TENANTS[0]
SEGMENTS = 6
RETRY_REQUESTED = "ingestion-operator.io/retry-requested-at"


def document(*, bad: set[int], segments: int = SEGMENTS) -> str:
    """Return a text of so many segments of 1,024 characters; the bad ones hold what the provider refuses."""
    parts = []
    for segment in range(segments):
        word = "REFUSE-ME" if segment in bad else "harmless"
        line = f"Part {segment} is about the {word} thing number {segment}.\n"
        parts.append((line * 40)[:1023] + "\n")
    return "".join(parts)


def upload(installation: Installation, *, bad: set[int], segments: int = SEGMENTS) -> tuple[str, str]:
    installation.switch.break_()
    return installation.upload(
        document(bad=bad, segments=segments),
        file="parts.txt",
        content_type="text/plain",
        mode="Segmented",
        segmentation={"charactersPerSegment": 1024},
    )


def pods_of(installation: Installation, name: str, generation: int) -> dict[str, Any]:
    uid = installation.get("ingestionjob", name)["metadata"]["uid"]
    selector = f"ingestion-operator.io/job-uid={uid},ingestion-operator.io/generation={generation}"
    return {pod["metadata"]["uid"]: pod for pod in installation.get("pods", selector=selector)["items"]}


def by_rest(installation: Installation, name: str) -> str:
    installation.rest[TENANT].retry(name)
    assert installation.rest[TENANT].job(name)["status"] != "partial_failure"
    return "REST"


def by_annotation(installation: Installation, name: str) -> str:
    token = f"{RETRY_REQUESTED}={time.time_ns()}"
    installation.kubectl("annotate", f"ij/{name}", token, "--overwrite", "--namespace", TENANT)
    return "Annotation"


def by_patch(installation: Installation, name: str) -> str:
    patch = json.dumps({"spec": {"retryGeneration": 1}})
    installation.kubectl("patch", f"ij/{name}", "--type=merge", "--patch", patch, "--namespace", TENANT)
    return "Patch"


@pytest.mark.parametrize("way", [by_rest, by_annotation, by_patch])
def test_a_retry_runs_only_the_failed_segments(installation: Installation, way: Any) -> None:
    """Invariants 1, 2, 4, 6."""
    name, knowledge_base = upload(installation, bad={1, 4})
    job = installation.ended(name, "partial_failure")
    segments = job["status"]["segments"]
    failed = segments["failedCount"]
    assert 2 <= failed < segments["total"], segments
    assert job["status"]["failureSummary"] == {"EmbeddingRejected": failed}
    assert "content rejected" in job["status"]["failures"][0]["message"]
    assert len(pods_of(installation, name, 0)) == failed  # kept for their logs
    assert installation.rest[TENANT].search(knowledge_base=knowledge_base, query="thing number 2") == []
    installation.switch.mend()
    trigger = way(installation, name)
    job = installation.ended(name, "completed", generation=1)
    last = job["status"]["attempts"][-1]
    assert (last["trigger"], last["segments"], last["completed"]) == (trigger, failed, failed)
    hits = installation.rest[TENANT].search(knowledge_base=knowledge_base, query="the thing number 4")
    assert hits
    assert hits[0]["version_id"] == job["status"]["version"]["id"]


def test_a_single_pass_job_starts_over_in_a_new_pod(installation: Installation) -> None:
    installation.switch.break_()
    name, knowledge_base = installation.upload("# Title\n\nREFUSE-ME, a short text.\n")
    job = installation.ended(name, "failed")
    assert job["status"]["failures"][0]["code"] == "EmbeddingRejected"
    before = pods_of(installation, name, 0)
    assert len(before) == 1
    installation.switch.mend()
    installation.rest[TENANT].retry(name)
    shown = installation.rest[TENANT].job(name)
    assert shown["status"] in ("queued", "processing")
    assert shown["processed_segments"] == 0
    assert shown["version"]["state"] in ("pending", "processing")
    seen: set[str] = set()
    while installation.rest[TENANT].job(name)["status"] not in ("completed", "failed"):
        seen |= set(pods_of(installation, name, 1))
    job = installation.ended(name, "completed", generation=1)
    assert job["status"]["mode"] == "SinglePass"
    assert seen
    assert not seen & set(before)
    assert installation.rest[TENANT].search(knowledge_base=knowledge_base, query="a short text")


def test_a_damaged_document_fails_with_its_name_and_cause(installation: Installation) -> None:
    name, _ = installation.upload("%PDF-1.7\nnothing that a PDF has", file="broken.pdf", content_type="application/pdf")
    job = installation.ended(name, "failed")
    failure = job["status"]["failures"][0]
    assert failure["code"] in ("DocumentUnreadable", "DocumentTruncated")
    assert failure["retryable"] is False
    assert "broken.pdf" in failure["message"]


def test_all_segments_failed(installation: Installation) -> None:
    name, _ = upload(installation, bad=set(range(3)), segments=3)
    job = installation.ended(name, "failed")
    assert job["status"]["segments"]["completedCount"] == 0


def store_of(installation: Installation, tenant: str, bucket: str) -> Store:
    data = installation.get("secret", "ingestion-store", namespace=tenant)["data"]
    access, secret = (base64.b64decode(data[key]).decode() for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    config = StoreConfig(
        url=f"s3://{bucket}",
        endpoint=installation.store_url,
        region="us-east-1",
        access_key_id=access,
        secret_access_key=secret,
    )
    return Store(config=config)


def test_a_failed_publish_is_retried_alone(installation: Installation) -> None:
    """Invariant 6: with an output missing nothing is published."""
    name, knowledge_base = upload(installation, bad={2})
    job = installation.ended(name, "partial_failure")
    store = store_of(installation, TENANT, TENANT)
    plan = job["status"]["version"]["planHash"]
    keys = [entry.key for entry in store.list(prefix="kb")]
    outputs = [key for key in keys if f"/{plan}/" in key and key.endswith(".parquet")]
    saved = store.get(key=outputs[0])
    store.delete(key=outputs[0])
    installation.switch.mend()
    installation.rest[TENANT].retry(name)
    job = installation.ended(name, "failed", generation=1)
    assert job["status"]["failures"][0]["code"] == "SegmentsMissing"
    assert installation.rest[TENANT].search(knowledge_base=knowledge_base, query="thing") == []
    store.put(key=outputs[0], data=saved)
    installation.rest[TENANT].retry(name)
    job = installation.ended(name, "completed", generation=2)
    assert [record["stage"] for record in job["status"]["attempts"][-1]["jobs"]] == ["publish_version"]


def test_one_tenant_cannot_reach_the_other(installation: Installation) -> None:
    """Invariant 9."""
    name, _ = installation.upload("# Title\n\nHarmless.\n")
    with pytest.raises(LocalClusterError, match="404"):
        installation.rest[TENANTS[1]].job(name)
    with pytest.raises(LocalClusterError, match="404"):
        installation.rest[TENANTS[1]].retry(name)
    own = store_of(installation, TENANTS[1], TENANTS[1])
    own.ping()
    with pytest.raises(WorkerError) as refused:
        store_of(installation, TENANTS[1], TENANT).ping()
    assert refused.value.code == "StoreForbidden"
    assert httpx.get(f"{installation.url}/v1/knowledge-base/ingestion-jobs/{name}", trust_env=False).status_code == 401
    installation.ended(name, "completed")


def manifest(name: str, *, uri: str, **spec: Any) -> str:
    body = {
        "apiVersion": "ingestion-operator.io/v1alpha1",
        "kind": "IngestionJob",
        "metadata": {"name": name, "namespace": TENANT},
        "spec": {
            "knowledgeBase": "2b1d7a52-6c1e-4a0b-9f55-0d3c0f2f8a11",
            "document": {"id": "8d0a7f0e-64f1-4f59-8a2c-7b9d2f3c4e55", "title": name, "source": {"uri": uri}},
            "segmentBackoffLimit": 0,
            **spec,
        },
    }
    return json.dumps(body)


@pytest.fixture
def source(installation: Installation) -> str:
    store_of(installation, TENANT, TENANT).put(key="given/parts.txt", data=document(bad=set()).encode())
    return f"s3://{TENANT}/given/parts.txt"


def delete(installation: Installation, name: str) -> None:
    installation.kubectl("delete", "ij", name, "--namespace", TENANT, "--ignore-not-found")


def test_a_missing_image_is_a_reason_and_can_be_cancelled(installation: Installation, source: str) -> None:
    """Invariant 5."""
    delete(installation, "no-image")
    template = {"image": "registry.invalid/none:1"}
    installation.kubectl("apply", "--filename", "-", stdin=manifest("no-image", uri=source, template=template))

    def stalled(job: dict[str, Any]) -> bool:
        conditions = {item["type"]: item for item in job.get("status", {}).get("conditions", [])}
        return conditions.get("Stalled", {}).get("reason") == "ImageUnavailable"

    installation.until("no-image", stalled)
    patch = json.dumps({"spec": {"cancelGeneration": 0, "template": {"image": None}}})
    installation.kubectl("patch", "ij/no-image", "--type=merge", "--patch", patch, "--namespace", TENANT)
    job = installation.ended("no-image", "failed")
    assert job["status"]["attempts"][0]["reason"] == "Cancelled"
    by_patch(installation, "no-image")
    installation.ended("no-image", "completed", generation=1)


def test_a_segment_over_its_memory_limit(installation: Installation, source: str) -> None:
    delete(installation, "small-memory")
    template = {"resources": {"limits": {"memory": "24Mi"}, "requests": {"memory": "16Mi"}}}
    body = manifest("small-memory", uri=source, template=template)
    installation.kubectl("apply", "--filename", "-", stdin=body)
    job = installation.ended("small-memory", "failed")
    assert job["status"]["failureSummary"].get("OOMKilled") == 1, job["status"]["failures"]
    patch = json.dumps({"spec": {"retryGeneration": 1, "template": None}})
    installation.kubectl("patch", "ij/small-memory", "--type=merge", "--patch", patch, "--namespace", TENANT)
    installation.ended("small-memory", "completed", generation=1)


def test_delete_while_running_and_recreate_under_one_name(installation: Installation, source: str) -> None:
    """Invariant 7."""
    delete(installation, "again")
    spec = {"mode": "Segmented", "segmentation": {"charactersPerSegment": 1024}}
    installation.kubectl("apply", "--filename", "-", stdin=manifest("again", uri=source, **spec))
    first = installation.until("again", lambda job: job.get("status", {}).get("stage") == "process_segments")
    delete(installation, "again")
    uid = first["metadata"]["uid"]
    deadline = time.monotonic() + 90
    while installation.get("jobs,pods,configmaps", selector=f"ingestion-operator.io/job-uid={uid}")["items"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    installation.kubectl("apply", "--filename", "-", stdin=manifest("again", uri=source, **spec))
    job = installation.ended("again", "completed")
    assert job["metadata"]["uid"] != uid
    assert job["status"]["version"]["id"] != first["status"]["version"]["id"]
    assert job["status"]["attempts"][0]["segments"] == job["status"]["segments"]["total"]
