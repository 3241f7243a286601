"""Small builders, so that tests read as statements about behaviour."""

from __future__ import annotations

import uuid
from typing import Any

from ingestion_crds import JsonObject
from ingestion_crds.config import Config, Tenant
from ingestion_crds.constants import API_VERSION, BATCH_KIND, KIND, Stage
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob
from ingestion_operator.children import Dispatch, build_child

KNOWLEDGE_BASE = "2b1d7a52-6c1e-4a0b-9f55-0d3c0f2f8a11"
DOCUMENT = "8d0a7f0e-64f1-4f59-8a2c-7b9d2f3c4e55"

# What pods may be given: keys as long as Kubernetes takes them, and such as policies and meshes ask for.
LABELS = {"team": "data", "cost_center": "", f"{'d' * 253}/{'N' * 63}": "v" * 63}
ANNOTATIONS = {"linkerd.io/inject": "disabled", f"{'D' * 253}/{'n' * 63}": "any text, as long as it is one"}
# What the API server refuses in the template of a Job, as it puts them there itself.
LABELS_OF_JOBS = [prefix + name for prefix in ("", "batch.kubernetes.io/") for name in ("job-name", "controller-uid")]


def ingestion_job(*, name: str = "handbook", namespace: str = "team-a", **spec: Any) -> JsonObject:
    """Return an IngestionJob as a user writes it; keyword arguments go into spec."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "knowledgeBase": KNOWLEDGE_BASE,
            "document": {"id": DOCUMENT, "title": "Handbook", "source": {"uri": f"s3://{namespace}/handbook.pdf"}},
            **spec,
        },
    }


def ingestion_batch(*, documents: int = 3, name: str = "manuals", namespace: str = "team-a", **spec: Any) -> JsonObject:
    """Return an IngestionBatch of so many documents as a user writes it; keyword arguments go into spec."""
    return {
        "apiVersion": API_VERSION,
        "kind": BATCH_KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "knowledgeBase": KNOWLEDGE_BASE,
            "documents": [
                {
                    "id": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{name}/{index}")),
                    "title": f"Manual {index}",
                    "source": {"uri": f"s3://{namespace}/manual-{index}.pdf"},
                }
                for index in range(documents)
            ],
            **spec,
        },
    }


def worker_pod(config: Config, **spec: Any) -> JsonObject:
    """Return the spec of the pod that prepares a job of an installation; keyword arguments go into the job's spec."""
    pod: JsonObject = worker_job(config, **spec)["spec"]["template"]["spec"]
    return pod


def worker_job(config: Config, **spec: Any) -> JsonObject:
    """Return the Job of that pod."""
    body = ingestion_job(**spec)
    body["metadata"] |= {"uid": "u-1", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1"}
    dispatch = Dispatch(
        job=IngestionJob.model_validate(body),
        stage=Stage.PREPARE,
        generation=0,
        segments=IndexSet(),
        deadline_seconds=60,
        config=config,
        tenant=Tenant(namespace="team-a", bucket="team-a"),
        provider=config.provider(body["spec"].get("pipeline", {}).get("embedding", {}).get("provider", "")),
    )
    return build_child(dispatch)


def foreign_job(name: str) -> JsonObject:
    """Return somebody else's Job, which never runs."""
    container = {"name": "worker", "image": "another"}
    return {
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": 1,
            "suspend": True,
            "backoffLimitPerIndex": 0,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }


def prepared(*, segments: int, mode: str = "Segmented", version: str | None = None) -> JsonObject:
    """Return what `prepare_document` says."""
    said: JsonObject = {
        "mode": mode,
        "segments": segments,
        "version": {"id": version or str(uuid.uuid4()), "number": 1, "planHash": "41ab"},
    }
    if mode == "SinglePass":
        said["version"]["state"] = "active"
        said["chunks"] = 12
    return said


def failure(code: str, message: str = "", *, retryable: bool = True) -> JsonObject:
    """Return what a failed container says."""
    return {"code": code, "message": message, "retryable": retryable}
