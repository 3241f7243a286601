"""The operator's safeguards one by one, each in a short story that needs it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.kube import MERGE_PATCH, ApiError, child_path
from ingestion_operator.cluster import KubeCluster
from support.builders import foreign_job

from simulation.api import INGESTION_JOBS
from simulation.cluster import NAMESPACE, Fate, SimulatedClient, SimulatedCluster
from simulation.controllers import Verdict
from simulation.mutations import MUTATIONS, ROOT, Mutation, mutated
from simulation.oracle import Oracle
from simulation.stories import create, live, patch, says_why

ANOTHER = "11111111-1111-1111-1111-111111111111"


@pytest.fixture
def segments() -> int:
    return 4


def ended(cluster: SimulatedCluster, generation: int = 0) -> bool:
    status = live(cluster)["status"]
    return status["phase"] in names.TERMINAL_PHASES and status["observedRetryGeneration"] == generation


def running(cluster: SimulatedCluster) -> bool:
    return any(job["status"].get("ready") for job in cluster.api.all("jobs"))


def send(cluster: SimulatedCluster, request: Callable[[KubeCluster], Coroutine[Any, Any, Any]]) -> None:
    """Send one request of the operator's, and have it answered."""
    client: Any = SimulatedClient(cluster, "operator-0")
    task = cluster.loop.create_task(request(KubeCluster(client)))
    cluster.loop.run_until_idle()
    cluster.settle(cluster.calls[0])
    task.result()


def a_job(cluster: SimulatedCluster) -> JsonObject:
    """Return somebody's Job, with a pod that hangs."""
    cluster.verdicts["prepare_document", None] = Verdict(hangs=True)
    create(cluster)
    only = cluster.start_operator()
    assert cluster.pass_until(lambda: running(cluster), seconds=10)
    cluster.kill(only)
    (found,) = cluster.api.all("jobs")
    return found


def test_a_job_that_is_not_understood_does_not_stop_the_watch_of_the_others(cluster: SimulatedCluster) -> None:
    cluster.start_operator()
    odd = foreign_job("odd")
    odd["metadata"]["labels"] = {names.LABEL_MANAGED_BY: names.MANAGED_BY}
    cluster.api.request("POST", child_path(NAMESPACE), body=odd)
    status = {"status": {"completionTime": "soon"}}
    cluster.api.request("PATCH", f"{child_path(NAMESPACE, 'odd')}/status", body=status, content_type=MERGE_PATCH)
    cluster.pass_until(lambda: False, seconds=1)
    assert cluster.broken.found
    assert all(line.startswith("a Job that is not understood: odd") for line in cluster.broken.found)
    cluster.broken.found.clear()


@pytest.mark.parametrize("method", ["delete", "patch", "clear"])
def test_a_request_means_one_object_and_not_whatever_has_its_name(cluster: SimulatedCluster, method: str) -> None:
    """Invariant 7."""
    job = a_job(cluster)
    name = job["metadata"]["name"]
    if method == "delete":
        with pytest.raises(ApiError):
            send(cluster, lambda kube: kube.delete_child(namespace=NAMESPACE, name=name, uid=ANOTHER))
        with pytest.raises(ApiError):
            send(cluster, lambda kube: kube.ingestion_jobs.delete(namespace=NAMESPACE, name="handbook", uid=ANOTHER))
    elif method == "clear":
        suspended = {"spec": {"suspend": True}}
        cluster.api.request("PATCH", child_path(NAMESPACE, name), body=suspended, content_type=MERGE_PATCH)
        with pytest.raises(ApiError):
            send(cluster, lambda kube: kube.clear_start_time(namespace=NAMESPACE, name=name, resource_version="1"))
        (job,) = cluster.api.all("jobs")
        assert "startTime" in job["status"]
    else:
        with pytest.raises(ApiError):
            send(
                cluster,
                lambda kube: kube.patch_child(
                    namespace=NAMESPACE, name=name, uid=ANOTHER, spec={"parallelism": 3}, annotations={}
                ),
            )
    assert cluster.api.all("jobs") == [job]
    assert not live(cluster)["metadata"].get("deletionTimestamp")


def test_a_deleted_job_takes_its_pods_along(cluster: SimulatedCluster, oracle: Oracle) -> None:
    """Invariant 5."""
    name, uid = (job := a_job(cluster))["metadata"]["name"], job["metadata"]["uid"]
    send(cluster, lambda kube: kube.delete_child(namespace=NAMESPACE, name=name, uid=uid))
    assert cluster.api.find("jobs", NAMESPACE, name) is None
    cluster.settle_down()
    assert not cluster.api.all("pods")
    oracle.violations.remove(f"invariant 1: {name} is deleted, and is the newest")


def test_an_attempt_is_over_when_its_last_pod_is_and_a_retry_runs_what_never_started(cluster: SimulatedCluster) -> None:
    """Invariants 1 and 3: FailureTarget is not the end, and failedIndexes are not all that is unfinished."""
    cluster.verdicts["process_segments", 1] = Verdict(code="EmbeddingRejected")
    cluster.verdicts["process_segments", 2] = Verdict(hangs=True)
    create(cluster, parallelism=2, maxFailedSegments=0)
    cluster.start_operator()
    assert cluster.pass_until(lambda: ended(cluster), seconds=60)
    assert live(cluster)["status"]["segments"]["failed"] == "1-3"
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)
    assert cluster.pass_until(lambda: ended(cluster, 1), seconds=60)
    assert live(cluster)["status"]["phase"] == "completed"
    ran = [(generation, segment) for _, generation, segment in cluster.kubelet.started if segment is not None]
    assert sorted(ran)[-3:] == [(1, 1), (1, 2), (1, 3)]


def test_a_lost_event_costs_minutes_and_not_a_job(cluster: SimulatedCluster) -> None:
    """Invariant 4."""
    cluster.verdicts["process_segments", 1] = Verdict(code="EmbeddingRejected")
    create(cluster)
    only = cluster.start_operator()
    assert cluster.pass_until(lambda: ended(cluster), seconds=60)
    cluster.pass_until(lambda: False, seconds=300)
    patch(cluster, retryGeneration=1)
    cluster.deliver(only, INGESTION_JOBS, lose=True)
    assert cluster.pass_until(lambda: ended(cluster, 1), seconds=180)


@pytest.mark.parametrize("fate", [Fate.REFUSED_409, Fate.REFUSED_500], ids=str)
def test_a_refused_write_is_tried_again_soon(cluster: SimulatedCluster, fate: Fate) -> None:
    """Invariant 5: it does not wait for the next look at everything."""
    cluster.start_operator()
    cluster.settle_down()
    create(cluster)
    while not (writes := [call for call in cluster.calls if call.writes and not call.tells]):
        assert cluster.step(0)
    cluster.settle(writes[0], fate)
    assert cluster.pass_until(lambda: bool(cluster.api.all("jobs")), seconds=20)


def test_pods_that_a_quota_refuses_are_a_reason(cluster: SimulatedCluster) -> None:
    """Invariants 5 and 8."""
    cluster.jobs.refuse_pods = True
    create(cluster)
    cluster.start_operator()
    assert cluster.pass_until(lambda: says_why(live(cluster)) == "PodCreationFailed", seconds=60)
    version = live(cluster)["metadata"]["resourceVersion"]
    cluster.pass_until(lambda: False, seconds=120)
    assert live(cluster)["metadata"]["resourceVersion"] == version
    cluster.jobs.refuse_pods = False
    assert cluster.pass_until(lambda: ended(cluster), seconds=120)


def test_a_job_deleted_by_hand_ends_the_attempt(cluster: SimulatedCluster) -> None:
    """Invariant 5."""
    cluster.verdicts["process_segments", 1] = Verdict(hangs=True)
    create(cluster)
    cluster.start_operator()
    assert cluster.pass_until(lambda: live(cluster)["status"].get("stage") == "process_segments", seconds=60)
    cluster.settle_down()
    name = live(cluster)["status"]["attempts"][-1]["jobs"][-1]["name"]
    cluster.api.request("DELETE", child_path(NAMESPACE, name), body={"propagationPolicy": "Background"})
    assert cluster.pass_until(lambda: ended(cluster), seconds=130)
    assert live(cluster)["status"]["failureSummary"] == {"JobLost": 4}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_the_mutations_take_away_is_there(mutation: Mutation) -> None:
    """`make mutations` takes long and is run now and then: that it still can be run is seen here."""
    mutated((ROOT / mutation.part / f"ingestion_{mutation.part}" / mutation.file).read_text(), mutation)
