"""What pods say, who may be anybody's: which of it is believed, and which of them may wait for their ConfigMap."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Reason
from ingestion_operator.outcome import PodResult, Results, may_lack_config_map, read_obstacle, read_prepare
from support.builders import prepared


def ended(said: str, *, phase: str = "Failed", exit_code: int = 1) -> dict[str, Any]:
    """Return a pod of the first index that has said something at its end."""
    terminated = {"exitCode": exit_code, "message": said}
    return {
        "metadata": {"name": "pod", "labels": {"batch.kubernetes.io/job-completion-index": "0"}},
        "status": {
            "phase": phase,
            "containerStatuses": [{"name": names.WORKER_CONTAINER, "state": {"terminated": terminated}}],
        },
    }


def result_of(pod: dict[str, Any]) -> PodResult:
    """Return what is read of the one pod of a Job."""
    results = Results()
    results.take([pod])
    return results.harvest[0]


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        # What JSON.stringify makes of a string that was cut inside an emoji.
        (r'{"code":"PageUnreadable","message":"cut \ud83d"}', "PageUnreadable", "cut ?"),
        (r'{"code":"PageUnreadable","message":"' + r"\ud83d" * 500 + '"}', "PageUnreadable", "?" * 197 + "…"),
        ('{"code":["x"]}', "ContainerError", 'exit code 1: {"code":["x"]}'),
        ('{"code":{}}', "ContainerError", 'exit code 1: {"code":{}}'),
        ("[" * 4096, "ContainerError", "exit code 1: " + "[" * 184 + "…"),
    ],
)
def test_no_message_is_too_odd_to_be_read(said: str, code: str, message: str) -> None:
    result = result_of(ended(said))
    assert result == PodResult(succeeded=False, code=code, message=message, exit_code=1)
    assert len(result.message.encode()) <= 200


def test_a_success_that_says_something_odd_is_one() -> None:
    assert result_of(ended("[" * 4096, phase="Succeeded", exit_code=0)).payload == {}


@pytest.mark.parametrize("index", ["9" * 5_000, "100000", "²", "٣", "-1", "1\n", "x", ""])
def test_a_pod_whose_index_is_none_is_passed_over(index: str) -> None:
    """A pod can have been made by anybody: Python reads no number of thousands of digits."""
    results = Results()
    odd = ended("", exit_code=0)
    odd["metadata"] |= {"labels": {}, "annotations": {names.LABEL_JOB_INDEX: index}}
    results.take([odd, ended("", phase="Succeeded", exit_code=0)])
    assert {at: result.succeeded for at, result in results.harvest.items()} == {0: True}


@pytest.mark.parametrize("field", ["id", "planHash"])
def test_what_is_stored_of_a_version_has_no_line_break(field: str) -> None:
    version = {"id": "00000000-0000-0000-0000-000000000001", "number": 1, "planHash": "41ab"}
    payload = {"mode": "Segmented", "segments": 1, "version": version}
    assert read_prepare(json.loads(json.dumps(payload))) is not None
    version[field] = f"{version[field]}\n"
    assert read_prepare(payload) is None


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


def test_a_single_pass_that_does_not_say_that_it_has_published_has_not() -> None:
    """Invariant 6."""
    said = prepared(segments=1, mode="SinglePass")
    assert read_prepare(said) is not None
    del said["version"]["state"]
    assert read_prepare(said) is None
