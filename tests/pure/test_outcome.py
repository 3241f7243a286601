"""What pods say: which of them may wait for their ConfigMap."""

from __future__ import annotations

import pytest
from ingestion_operator.outcome import may_lack_config_map


def waiting(reason: str) -> dict[str, object]:
    return {"state": {"waiting": {"reason": reason}}}


@pytest.mark.parametrize(
    ("spec", "status", "may"),
    [
        ({"nodeName": "node-0"}, {"phase": "Pending"}, True),
        ({"nodeName": "node-0"}, {"phase": "Pending", "containerStatuses": [waiting("ContainerCreating")]}, True),
        ({"nodeName": "node-0"}, {"phase": "Pending", "containerStatuses": [waiting("PodInitializing")]}, True),
        ({"nodeName": "node-0"}, {"phase": "Pending", "containerStatuses": [waiting("ImagePullBackOff")]}, False),
        ({"nodeName": "node-0"}, {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}, False),
        ({}, {"phase": "Pending"}, False),
    ],
)
def test_which_pods_may_wait_for_their_config_map(
    spec: dict[str, object], status: dict[str, object], may: bool
) -> None:
    assert may_lack_config_map({"metadata": {"name": "pod"}, "spec": spec, "status": status}) is may
