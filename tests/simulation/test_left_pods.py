"""The pods of an attempt that is over: they are removed when nothing else is to be done, and by whoever is there."""

from __future__ import annotations

import ingestion_operator.cluster
import ingestion_operator.main
import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.kube import core_path

from simulation.cluster import NAMESPACE, Call, SimulatedCluster
from simulation.controllers import Verdict
from simulation.stories import HANGS, SEGMENTS, create, live, note_calls, patch, reach

PODS = core_path("pods", NAMESPACE)
FAILS = Verdict(code="EmbeddingRejected")


def removes(call: Call) -> bool:
    return call.method == "DELETE" and call.path == PODS


def pods(cluster: SimulatedCluster) -> int:
    """Return how many pods of segments there are."""
    return sum(pod["metadata"]["labels"][names.LABEL_STAGE] == Stage.SEGMENTS for pod in cluster.api.all("pods"))


def end_before_its_pods(cluster: SimulatedCluster) -> Call:
    """Bring a job to its end, in part; return the request that removes pods of its segments, which waits."""
    cluster.verdicts[Stage.SEGMENTS, 0] = FAILS
    create(cluster, parallelism=SEGMENTS)
    cluster.start_operator()

    def last(call: Call) -> bool:
        return removes(call) and live(cluster)["status"]["phase"] == "partial_failure"

    while not any(map(last, cluster.calls)):
        cluster.settle_down(held=last)
        cluster.pass_time(0.1)
    return next(filter(last, cluster.calls))


def test_a_job_is_at_rest_before_its_pods_are_removed_and_says_so(cluster: SimulatedCluster) -> None:
    removal = end_before_its_pods(cluster)
    status = live(cluster)["status"]
    assert status["completionTime"] == status["attempts"][0]["completionTime"]
    (last,) = [job["uid"] for job in status["attempts"][0]["jobs"] if job["stage"] == Stage.SEGMENTS]
    assert status["podsToRemove"] == last
    assert pods(cluster) == SEGMENTS
    cluster.settle(removal)
    cluster.settle_down()
    assert pods(cluster) == 1  # the failed one is kept
    assert "podsToRemove" not in live(cluster)["status"]


def test_who_starts_next_removes_the_pods_of_a_job_at_rest(cluster: SimulatedCluster) -> None:
    end_before_its_pods(cluster)
    cluster.kill(cluster.operators[0])
    cluster.start_operator()
    assert cluster.pass_until(lambda: "podsToRemove" not in live(cluster)["status"], seconds=5)
    assert pods(cluster) == 1


def test_a_retry_that_runs_nothing_leaves_the_pods_that_are_kept(cluster: SimulatedCluster) -> None:
    """Whoever has just taken over begins it from what the watch shows, which does not say which pods those are."""
    end_before_its_pods(cluster)
    cluster.kill(cluster.operators[0])
    cluster.lead(cluster.start_operator(stands_by=True))
    patch(cluster, retryGeneration=1, cancelGeneration=1)
    reach(cluster, "failed", 1)
    assert cluster.pass_until(lambda: "podsToRemove" not in live(cluster)["status"], seconds=5)
    assert pods(cluster) == 1


def test_no_job_waits_for_the_pods_of_another(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many end together, the pods of one take the API server as long as the ends of many."""
    monkeypatch.setattr(ingestion_operator.main, "WORKERS", 1)
    jobs = ["first", "second", "third"]
    cluster.verdicts |= {(Stage.SEGMENTS, segment): HANGS for segment in range(SEGMENTS)}
    for name in jobs:
        create(cluster, name=name, parallelism=SEGMENTS)
    cluster.start_operator()
    assert cluster.pass_until(lambda: pods(cluster) == len(jobs) * SEGMENTS, seconds=60)
    cluster.kill(cluster.operators[0])
    cluster.verdicts = {(Stage.SEGMENTS, 0): FAILS}
    assert cluster.pass_until(lambda: all(map(over, cluster.api.all("jobs"))), seconds=300)
    sent = note_calls(cluster, monkeypatch)
    cluster.start_operator()
    assert cluster.pass_until(lambda: pods(cluster) == len(jobs), seconds=5)
    done = ["removal" if removes(call) else "end" for call in sent if removes(call) or ends(call)]
    assert done == ["end"] * len(jobs) + ["removal"] * len(jobs)


def over(job: JsonObject) -> bool:
    return any(item["type"] in ("Complete", "Failed") for item in job["status"].get("conditions", []))


def ends(call: Call) -> bool:
    """Return whether a request records the end of an attempt."""
    return call.path.endswith("/status") and "completionTime" in call.arguments["body"]["status"]


@pytest.mark.parametrize("page", [5, 500])
def test_a_retry_waits_for_a_page_of_pods_at_most(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """The rest go with their Job, when the next one is made."""
    monkeypatch.setattr(ingestion_operator.cluster, "PAGE", page)
    removal = end_before_its_pods(cluster)
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)
    cluster.settle_down(held=lambda call: call is removal)
    sent = note_calls(cluster, monkeypatch)
    cluster.settle(removal)
    reach(cluster, "completed", 1)
    cluster.settle_down()
    stages = [str(call.arguments["query"]["labelSelector"]) for call in sent if removes(call)]
    assert sum("notin" in selector for selector in stages) == 1
    assert pods(cluster) == 0
    assert "podsToRemove" not in live(cluster)["status"]
