"""What must not wait although a thousand jobs share the looks: here one job rests as long as each of those."""

from __future__ import annotations

from collections.abc import Callable

import ingestion_operator.main
import ingestion_operator.pace
import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Phase, Reason, Stage
from ingestion_crds.kube import MERGE_PATCH, batch_path, core_path, ingestion_path
from support.builders import ingestion_job

from simulation.cluster import NAMESPACE, Call, SimulatedCluster
from simulation.controllers import Verdict
from simulation.stories import HANGS, KEY, PATH, SEGMENTS, live, make_late, note_calls, stalled, start


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have each job rest for 100 s from now on."""
    return lambda: monkeypatch.setattr(ingestion_operator.pace, "_LOOK_EVERY_SECONDS", 100)


def is_list(call: Call) -> bool:
    return call.path == ingestion_path() and not call.writes


def is_question(call: Call) -> bool:
    return call.path == core_path("events", NAMESPACE) and not call.writes


def end_segments(cluster: SimulatedCluster) -> None:
    """Let the segments end, and their Job, without an answer to lists."""
    cluster.verdicts.clear()
    for _ in range(100):
        cluster.settle_down(held=is_list)
        jobs = [
            job for job in cluster.api.all("jobs") if job["metadata"]["labels"][names.LABEL_STAGE] == Stage.SEGMENTS
        ]
        if all(any(item["type"] == "Complete" for item in job["status"].get("conditions", [])) for job in jobs):
            return
        cluster.pass_time(0.2)
    raise AssertionError("the segments do not end")


def is_taken_in(cluster: SimulatedCluster) -> bool:
    return live(cluster)["status"].get("stage") != Stage.SEGMENTS


def delete_pod(cluster: SimulatedCluster, pod: JsonObject) -> None:
    cluster.api.request("DELETE", core_path("pods", NAMESPACE, pod["metadata"]["name"]), body={})


def has_pods(cluster: SimulatedCluster, *, ready: int) -> bool:
    (own,) = cluster.api.all("jobs")
    return (own["status"].get("active"), own["status"].get("ready", 0)) == (SEGMENTS, ready)


def replace_by_one_that_cannot_start(cluster: SimulatedCluster) -> None:
    cluster.verdicts[Stage.SEGMENTS, 0] = Verdict(image=True)
    delete_pod(cluster, cluster.api.all("pods")[0])
    assert cluster.pass_until(lambda: has_pods(cluster, ready=SEGMENTS - 1), seconds=200)


def test_a_pod_that_cannot_start_any_more_is_spoken_of(cluster: SimulatedCluster) -> None:
    """Without a crowd: all pods of the job were ready, so that nothing was to be asked."""
    start(cluster, seconds=200)
    replace_by_one_that_cannot_start(cluster)
    assert cluster.pass_until(lambda: stalled(cluster)["reason"] == Reason.IMAGE_UNAVAILABLE, seconds=10)


def test_that_all_pods_run_is_said_after_one_rest(cluster: SimulatedCluster, crowd: Callable[[], None]) -> None:
    start(cluster, seconds=200)
    replace_by_one_that_cannot_start(cluster)
    assert cluster.pass_until(lambda: stalled(cluster)["status"] == "True", seconds=10)
    crowd()
    cluster.pass_until(lambda: False, seconds=20)
    cluster.verdicts[Stage.SEGMENTS, 0] = HANGS
    for pod in cluster.api.all("pods"):
        if pod["status"]["phase"] == "Pending":
            delete_pod(cluster, pod)
    assert cluster.pass_until(lambda: has_pods(cluster, ready=SEGMENTS), seconds=300)
    assert cluster.pass_until(lambda: stalled(cluster)["status"] == "False", seconds=101)


def test_a_reason_costs_a_read_and_a_write(
    cluster: SimulatedCluster, crowd: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a thousand jobs wait for a full cluster, each of them has one: no full look."""
    monkeypatch.setattr(ingestion_operator.pace, "_CONFIRM_RESTS", 100)  # so that none is due
    crowd()
    start(cluster, seconds=200)
    replace_by_one_that_cannot_start(cluster)
    sent = note_calls(cluster, monkeypatch)
    assert cluster.pass_until(lambda: stalled(cluster)["status"] == "True", seconds=500)
    asked = [core_path("pods", NAMESPACE)]  # its Job was shown; a pod that pulls its image has its ConfigMap
    resync = ingestion_path(), batch_path()
    paths = [call.path for call in sent if call.by != "controllers" and call.path not in resync]
    assert paths == [*asked, f"{PATH}/status", core_path("events", NAMESPACE)]


def test_a_reason_that_no_longer_holds_is_not_written(
    cluster: SimulatedCluster, crowd: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last pod starts while its pods are asked why one does not."""
    monkeypatch.setattr(ingestion_operator.pace, "_CONFIRM_RESTS", 100)  # so that it is a look at counts that asks
    crowd()
    start(cluster, seconds=200)
    replace_by_one_that_cannot_start(cluster)

    def asks(call: Call) -> bool:
        return call.path == core_path("pods", NAMESPACE) and not call.writes

    assert cluster.pass_until(lambda: any(map(asks, cluster.calls)), seconds=600, held=asks)
    (call,) = filter(asks, cluster.calls)
    answer = cluster.hold_answer(call)
    cluster.verdicts[Stage.SEGMENTS, 0] = HANGS
    for pod in cluster.api.all("pods"):
        if pod["status"]["phase"] == "Pending":
            delete_pod(cluster, pod)
    while not has_pods(cluster, ready=SEGMENTS):
        cluster.settle_down()
        cluster.pass_time(1.0)
    answer()
    cluster.pass_time(0.1)
    cluster.settle_down()
    assert stalled(cluster)["status"] == "False"


def test_a_job_is_not_looked_at_before_there_is_anything_to_look_at(
    cluster: SimulatedCluster, crowd: Callable[[], None]
) -> None:
    crowd()
    only = start(cluster, seconds=200)
    taken = only.operator.queue._waited
    assert taken is not None
    looks: list[float] = []

    def waited(seconds: float, due: bool) -> None:
        looks.append(cluster.seconds)
        taken(seconds, due)

    only.operator.queue._waited = waited
    cluster.pass_until(lambda: False, seconds=1_000)
    assert len(looks) <= 4  # one after each third rest


def test_a_deleted_job_is_forgotten_at_once(cluster: SimulatedCluster, crowd: Callable[[], None]) -> None:
    crowd()
    only = start(cluster, seconds=200)
    cluster.api.request("DELETE", PATH, body={"propagationPolicy": "Orphan"})
    assert cluster.pass_until(lambda: only.operator.memory.of(KEY) is None, seconds=0.1)


def test_the_end_of_a_job_is_heard_before_the_list_of_a_takeover_is_there(
    cluster: SimulatedCluster, crowd: Callable[[], None]
) -> None:
    crowd()
    cluster.kill(start(cluster, seconds=200))
    standing_by = cluster.start_operator(stands_by=True)
    cluster.lead(standing_by)
    cluster.settle_down(held=is_list)
    end_segments(cluster)
    for _ in range(10):
        cluster.pass_time(0.1)
        cluster.settle_down(held=is_list)
    assert is_taken_in(cluster)


def test_a_list_that_is_older_than_a_retry_does_not_hide_its_end(
    cluster: SimulatedCluster, crowd: Callable[[], None]
) -> None:
    crowd()
    cluster.verdicts[Stage.SEGMENTS, 0] = Verdict(code="EmbeddingRejected")
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    only = cluster.start_operator()
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == Phase.PARTIAL_FAILURE, seconds=400)
    assert cluster.pass_until(lambda: any(map(is_list, cluster.calls)), seconds=600, held=is_list)
    (call,) = filter(is_list, cluster.calls)
    answer = cluster.hold_answer(call)
    cluster.verdicts[Stage.SEGMENTS, 0] = HANGS
    cluster.api.request("PATCH", PATH, body={"spec": {"retryGeneration": 1}}, content_type=MERGE_PATCH)
    cluster.pass_time(2.0)
    cluster.settle_down(held=is_list)
    answer()
    cluster.pass_time(20.0)
    cluster.settle_down(held=is_list)
    assert KEY in only.operator.memory.open
    end_segments(cluster)
    assert cluster.pass_until(lambda: is_taken_in(cluster), seconds=1)


def test_a_retry_goes_on_when_what_it_waits_for_is_gone(cluster: SimulatedCluster, crowd: Callable[[], None]) -> None:
    """A Job that nobody recorded is held by a finalizer."""
    start(cluster, seconds=200)
    late = make_late(cluster, finalizers=["example.com/hold"])
    cluster.verdicts.clear()
    cluster.verdicts[Stage.SEGMENTS, 0] = Verdict(code="EmbeddingRejected")
    for pod in cluster.api.all("pods"):
        delete_pod(cluster, pod)
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == Phase.PARTIAL_FAILURE, seconds=60)
    crowd()
    cluster.api.request("PATCH", PATH, body={"spec": {"retryGeneration": 1}}, content_type=MERGE_PATCH)
    cluster.pass_until(lambda: False, seconds=20)
    assert live(cluster)["status"]["phase"] == Phase.QUEUED
    cluster.api.request("PATCH", late, body={"metadata": {"finalizers": None}}, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: live(cluster)["status"]["observedRetryGeneration"] == 1, seconds=1)


def test_a_reason_does_not_go_away_while_events_are_asked_for(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart nothing is known yet, which is not that there is no reason."""
    monkeypatch.setattr(ingestion_operator.main, "_MOST_DUE", 4)
    monkeypatch.setattr(ingestion_operator.main, "WORKERS", 8)
    cluster.jobs.refuse_pods = True
    for name in ("one", "two"):
        cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(name=name))
    old = cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=30)
    cluster.kill(old)
    cluster.start_operator()
    for _ in range(60):
        cluster.settle_down(held=is_question)
        assert [stalled(cluster, name)["reason"] for name in ("one", "two")] == [Reason.POD_CREATION_FAILED] * 2
        cluster.pass_time(0.25)
    assert any(is_question(call) for call in cluster.calls)
    cluster.settle_down()
