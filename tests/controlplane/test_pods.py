"""Which labels and annotations pods of Jobs may have, and how the pods are removed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ingestion_operator.cluster
import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.config import Config
from ingestion_crds.job import ChildUid
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient, child_path, core_path
from ingestion_operator.cluster import KubeCluster
from local_cluster.control_plane import ControlPlane
from support.builders import ANNOTATIONS, LABELS, LABELS_OF_JOBS, worker_job

pytestmark = pytest.mark.controlplane


class Counting(KubeClient):
    """Notes how many pods each answer has."""

    sizes: list[int]

    async def request(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, **rest: Any
    ) -> JsonObject:
        answer = await super().request(method, path, query=query, **rest)
        self.sizes.append(len(answer["items"]))
        return answer


async def test_a_jobs_pods_are_removed_page_by_page(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes answers with all that it has deleted, and of thousands of pods that is too large to be read.

    One that a finalizer holds, the first, does not come again.
    """
    monkeypatch.setattr(ingestion_operator.cluster, "PAGE", 2)
    for number, uid in enumerate(["ours"] * 7 + ["another"] * 2):
        labels = {names.LABEL_CONTROLLER_UID: uid, names.LABEL_COMPLETION_INDEX: str(number)}
        metadata = {"name": f"pod-{number}", "labels": labels, "finalizers": ["example.com/logs"] if not number else []}
        containers = [{"name": "worker", "image": "worker:test"}]
        body = {"metadata": metadata, "spec": {"containers": containers, "automountServiceAccountToken": False}}
        await kube.request("POST", core_path("pods", namespace), body=body)
    async with await Counting.connect(kubeconfig=str(control_plane.kubeconfig)) as client:
        client.sizes = []
        cluster = KubeCluster(client)
        following = ""
        for more in (True, True, False):
            following = await cluster.remove_pods(
                namespace=namespace, child_uid=ChildUid("ours"), keep=(1, 3), following=following
            )
            assert bool(following) is more
    assert client.sizes == [2, 2, 1]
    left = (await kube.request("GET", core_path("pods", namespace)))["items"]
    assert [pod["metadata"]["name"] for pod in left] == ["pod-0", "pod-1", "pod-3", "pod-7", "pod-8"]
    for pod in left[:1]:
        assert "deletionTimestamp" in pod["metadata"]
        path = core_path("pods", namespace, pod["metadata"]["name"])
        await kube.request("PATCH", path, body={"metadata": {"finalizers": None}}, content_type=MERGE_PATCH)


async def test_a_job_is_taken_with_the_labels_and_annotations_that_the_chart_takes(
    kube: KubeClient, namespace: str
) -> None:
    """The same ones in both tests; with others the API server would refuse each Job."""
    more = {"workerPodLabels": LABELS, "workerPodAnnotations": ANNOTATIONS}
    job = await create(kube, namespace, more)
    made = job["spec"]["template"]["metadata"]
    assert made["labels"].items() >= LABELS.items()
    assert made["annotations"].items() >= ANNOTATIONS.items()


@pytest.mark.parametrize("label", LABELS_OF_JOBS)
async def test_a_job_whose_pods_have_a_label_of_the_job_controller_is_refused(
    label: str, kube: KubeClient, namespace: str
) -> None:
    """Which is why the chart does not take it."""
    with pytest.raises(ApiError) as caught:
        await create(kube, namespace, {"workerPodLabels": {label: "mine"}})
    assert caught.value.status == 422
    assert f"spec.template.metadata.labels[{label}]" in str(caught.value)


async def create(kube: KubeClient, namespace: str, given: JsonObject) -> JsonObject:
    """Create the Job of a worker pod of an installation that gives its worker pods so much."""
    body = worker_job(Config.model_validate({"workerImage": "worker:test", **given}))
    body["metadata"] |= {"namespace": namespace}
    return await kube.request("POST", child_path(namespace), body=body)
