"""Pods that have ended: they are removed when nothing else is to be done, and by whoever is there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import ingestion_operator.cluster
import ingestion_operator.main
import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.kube import MERGE_PATCH, ApiError, child_path, core_path

from simulation.cluster import NAMESPACE, Call, Fate, SimulatedCluster
from simulation.controllers import Verdict
from simulation.stories import HANGS, PATH, SEGMENTS, create, live, note_calls, patch, reach

PODS = core_path("pods", NAMESPACE)
FAILS = Verdict(code="EmbeddingRejected")
PAGE = 5
PAGES = 8  # of 39 pods, and of 40


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion_operator.cluster, "PAGE", PAGE)


def removes(call: Call) -> bool:
    return call.method == "DELETE" and call.path == PODS


def pods(cluster: SimulatedCluster) -> int:
    """Return how many pods of segments there are."""
    return sum(map(is_segments, cluster.api.all("pods")))


def refuse(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, which: Callable[[Call], bool], error: ApiError
) -> None:
    """Have the API server refuse some requests from now on."""
    commit = cluster.commit
    monkeypatch.setattr(cluster, "commit", lambda call: error if which(call) else commit(call))


def removed_by(cluster: SimulatedCluster) -> Counter[str]:
    """Return how many pods of segments each has removed."""
    gone = [change for change in cluster.api.changes if change.resource == "pods" and change.kind == "DELETED"]
    return Counter(change.by for change in gone if is_segments(change.after))


def is_segments(body: JsonObject) -> bool:
    return bool(body["metadata"]["labels"][names.LABEL_STAGE] == Stage.SEGMENTS)


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
    let_segments_end_unseen(cluster, jobs)
    sent = note_calls(cluster, monkeypatch)
    cluster.start_operator()
    assert cluster.pass_until(lambda: pods(cluster) == len(jobs), seconds=5)
    done = ["removal" if removes(call) else "end" for call in sent if removes(call) or ends(call)]
    assert done == ["end"] * len(jobs) + ["removal"] * len(jobs)


def test_who_takes_over_removes_pods_behind_all_ends(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that the one before has left."""
    monkeypatch.setattr(ingestion_operator.main, "WORKERS", 1)
    jobs = ["first", "second", "third"]
    let_segments_end_unseen(cluster, jobs)
    cluster.start_operator()
    cluster.settle_down(held=lambda call: removes(call) or (ends(call) and "third" in call.path))
    assert ["podsToRemove" in live(cluster, name)["status"] for name in jobs] == [True, True, False]
    cluster.kill(cluster.operators[0])
    sent = note_calls(cluster, monkeypatch)
    cluster.start_operator()
    assert cluster.pass_until(lambda: pods(cluster) == len(jobs), seconds=5)
    done = ["removal" if removes(call) else "end" for call in sent if removes(call) or ends(call)]
    assert done == ["end"] + ["removal"] * len(jobs)


def let_segments_end_unseen(cluster: SimulatedCluster, jobs: list[str]) -> None:
    """Make jobs whose segments end, one of each with a failure, while no operator runs."""
    cluster.verdicts |= {(Stage.SEGMENTS, segment): HANGS for segment in range(SEGMENTS)}
    for name in jobs:
        create(cluster, name=name, parallelism=SEGMENTS)
    cluster.start_operator()
    assert cluster.pass_until(lambda: pods(cluster) == len(jobs) * SEGMENTS, seconds=60)
    cluster.kill(cluster.operators[0])
    cluster.verdicts = {(Stage.SEGMENTS, 0): FAILS}
    assert cluster.pass_until(lambda: all(map(over, cluster.api.all("jobs"))), seconds=300)


def over(job: JsonObject) -> bool:
    return any(item["type"] in ("Complete", "Failed") for item in job["status"].get("conditions", []))


def ends(call: Call) -> bool:
    """Return whether a request records the end of an attempt."""
    return call.path.endswith("/status") and "completionTime" in call.arguments["body"]["status"]


@pytest.mark.parametrize("page", [PAGE, 500])
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


@pytest.mark.usefixtures("small_pages")
def test_pods_that_a_finalizer_holds_are_asked_to_go_once_and_keep_none_of_the_others(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 8: they fill the first page, and a part of the second."""
    removal = end_before_its_pods(cluster)
    hold(cluster, cluster.api.all("pods")[: PAGE + 3])
    sent = note_calls(cluster, monkeypatch)
    cluster.settle(removal)
    cluster.settle_down()
    assert sum(map(removes, sent)) == PAGES
    assert pods(cluster) in (PAGE + 3, PAGE + 4)  # the failed one is kept, which may be one of them
    assert "podsToRemove" not in live(cluster)["status"]


def hold(cluster: SimulatedCluster, held: list[JsonObject]) -> None:
    for pod in held:
        path = core_path("pods", NAMESPACE, pod["metadata"]["name"])
        finalizers = {"metadata": {"finalizers": ["example.com/logs"]}}
        cluster.api.request("PATCH", path, body=finalizers, content_type=MERGE_PATCH)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("times", [1, 100])
def test_a_page_that_is_asked_for_too_late_is_the_first_again_but_not_for_ever(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """Invariant 8."""
    removal = end_before_its_pods(cluster)
    hold(cluster, cluster.api.all("pods")[: PAGE + 3])
    left = iter(range(times))
    expired = ApiError(status=410, reason="Expired", message="The provided continue parameter is too old")
    refuse(
        cluster,
        monkeypatch,
        lambda call: removes(call) and "continue" in call.arguments["query"] and next(left, None) is not None,
        expired,
    )
    sent = note_calls(cluster, monkeypatch)
    cluster.settle(removal)
    cluster.settle_down()
    begun = sum("continue" not in call.arguments["query"] for call in sent if removes(call))
    assert begun == 2
    assert (pods(cluster) <= PAGE + 4) == (times == 1)
    assert "podsToRemove" not in live(cluster)["status"]


@pytest.mark.usefixtures("small_pages")
def test_pages_that_are_too_late_now_and_then_are_gone_through_to_the_end(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where deletions take long, a token may be over more than once: some pods are gone each time."""
    removal = end_before_its_pods(cluster)
    later = (number for number in range(1000))
    expired = ApiError(status=410, reason="Expired", message="The provided continue parameter is too old")
    refuse(
        cluster,
        monkeypatch,
        lambda call: removes(call) and "continue" in call.arguments["query"] and next(later) % 3 == 2,
        expired,
    )
    cluster.settle(removal)
    cluster.settle_down()
    assert pods(cluster) == 1
    assert "podsToRemove" not in live(cluster)["status"]


@pytest.mark.usefixtures("small_pages")
def test_a_page_whose_answer_is_too_large_is_asked_for_in_parts(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too large is done all the same; pods that stay are in the answer each time."""
    removal = end_before_its_pods(cluster)
    hold(cluster, cluster.api.all("pods")[: PAGE + 3])
    commit = cluster.commit

    def short_answers(call: Call) -> JsonObject | ApiError:
        answer = commit(call)
        if removes(call) and not isinstance(answer, ApiError) and len(answer["items"]) > 2:
            return ApiError(status=0, reason="TooLarge", message="the answer is too large")
        return answer

    monkeypatch.setattr(cluster, "commit", short_answers)
    cluster.settle(removal)
    cluster.settle_down()
    assert pods(cluster) in (PAGE + 3, PAGE + 4)
    assert "podsToRemove" not in live(cluster)["status"]


@pytest.mark.usefixtures("small_pages")
def test_the_pods_that_are_kept_stay_when_a_late_job_comes_in_between(cluster: SimulatedCluster) -> None:
    failed = SEGMENTS // 2
    cluster.verdicts |= {(Stage.SEGMENTS, segment): FAILS for segment in range(failed)}
    removal = end_before_its_pods(cluster)
    cluster.verdicts.clear()
    patch(cluster, retryGeneration=1)

    def creates(call: Call) -> bool:
        return call.method == "POST" and call.path == child_path(NAMESPACE)

    while not any(map(creates, cluster.calls)):
        cluster.settle_down(held=lambda call: call is removal or creates(call))
        if removal in cluster.calls:
            cluster.settle(removal)
        cluster.pass_time(0.1)
    patch(cluster, cancelGeneration=1)
    cluster.settle(next(filter(creates, cluster.calls)), Fate.LATE)
    while live(cluster)["status"]["phase"] != "failed":
        cluster.settle_down(held=removes)
        cluster.pass_time(0.1)
    cluster.settle_down(held=removes)
    cluster.arrive(cluster.late[0])
    cluster.settle_down(held=removes)
    cluster.settle_down()
    assert cluster.pass_until(lambda: "podsToRemove" not in live(cluster)["status"], seconds=60)
    assert pods(cluster) == failed


def test_a_retry_by_annotation_is_answered_although_pods_cannot_be_removed(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_before_its_pods(cluster)
    cluster.verdicts.clear()
    lost = ApiError(status=500, reason="InternalError", message="etcdserver: request timed out")
    refuse(cluster, monkeypatch, removes_left, lost)
    annotations = {names.ANNOTATION_RETRY_REQUESTED: "now"}
    cluster.api.request("PATCH", PATH, body={"metadata": {"annotations": annotations}}, content_type=MERGE_PATCH)
    reach(cluster, "completed", 1)


def removes_left(call: Call) -> bool:
    """Return whether a request removes pods, and keeps those of some indexes."""
    return removes(call) and "notin" in call.arguments["query"]["labelSelector"]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("held", ["suspended", "refused"])
def test_while_a_retry_is_held_back_the_pods_before_it_are_removed(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, held: str
) -> None:
    removal = end_before_its_pods(cluster)
    if held == "suspended":
        patch(cluster, suspend=True, retryGeneration=1)
    else:
        denied = ApiError(status=403, reason="Forbidden", message="no Jobs at night")
        refuse(cluster, monkeypatch, lambda call: call.method == "POST" and call.path.endswith("/jobs"), denied)
        patch(cluster, retryGeneration=1)
    cluster.settle_down(held=lambda call: call is removal)
    assert live(cluster)["status"]["podsToRemove"]
    cluster.settle(removal)
    assert cluster.pass_until(lambda: "podsToRemove" not in live(cluster)["status"], seconds=5)
    assert pods(cluster) == 1
    assert len(cluster.api.all("jobs")) == 1, "nothing was begun meanwhile"


@pytest.mark.usefixtures("small_pages")
def test_pods_of_a_stage_that_went_well_are_removed_page_by_page_before_its_job(cluster: SimulatedCluster) -> None:
    """The garbage collector would send two requests for each."""
    cluster.verdicts[Stage.PUBLISH, None] = HANGS
    create(cluster, parallelism=SEGMENTS)
    cluster.start_operator()
    assert cluster.pass_until(lambda: SEGMENTS in removed_by(cluster).values(), seconds=120)
    (by,) = removed_by(cluster)
    assert by == cluster.operators[0].name
    assert cluster.pass_until(lambda: len(cluster.api.all("jobs")) == 1, seconds=5)


@pytest.mark.usefixtures("small_pages")
def test_an_attempt_does_not_wait_for_the_pods_of_its_stages(cluster: SimulatedCluster) -> None:
    """What is left of them goes with their Job."""
    create(cluster, parallelism=SEGMENTS)
    cluster.start_operator()

    def later_page(call: Call) -> bool:
        return removes(call) and "continue" in call.arguments["query"]

    while not any(map(later_page, cluster.calls)):
        cluster.settle_down(held=later_page)
        cluster.pass_time(0.1)
    cluster.settle_down(held=later_page)
    assert all(map(over, cluster.api.all("jobs"))), "publishing has ended meanwhile"
    cluster.settle(next(filter(later_page, cluster.calls)))
    cluster.settle_down(held=later_page)
    assert live(cluster)["status"]["phase"] == "completed"
    assert pods(cluster) == 0
