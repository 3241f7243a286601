"""What pods say, who may be anybody's, and which of it is believed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ingestion_crds import constants as names
from ingestion_crds.job import NotRead
from ingestion_operator.results import PodResult, Results, read_not_read, read_prepare
from support.builders import prepared


def ended(said: str, *, phase: str = "Failed", exit_code: int | None = 1) -> dict[str, Any]:
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


def test_a_pod_that_was_told_to_end_says_less_than_the_one_before_it() -> None:
    """Pods that run at their Job's deadline are deleted, and listed for a moment more."""
    before, last = ended('{"code": "EmbeddingUnavailable"}'), ended('{"code": "Interrupted"}')
    before["metadata"]["creationTimestamp"] = "2026-01-01T11:00:00Z"
    last["metadata"] |= {"creationTimestamp": "2026-01-01T12:00:00Z", "deletionTimestamp": "2026-01-01T12:30:00Z"}
    for pods in ([before, last], [last, before]):
        results = Results()
        results.take(pods)
        assert results.harvest[0].code == "EmbeddingUnavailable"
    assert result_of(last).code == "Interrupted"


@pytest.mark.parametrize(
    ("exit_code", "said", "code"),
    [
        (143, "", "ContainerError"),
        # Of a container that never ran, as one whose image was not to be had.
        (137, "The container could not be located when the pod was terminated", "ContainerError"),
        (None, "", "PodLost"),
    ],
)
def test_a_pod_that_was_told_to_end_need_not_say_so(exit_code: int | None, said: str, code: str) -> None:
    """What a Job's deadline does to its pods is not to be told as what kept the job until then."""
    pod = ended(said, exit_code=exit_code)
    before = result_of(pod)
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T12:30:00Z"
    assert before.code == code
    assert result_of(pod) == replace(before, code="Interrupted", message=f"the pod was deleted; {before.message}")


@pytest.mark.parametrize("exit_code", [None, 137])
@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("OutOfcpu", "Pod was rejected: Node didn't have enough resource: cpu, requested: 2, used: 1, capacity: 2"),
        ("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity"),
        ("NodeShutdown", "Pod was rejected: Pod was rejected as the node is shutting down."),
    ],
)
def test_a_pod_that_its_node_did_not_take_is_not_told_as_one_that_failed(
    reason: str, message: str, exit_code: int | None
) -> None:
    """Source: https://github.com/kubernetes/kubernetes/blob/v1.36.3/pkg/kubelet/kubelet.go (rejectPod)."""
    pod = ended("The container could not be located when the pod was terminated", exit_code=exit_code)
    pod["status"] |= {"reason": reason, "message": message}
    assert result_of(pod) == PodResult(succeeded=False, code="Evicted", message=message, exit_code=exit_code)


def test_a_success_that_says_something_odd_is_one() -> None:
    assert result_of(ended("[" * 4096, phase="Succeeded", exit_code=0)).payload == {}


@pytest.mark.parametrize("index", ["9" * 5_000, "100000", "²", "٣", "-1", "1\n", "x", ""])
def test_a_pod_whose_index_is_none_is_passed_over(index: str) -> None:
    """A pod can have been made by anybody: Python reads no number of thousands of digits."""
    results = Results()
    odd = ended("", exit_code=0)
    odd["metadata"] |= {"labels": {}, "annotations": {names.LABEL_COMPLETION_INDEX: index}}
    results.take([odd, ended("", phase="Succeeded", exit_code=0)])
    assert {at: result.succeeded for at, result in results.harvest.items()} == {0: True}


@pytest.mark.parametrize("field", ["id", "planHash"])
def test_what_is_stored_of_a_version_has_no_line_break(field: str) -> None:
    version = {"id": "00000000-0000-0000-0000-000000000001", "number": 1, "planHash": "41ab"}
    payload = {"mode": "Segmented", "segments": 1, "version": version}
    assert read_prepare(json.loads(json.dumps(payload))) is not None
    version[field] = f"{version[field]}\n"
    assert read_prepare(payload) is None


def test_a_single_pass_that_does_not_say_that_it_has_published_has_not() -> None:
    """Invariant 6."""
    said = prepared(segments=1, mode="SinglePass")
    assert read_prepare(said) is not None
    del said["version"]["state"]
    assert read_prepare(said) is None


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"pageCount": 4, "pages": "2-4,6", "attachments": 2}, NotRead(page_count=4, pages="2-4,6", attachments=2)),
        ({"pageCount": 4, "pages": "2-4,6"}, NotRead(page_count=4, pages="2-4,6")),
        ({"pageCount": 2**31 - 1, "pages": "1," * 499 + "9"}, NotRead(page_count=2**31 - 1, pages="1," * 499 + "9")),
        ({"attachments": 1}, NotRead(attachments=1)),
        ({"pageCount": 0, "pages": "", "attachments": 0}, None),
        ({"pageCount": 2**31}, None),
        ({"pageCount": -1}, None),
        ({"pageCount": 4, "pages": "2-4,6\n"}, None),
        ({"pageCount": 600, "pages": "1," * 500 + "9"}, None),
        ({"pageCount": 4, "pages": ["2-4"]}, None),
        ([], None),
        (None, None),
    ],
)
def test_what_is_not_read_is_taken_as_far_as_it_has_bounds(said: object, kept: NotRead | None) -> None:
    """The image may be anybody's, and what the CRD refuses would keep the whole status from being written."""
    assert read_not_read({"notRead": said}) == kept
    assert read_not_read({}) is None
