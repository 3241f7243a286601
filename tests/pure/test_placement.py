"""Where worker pods run: what the chart says, unless their job says otherwise."""

from __future__ import annotations

from typing import Any

import pytest
from ingestion_crds.config import Config
from ingestion_crds.constants import ANNOTATION_JOB_NAME, LABEL_STAGE
from pydantic import ValidationError
from support.builders import worker_job, worker_pod

CHART = Config.model_validate(
    {
        "workerImage": "worker:test",
        "workerNodeSelector": {"pool": "ingestion"},
        "workerTolerations": [{"key": "pool", "operator": "Exists"}],
        "workerPriorityClassName": "low",
    }
)
OF_THE_CHART = {
    "nodeSelector": {"pool": "ingestion"},
    "tolerations": [{"key": "pool", "operator": "Exists"}],
    "priorityClassName": "low",
}


@pytest.mark.parametrize(
    ("config", "spec", "place"),
    [
        (Config(worker_image="worker:test"), {}, {}),
        (CHART, {}, OF_THE_CHART),
        (CHART, {"template": {"image": "mine"}}, OF_THE_CHART),
        (
            CHART,
            {"template": {"nodeSelector": {"pool": "gpu"}}},
            {**OF_THE_CHART, "nodeSelector": {"pool": "gpu"}},
        ),
        (CHART, {"template": {"priorityClassName": "high"}}, {**OF_THE_CHART, "priorityClassName": "high"}),
    ],
)
def test_worker_pods_go_where_the_chart_says_unless_their_job_says_otherwise(
    config: Config, spec: dict[str, Any], place: dict[str, Any]
) -> None:
    pod = worker_pod(config, **spec)
    assert {key: pod[key] for key in OF_THE_CHART if key in pod} == place


def test_worker_pods_are_labelled_as_the_chart_says_beside_what_they_are_known_by() -> None:
    labels, annotations = {"team": "data", LABEL_STAGE: "mine"}, {"mesh": "none", ANNOTATION_JOB_NAME: "mine"}
    more = {"workerPodLabels": labels, "workerPodAnnotations": annotations}
    plain = worker_job(Config(worker_image="worker:test"))
    made = worker_job(Config.model_validate({"workerImage": "worker:test", **more}))
    own = plain["spec"]["template"]["metadata"]
    assert made["spec"]["template"]["metadata"] == {
        "labels": labels | own["labels"],
        "annotations": annotations | own["annotations"],
    }
    assert made["metadata"] == plain["metadata"]


def test_worker_pods_hold_no_token_and_write_nothing_but_their_scratch() -> None:
    """Invariant 9: the pod-security level `restricted` asks for neither."""
    pod = worker_pod(Config(worker_image="worker:test"))
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize(
    ("largest", "limit"), [(1, "4Gi"), (2**30, "4Gi"), (3 * 2**30, "4Gi"), (3 * 2**30 + 1, "5Gi"), (20 * 2**30, "21Gi")]
)
def test_the_largest_document_and_its_text_have_room_in_tmp(largest: int, limit: str) -> None:
    pod = worker_pod(Config(worker_image="worker:test", max_source_bytes=largest))
    assert {"name": "tmp", "emptyDir": {"sizeLimit": limit}} in pod["volumes"]


def test_what_a_jobs_template_says_of_its_pods_is_theirs() -> None:
    template = {"priorityClassName": "low", "imagePullSecrets": [{"name": "mine"}]}
    pod = worker_pod(Config(worker_image="worker:test"), template=template)
    assert {key: pod[key] for key in template} == template


@pytest.mark.parametrize("deny", [[], ["168.63.129.16/32", "2001:db8::/32"]])
def test_worker_pods_are_told_of_networks_that_are_denied(deny: list[str]) -> None:
    config = Config.model_validate({"workerImage": "worker:test", "sourceDeny": deny})
    env = {entry["name"]: entry.get("value") for entry in worker_pod(config)["containers"][0]["env"]}
    assert env.get("INGESTION_SOURCE_DENY") == (",".join(deny) or None)


def test_what_is_denied_is_a_network() -> None:
    with pytest.raises(ValidationError, match="sourceDeny"):
        Config.model_validate({"workerImage": "worker:test", "sourceDeny": ["files.example"]})


def test_the_keys_of_a_store_are_read_by_the_kubelet_from_the_tenants_secret() -> None:
    """With the token that only those have which hold for a time."""
    env = worker_pod(Config(worker_image="worker:test"))["containers"][0]["env"]
    keys = {"AWS_ACCESS_KEY_ID": {}, "AWS_SECRET_ACCESS_KEY": {}, "AWS_SESSION_TOKEN": {"optional": True}}
    assert [entry for entry in env if "valueFrom" in entry] == [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": "ingestion-store", "key": key} | more}}
        for key, more in keys.items()
    ]


@pytest.mark.parametrize("named", [True, False])
def test_the_key_of_a_provider_is_read_by_the_kubelet_from_its_secret(named: bool) -> None:
    provider = {"name": "openai", "url": "https://embed.example/v1"} | ({"secretName": "openai-key"} if named else {})
    config = Config.model_validate({"workerImage": "worker:test", "embeddingProviders": [provider]})
    pod = worker_pod(config, pipeline={"embedding": {"provider": "openai", "model": "m", "dimensions": 8}})
    found = [entry for entry in pod["containers"][0]["env"] if entry["name"] == "INGESTION_EMBEDDING_API_KEY"]
    secret = {"secretKeyRef": {"name": "openai-key", "key": "apiKey"}}
    assert found == ([{"name": "INGESTION_EMBEDDING_API_KEY", "valueFrom": secret}] if named else [])
