"""What a quota or a policy refuses for good, or changes: it is said, and holds up nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.kube import MERGE_PATCH, ApiError, child_path, core_path, ingestion_path
from ingestion_operator import children
from prometheus_client import REGISTRY
from support.builders import ingestion_job

from simulation.api import INGESTION_JOBS, Release
from simulation.cluster import NAMESPACE, Call, SimulatedCluster
from simulation.controllers import GOOD, Verdict
from simulation.oracle import Oracle
from simulation.stories import (
    PATH,
    SEGMENTS,
    create,
    fail_in_part,
    live,
    make_late,
    note_calls,
    patch,
    reach,
    says_why,
    stalled,
    start,
    suspend,
    warnings,
)

FORBIDDEN = ApiError(status=403, reason="Forbidden", message="a policy says no")
INVALID = ApiError(status=422, reason="Invalid", message="a policy says no")
NO_WEBHOOK = ApiError(
    status=500,
    reason="InternalError",
    message='Internal error occurred: failed calling webhook "x": connection refused',
)
PROXY = ApiError(status=404, reason="Unknown", message="<html>404 Not Found</html>")
STRANGER = ApiError(status=404, reason="NotFound", message="jobs.batch not found")
DENIALS = [
    ApiError(status=status, reason=reason, message='admission webhook "x" denied the request: a policy says no')
    for status, reason in (  # webhooks name their own
        (409, "AlreadyExists"),
        (409, "Conflict"),
        (413, "RequestEntityTooLarge"),
        (503, "ServiceUnavailable"),
    )
]
REFUSALS = pytest.mark.parametrize(
    "error",
    [FORBIDDEN, INVALID, NO_WEBHOOK, *DENIALS],
    ids=["403", "422", "webhook", "409 AlreadyExists", "409 Conflict", "413", "503"],
)


class Policy:
    """Refuses some requests while it is on, and changes others."""

    def __init__(self, cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses: Callable[[Call], bool] = lambda _: False
        self.changes: Callable[[Call], None] = lambda _: None
        self.error = FORBIDDEN
        self.refused = 0
        commit = cluster.commit

        def judged(call: Call) -> JsonObject | ApiError:
            if self.refuses(call):
                self.refused += 1
                return self.error
            self.changes(call)
            return commit(call)

        monkeypatch.setattr(cluster, "commit", judged)


@pytest.fixture
def policy(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """A policy that allows everything until a test says otherwise."""
    return Policy(cluster, monkeypatch)


@contextmanager
def quiet(cluster: SimulatedCluster) -> Iterator[None]:
    """What is tried again and again is neither written nor told again."""

    def seen() -> tuple[str, int]:
        return live(cluster)["metadata"]["resourceVersion"], len(cluster.api.all("events"))

    before = seen()
    yield
    assert seen() == before


def annotate(cluster: SimulatedCluster, token: str) -> None:
    body = {"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: token}}}
    cluster.api.request("PATCH", PATH, body=body, content_type=MERGE_PATCH)


def deletes(what: str) -> Callable[[Call], bool]:
    return lambda call: call.method == "DELETE" and f"/{what}" in call.path


@REFUSALS
def test_pods_that_may_not_be_deleted_do_not_keep_a_job_from_its_end(
    cluster: SimulatedCluster, policy: Policy, error: ApiError
) -> None:
    policy.refuses, policy.error = deletes("pods"), error
    fail_in_part(cluster)
    assert policy.refused
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)
    reach(cluster, "completed", 1)


@REFUSALS
def test_jobs_that_may_not_be_deleted_do_not_keep_a_job_from_its_end(
    cluster: SimulatedCluster, policy: Policy, error: ApiError
) -> None:
    """And they are deleted once they may be."""
    policy.refuses, policy.error = deletes("jobs"), error
    fail_in_part(cluster)
    assert policy.refused
    assert len(cluster.api.all("jobs")) == 2
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)
    reach(cluster, "completed", 1)
    asked = policy.refused
    cluster.pass_until(lambda: False, seconds=1300)
    assert asked < policy.refused
    assert policy.refused < asked + 10
    policy.refuses = lambda _: False
    assert cluster.pass_until(lambda: len(cluster.api.all("jobs")) == 1, seconds=700)


def test_jobs_of_stages_that_are_over_are_deleted_although_a_change_of_the_next_is_refused(
    cluster: SimulatedCluster, policy: Policy
) -> None:
    """Invariant 1: nothing is left over."""

    def other_deadline(call: Call) -> None:
        if call.method == "POST" and call.path.endswith("/jobs"):
            call.arguments["body"]["spec"]["activeDeadlineSeconds"] = 600

    policy.changes = other_deadline
    policy.refuses = lambda call: call.method == "PATCH" and "/jobs/" in call.path
    create(cluster)
    cluster.start_operator()
    reach(cluster, "completed")
    assert policy.refused
    assert len(cluster.api.all("jobs")) == 1
    assert len(cluster.api.all("configmaps")) == 1


def test_a_duplicate_that_may_not_be_deleted_is_said(cluster: SimulatedCluster, policy: Policy) -> None:
    """Invariants 1 and 5: the attempt is not over while it could run."""
    start(cluster)
    policy.refuses = deletes("jobs")
    make_late(cluster)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=120)
    assert stalled(cluster)["message"] == "late: a policy says no"
    asked = policy.refused
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=600)
    assert asked < policy.refused < asked + 60
    policy.refuses = lambda _: False
    assert cluster.pass_until(lambda: len(cluster.api.all("jobs")) == 1, seconds=60)


def test_a_suspended_job_that_may_not_be_deleted_is_said_and_waited_for(
    cluster: SimulatedCluster, policy: Policy
) -> None:
    """It was given up, and somebody could let it go on."""
    start(cluster, first=GOOD)
    suspend(cluster)
    policy.refuses = deletes("jobs")
    patch(cluster, cancelGeneration=0)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=600)
    policy.refuses = lambda _: False
    reach(cluster, "failed")


def test_a_job_whose_start_may_not_be_taken_off_stays_suspended_and_says_so(
    cluster: SimulatedCluster, policy: Policy
) -> None:
    """Invariant 5: resumed, it could be over at once."""
    cluster.api.release = Release.RESET
    start(cluster, first=GOOD)
    suspend(cluster)
    policy.refuses = lambda call: "/jobs/" in call.path and call.path.endswith("/status")
    cluster.verdicts.clear()
    patch(cluster, suspend=False)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=600)
    assert cluster.api.all("jobs")[-1]["spec"]["suspend"]
    policy.refuses = lambda _: False
    reach(cluster, "completed")


def test_config_maps_that_may_not_be_deleted_keep_no_job_from_being_deleted(
    cluster: SimulatedCluster, policy: Policy
) -> None:
    policy.refuses = deletes("configmaps")
    fail_in_part(cluster)
    assert policy.refused
    assert len(cluster.api.all("jobs")) == 1


def test_leftovers_of_a_job_are_deleted_before_its_time_to_live_is_over(
    cluster: SimulatedCluster, policy: Policy
) -> None:
    policy.refuses = deletes("jobs")
    body = ingestion_job(parallelism=SEGMENTS, ttlSecondsAfterFinished=10**6)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    reach(cluster, "completed")
    assert len(cluster.api.all("jobs")) > 1
    policy.refuses = lambda _: False
    assert cluster.pass_until(lambda: len(cluster.api.all("jobs")) == 1, seconds=700)


@REFUSALS
def test_a_completed_job_that_may_not_be_deleted_is_tried_again_in_a_while(
    cluster: SimulatedCluster, policy: Policy, error: ApiError
) -> None:
    """Invariant 8: its time to live is over."""
    policy.refuses, policy.error = deletes("ingestionjobs"), error
    body = ingestion_job(parallelism=SEGMENTS, ttlSecondsAfterFinished=10)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    reach(cluster, "completed")
    cluster.pass_until(lambda: False, seconds=60)
    asked = policy.refused
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=1300)
    assert 0 < asked < policy.refused < asked + 4
    policy.refuses = lambda _: False
    assert cluster.pass_until(lambda: cluster.api.find(INGESTION_JOBS, NAMESPACE, "handbook") is None, seconds=700)


def test_a_quota_of_one_job_at_a_time_is_enough(cluster: SimulatedCluster, policy: Policy) -> None:
    """The Job of the stage before, or of the last attempt, gives way when it is in the way."""

    def full(call: Call) -> bool:
        return call.method == "POST" and call.path == child_path(NAMESPACE) and bool(cluster.api.all("jobs"))

    policy.refuses = full
    policy.error = ApiError(status=403, reason="Forbidden", message="exceeded quota: jobs, used: count/jobs.batch=1")
    fail_in_part(cluster)
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)
    reach(cluster, "completed", 1)
    assert policy.refused == 3
    assert not [text for text in warnings(cluster) if "quota" in text], "it resolves by itself"
    assert len(cluster.api.all("jobs")) == len(cluster.api.all("configmaps")) == 1


@pytest.mark.parametrize("path", [child_path(NAMESPACE), core_path("configmaps", NAMESPACE)], ids=["Job", "ConfigMap"])
@REFUSALS
def test_a_refusal_that_no_deletion_cures_is_said_and_asked_again_in_a_while(
    cluster: SimulatedCluster, policy: Policy, error: ApiError, path: str
) -> None:
    policy.refuses = lambda call: call.method == "POST" and call.path == path
    policy.error = error
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    asked = policy.refused
    cluster.pass_until(lambda: False, seconds=299)
    assert asked < policy.refused < asked + 12
    policy.refuses = lambda _: False
    reach(cluster, "completed")


def test_a_refusal_is_said_no_longer_once_the_job_is_made(cluster: SimulatedCluster, policy: Policy) -> None:
    policy.refuses = lambda call: call.method == "POST" and call.path == child_path(NAMESPACE)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    policy.refuses = lambda _: False
    cluster.parts.remove(cluster.kubelet)  # pods that are ready would show it too
    assert cluster.pass_until(lambda: bool(cluster.api.all("jobs")), seconds=60)
    assert "uid" in live(cluster)["status"]["attempts"][0]["jobs"][0]
    assert says_why(live(cluster)) is None


def test_an_upgrade_while_a_job_is_refused_is_survived(
    cluster: SimulatedCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new release writes another file, and the ConfigMap of the old one cannot be changed."""
    policy.refuses = lambda call: call.method == "POST" and call.path == child_path(NAMESPACE)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    only = cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    cluster.kill(only)
    written = children.attempt_file
    monkeypatch.setattr(children, "attempt_file", lambda **wanted: '{"more":1,' + written(**wanted)[1:])
    cluster.start_operator()
    policy.refuses = lambda _: False
    reach(cluster, "completed")
    assert {item["data"][names.ATTEMPT_KEY][:9] for item in cluster.api.all("configmaps")} == {'{"more":1'}


def test_a_job_that_was_refused_when_it_was_backed_up_goes_on(
    cluster: SimulatedCluster, oracle: Oracle, policy: Policy
) -> None:
    """Its status, restored too, has the name of a Job that was to be made; that of the new UID has another name."""
    policy.refuses = lambda call: call.method == "POST" and call.path == child_path(NAMESPACE)
    create(cluster, parallelism=SEGMENTS)
    only = cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    cluster.kill(only)
    backup = live(cluster)["status"]
    cluster.api.request("DELETE", PATH, body={})
    create(cluster, parallelism=SEGMENTS)
    cluster.api.request("PATCH", f"{PATH}/status", body={"status": backup}, content_type=MERGE_PATCH)
    cluster.start_operator()
    policy.refuses = lambda _: False
    reach(cluster, "completed")
    oracle.violations.remove(f"invariant 1: attempt 0 renames {backup['attempts'][0]['jobs'][0]['name']}")


def test_a_job_that_is_back_from_a_backup_is_found_by_its_new_id(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its status came back with it and asks for nothing: it was never retried, and its generation is as then."""
    cluster.kill(fail_in_part(cluster))
    backup = live(cluster)["status"]
    cluster.api.request("DELETE", PATH, body={})
    create(cluster, parallelism=SEGMENTS)
    cluster.api.request("PATCH", f"{PATH}/status", body={"status": backup}, content_type=MERGE_PATCH)
    sent = note_calls(cluster, monkeypatch)
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=300)
    uid = live(cluster)["metadata"]["uid"]
    assert live(cluster)["status"] == {**backup, "jobID": uid}
    assert backup["jobID"] != uid
    assert [call.path for call in sent if call.writes and call.by != "controllers"] == [f"{PATH}/status"]


@pytest.mark.parametrize("finalizers", [[], ["example.com/held"]])
def test_a_late_job_of_the_release_before_holds_nothing_up(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, finalizers: list[str]
) -> None:
    """The old operator died with its request under way, and the new one has replaced the ConfigMap since.

    Or it says so: invariant 5.
    """

    def held(call: Call) -> bool:
        return call.method == "POST" and call.path == child_path(NAMESPACE)

    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    only = cluster.start_operator()
    cluster.settle_down(held=held)
    late = [call for call in cluster.kill(only) if held(call)]
    written = children.attempt_file
    monkeypatch.setattr(children, "attempt_file", lambda **wanted: '{"more":1,' + written(**wanted)[1:])
    cluster.start_operator()
    cluster.settle_down(held=held)
    assert [item["data"][names.ATTEMPT_KEY][:9] for item in cluster.api.all("configmaps")] == ['{"more":1']
    (call,) = late
    if finalizers:
        call.arguments["body"]["metadata"]["finalizers"] = finalizers
    cluster.commit(call)
    if finalizers:
        assert cluster.pass_until(lambda: says_why(live(cluster)) == "PodTerminating", seconds=120)
        cluster.api.request(
            "PATCH",
            f"{call.path}/{call.arguments['body']['metadata']['name']}",
            body={"metadata": {"finalizers": None}},
            content_type=MERGE_PATCH,
        )
    reach(cluster, "completed")


def take_the_digest_off(call: Call) -> None:
    if call.method == "POST" and call.path == child_path(NAMESPACE):
        del call.arguments["body"]["metadata"]["annotations"][names.ANNOTATION_MAP_DIGEST]


def test_a_job_that_a_policy_changes_is_said_and_made_again_in_a_while(
    cluster: SimulatedCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants 5 and 8: it is not taken for one of another release, to be replaced at once."""
    policy.changes = take_the_digest_off
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    sent = note_calls(cluster, monkeypatch)
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    assert names.ANNOTATION_MAP_DIGEST in stalled(cluster)["message"]
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=600)
    made = [call for call in sent if call.method == "POST" and call.path == child_path(NAMESPACE)]
    assert 3 < len(made) < 10
    assert not cluster.api.all("jobs"), "it would run for nothing"
    policy.changes = lambda _: None
    reach(cluster, "completed")


def test_an_annotation_of_a_job_that_a_policy_takes_back_is_said_and_put_on_again_in_a_while(
    cluster: SimulatedCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariants 5 and 8: the one that says who has suspended it."""

    def take_back(call: Call) -> None:
        if call.method == "PATCH" and "/jobs/" in call.path:
            call.arguments["body"]["metadata"].pop("annotations", None)

    start(cluster, first=GOOD)
    policy.changes = take_back
    sent = note_calls(cluster, monkeypatch)
    patch(cluster, suspend=True)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=30)
    assert stalled(cluster)["message"].endswith(f"{names.ANNOTATION_SUSPEND}: true")
    cluster.pass_until(lambda: False, seconds=300)
    assert 1 < len([call for call in sent if call.method == "PATCH" and "/jobs/" in call.path]) < 6
    policy.changes = lambda _: None
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "Suspended", seconds=200)


@pytest.mark.parametrize(("field", "wanted", "kept"), [("parallelism", 30, 4), ("activeDeadlineSeconds", 7200, 600)])
def test_a_change_of_a_job_that_a_policy_takes_back_is_said_and_made_again_in_a_while(
    cluster: SimulatedCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch, field: str, wanted: int, kept: int
) -> None:
    """Invariants 5 and 8."""

    def cap(call: Call) -> None:
        if call.method == "PATCH" and "/jobs/" in call.path and field in call.arguments["body"]["spec"]:
            call.arguments["body"]["spec"][field] = kept

    start(cluster, first=GOOD)
    policy.changes = cap
    sent = note_calls(cluster, monkeypatch)
    patch(cluster, **{field: wanted})
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=30)
    assert stalled(cluster)["message"].endswith(f"the cluster does not keep spec.{field}: {wanted}")
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=300)
    assert 1 < len([call for call in sent if call.method == "PATCH" and "/jobs/" in call.path]) < 6
    patch(cluster, suspend=True)
    assert cluster.pass_until(lambda: bool(cluster.api.all("jobs")[-1]["spec"]["suspend"]), seconds=30)
    policy.changes = lambda _: None
    cluster.verdicts.clear()
    patch(cluster, suspend=False, **{field: kept})
    reach(cluster, "completed")


def test_an_attempt_whose_job_a_policy_changes_can_be_cancelled(cluster: SimulatedCluster, policy: Policy) -> None:
    policy.changes = take_the_digest_off
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    patch(cluster, cancelGeneration=0)
    reach(cluster, "failed")
    assert not cluster.api.all("jobs")
    assert not cluster.api.all("configmaps")


def give_away(call: Call) -> None:
    """Do as Kueue does where MultiKueue is to run the Jobs of a queue."""
    if call.method == "POST" and call.path == child_path(NAMESPACE):
        call.arguments["body"]["spec"] |= {"managedBy": "kueue.x-k8s.io/multikueue", "suspend": True}


@pytest.mark.parametrize("admitted", [False, True])
def test_a_job_that_is_given_to_another_cluster_says_so_and_can_be_cancelled(
    cluster: SimulatedCluster, policy: Policy, admitted: bool
) -> None:
    """Invariants 5 and 8: its pods lack their input there, and nobody here heeds its deadline."""
    policy.changes = give_away
    body = ingestion_job(parallelism=SEGMENTS)
    body["metadata"]["labels"] = {names.LABEL_QUEUE_NAME: "elsewhere"}
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    assert "kueue.x-k8s.io/multikueue" in stalled(cluster)["message"]
    (job,) = cluster.api.all("jobs")
    path = child_path(NAMESPACE, job["metadata"]["name"])
    if admitted:  # and what becomes of it there is said here
        cluster.api.request("PATCH", path, body={"spec": {"suspend": False}}, content_type=MERGE_PATCH)
        cluster.api.request("PATCH", f"{path}/status", body={"status": {"active": 1}}, content_type=MERGE_PATCH)
        cluster.pass_until(lambda: False, seconds=60)
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=600)
    patch(cluster, cancelGeneration=0)
    assert reach(cluster, "failed")["failureSummary"] == {"Cancelled": 1}
    assert not cluster.api.all("jobs")
    policy.changes = lambda _: None
    cluster.api.request(
        "PATCH", PATH, body={"metadata": {"labels": {names.LABEL_QUEUE_NAME: None}}}, content_type=MERGE_PATCH
    )
    patch(cluster, retryGeneration=1)
    reach(cluster, "completed", 1)


def test_a_webhook_that_is_away_for_a_moment_is_waited_for_without_a_word(
    cluster: SimulatedCluster, policy: Policy
) -> None:
    policy.refuses = lambda call: call.method == "POST" and call.path == child_path(NAMESPACE) and policy.refused < 3
    policy.error = NO_WEBHOOK
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    cluster.start_operator()
    reach(cluster, "completed")
    assert policy.refused == 3
    assert not warnings(cluster)


@pytest.mark.parametrize("error", [FORBIDDEN, INVALID, ApiError(status=400, reason="BadRequest", message="no")])
def test_an_annotation_whose_answer_is_refused_holds_nothing_up(
    cluster: SimulatedCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch, error: ApiError
) -> None:
    policy.refuses = lambda call: call.method == "PATCH" and call.path == PATH
    policy.error = error
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    annotate(cluster, "now")
    cluster.start_operator()
    sent = note_calls(cluster, monkeypatch)
    reach(cluster, "completed")
    written = sum(call.writes and call.path.endswith("/status") for call in sent)
    assert 0 < policy.refused <= written, "once for each look at most"
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=700)
    assert not warnings(cluster), "it was not answered"
    policy.refuses = lambda _: False
    handled = names.ANNOTATION_RETRY_HANDLED
    assert cluster.pass_until(lambda: live(cluster)["metadata"]["annotations"].get(handled) == "now", seconds=60)
    assert len(warnings(cluster)) == 1


@pytest.mark.parametrize("path", [f"{PATH}/status", PATH], ids=["status", "answer to an annotation"])
def test_a_write_that_loses_a_race_is_counted(cluster: SimulatedCluster, policy: Policy, path: str) -> None:
    policy.refuses = lambda call: call.method == "PATCH" and call.path == path and not policy.refused
    policy.error = ApiError(status=409, reason="Conflict", message="it has changed")
    before = REGISTRY.get_sample_value("ingestion_conflicts_total")
    create(cluster)
    annotate(cluster, "now")
    cluster.start_operator()
    reach(cluster, "completed")
    assert before is not None
    assert REGISTRY.get_sample_value("ingestion_conflicts_total") == before + 1


def take_the_mark_off(call: Call) -> None:
    """Leave out of a patch that an annotation is answered."""
    if call.method == "PATCH" and call.path == PATH:
        mark = f"/metadata/annotations/{names.ANNOTATION_RETRY_HANDLED.replace('/', '~1')}"
        call.arguments["body"] = [item for item in call.arguments["body"] if item["path"] != mark]


@pytest.mark.parametrize("runs", [True, False])
def test_an_annotation_whose_mark_a_policy_takes_off_is_answered_once(
    cluster: SimulatedCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    """Invariant 8: here it asks for what cannot be retried."""
    policy.changes = take_the_mark_off
    start(cluster)
    if not runs:
        cluster.verdicts.clear()
        reach(cluster, "completed")
    sent = note_calls(cluster, monkeypatch)
    annotate(cluster, "now")
    cluster.pass_until(lambda: False, seconds=60)
    assert [call.path for call in sent if call.writes and not call.tells] == [PATH, f"{PATH}/status"]
    assert live(cluster)["status"]["lastHandledRetryRequest"] == "now"
    assert len(warnings(cluster)) == 1
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=600)


@pytest.mark.parametrize("nth", range(6))
def test_an_annotation_whose_mark_a_policy_takes_off_is_one_retry(
    cluster: SimulatedCluster, oracle: Oracle, policy: Policy, nth: int
) -> None:
    """Invariant 4: after whichever of its writes the operator dies."""
    fail_in_part(cluster)
    cluster.pass_until(lambda: False, seconds=60)
    written = count()

    def changes(call: Call) -> None:
        take_the_mark_off(call)
        if call.writes and next(written) == nth:
            cluster.kill(cluster.operators[0])

    policy.changes = changes
    annotate(cluster, "now")
    assert cluster.pass_until(lambda: not cluster.operators, seconds=60)
    cluster.start_operator()
    reach(cluster, "partial_failure", 1)
    cluster.pass_until(lambda: False, seconds=60)
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=600)
    assert live(cluster)["spec"]["retryGeneration"] == 1
    assert live(cluster)["status"]["lastHandledRetryRequest"] == "now"
    oracle.violations.remove("invariant 4: the annotation is raised for, and not marked handled")


def test_a_config_map_that_may_not_be_made_again_is_said(
    cluster: SimulatedCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.verdicts[Stage.PREPARE, None] = Verdict(image=True)  # pods that do not start
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job())
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=10)
    policy.refuses = lambda call: call.method == "POST" and "/configmaps" in call.path
    monkeypatch.setattr("ingestion_operator.reconcile.may_lack_config_map", lambda _: True)
    name = cluster.api.all("configmaps")[-1]["metadata"]["name"]
    cluster.api.request("DELETE", core_path("configmaps", NAMESPACE, name))
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=200)
    assert name in stalled(cluster)["message"]
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=600)
    policy.refuses = lambda _: False
    assert cluster.pass_until(lambda: bool(cluster.api.all("configmaps")), seconds=200)


def reads(what: str) -> Callable[[Call], bool]:
    return lambda call: call.method == "GET" and call.path == core_path(what, NAMESPACE)


def test_pods_that_may_not_be_read_are_said_and_what_they_did_is_not_lost(
    cluster: SimulatedCluster, policy: Policy
) -> None:
    """Invariant 5: somebody has taken away what the chart has given the operator in the namespace."""
    start(cluster, first=Verdict(code="DocumentEncrypted"))
    policy.refuses = reads("pods")
    cluster.verdicts = {(Stage.SEGMENTS, 0): Verdict(code="DocumentEncrypted")}
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    assert "a policy says no" in stalled(cluster)["message"]
    asked = policy.refused
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=300)
    assert asked < policy.refused < asked + 15
    policy.refuses = lambda _: False
    assert reach(cluster, "partial_failure")["failureSummary"] == {"DocumentEncrypted": 1}


def test_jobs_of_a_namespace_whose_events_may_no_longer_be_read_all_say_so(
    cluster: SimulatedCluster, policy: Policy
) -> None:
    """Invariant 5: what was known before is not said in turn with it."""
    cluster.jobs.refuse_pods = True
    for name in ("one", "another", "third"):
        body = ingestion_job()
        body["metadata"]["name"] = name
        cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()

    def reasons() -> set[str | None]:
        return {says_why(job) for job in cluster.api.all(INGESTION_JOBS)}

    assert cluster.pass_until(lambda: reasons() == {"PodCreationFailed"}, seconds=60)
    policy.refuses = reads("events")
    assert cluster.pass_until(lambda: reasons() == {"RejectedByCluster"}, seconds=60)
    before = cluster.api.all(INGESTION_JOBS)
    cluster.pass_until(lambda: False, seconds=300)
    assert cluster.api.all(INGESTION_JOBS) == before


@pytest.mark.parametrize("what", ["pods", "events"])
def test_a_job_whose_pods_may_not_be_asked_why_they_wait_says_so_and_can_be_cancelled(
    cluster: SimulatedCluster, policy: Policy, what: str
) -> None:
    """Invariant 5."""
    if what == "pods":
        cluster.verdicts[Stage.PREPARE, None] = Verdict(image=True)
    else:
        cluster.jobs.refuse_pods = True
    policy.refuses = reads(what)
    create(cluster)
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=30)
    asked, written = policy.refused, live(cluster)
    cluster.pass_until(lambda: False, seconds=300)
    assert live(cluster) == written
    assert asked < policy.refused < asked + 65
    patch(cluster, cancelGeneration=0)
    assert cluster.pass_until(lambda: cluster.api.all("jobs")[-1]["spec"]["activeDeadlineSeconds"] == 0, seconds=30)
    policy.refuses = lambda _: False
    reach(cluster, "failed")


def test_an_attempt_does_not_end_by_the_word_of_a_proxy(cluster: SimulatedCluster, policy: Policy) -> None:
    """Invariant 1: that there is no such Job, the API server alone can say."""
    start(cluster, first=GOOD)
    policy.refuses, policy.error = lambda call: "/jobs/" in call.path, PROXY
    patch(cluster, parallelism=3)
    cluster.pass_until(lambda: False, seconds=60)
    assert policy.refused
    policy.refuses = lambda _: False
    cluster.verdicts.clear()
    assert len(reach(cluster, "completed")["attempts"]) == 1


def lose(cluster: SimulatedCluster, policy: Policy, *methods: str) -> str:
    """Have another cluster's API server answer that the running Job is not there; return its name."""
    start(cluster)
    name: str = cluster.api.all("jobs")[-1]["metadata"]["name"]
    policy.refuses = lambda call: call.method in methods and call.path == child_path(NAMESPACE, name)
    policy.error = STRANGER
    patch(cluster, parallelism=3)
    assert reach(cluster, "failed")["failureSummary"] == {"JobLost": SEGMENTS}
    return name


def forgive(oracle: Oracle, name: str) -> None:
    """Take off what another cluster's API server has made the operator do."""
    assert set(oracle.violations) == {f"invariant 1: attempt 0 is over, and {name} runs"}
    oracle.violations.clear()


def test_a_job_that_outlives_its_attempt_is_deleted(cluster: SimulatedCluster, oracle: Oracle, policy: Policy) -> None:
    """Invariant 1: as soon as it is heard of."""
    name = lose(cluster, policy, "GET")
    assert cluster.pass_until(lambda: not cluster.api.all("jobs"), seconds=10)
    forgive(oracle, name)


def test_a_retry_does_not_wait_in_silence_for_a_job_that_outlives_its_attempt(
    cluster: SimulatedCluster, oracle: Oracle, policy: Policy
) -> None:
    """Invariants 1 and 5: it is deleted, or the retry says why it is not."""
    name = lose(cluster, policy, "GET", "DELETE")
    policy.refuses, policy.error = deletes("jobs"), FORBIDDEN
    patch(cluster, retryGeneration=1)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=30)
    assert stalled(cluster)["message"] == f"{name}: a policy says no"
    with quiet(cluster):
        cluster.pass_until(lambda: False, seconds=300)
    forgive(oracle, name)
    policy.refuses = lambda _: False
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "processing", seconds=60)
    cluster.verdicts.clear()
    reach(cluster, "completed", 1)


def test_the_config_map_of_a_lost_job_is_deleted(cluster: SimulatedCluster) -> None:
    start(cluster)
    job = cluster.api.all("jobs")[-1]["metadata"]["name"]
    cluster.api.request("DELETE", child_path(NAMESPACE, job))
    status = reach(cluster, "failed")
    assert status["failureSummary"] == {"JobLost": SEGMENTS}
    assert job not in [config_map["metadata"]["name"] for config_map in cluster.api.all("configmaps")]


def test_the_config_map_of_a_job_that_was_never_made_is_deleted(
    cluster: SimulatedCluster, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy.refuses = lambda call: call.method == "POST" and call.path == child_path(NAMESPACE)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job())
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "RejectedByCluster", seconds=60)
    assert len(cluster.api.all("configmaps")) == 1
    sent = note_calls(cluster, monkeypatch)
    patch(cluster, cancelGeneration=0)
    reach(cluster, "failed")
    assert not cluster.api.all("configmaps")
    assert len([call for call in sent if call.method == "DELETE"]) == 1
