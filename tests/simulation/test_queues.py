"""Somebody else suspends the Jobs, and resumes them: Kueue, or a person."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.kube import MERGE_PATCH, ApiError, child_path, ingestion_path
from support.builders import ingestion_job

from simulation.api import Change, Release, finished
from simulation.cluster import NAMESPACE, Call, SimulatedCluster
from simulation.controllers import GOOD, Step
from simulation.stories import HANGS, PATH, SEGMENTS, create, live, patch, reach, says_why, start, suspend, turns

SAYS_WHO = "a person, or Kueue, which may want the label kueue.x-k8s.io/queue-name"


class Kueue:
    """Kueue: it holds the Jobs that it manages, and admits those with the label of a queue.

    Source: Kueue v0.17.0, `startJob` and `stopJob` in pkg/controller/jobframework/reconciler.go, `Default` and
    `validatePartialAdmissionUpdate` in pkg/controller/jobs/job/job_webhook.go.

    Args:
        cluster: where it runs.
        webhook: it suspends Jobs before they are stored; else once they are.
        room: so many pods of a Job may run, and a Job that asks for more is content with that.
        all_jobs: it manages Jobs without the label too (manageJobsWithoutQueueName).

    Attributes:
        admits: there is room.
        default: the namespace has a LocalQueue called `default`, to which Jobs that are made without the label come.
    """

    def __init__(
        self, cluster: SimulatedCluster, *, webhook: bool = True, room: int = SEGMENTS, all_jobs: bool = True
    ) -> None:
        self._api = cluster.api
        self._webhook = webhook
        self._room = room
        self._all_jobs = all_jobs
        self._commit = cluster.commit
        self._asked: dict[str, int] = {}  # what Jobs asked for that have less, by UID
        self.admits = True
        self.default = False
        cluster.commit = self._admission  # type: ignore[method-assign]
        cluster.parts.insert(0, self)

    def _admission(self, call: Call) -> JsonObject | ApiError:
        job = next((job for job in self._api.peek("jobs") if call.path.endswith(f"/{job['metadata']['name']}")), None)
        spec = (call.arguments["body"] or {}).get("spec", {})
        if call.method == "POST" and call.path == child_path(NAMESPACE):
            if self.default:
                call.arguments["body"]["metadata"]["labels"].setdefault(names.LABEL_QUEUE_NAME, "default")
            manages = self._webhook and self._manages(call.arguments["body"])
            spec["suspend"] = spec.get("suspend", False) or manages
            if spec["parallelism"] > self._room:
                call.arguments["body"]["metadata"]["annotations"][names.ANNOTATION_MIN_PARALLELISM] = "1"
        elif job is not None and "parallelism" in spec and _is_fixed(job):
            text = "spec.parallelism: Forbidden: cannot change when partial admission is enabled"
            return ApiError(status=403, reason="Forbidden", message=text)
        return self._commit(call)

    def steps(self) -> Iterator[Step]:
        """Yield what it can do now."""
        for job in self._api.all("jobs"):
            admitted = self.admits and names.LABEL_QUEUE_NAME in job["metadata"]["labels"]
            if self._manages(job) and not finished(job) and job["spec"]["suspend"] == admitted:
                yield partial(self._turn, job, admitted)

    def _manages(self, job: JsonObject) -> bool:
        return self._all_jobs or names.LABEL_QUEUE_NAME in job["metadata"]["labels"]

    def _turn(self, job: JsonObject, admitted: bool) -> None:
        uid, parallelism = job["metadata"]["uid"], job["spec"]["parallelism"]
        if admitted:
            self._asked[uid] = parallelism
            parallelism = min(parallelism, self._room)
        else:
            parallelism = self._asked.pop(uid, parallelism)
        job["spec"] |= {"suspend": not admitted, "parallelism": parallelism}
        self._api.update(("jobs", NAMESPACE, job["metadata"]["name"]), job, by="kueue")


def _is_fixed(job: JsonObject) -> bool:
    return names.ANNOTATION_MIN_PARALLELISM in job["metadata"]["annotations"] and not job["spec"]["suspend"]


def change_job(cluster: SimulatedCluster, body: JsonObject, subresource: str = "") -> None:
    """Change the Job that runs, by hand."""
    path = child_path(NAMESPACE, cluster.api.all("jobs")[-1]["metadata"]["name"])
    cluster.api.request("PATCH", f"{path}{subresource}", body=body, content_type=MERGE_PATCH)


def hold(cluster: SimulatedCluster) -> None:
    """Suspend the Job that runs, by hand, and give the operator time to answer."""
    change_job(cluster, {"spec": {"suspend": True}})
    cluster.pass_until(lambda: False, seconds=300)


def job_spec(cluster: SimulatedCluster) -> Any:
    """Return the spec of the Job that was made last."""
    return cluster.api.all("jobs")[-1]["spec"]


def why(cluster: SimulatedCluster) -> str:
    """Return the message of condition Ready."""
    return str(next(item for item in live(cluster)["status"]["conditions"] if item["type"] == "Ready")["message"])


def put_into_queue(cluster: SimulatedCluster) -> None:
    """Label the IngestionJob and its Job."""
    label = {"metadata": {"labels": {names.LABEL_QUEUE_NAME: "night"}}}
    cluster.api.request("PATCH", PATH, body=label, content_type=MERGE_PATCH)
    change_job(cluster, label)


@pytest.mark.parametrize("webhook", [True, False])
def test_kueue_and_the_operator_do_not_fight_over_a_job_without_a_queue(
    cluster: SimulatedCluster, webhook: bool
) -> None:
    """Invariants 5 and 8: it waits, says for what, and goes on once it has that."""
    Kueue(cluster, webhook=webhook)
    create(cluster)
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "Waiting", seconds=30)
    assert why(cluster).endswith(SAYS_WHO)
    cluster.pass_until(lambda: False, seconds=30)
    changes: list[Change] = []
    cluster.api.on_change.append(changes.append)
    cluster.pass_until(lambda: False, seconds=3600)
    assert not changes
    put_into_queue(cluster)
    reach(cluster, "completed")
    assert {change.by for change in cluster.api.changes if turns(change)} <= {"kueue"}


@pytest.mark.parametrize("default", [True, False], ids=["by Kueue", "by hand"])
def test_a_job_that_somebody_else_has_put_into_a_queue_goes_on_once_it_is_taken_out(
    cluster: SimulatedCluster, default: bool
) -> None:
    kueue = Kueue(cluster, all_jobs=False)
    kueue.admits, kueue.default = False, default
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    create(cluster)
    cluster.start_operator()
    assert cluster.pass_until(lambda: bool(cluster.api.all("jobs")), seconds=30)
    if not default:
        change_job(cluster, {"metadata": {"labels": {names.LABEL_QUEUE_NAME: "night"}}})
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "Waiting", seconds=60)
    cluster.verdicts.clear()
    kueue.default = False
    change_job(cluster, {"metadata": {"labels": {names.LABEL_QUEUE_NAME: None}}})
    reach(cluster, "completed")


@pytest.mark.parametrize("release", Release, ids=lambda release: release.name)
def test_a_job_that_is_suspended_by_hand_stays_so_until_it_is_resumed(
    cluster: SimulatedCluster, release: Release
) -> None:
    """By hand, or by the IngestionJob, which takes over what is suspended already."""
    cluster.api.release = release
    start(cluster, first=GOOD)
    hold(cluster)
    assert says_why(live(cluster)) == "Waiting"
    assert why(cluster).endswith(SAYS_WHO)
    assert job_spec(cluster)["suspend"]
    if "startTime" in cluster.api.all("jobs")[-1]["status"]:  # as Kueue does
        change_job(cluster, {"status": {"startTime": None}}, "/status")
    change_job(cluster, {"spec": {"suspend": False}})
    cluster.pass_until(lambda: False, seconds=60)
    assert says_why(live(cluster)) is None
    hold(cluster)
    suspend(cluster)
    assert says_why(live(cluster)) == "Suspended"
    cluster.verdicts.clear()
    patch(cluster, suspend=False)
    reach(cluster, "completed")


@pytest.mark.parametrize("by_hand", [True, False], ids=["suspended by hand", "running"])
def test_a_job_says_that_it_is_suspended_once_it_is(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, by_hand: bool
) -> None:
    """Who sets `spec.suspend` back as soon as it says so has it resumed, although the first try met an error."""
    start(cluster, first=GOOD)
    if by_hand:
        hold(cluster)
    commit = cluster.commit
    answers = iter([ApiError(status=500, reason="InternalError", message="etcdserver: timed out")])
    found: list[str] = []

    def failing(call: Call) -> JsonObject | ApiError:
        failed = next(answers, None) if call.method == "PATCH" and "/jobs/" in call.path else None
        return failed if failed is not None else commit(call)

    def see(_: Change) -> None:
        if says_why(live(cluster)) == "Suspended":
            found.append(cluster.api.all("jobs")[-1]["metadata"]["annotations"][names.ANNOTATION_SUSPEND])

    monkeypatch.setattr(cluster, "commit", failing)
    cluster.api.on_change.append(see)
    patch(cluster, suspend=True)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "Suspended", seconds=60)
    assert set(found) == {"true"}
    cluster.verdicts.clear()
    patch(cluster, suspend=False)
    reach(cluster, "completed")


def test_what_is_resumed_by_hand_is_suspended_as_long_as_the_spec_says_so(cluster: SimulatedCluster) -> None:
    start(cluster, first=GOOD)
    suspend(cluster)
    change_job(cluster, {"spec": {"suspend": False}})
    assert cluster.pass_until(lambda: bool(job_spec(cluster)["suspend"]), seconds=30)
    cluster.verdicts.clear()
    patch(cluster, suspend=False)
    reach(cluster, "completed")


@pytest.mark.parametrize("said", [None, "false"], ids=["an older release", "an older release after a newer one"])
def test_a_job_that_another_release_has_suspended_is_resumed(cluster: SimulatedCluster, said: str | None) -> None:
    """It does not say who suspended it, or what it says is out of date."""
    only = start(cluster, first=GOOD)
    suspend(cluster)
    cluster.kill(only)
    change_job(cluster, {"metadata": {"annotations": {names.ANNOTATION_SUSPEND: said}}})
    if said is None:
        patch(cluster, suspend=False)  # while no operator runs
    cluster.verdicts.clear()
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=60)
    patch(cluster, suspend=False)
    reach(cluster, "completed")


def test_what_an_older_release_has_suspended_waits_if_no_newer_one_sees_that_it_was_asked_to(
    cluster: SimulatedCluster,
) -> None:
    """The Job says that the operator has let it go, and nothing says anything else."""
    only = start(cluster, first=GOOD)
    cluster.kill(only)
    change_job(cluster, {"spec": {"suspend": True}})
    cluster.verdicts.clear()
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=60)
    assert says_why(live(cluster)) == "Waiting"
    suspend(cluster)
    assert says_why(live(cluster)) == "Suspended"
    patch(cluster, suspend=False)
    reach(cluster, "completed")


def test_what_kueue_admits_with_fewer_pods_runs_with_them(cluster: SimulatedCluster) -> None:
    """Kueue refuses another parallelism while it runs: a change waits until it is evicted."""
    cluster.verdicts |= {(Stage.SEGMENTS, segment): HANGS for segment in range(SEGMENTS)}
    kueue = Kueue(cluster, room=2)
    body = ingestion_job(parallelism=8)
    body["metadata"]["labels"] = {names.LABEL_QUEUE_NAME: "night"}
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=60)
    patch(cluster, parallelism=7)
    cluster.pass_until(lambda: False, seconds=300)
    assert job_spec(cluster)["parallelism"] == 2
    assert live(cluster)["status"]["stage"] == Stage.SEGMENTS
    assert says_why(live(cluster)) is None
    kueue.admits = False
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "Waiting", seconds=60)
    assert cluster.pass_until(lambda: bool(job_spec(cluster)["parallelism"] == 7), seconds=120)
    kueue.admits = True
    cluster.verdicts.clear()
    reach(cluster, "completed")
