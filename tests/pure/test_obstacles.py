"""Why pods do not start, or do not end, and which of them may wait for their ConfigMap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Reason
from ingestion_operator.obstacles import may_lack_config_map, read_obstacle


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


NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def creating(*, since: str, reason: str | None = None, status: str = "True") -> JsonObject:
    """Return a pod whose node makes its container, or which no node was found for."""
    scheduled = {"type": "PodScheduled", "status": status, "lastTransitionTime": since}
    if reason is not None:
        scheduled |= {"reason": reason, "message": "because"}
    waiting = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    return {
        "metadata": {"name": "p-0"},
        "spec": {"nodeName": "node-7"},
        "status": {"phase": "Pending", "conditions": [scheduled], "containerStatuses": [waiting]},
    }


def test_a_pod_that_is_long_in_starting_is_a_reason() -> None:
    """An image that is slow, a volume, a network without addresses: no other condition says so."""
    assert read_obstacle(pods=[creating(since="2026-01-01T11:58:00Z")], creation_failure=None, now=NOW) is None
    found = read_obstacle(pods=[creating(since="2026-01-01T11:56:00Z")], creation_failure=None, now=NOW)
    assert found is not None
    assert found.reason == Reason.POD_PENDING
    assert "p-0 has been starting on its node (node-7) since 2026-01-01T11:56:00Z" in found.message
    again = read_obstacle(
        pods=[creating(since="2026-01-01T11:56:00Z")], creation_failure=None, now=NOW + timedelta(hours=1)
    )
    assert again == found, "each other text is another write of the status"


def test_a_pod_that_somebody_holds_back_is_a_reason() -> None:
    gated = creating(since="2026-01-01T11:59:59Z", reason="SchedulingGated", status="False")
    found = read_obstacle(pods=[gated], creation_failure=None, now=NOW)
    assert found is not None
    assert (found.reason, found.message) == (Reason.POD_UNSCHEDULABLE, "p-0: because")


def test_a_pod_that_no_scheduler_looks_at_is_a_reason() -> None:
    """Without a scheduler, or where that is behind, a pod has no condition. While others run, the job goes on."""
    unseen = {"metadata": {"name": "p-0", "creationTimestamp": "2026-01-01T11:56:00Z"}, "spec": {}}
    pod = {**unseen, "status": {"phase": "Pending"}}
    assert read_obstacle(pods=[pod], creation_failure=None, now=NOW - timedelta(minutes=2)) is None
    found = read_obstacle(pods=[pod], creation_failure=None, now=NOW)
    assert found is not None
    assert found.reason == Reason.POD_UNSCHEDULABLE
    assert found.message == "p-0 was created at 2026-01-01T11:56:00Z, and no scheduler has looked at it"


def running(*containers: JsonObject, **ready: str) -> JsonObject:
    """Return a pod that runs, with what it says of its containers and of its being ready."""
    conditions = [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T11:56:00Z", **ready}]
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": list(containers)}
    return {"metadata": {"name": "p-0"}, "spec": {"nodeName": "node-7"}, "status": status}


def done(finished: str) -> JsonObject:
    return {"name": names.WORKER_CONTAINER, "state": {"terminated": {"exitCode": 0, "finishedAt": finished}}}


SIDECAR = {"name": "istio-proxy", "state": {"running": {}}}
UNREADY = "ContainersNotReady"


@pytest.mark.parametrize(
    ("pod", "says"),
    [
        (
            running(done("2026-01-01T11:58:00Z"), SIDECAR, reason=UNREADY),
            "p-0: the worker has ended at 2026-01-01T11:58:00Z, and the container istio-proxy, which was added to it,"
            " goes on",
        ),
        (running(done("2026-01-01T11:59:30Z"), SIDECAR, reason=UNREADY), None),
        (running(done("2026-01-01T11:58:00Z"), reason=UNREADY), None),
        (running({"name": names.WORKER_CONTAINER, "state": {"running": {}}}, SIDECAR, reason=UNREADY), None),
        (
            running(),
            "p-0 runs, and nothing was heard of its node (node-7) since 2026-01-01T11:56:00Z: is it lost?"
            " Then delete the Node",
        ),
        (running(lastTransitionTime="2026-01-01T11:58:00Z"), None),
        (running(status="True"), None),
        (running(reason="ReadinessGatesNotReady"), None),
    ],
)
def test_a_pod_that_has_nothing_to_do_or_a_lost_node_is_a_reason(pod: JsonObject, says: str | None) -> None:
    found = read_obstacle(pods=[pod], creation_failure=None, now=NOW)
    assert (found and found.message) == says
    assert found is None or found.reason == Reason.POD_TERMINATING
