"""Jobs are read by the names that are recorded: what is found of the others, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Phase, Stage
from ingestion_crds.kube import MERGE_PATCH, child_path, core_path, ingestion_path
from support.builders import ingestion_job

from simulation.api import INGESTION_JOBS, finished
from simulation.cluster import NAMESPACE, Call, Fate, SimulatedCluster
from simulation.controllers import Verdict
from simulation.stories import KEY, PATH, SEGMENTS, create, fail_in_part, live, make_late, says_why, stalled, start

FAILS = Verdict(code="EmbeddingRejected")


def go_on(cluster: SimulatedCluster) -> None:
    """Let the segments end that hang."""
    for segment in range(1, SEGMENTS):
        del cluster.verdicts[Stage.SEGMENTS, segment]


def is_there(cluster: SimulatedCluster) -> bool:
    return cluster.api.find("jobs", NAMESPACE, "late") is not None


def in_phase(cluster: SimulatedCluster, phase: Phase) -> bool:
    return live(cluster)["status"]["phase"] == phase


def pass_a_moment(cluster: SimulatedCluster) -> None:
    cluster.pass_time(0.2)
    cluster.settle_down()


def requests_while(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, fate: Fate = Fate.ANSWERED) -> list[str]:
    """Return the list that the operator's requests are put in from now on, which all meet one fate."""
    sent: list[str] = []
    settle = cluster.settle

    def noting(call: Call) -> None:
        sent.append(f"{call.method} {call.path}")
        settle(call, fate)

    monkeypatch.setattr(cluster, "settle", noting)
    return sent


def test_an_unrecorded_job_that_is_seen_when_it_has_ended_is_removed(cluster: SimulatedCluster) -> None:
    """Invariant 1: the watch was away while it came and ran."""
    only = start(cluster, first=FAILS)
    path = make_late(cluster)
    cluster.deliver(only, "jobs", lose=True)
    ended = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
    cluster.api.request("PATCH", f"{path}/status", body=ended, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: not is_there(cluster), seconds=0.1)


def test_an_unrecorded_job_that_came_before_the_takeover_is_removed(cluster: SimulatedCluster) -> None:
    """Invariant 1: its parent is settled, and the list passes over it."""
    only = fail_in_part(cluster)
    cluster.pass_until(lambda: False, seconds=60)
    cluster.kill(only)
    standing_by = cluster.start_operator(stands_by=True)
    make_late(cluster)
    cluster.settle_down()
    cluster.lead(standing_by)
    assert cluster.pass_until(lambda: not is_there(cluster), seconds=1)


def test_a_config_map_of_the_name_of_an_unrecorded_job_stays_if_it_is_a_strangers(cluster: SimulatedCluster) -> None:
    """Whoever copies a Job copies its labels and its owner too, and may give it any name."""
    body = {"metadata": {"name": "late"}, "data": {"colour": "blue"}}
    cluster.api.request("POST", core_path("configmaps", NAMESPACE), body=body)
    start(cluster, first=FAILS)
    make_late(cluster)
    assert cluster.pass_until(lambda: not is_there(cluster), seconds=60)
    assert cluster.api.find("configmaps", NAMESPACE, "late") is not None


def test_an_unrecorded_job_whose_events_are_lost_is_found_by_the_resync(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 1."""
    on_child_seen = start(cluster, first=FAILS).operator.intake.on_child_seen

    def losing(body: JsonObject, *, deleted: bool) -> None:
        if body["metadata"]["name"] != "late":
            on_child_seen(body, deleted=deleted)

    monkeypatch.setattr(cluster.operators[0].operator.intake, "on_child_seen", losing)
    make_late(cluster)
    cluster.pass_until(lambda: False, seconds=60)
    assert is_there(cluster)
    assert cluster.pass_until(lambda: not is_there(cluster), seconds=90)


def test_a_retry_waits_for_an_unrecorded_job_that_cannot_go_yet(cluster: SimulatedCluster) -> None:
    """Invariant 1: it may still run."""
    start(cluster, first=FAILS)
    path = make_late(cluster, finalizers=["example.com/hold"])
    go_on(cluster)
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.PARTIAL_FAILURE), seconds=60)
    cluster.api.request("PATCH", PATH, body={"spec": {"retryGeneration": 1}}, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.QUEUED), seconds=10)
    cluster.pass_until(lambda: False, seconds=60)
    assert in_phase(cluster, Phase.QUEUED)
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "PodTerminating", seconds=30)
    assert "the Job late was deleted at" in stalled(cluster)["message"]
    cluster.api.request("PATCH", path, body={"metadata": {"finalizers": None}}, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.PARTIAL_FAILURE), seconds=60)
    assert live(cluster)["status"]["observedRetryGeneration"] == 1


def test_an_unrecorded_job_of_somebody_else_costs_no_looks(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 7: such as an earlier job's of the same name, which was deleted and its Job orphaned."""
    start(cluster, first=FAILS)
    path = make_late(cluster, ownerReferences=[])
    sent = requests_while(cluster, monkeypatch)
    for number in range(10):
        labels = {"labels": {"changed": str(number)}}
        cluster.api.request("PATCH", path, body={"metadata": labels}, content_type=MERGE_PATCH)
        pass_a_moment(cluster)
    assert is_there(cluster)
    assert f"GET {child_path(NAMESPACE)}" not in sent
    assert len(sent) <= 2


def test_while_requests_fail_events_do_not_hasten_the_next_one(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(cluster, first=FAILS)
    own = cluster.api.all("jobs")[-1]["metadata"]["name"]
    sent = requests_while(cluster, monkeypatch, Fate.REFUSED_500)
    for number in range(100):
        body = {"spec": {"parallelism": number}}
        cluster.api.request("PATCH", child_path(NAMESPACE, own), body=body, content_type=MERGE_PATCH)
        pass_a_moment(cluster)
    assert 3 < len(sent) <= 20


def test_a_retry_that_a_look_found_before_the_watch_told_of_it_is_followed(cluster: SimulatedCluster) -> None:
    """Invariant 5: all that the watch shows has been read or written already, and the job is open all the same."""
    only = start(cluster, first=FAILS)
    go_on(cluster)
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.PARTIAL_FAILURE), seconds=60)
    cluster.settle_down()
    cluster.verdicts[Stage.SEGMENTS, 0] = Verdict(hangs=True)
    cluster.api.request("PATCH", PATH, body={"spec": {"retryGeneration": 1}}, content_type=MERGE_PATCH)
    only.operator.queue.add(KEY)
    while cluster.calls or len(cluster.api.all("jobs")) < 2:
        cluster.loop.run_until_idle()
        assert cluster.calls
        cluster.settle(cluster.calls[0])
        if any(job["metadata"]["labels"][names.LABEL_GENERATION] == "1" for job in cluster.api.all("jobs")):
            break
    cluster.pass_until(lambda: False, seconds=10)
    name = cluster.api.all("jobs")[-1]["metadata"]["name"]
    cluster.api.request("DELETE", child_path(NAMESPACE, name), body={"propagationPolicy": "Background"})
    assert cluster.pass_until(lambda: "JobLost" in live(cluster)["status"]["failureSummary"], seconds=0.1)


def test_nothing_is_remembered_of_a_job_that_is_gone(cluster: SimulatedCluster) -> None:
    body = ingestion_job(parallelism=SEGMENTS, ttlSecondsAfterFinished=30)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    only = cluster.start_operator()
    assert cluster.pass_until(lambda: cluster.api.find(INGESTION_JOBS, NAMESPACE, "handbook") is None, seconds=120)
    cluster.settle_down()
    assert only.operator.memory.of(KEY) is None


def test_what_a_stage_says_is_not_taken_for_what_the_next_one_does(cluster: SimulatedCluster) -> None:
    """Two operators without a Lease: when the first goes on, its next stage's Job is there, and has ended."""
    cluster.verdicts[Stage.SEGMENTS, 0] = FAILS
    create(cluster, parallelism=SEGMENTS)
    first = cluster.start_operator()

    def of_segments(job: JsonObject) -> bool:
        return bool(job["metadata"]["labels"][names.LABEL_STAGE] == Stage.SEGMENTS)

    def made() -> list[JsonObject]:
        return [job for job in cluster.api.all("jobs") if of_segments(job)]

    def stalls(call: Call) -> bool:
        makes = call.method == "POST" and call.path == child_path(NAMESPACE)
        return call.by == first.name and makes and of_segments(call.arguments["body"])

    def go_on_until(wish: Callable[[], bool]) -> None:
        cluster.settle_down(held=stalls)
        while not wish():
            due = cluster.next_time()
            assert due is not None
            cluster.pass_time(due)
            cluster.settle_down(held=stalls)

    go_on_until(lambda: any(map(stalls, cluster.calls)))
    second = cluster.start_operator()
    while not made():
        assert cluster.step(0, stalls)
    cluster.kill(second)
    assert live(cluster)["status"]["attempts"][0]["jobs"][-1].get("uid") is None
    go_on_until(lambda: finished(made()[0]))
    assert cluster.pass_until(lambda: in_phase(cluster, Phase.PARTIAL_FAILURE), seconds=60)
    assert live(cluster)["status"]["failureSummary"] == {FAILS.code: 1}
