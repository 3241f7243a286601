"""What the convergence simulation found, each as a story of its own."""

from __future__ import annotations

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import RETRYABLE_PHASES, Phase, Stage
from ingestion_crds.job import IngestionJob, format_time
from ingestion_crds.kube import JSON_PATCH, MERGE_PATCH, ApiError, child_path, core_path
from ingestion_operator.children import child_name

from simulation.api import INGESTION_JOBS
from simulation.cluster import NAMESPACE, Call, Fate, SimulatedCluster
from simulation.controllers import Verdict
from simulation.stories import PATH, create, live, says_why


@pytest.fixture
def segments() -> int:
    return 4


def name_of(job: JsonObject, stage: Stage) -> str:
    """Return the name of the Job of a stage of the first attempt."""
    return child_name(job=IngestionJob.model_validate(job), stage=stage, generation=0)


def in_phase(cluster: SimulatedCluster, *phases: Phase) -> bool:
    return live(cluster)["status"]["phase"] in phases


def writes(cluster: SimulatedCluster) -> int:
    return sum(change.by.startswith("operator") for change in cluster.api.changes)


def test_a_job_of_another_under_the_name_is_said_once_and_waited_for(cluster: SimulatedCluster) -> None:
    """Invariants 5, 7, 8."""
    name = name_of(create(cluster), Stage.PREPARE)
    body = {
        "metadata": {"name": name},
        "spec": {
            "completions": 1,
            "suspend": True,
            "template": {"spec": {}},
            "completionMode": "Indexed",
            "backoffLimitPerIndex": 0,
        },
    }
    cluster.api.request("POST", child_path(NAMESPACE), body=body)
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "NameConflict", seconds=10)
    before = writes(cluster)
    cluster.pass_until(lambda: False, seconds=300)
    assert writes(cluster) == before
    cluster.api.request("DELETE", child_path(NAMESPACE, name), body={"propagationPolicy": "Background"})
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.COMPLETED), seconds=120)


def test_pods_of_a_stage_whose_successor_was_never_made_are_removed(cluster: SimulatedCluster) -> None:
    """Invariant 5: the Job of another has the name that the segments want, and the attempt is cancelled."""
    name = name_of(create(cluster), Stage.SEGMENTS)
    body = {
        "metadata": {"name": name},
        "spec": {"completions": 1, "suspend": True, "template": {"spec": {}}, "completionMode": "Indexed"},
    }
    cluster.api.request("POST", child_path(NAMESPACE), body=body)
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "NameConflict", seconds=30)
    assert [pod["status"]["phase"] for pod in cluster.api.all("pods")] == ["Succeeded"]
    cluster.api.request("PATCH", PATH, body={"spec": {"cancelGeneration": 0}}, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.FAILED), seconds=120)
    assert not cluster.api.all("pods")


def test_a_config_map_of_another_under_the_name_is_said_once_and_waited_for(cluster: SimulatedCluster) -> None:
    """Invariants 5, 7, 8."""
    name = name_of(create(cluster), Stage.PREPARE)
    cluster.api.request("POST", core_path("configmaps", NAMESPACE), body={"metadata": {"name": name}, "data": {}})
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=10)
    before = writes(cluster)
    cluster.pass_until(lambda: False, seconds=300)
    assert writes(cluster) == before
    cluster.api.request("DELETE", core_path("configmaps", NAMESPACE, name))
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.COMPLETED), seconds=120)


def test_a_refused_child_is_said_once_and_tried_again(cluster: SimulatedCluster) -> None:
    """Invariants 5, 8."""
    create(cluster)
    cluster.start_operator()
    refusals = 0
    while cluster.seconds < 1_300:
        if cluster.calls:
            refuse = cluster.calls[0].method == "POST" and cluster.calls[0].path == child_path(NAMESPACE)
            refusals += refuse
            cluster.settle(cluster.calls[0], Fate.REFUSED_403 if refuse else Fate.ANSWERED)
        elif not cluster.step(0):
            cluster.pass_time(cluster.next_time() or 1.0)
    assert says_why(live(cluster)) == "RejectedByCluster"
    assert 5 < refusals < 40
    told = [change for change in cluster.api.changes if change.resource == INGESTION_JOBS]
    assert len(told) < 8
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.COMPLETED), seconds=120)
    assert not in_phase(cluster, *RETRYABLE_PHASES)


def annotate(cluster: SimulatedCluster, token: str) -> None:
    body = {"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: token}}}
    cluster.api.request("PATCH", PATH, body=body, content_type=MERGE_PATCH)


def test_a_late_answer_to_an_old_annotation_does_not_bring_a_newer_one_back(cluster: SimulatedCluster) -> None:
    """Invariant 4: the mark of the refused token arrives when the next one has had its retry."""
    cluster.verdicts[Stage.SEGMENTS, 1] = Verdict(code="EmbeddingRejected")
    create(cluster)
    annotate(cluster, "too-early")
    stale = cluster.start_operator()

    def marking() -> Call | None:
        found = (call for call in cluster.calls if call.arguments.get("content_type") == JSON_PATCH)
        return next(found, None)

    while (late := marking()) is None:
        assert cluster.step(0)
    cluster.kill(stale)
    cluster.start_operator()
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.PARTIAL_FAILURE), seconds=300)
    annotate(cluster, "now")
    assert cluster.pass_until(lambda: len(live(cluster)["status"]["attempts"]) == 2, seconds=300)
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.PARTIAL_FAILURE), seconds=300)
    assert isinstance(cluster.commit(late), ApiError)
    cluster.pass_until(lambda: False, seconds=300)
    assert len(live(cluster)["status"]["attempts"]) == 2


@pytest.mark.parametrize("mark", [None, "nonsense"])
def test_an_answered_annotation_whose_mark_is_lost_is_no_retry(cluster: SimulatedCluster, mark: str | None) -> None:
    """Invariants 4 and 8: the status knows the answered token too."""
    cluster.verdicts[Stage.SEGMENTS, 1] = Verdict(code="EmbeddingRejected")
    create(cluster)
    cluster.start_operator()
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.PARTIAL_FAILURE), seconds=300)
    annotate(cluster, "now")
    assert cluster.pass_until(lambda: len(live(cluster)["status"]["attempts"]) == 2, seconds=300)
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.PARTIAL_FAILURE), seconds=300)
    cluster.pass_until(lambda: False, seconds=10)
    body = {"metadata": {"annotations": {names.ANNOTATION_RETRY_HANDLED: mark}}}
    cluster.api.request("PATCH", PATH, body=body, content_type=MERGE_PATCH)
    before = writes(cluster)
    cluster.pass_until(lambda: False, seconds=300)
    assert len(live(cluster)["status"]["attempts"]) == 2
    assert writes(cluster) == before
    annotate(cluster, "again")
    assert cluster.pass_until(lambda: len(live(cluster)["status"]["attempts"]) == 3, seconds=300)


def test_pods_that_a_lost_node_cannot_end_are_a_reason(cluster: SimulatedCluster) -> None:
    """Invariants 5 and 8: they are deleted, and stay until their node comes back or is given up."""
    cluster.verdicts[Stage.PREPARE, None] = Verdict(hangs=True)
    name = name_of(create(cluster), Stage.PREPARE)
    cluster.start_operator()
    assert cluster.pass_until(lambda: any(job["status"].get("ready") for job in cluster.api.all("jobs")), seconds=10)
    cluster.kubelet.silent = True
    (pod,) = cluster.api.all("pods")
    cluster.kubelet.evict(("pods", NAMESPACE, pod["metadata"]["name"]))
    assert not cluster.pass_until(lambda: says_why(live(cluster)) is not None, seconds=45)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "PodTerminating", seconds=120)
    before = writes(cluster)
    cluster.pass_until(lambda: False, seconds=300)
    assert writes(cluster) == before
    cluster.verdicts.clear()
    cluster.kubelet.silent = False
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.COMPLETED), seconds=120)
    assert live(cluster)["status"]["attempts"][0]["jobs"][0]["name"] == name


def test_a_pod_that_a_sidecar_keeps_from_its_end_is_a_reason(cluster: SimulatedCluster) -> None:
    """Invariants 5 and 8: its worker is done, and somebody has added a container that goes on."""
    cluster.verdicts[Stage.PREPARE, None] = Verdict(sidecar=True)
    create(cluster)
    cluster.start_operator()
    assert not cluster.pass_until(lambda: says_why(live(cluster)) is not None, seconds=45)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "PodTerminating", seconds=60)
    before = writes(cluster)
    cluster.pass_until(lambda: False, seconds=300)
    assert writes(cluster) == before
    cluster.verdicts.clear()
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.COMPLETED), seconds=120)


def test_pods_on_a_lost_node_that_nobody_takes_off_it_are_a_reason(cluster: SimulatedCluster) -> None:
    """Invariants 5 and 8: they tolerate that, and there are more than are looked at; the others are done."""
    cluster.segments, lost = 12, range(3, 12)
    cluster.verdicts |= {(Stage.SEGMENTS, segment): Verdict(hangs=True) for segment in lost}
    create(cluster, parallelism=12)
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=20)
    cluster.kubelet.silent = True
    now = format_time(cluster.now())
    unready = {"conditions": [{"type": "Ready", "status": "False", "lastTransitionTime": now}]}
    ready = {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now}]}
    pods = [pod["metadata"]["name"] for pod in cluster.api.all("pods") if pod["status"]["phase"] == "Running"]
    assert len(pods) == len(lost)

    def say(status: JsonObject) -> None:
        for pod in pods:
            path = core_path("pods", NAMESPACE, pod) + "/status"
            cluster.api.request("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)

    say(unready)
    assert not cluster.pass_until(lambda: says_why(live(cluster)) is not None, seconds=150)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "PodTerminating", seconds=120)
    before = writes(cluster)
    cluster.pass_until(lambda: False, seconds=300)
    assert writes(cluster) == before
    cluster.kubelet.silent = False
    say(ready)
    assert cluster.pass_until(lambda: says_why(live(cluster)) is None, seconds=30)
    cluster.verdicts.clear()
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.COMPLETED), seconds=120)


@pytest.mark.parametrize("owner", ["../../team-b/ingestionjobs/handbook", "team-b." * 36 + "aa"])
def test_what_is_no_name_in_an_annotation_is_not_asked_for(cluster: SimulatedCluster, owner: str) -> None:
    """Invariant 9: a Job says whose it is in an annotation, and whoever makes Jobs can write anything there.

    A name has at most 253 characters; an annotation may have a quarter of a million.
    """
    cluster.verdicts[Stage.PREPARE, None] = Verdict(hangs=True)
    name = name_of(create(cluster), Stage.PREPARE)
    cluster.start_operator()
    assert cluster.pass_until(lambda: any(job["status"].get("ready") for job in cluster.api.all("jobs")), seconds=10)
    body = {"metadata": {"annotations": {names.ANNOTATION_JOB_NAME: owner}}}
    cluster.api.request("PATCH", child_path(NAMESPACE, name), body=body, content_type=MERGE_PATCH)
    asked = set()
    while cluster.step(0):
        asked |= {call.path for call in cluster.calls}
    assert not any("team-b" in path for path in asked), asked
