"""Wishes that are odd, or come at an odd moment: the job says what becomes of them, and can be asked again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.config import Tenant
from ingestion_crds.constants import Stage
from ingestion_crds.kube import MERGE_PATCH, ApiError, child_path, core_path, ingestion_path
from support.builders import ingestion_job

from simulation.api import INGESTION_JOBS, Release
from simulation.cluster import NAMESPACE, Call, RunningOperator, SimulatedCluster
from simulation.controllers import GOOD, Verdict
from simulation.stories import (
    HANGS,
    PATH,
    SEGMENTS,
    fail_in_part,
    live,
    note_calls,
    patch,
    reach,
    says_why,
    stalled,
    start,
    suspend,
    warnings,
)


def patch_job(cluster: SimulatedCluster, **spec: Any) -> None:
    """Change the Job that runs, as a queue does."""
    path = child_path(NAMESPACE, cluster.api.all("jobs")[-1]["metadata"]["name"])
    cluster.api.request("PATCH", path, body={"spec": spec}, content_type=MERGE_PATCH)


def why(cluster: SimulatedCluster) -> str:
    """Return the message of condition Ready."""
    conditions = live(cluster)["status"]["conditions"]
    return str(next(item for item in conditions if item["type"] == "Ready")["message"])


def test_a_suspended_attempt_that_is_cancelled_keeps_what_it_has_done(cluster: SimulatedCluster) -> None:
    """Invariants 2 and 4."""
    start(cluster, first=GOOD)
    suspend(cluster)
    patch(cluster, cancelGeneration=0)
    status = reach(cluster, "failed")
    assert status["segments"]["completed"] == "0"
    assert status["failureSummary"] == {"Cancelled": SEGMENTS - 1}
    assert status["attempts"][0]["reason"] == "Cancelled"
    assert not cluster.api.all("jobs"), "a queue could let it go on"
    cluster.verdicts.clear()
    patch(cluster, suspend=False, retryGeneration=1)
    reach(cluster, "completed", 1)
    ran = [segment for _, generation, segment in cluster.kubelet.started if generation == 1 and segment is not None]
    assert sorted(ran) == list(range(1, SEGMENTS))


def test_a_segment_that_has_failed_is_not_recorded_as_cancelled(cluster: SimulatedCluster) -> None:
    """Its pod is read before it goes."""
    start(cluster, first=Verdict(code="PageUnreadable"))
    suspend(cluster)
    patch(cluster, cancelGeneration=0)
    status = reach(cluster, "failed")
    assert status["failureSummary"] == {"Cancelled": SEGMENTS - 1, "PageUnreadable": 1}


@pytest.mark.parametrize("disowned", [False, True], ids=["held by a finalizer", "and disowned"])
def test_the_attempt_is_over_when_the_suspended_job_is_gone(cluster: SimulatedCluster, disowned: bool) -> None:
    """Invariants 1 and 5: whoever could let it go on."""
    start(cluster, first=GOOD)
    suspend(cluster)
    name = cluster.api.all("jobs")[-1]["metadata"]["name"]
    path = child_path(NAMESPACE, name)
    owners = {"ownerReferences": None} if disowned else {}
    held = {"metadata": {"finalizers": ["example.com/held"], **owners}}
    cluster.api.request("PATCH", path, body=held, content_type=MERGE_PATCH)
    patch(cluster, cancelGeneration=0)
    cluster.pass_until(lambda: False, seconds=60)
    assert cluster.api.all("jobs")[-1]["metadata"].get("deletionTimestamp")
    assert live(cluster)["status"]["phase"] == "processing"
    assert "waiting for the Job to be gone" in why(cluster)
    cluster.pass_until(lambda: False, seconds=30)
    assert says_why(live(cluster)) == "PodTerminating"
    assert name in stalled(cluster)["message"]
    cluster.api.request("PATCH", path, body={"metadata": {"finalizers": None}}, content_type=MERGE_PATCH)
    reach(cluster, "failed")


@pytest.mark.parametrize("resource", ["jobs", "pods"])
def test_a_job_that_is_deleted_and_held_by_a_finalizer_says_so_and_can_be_cancelled(
    cluster: SimulatedCluster, resource: str
) -> None:
    """Invariant 5: its own, or one of a pod, such as a log collector's; no pod runs, and none is made any more."""
    start(cluster, first=GOOD)
    name = cluster.api.all("jobs")[-1]["metadata"]["name"]
    pod = cluster.api.all("pods")[-1]["metadata"]["name"]
    path = child_path(NAMESPACE, name) if resource == "jobs" else core_path("pods", NAMESPACE, pod)
    held = [*cluster.api.request("GET", path)["metadata"].get("finalizers", []), "example.com/logs"]
    cluster.api.request("PATCH", path, body={"metadata": {"finalizers": held}}, content_type=MERGE_PATCH)
    cluster.api.request("DELETE", child_path(NAMESPACE, name), body={"propagationPolicy": "Foreground"})
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "PodTerminating", seconds=90)
    assert f"the Job {name} was deleted at" in stalled(cluster)["message"]
    patch(cluster, cancelGeneration=0)
    status = reach(cluster, "failed", seconds=30)
    assert status["attempts"][0]["reason"] == "Cancelled"
    assert status["segments"]["completed"] == "0"
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)
    reach(cluster, "completed", 1)


def test_a_death_before_the_suspended_job_is_deleted_leaves_none(cluster: SimulatedCluster) -> None:
    """Invariants 1 and 4: what was done is recorded before the deletion, and the attempt is not over before it."""
    only = start(cluster, first=GOOD)
    suspend(cluster)
    patch(cluster, cancelGeneration=0)

    def about_to_delete() -> bool:
        return any(call.method == "DELETE" and "/jobs/" in call.path for call in cluster.calls)

    while not about_to_delete():
        calls = [call for call in cluster.calls if not (call.method == "DELETE" and "/jobs/" in call.path)]
        if calls:
            cluster.settle(calls[0])
        elif not cluster.step(0):
            cluster.pass_time(cluster.next_time() or 1)
    status = live(cluster)["status"]
    assert status["segments"]["completed"] == "0"
    assert status["phase"] == "processing"
    cluster.kill(only)
    cluster.start_operator()
    reach(cluster, "failed")
    assert not cluster.api.all("jobs")


def test_a_range_that_ends_before_it_begins_runs_nothing_and_says_so(cluster: SimulatedCluster) -> None:
    """Invariant 5; and what stands in the way of an attempt does not stand in the way of the next."""
    cluster.verdicts[Stage.SEGMENTS, 3] = Verdict(code="DocumentEncrypted")
    fail_in_part(cluster)
    patch(cluster, retryGeneration=1, retrySegments="3-0")
    status = reach(cluster, "partial_failure", 1)
    assert status["segments"]["failed"] == "0,3"
    assert any("spec.retrySegments" in text for text in warnings(cluster))
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=2, retrySegments=None)
    reach(cluster, "completed", 2)


def test_a_retry_that_is_still_narrowed_to_what_is_done_says_so(cluster: SimulatedCluster) -> None:
    """Invariant 5: `retrySegments` stays until it is changed, and a plain patch does not change it."""
    cluster.verdicts[Stage.SEGMENTS, 3] = Verdict(code="DocumentEncrypted")
    fail_in_part(cluster)
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1, retrySegments="0")
    assert reach(cluster, "partial_failure", 1)["segments"]["failed"] == "3"
    assert why(cluster) == f"1 of {SEGMENTS} segments failed: DocumentEncrypted 1"
    patch(cluster, retryGeneration=2)
    reach(cluster, "partial_failure", 2)
    assert why(cluster) == "nothing was run: spec.retrySegments names no unfinished segment"
    patch(cluster, retryGeneration=3, retrySegments=None)
    reach(cluster, "completed", 3)


@pytest.mark.parametrize(
    "wishes",
    [
        ({"retrySegments": ""}, {"retryGeneration": 1}),
        ({"retryGeneration": 1, "suspend": True}, {"retrySegments": ""}, {"suspend": False}),
        ({"retryGeneration": 1}, {"retrySegments": ""}),
    ],
    ids=["before a retry", "while it waits", "while it runs"],
)
def test_an_empty_choice_of_segments_is_none(cluster: SimulatedCluster, wishes: tuple[JsonObject, ...]) -> None:
    """Invariants 2, 4 and 5: the CRD admits it at any time."""
    fail_in_part(cluster)
    cluster.verdicts[Stage.SEGMENTS, 0] = HANGS
    for wish in wishes:
        patch(cluster, **wish)
        cluster.pass_until(lambda: False, seconds=70)
    cluster.verdicts.clear()
    assert reach(cluster, "completed", 1)["attempts"][-1]["completed"] == 1


def test_an_empty_range_does_not_hang_a_document_that_is_prepared_anew(cluster: SimulatedCluster) -> None:
    """Invariant 5."""
    cluster.verdicts[Stage.PREPARE, None] = Verdict(code="SourceUnavailable")
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(retrySegments="5-2"))
    cluster.start_operator()
    reach(cluster, "failed", seconds=600)
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)
    reach(cluster, "failed", 1)
    patch(cluster, retryGeneration=2, retrySegments=None)
    reach(cluster, "completed", 2)


def test_a_change_of_the_job_that_the_cluster_refuses_is_said(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants 5 and 8: also when the status that claims it was written before, and the first try met an error."""
    start(cluster)
    commit, refuses = cluster.commit, True
    answers = iter([ApiError(status=500, reason="InternalError", message="etcdserver: timed out")])

    def refusing(call: Call) -> JsonObject | ApiError:
        if refuses and call.method == "PATCH" and "/jobs/" in call.path:
            return next(answers, ApiError(status=403, reason="Forbidden", message="admission webhook says no"))
        return commit(call)

    monkeypatch.setattr(cluster, "commit", refusing)
    patch(cluster, suspend=True)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    assert "admission webhook says no" in stalled(cluster)["message"]
    version = live(cluster)["metadata"]["resourceVersion"]
    cluster.pass_until(lambda: False, seconds=300)
    assert live(cluster)["metadata"]["resourceVersion"] == version
    refuses = False
    assert cluster.pass_until(lambda: bool(cluster.api.all("jobs")[-1]["spec"].get("suspend")), seconds=40)
    assert cluster.pass_until(lambda: stalled(cluster)["status"] == "False", seconds=60)
    assert "suspend is true" in why(cluster)


def test_a_change_that_is_refused_does_not_keep_another_from_being_made(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(cluster)
    commit = cluster.commit

    def refusing(call: Call) -> JsonObject | ApiError:
        if call.path.startswith(child_path(NAMESPACE)) and "parallelism" in (call.arguments["body"] or {}).get(
            "spec", {}
        ):
            return ApiError(status=403, reason="Forbidden", message="no more than that")
        return commit(call)

    monkeypatch.setattr(cluster, "commit", refusing)
    patch(cluster, parallelism=1, suspend=True)
    assert cluster.pass_until(lambda: bool(cluster.api.all("jobs")[-1]["spec"]["suspend"]), seconds=60)
    assert cluster.pass_until(lambda: "no more than that" in stalled(cluster)["message"], seconds=60)


def test_a_running_attempt_is_given_more_time(cluster: SimulatedCluster) -> None:
    start(cluster, activeDeadlineSeconds=600)
    cluster.pass_until(lambda: False, seconds=300)
    patch(cluster, activeDeadlineSeconds=7200)
    cluster.pass_until(lambda: False, seconds=1000)
    assert cluster.api.all("jobs")[-1]["spec"]["activeDeadlineSeconds"] == 7200
    cluster.verdicts.clear()
    reach(cluster, "completed")


def test_a_namespace_that_is_no_tenant_any_more_is_a_reason_and_not_touched(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 5: the chart has taken the operator's rights there away."""
    only = start(cluster, first=Verdict(code="DocumentEncrypted"))
    cluster.kill(only)
    tenants, cluster.config = cluster.config, cluster.config.model_copy(update={"tenants": []})
    cluster.verdicts = {key: GOOD if verdict == HANGS else verdict for key, verdict in cluster.verdicts.items()}
    other = cluster.start_operator()
    sent = note_calls(cluster, monkeypatch)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "NoStore", seconds=60)
    cluster.pass_until(lambda: False, seconds=600)
    assert says_why(live(cluster)) == "NoStore"
    assert live(cluster)["status"]["phase"] == "processing"
    outside = {"pods", "configmaps"}
    assert not [call for call in sent if outside & set(call.path.split("/"))], "it may not even read these"
    assert not [call for call in sent if "/jobs" in call.path and call.writes]
    cluster.kill(other)
    cluster.config = tenants
    cluster.start_operator()
    reach(cluster, "partial_failure")
    assert live(cluster)["status"]["segments"]["failed"] == "0"


def test_a_new_job_of_a_namespace_that_is_no_tenant_can_be_cancelled(cluster: SimulatedCluster) -> None:
    """Invariant 5: there is nothing to be touched for that."""
    cluster.config = cluster.config.model_copy(update={"tenants": []})
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job())
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "NoStore", seconds=30)
    patch(cluster, cancelGeneration=0)
    reach(cluster, "failed")


def test_who_is_no_tenant_is_not_told_who_the_tenants_are(cluster: SimulatedCluster) -> None:
    """Invariant 9: neither in the status nor in an Event; only what there is to do."""
    others = [Tenant(namespace="team-of-another", bucket="another")]
    cluster.config = cluster.config.model_copy(update={"tenants": others})
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job())
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "NoStore", seconds=30)
    (warning,) = warnings(cluster)
    assert warning == stalled(cluster)["message"]
    assert "`tenants`" in warning
    assert "team-of-another" not in json.dumps([live(cluster), *cluster.api.all("events")])


def test_a_job_that_no_queue_was_asked_to_admit_is_not_waited_for(cluster: SimulatedCluster) -> None:
    """Invariant 5: what counts is the label of the Job, not that of its parent since."""
    start(cluster, first=GOOD)
    suspend(cluster)
    label = {"metadata": {"labels": {names.LABEL_QUEUE_NAME: "night"}}}
    cluster.api.request("PATCH", PATH, body=label, content_type=MERGE_PATCH)
    cluster.verdicts.clear()
    patch(cluster, suspend=False)
    assert cluster.pass_until(lambda: live(cluster)["status"]["stage"] == Stage.PUBLISH, seconds=120)
    assert cluster.pass_until(lambda: "waiting for the queue" in why(cluster), seconds=30)
    patch_job(cluster, suspend=False)
    reach(cluster, "completed")


def test_a_job_that_a_queue_has_yet_to_admit_is_left_to_it(cluster: SimulatedCluster) -> None:
    """Who takes the label off the IngestionJob has not taken the Job out of the queue."""
    body = ingestion_job(parallelism=SEGMENTS)
    body["metadata"]["labels"] = {names.LABEL_QUEUE_NAME: "night"}
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    assert cluster.pass_until(lambda: "waiting for the queue" in why(cluster), seconds=30)
    cluster.api.request(
        "PATCH", PATH, body={"metadata": {"labels": {names.LABEL_QUEUE_NAME: None}}}, content_type=MERGE_PATCH
    )
    cluster.pass_until(lambda: False, seconds=120)
    assert cluster.api.all("jobs")[-1]["spec"]["suspend"]
    patch_job(cluster, suspend=False)
    reach(cluster, "completed")


def test_a_job_that_is_taken_out_of_its_queue_has_pods_that_are_in_none(cluster: SimulatedCluster) -> None:
    """Kueue holds each pod with the label of a queue whose Job has none, as one that waits by itself."""
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    body = ingestion_job(parallelism=SEGMENTS)
    body["metadata"]["labels"] = {names.LABEL_QUEUE_NAME: "night"}
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    assert cluster.pass_until(lambda: "waiting for the queue" in why(cluster), seconds=30)
    (job,) = cluster.api.all("jobs")
    assert why(cluster) == f"waiting for the queue night to admit the Job {job['metadata']['name']}"
    for path in (PATH, child_path(NAMESPACE, job["metadata"]["name"])):
        label = {"metadata": {"labels": {names.LABEL_QUEUE_NAME: None}}}
        cluster.api.request("PATCH", path, body=label, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: bool(cluster.api.all("pods")), seconds=60)
    (pod,) = cluster.api.all("pods")
    assert names.LABEL_QUEUE_NAME not in pod["metadata"]["labels"]


def test_a_wish_to_suspend_what_a_queue_has_admitted_is_answered(cluster: SimulatedCluster) -> None:
    """Invariant 5: the running Job is the queue's to suspend."""
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    body = ingestion_job(parallelism=SEGMENTS)
    body["metadata"]["labels"] = {names.LABEL_QUEUE_NAME: "night"}
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    assert cluster.pass_until(lambda: "waiting for the queue" in why(cluster), seconds=30)
    patch_job(cluster, suspend=False)
    cluster.pass_until(lambda: False, seconds=30)
    patch(cluster, suspend=True)
    assert cluster.pass_until(lambda: "its queue's to suspend" in why(cluster), seconds=30)
    assert not cluster.api.all("jobs")[-1]["spec"]["suspend"]


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "processing"},
        {"phase": "completed"},
        {"phase": "queued"},
        {"observedRetryGeneration": None},
        {"observedRetryGeneration": 5},
    ],
    ids=str,
)
def test_a_status_that_somebody_wrote_is_put_right_so_that_retries_are_admitted(
    cluster: SimulatedCluster, status: JsonObject
) -> None:
    """Invariant 5: `phase` is a projection, whoever has written another, and also if nobody has heard of that."""
    only = fail_in_part(cluster)
    patch(cluster, ttlSecondsAfterFinished=10)
    cluster.pass_until(lambda: False, seconds=60)
    cluster.api.request("PATCH", f"{PATH}/status", body={"status": status}, content_type=MERGE_PATCH)
    cluster.deliver(only, INGESTION_JOBS, lose=True)
    reach(cluster, "partial_failure", seconds=130)
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1, ttlSecondsAfterFinished=None)
    reach(cluster, "completed", 1)


def test_a_reason_of_a_newer_release_does_not_keep_a_job_from_its_end(cluster: SimulatedCluster) -> None:
    """Invariant 5, after a rollback."""
    start(cluster)
    said = [{**item, "reason": "BrandNew", "message": ""} for item in live(cluster)["status"]["conditions"]]
    cluster.api.request("PATCH", f"{PATH}/status", body={"status": {"conditions": said}}, content_type=MERGE_PATCH)
    cluster.verdicts.clear()
    reach(cluster, "completed")
    assert "BrandNew" not in {item["reason"] for item in live(cluster)["status"]["conditions"]}


def roll_back(cluster: SimulatedCluster, by: RunningOperator, *, called: str) -> RunningOperator:
    """Begin with another operator after one whose release calls the last stage so; its CRD stays."""
    cluster.kill(by)
    status = live(cluster)["status"]
    *earlier, last = status["attempts"]
    jobs = [*last["jobs"][:-1], {**last["jobs"][-1], "stage": called}]
    status |= {"stage": called, "attempts": [*earlier, {**last, "jobs": jobs}]}
    cluster.api._objects[INGESTION_JOBS, NAMESPACE, "handbook"] = {**live(cluster), "status": status}
    return cluster.start_operator()


def test_a_job_that_was_at_a_stage_of_a_newer_release_when_it_failed_can_be_retried(cluster: SimulatedCluster) -> None:
    """Invariant 5."""
    roll_back(cluster, fail_in_part(cluster), called="brand_new")
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)
    reach(cluster, "completed", 1)


def test_a_job_that_runs_a_stage_of_a_newer_release_is_left_to_that() -> None:
    """Nothing of it is written over, and it goes on once an operator knows what it does.

    Without the oracle, which does not know such a stage either.
    """
    cluster = SimulatedCluster(segments=SEGMENTS)
    rolled_back = roll_back(cluster, start(cluster), called="brand_new")
    left = live(cluster)
    cluster.verdicts.clear()
    cluster.pass_until(lambda: False, seconds=300)
    assert live(cluster) == left
    assert cluster.api.all("jobs")
    roll_back(cluster, rolled_back, called="process_segments")
    reach(cluster, "completed")
    cluster.close()


@pytest.mark.parametrize("chosen", ["3", "3,5"])
def test_what_an_attempt_did_is_not_taken_for_what_the_next_one_is_asked_for(
    cluster: SimulatedCluster, chosen: str
) -> None:
    """Invariant 2: somebody has written that it is over, which admits another choice of segments while it runs."""
    cluster.verdicts |= {(Stage.SEGMENTS, segment): Verdict(code="DocumentEncrypted") for segment in (0, 3, 5)}
    fail_in_part(cluster)
    cluster.verdicts[Stage.SEGMENTS, 0] = HANGS
    patch(cluster, retryGeneration=1, retrySegments="0")
    cluster.pass_until(lambda: False, seconds=20)
    cluster.api.request("PATCH", f"{PATH}/status", body={"status": {"phase": "failed"}}, content_type=MERGE_PATCH)
    patch(cluster, retryGeneration=2, retrySegments=chosen)
    cluster.pass_until(lambda: False, seconds=20)
    cluster.verdicts[Stage.SEGMENTS, 0] = GOOD
    status = reach(cluster, "partial_failure", 2)
    assert status["segments"]["failed"] == "0,3,5"
    assert status["attempts"][1]["codes"] == {"ResultLost": len(chosen.split(","))}
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=3, retrySegments=None)
    reach(cluster, "completed", 3)


def test_the_phase_of_an_attempt_that_runs_is_put_right(cluster: SimulatedCluster) -> None:
    start(cluster)
    cluster.api.request("PATCH", f"{PATH}/status", body={"status": {"phase": "failed"}}, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "processing", seconds=30)


@pytest.mark.parametrize("release", Release, ids=lambda release: release.name)
@pytest.mark.parametrize("stage", Stage)
def test_a_stage_that_is_resumed_has_its_time_anew(cluster: SimulatedCluster, stage: Stage, release: Release) -> None:
    """Invariant 5: however long it was suspended, on each release of Kubernetes."""
    cluster.api.release = release
    cluster.verdicts[stage, 0 if stage is Stage.SEGMENTS else None] = HANGS
    body = ingestion_job(parallelism=SEGMENTS, activeDeadlineSeconds=600)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=20)
    assert live(cluster)["status"]["stage"] == stage
    suspend(cluster)
    cluster.pass_until(lambda: False, seconds=1000)
    patch(cluster, suspend=False)
    cluster.pass_until(lambda: False, seconds=500)
    assert cluster.api.all("jobs")[-1]["status"]["ready"] == 1
    cluster.verdicts.clear()
    reach(cluster, "completed", seconds=60)


@pytest.mark.parametrize("release", Release, ids=lambda release: release.name)
def test_a_stage_that_is_resumed_is_over_when_its_time_is(cluster: SimulatedCluster, release: Release) -> None:
    cluster.api.release = release
    start(cluster, activeDeadlineSeconds=600)
    suspend(cluster)
    patch(cluster, suspend=False)
    cluster.pass_until(lambda: False, seconds=590)
    assert live(cluster)["status"]["phase"] == "processing"
    assert reach(cluster, "failed", seconds=60)["failureSummary"] == {"Deadline": SEGMENTS}


def test_a_job_that_changes_as_it_is_resumed_is_looked_at_anew(cluster: SimulatedCluster) -> None:
    """Whether it may go on is not known then; nobody is to be told of that."""
    cluster.api.release = Release.RESET
    start(cluster, first=GOOD)
    suspend(cluster)
    cluster.verdicts.clear()
    patch(cluster, suspend=False)
    while not any("/jobs/" in call.path and call.path.endswith("/status") for call in cluster.calls):
        assert cluster.step(0)
    patch_job(cluster, parallelism=1)
    reach(cluster, "completed")
    assert not warnings(cluster)


def test_a_cancellation_that_is_taken_back_too_late_is_one(cluster: SimulatedCluster) -> None:
    """Its pods have been told to end, and that was not for want of time."""
    start(cluster, first=GOOD)
    cluster.kubelet.silent = True
    patch(cluster, cancelGeneration=0)
    cluster.pass_until(lambda: False, seconds=10)
    assert cluster.api.all("jobs")[-1]["spec"]["activeDeadlineSeconds"] == 0
    patch(cluster, cancelGeneration=None)
    cluster.pass_until(lambda: False, seconds=20)
    assert "waiting for the attempt's pods to end" in why(cluster)
    cluster.kubelet.silent = False
    status = reach(cluster, "failed")
    assert status["attempts"][0]["reason"] == "Cancelled"
    assert status["failureSummary"] == {"Cancelled": SEGMENTS - 1}
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)
    reach(cluster, "completed", 1)


def test_a_suspended_job_whose_cancellation_is_taken_back_is_given_up(cluster: SimulatedCluster) -> None:
    """Invariant 5: a deadline of 0 does not reach it; here its queue was faster than the Job controller."""
    start(cluster, first=GOOD)
    patch_job(cluster, suspend=True, activeDeadlineSeconds=0)
    assert reach(cluster, "failed")["failureSummary"] == {"Cancelled": SEGMENTS - 1}
    assert not cluster.api.all("jobs")
