"""How often a job is looked at while its Job runs, and what must not wait for the next look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import ingestion_operator.main
import ingestion_operator.memory
import ingestion_operator.pace
import ingestion_operator.reconcile
import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Reason, Stage
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import MERGE_PATCH, ApiError, batch_path, child_path, core_path, ingestion_path
from ingestion_operator.children import read_child
from ingestion_operator.pace import Pace, rest_for
from support.builders import ingestion_job

from simulation.api import INGESTION_JOBS, copied
from simulation.cluster import NAMESPACE, Call, RunningOperator, SimulatedCluster
from simulation.controllers import GOOD, Verdict
from simulation.stories import KEY, PATH, SEGMENTS, fail_in_part, live, make_late, note_calls, stalled, start

UNKNOWN: JsonObject = {"provider": "nobody", "model": "m", "dimensions": 3}


def remembered(only: RunningOperator) -> Pace:
    """Return what an operator remembers of the job."""
    pace = only.operator.memory.of(KEY)
    assert pace is not None
    return pace


def look_at_all(only: RunningOperator) -> None:
    """Have a full look taken at once."""
    remembered(only).on_gone()
    only.operator.queue.add(KEY)


def test_a_job_that_moves_costs_one_write_a_second_and_a_read_now_and_then(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(cluster)
    sent = note_calls(cluster, monkeypatch)
    begun = cluster.seconds
    for segment in range(SEGMENTS - 1):
        cluster.verdicts[Stage.SEGMENTS, segment] = GOOD
        cluster.pass_until(lambda: False, seconds=1.5)
    seconds = cluster.seconds - begun
    counted = live(cluster)["status"]["segments"]["completedCount"]
    reads, writes = (sum(call.writes is wanted and not call.tells for call in sent) for wanted in (False, True))
    assert seconds > 40
    assert counted >= SEGMENTS - 3
    assert 10 < writes <= seconds
    assert reads < writes / 3


def test_the_end_of_a_job_does_not_wait(cluster: SimulatedCluster) -> None:
    start(cluster)
    cluster.verdicts[Stage.SEGMENTS, 0] = GOOD
    cluster.pass_until(lambda: live(cluster)["status"]["segments"]["completedCount"] == 1, seconds=10)
    cluster.verdicts.clear()

    def over() -> bool:
        jobs = [
            job for job in cluster.api.all("jobs") if job["metadata"]["labels"][names.LABEL_STAGE] == Stage.SEGMENTS
        ]
        return any(item["type"] == "Complete" for job in jobs for item in job["status"].get("conditions", []))

    while not over():
        if not cluster.step(0):
            cluster.pass_time(cluster.next_time() or 1.0)
    cluster.settle_down()  # no time passes
    assert live(cluster)["status"]["stage"] == Stage.PUBLISH


def test_a_cancellation_whose_event_is_lost_is_found_with_the_next_count(cluster: SimulatedCluster) -> None:
    """Invariant 5: counts are decided from the job as it was last read, nothing else is."""
    only = start(cluster)
    body = {"spec": {"cancelGeneration": 0}}
    cluster.api.request("PATCH", PATH, body=body, content_type=MERGE_PATCH)
    cluster.deliver(only, INGESTION_JOBS, lose=True)
    cluster.verdicts[Stage.SEGMENTS, 0] = GOOD

    def cancelled() -> bool:
        attempt = live(cluster)["status"]["attempts"][0]
        return attempt.get("reason") == "Cancelled" and live(cluster)["status"]["phase"] in names.TERMINAL_PHASES

    assert cluster.pass_until(cancelled, seconds=30)


def test_an_end_is_not_taken_in_over_a_cancellation_whose_event_is_lost(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 5: an end is decided from the job as it was last read, which the API server must confirm."""
    only = start(cluster)
    body = {"spec": {"cancelGeneration": 0}}
    cluster.api.request("PATCH", PATH, body=body, content_type=MERGE_PATCH)
    cluster.deliver(only, INGESTION_JOBS, lose=True)
    sent = note_calls(cluster, monkeypatch)
    cluster.verdicts.clear()
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] in names.TERMINAL_PHASES, seconds=30)
    assert live(cluster)["status"]["attempts"][0]["reason"] == "Cancelled"
    assert not [call for call in sent if call.path == child_path(NAMESPACE) and call.method == "POST"]


def test_what_the_watch_has_shown_is_not_believed_when_there_is_nothing_to_record(cluster: SimulatedCluster) -> None:
    """Here by an operator that has just started, of a job that waits: that it may begin now, the watch has lost."""
    body = ingestion_job(parallelism=SEGMENTS)
    body["spec"]["suspend"] = True
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    first = cluster.start_operator()
    cluster.settle_down()
    cluster.kill(first)
    second = cluster.start_operator()
    cluster.settle_down(held=lambda call: call.by == second.name)
    cluster.api.request("PATCH", PATH, body={"spec": {"suspend": False}}, content_type=MERGE_PATCH)
    cluster.deliver(second, INGESTION_JOBS, lose=True)
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "completed", seconds=30)


def test_a_retry_reads_nothing(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job the watch has shown, and the write that records the attempt confirms it; its last Job has ended."""
    fail_in_part(cluster)
    cluster.settle_down()
    (last,) = cluster.api.all("jobs")
    sent = note_calls(cluster, monkeypatch)
    cluster.api.request("PATCH", PATH, body={"spec": {"retryGeneration": 1}}, content_type=MERGE_PATCH)
    cluster.settle_down(held=lambda call: call.path == core_path("configmaps", NAMESPACE))
    assert [call.method for call in sent] == ["PATCH", "POST"]
    cluster.settle_down()
    assert last["metadata"]["uid"] not in {job["metadata"]["uid"] for job in cluster.api.all("jobs")}


def test_a_retry_looks_for_the_last_job_if_nobody_saw_it_end(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(cluster)
    (last,) = cluster.api.all("jobs")
    path = child_path(NAMESPACE, last["metadata"]["name"])
    cluster.api.request("DELETE", path, body={"propagationPolicy": "Background"})
    assert cluster.pass_until(lambda: "JobLost" in live(cluster)["status"]["failureSummary"], seconds=30)
    cluster.settle_down()
    sent = note_calls(cluster, monkeypatch)
    cluster.api.request("PATCH", PATH, body={"spec": {"retryGeneration": 1}}, content_type=MERGE_PATCH)
    cluster.settle_down(held=lambda call: call.path == core_path("configmaps", NAMESPACE))
    assert [call.path for call in sent if not call.writes] == [path]


@pytest.mark.parametrize("ours", [True, False])
def test_another_job_in_the_place_of_the_last_one_holds_nothing_up(cluster: SimulatedCluster, *, ours: bool) -> None:
    """It is not the one that was recorded: somebody's own stays, a late duplicate goes."""
    only = fail_in_part(cluster)
    cluster.settle_down()
    (last,) = cluster.api.all("jobs")
    name, kept = last["metadata"]["name"], ("name", "namespace", *(("labels", "annotations", "ownerReferences") * ours))
    cluster.api.request("DELETE", child_path(NAMESPACE, name), body={"propagationPolicy": "Background"})
    cluster.settle_down()
    another = {**last, "metadata": {field: last["metadata"][field] for field in kept}}
    another["spec"] = {**last["spec"], "suspend": True}
    del another["status"]
    cluster.api.request("POST", child_path(NAMESPACE), body=another)
    cluster.deliver(only, "jobs", lose=True)
    cluster.verdicts.clear()
    cluster.api.request("PATCH", PATH, body={"spec": {"retryGeneration": 1}}, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "completed", seconds=60)
    assert (name in {job["metadata"]["name"] for job in cluster.api.all("jobs")}) is not ours


def test_late_watch_events_of_a_completed_job_cost_nothing(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that lags shows what was written before the end when the end is long known."""
    only = start(cluster)
    before = live(cluster)
    cluster.verdicts.clear()
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "completed", seconds=30)
    cluster.settle_down()
    sent = note_calls(cluster, monkeypatch)
    only.operator.intake.on_job_seen(before)
    cluster.settle_down()
    assert not sent
    assert only.operator.memory.of(KEY) is None
    # What is later is news, whoever wrote it.
    body = {"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: "now"}}}
    cluster.api.request("PATCH", PATH, body=body, content_type=MERGE_PATCH)
    cluster.settle_down()
    assert live(cluster)["metadata"]["annotations"][names.ANNOTATION_RETRY_HANDLED] == "now"


def test_a_retry_after_etcd_was_restored_costs_minutes(cluster: SimulatedCluster) -> None:
    """Its resourceVersions go back, so that what is new looks old; a list is taken as it is."""
    fail_in_part(cluster)
    cluster.pass_until(lambda: False, seconds=60)
    cluster.api.version = 0
    cluster.api.request("PATCH", PATH, body={"spec": {"retryGeneration": 1}}, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: len(live(cluster)["status"]["attempts"]) == 2, seconds=150)


def test_an_end_with_nothing_to_record_takes_a_full_look(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has confirmed then that what is remembered still holds: here of a job that is being deleted."""
    start(cluster)
    cluster.api.request("PATCH", PATH, body={"metadata": {"finalizers": ["a/b"]}}, content_type=MERGE_PATCH)
    cluster.api.request("DELETE", PATH, body={})
    cluster.pass_until(lambda: False, seconds=2)
    (own,) = cluster.api.all("jobs")
    sent = note_calls(cluster, monkeypatch)
    cluster.verdicts.clear()
    cluster.settle_down()  # no time passes
    reads = [call.path for call in sent if call.by != "controllers"]
    assert reads == [PATH, child_path(NAMESPACE, own["metadata"]["name"])]


def test_the_end_of_another_job_of_the_same_name_is_not_taken_for_ours(cluster: SimulatedCluster) -> None:
    """Somebody's own, which was in the way and was deleted; the watch tells of it late."""
    only = start(cluster)
    (own,) = cluster.api.all("jobs")
    other = {**own, "metadata": {**own["metadata"], "uid": "uid-of-another"}}
    other["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    only.operator.intake.on_child_seen(other, deleted=False)
    cluster.pass_time(0.1)
    cluster.settle_down()
    assert live(cluster)["status"]["phase"] == "processing"
    assert "reason" not in live(cluster)["status"]["attempts"][0]


def test_a_duplicate_is_removed_while_its_elder_runs(cluster: SimulatedCluster) -> None:
    """Invariant 1: a Job is heard of that nobody recorded."""
    start(cluster)
    cluster.verdicts[Stage.SEGMENTS, 0] = GOOD
    cluster.pass_until(lambda: False, seconds=3)
    (own,) = (job for job in cluster.api.all("jobs") if job["metadata"]["labels"][names.LABEL_STAGE] == Stage.SEGMENTS)
    make_late(cluster)
    assert cluster.pass_until(lambda: len(cluster.api.all("jobs")) == 1, seconds=0.1)
    assert cluster.api.all("jobs")[0]["metadata"]["uid"] == own["metadata"]["uid"]


def test_a_job_that_somebody_changed_is_set_right_with_the_next_count(cluster: SimulatedCluster) -> None:
    """What a look at counts finds besides them is done at once, by a full look."""
    start(cluster)
    cluster.verdicts[Stage.SEGMENTS, 0] = GOOD
    cluster.pass_until(lambda: False, seconds=3)
    (own,) = cluster.api.all("jobs")
    path = child_path(NAMESPACE, own["metadata"]["name"])
    cluster.api.request("PATCH", path, body={"spec": {"parallelism": 1}}, content_type=MERGE_PATCH)
    assert cluster.pass_until(lambda: cluster.api.all("jobs")[0]["spec"]["parallelism"] == SEGMENTS, seconds=3)


def test_a_job_that_goes_well_is_looked_at_when_something_happens_and_lists_nothing(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Job that was replaced is deleted, which is no news. That it is known by its name is seen by the other test."""
    cluster.start_operator()
    sent = note_calls(cluster, monkeypatch)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "completed", seconds=60)
    cluster.settle_down()
    reads = [call.path for call in sent if call.by != "controllers" and not call.writes]
    assert PATH not in reads  # that it is there, the watch has shown
    assert reads.count(child_path(NAMESPACE)) == 1
    assert not [path for path in reads if path.startswith(f"{child_path(NAMESPACE)}/")]


def test_a_restart_costs_jobs_at_rest_no_request(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a finished Job, which tells nothing that the job itself does not."""
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    only = cluster.start_operator()
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "completed", seconds=60)
    cluster.settle_down()
    cluster.kill(only)
    assert cluster.api.all("jobs")
    sent = note_calls(cluster, monkeypatch)
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=60)
    assert not [call for call in sent if call.by != "controllers"], sent


def record_the_end(cluster: SimulatedCluster, *, phase: str) -> Callable[[], None]:
    """Let a job run until its end is recorded, and the operator does not know yet; return what tells it."""
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))

    def ends(call: Call) -> bool:
        return call.path == f"{PATH}/status" and call.arguments["body"]["status"].get("phase") == phase

    assert cluster.pass_until(lambda: any(map(ends, cluster.calls)), seconds=60, held=ends)
    [call] = filter(ends, cluster.calls)
    return cluster.hold_answer(call)


def test_changes_of_a_settled_jobs_jobs_cost_no_request(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch shows its last write before it is known to be settled."""
    cluster.start_operator()
    answer = record_the_end(cluster, phase="completed")
    sent = note_calls(cluster, monkeypatch)
    cluster.settle_down()
    answer()
    cluster.settle_down()
    for job in cluster.api.all("jobs"):
        cluster.api.request("DELETE", child_path(NAMESPACE, job["metadata"]["name"]), body={})
    cluster.settle_down()
    assert not cluster.api.all("jobs")
    requests = [(call.method, call.path) for call in sent if call.by != "controllers" and not call.tells]
    assert requests == [("DELETE", f"/api/v1/namespaces/{NAMESPACE}/pods"), ("PATCH", f"{PATH}/status")]


def test_a_retry_that_is_asked_for_while_the_job_is_found_settled_begins_at_once(cluster: SimulatedCluster) -> None:
    """Invariant 5: its event comes before the look that completed the job is over."""
    cluster.verdicts[Stage.SEGMENTS, 0] = Verdict(code="EmbeddingRejected")
    only = cluster.start_operator()
    answer = record_the_end(cluster, phase="partial_failure")
    cluster.api.request("PATCH", PATH, body={"spec": {"retryGeneration": 1}}, content_type=MERGE_PATCH)
    while cluster.undelivered(only, INGESTION_JOBS) is not None:
        cluster.deliver(only, INGESTION_JOBS)
    answer()
    assert cluster.pass_until(lambda: len(live(cluster)["status"]["attempts"]) == 2, seconds=1)


def test_a_job_that_ended_while_the_operator_was_away_is_looked_at(cluster: SimulatedCluster) -> None:
    """The other side of it: the operator is away while the last segment ends."""
    only = start(cluster)
    cluster.kill(only)
    cluster.verdicts.clear()
    cluster.pass_until(lambda: False, seconds=5)
    cluster.start_operator()
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "completed", seconds=60)


@pytest.mark.parametrize(("waits_for", "every"), [("a provider", 100), ("its queue", 400)])
def test_jobs_that_wait_alike_share_the_looks(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, waits_for: str, every: float
) -> None:
    """A backlog must not keep the operator from what can be done."""
    monkeypatch.setattr(ingestion_operator.pace, "_REST_OF_A_HUNDRED_SECONDS", 100.0)
    count, seconds = 100, 700  # before all Jobs are listed again
    for number in range(count):
        body = ingestion_job(name=f"job-{number}")
        if waits_for == "its queue":
            body["metadata"]["labels"] = {names.LABEL_QUEUE_NAME: "documents"}
        else:
            body["spec"]["pipeline"] = {"embedding": UNKNOWN}
        cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=200)
    sent = note_calls(cluster, monkeypatch)
    cluster.pass_until(lambda: False, seconds=seconds)
    reads = [call.path for call in sent if not call.writes and call.path != ingestion_path()]
    assert 0.8 * count * seconds / every < len(reads) < 3 * count * seconds / every  # alone: every 30 or 60 s
    assert child_path(NAMESPACE) not in reads


def test_a_job_that_waits_alone_is_listed_as_rarely_as_the_many_that_run(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not share their looks. But lists are for what was lost on the way, which befalls all alike."""
    monkeypatch.setattr(ingestion_operator.pace, "_REST_OF_A_HUNDRED_SECONDS", 200.0)
    for number in range(100):
        body = ingestion_job(name=f"job-{number}")
        body["metadata"]["labels"] = {names.LABEL_QUEUE_NAME: "documents"}
        cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    alone = ingestion_job(name="job", pipeline={"embedding": UNKNOWN})
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=alone)
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=200)
    sent = note_calls(cluster, monkeypatch)
    cluster.pass_until(lambda: False, seconds=700)
    reads = [call.path for call in sent if not call.writes]
    assert ingestion_path(NAMESPACE, "job") in reads
    assert child_path(NAMESPACE) not in reads


@pytest.mark.parametrize(("namespace", "suspend"), [(NAMESPACE, True), ("nobody", False)])
def test_those_that_wait_for_what_is_heard_of_take_no_looks_from_one_that_is_blocked(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, namespace: str, *, suspend: bool
) -> None:
    """Two thousand jobs, suspended or no tenant's, kept all refused ones from being tried for five minutes."""
    monkeypatch.setattr(ingestion_operator.pace, "_REST_OF_A_HUNDRED_SECONDS", 1000)  # twenty are like two thousand
    for number in range(20):
        body = ingestion_job(name=f"asleep-{number}", namespace=namespace, suspend=suspend)
        cluster.api.request("POST", ingestion_path(namespace), body=body)
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=30)
    asked: Counter[str] = Counter()
    commit = cluster.commit

    def refusing(call: Call) -> JsonObject | ApiError:
        asked[f"{call.method} {call.path}"] += 1
        if call.method == "POST" and call.path == child_path(NAMESPACE):
            return ApiError(status=403, reason="Forbidden", message="a policy says no")
        return commit(call)

    monkeypatch.setattr(cluster, "commit", refusing)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job())
    cluster.pass_until(lambda: False, seconds=600)
    assert asked[f"POST {child_path(NAMESPACE)}"] > 600 / 31
    assert not any(path.startswith(f"GET {ingestion_path(namespace)}/asleep") for path in asked)
    assert asked[f"GET {child_path(NAMESPACE)}"] == 1, "the others are listed as rarely as if they took looks"


def test_the_first_of_many_is_asked_for_no_sooner_than_the_last(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shares with those that came after it: else a storm begins with a question for each of the first."""
    monkeypatch.setattr(ingestion_operator.pace, "_REST_OF_A_HUNDRED_SECONDS", 400.0)
    cluster.verdicts[Stage.PREPARE, None] = Verdict(image=True)
    cluster.start_operator()
    sent = note_calls(cluster, monkeypatch)
    for number in range(10):
        cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(name=f"job-{number}"))
        cluster.settle_down()
        cluster.pass_time(0.4)
    cluster.pass_until(lambda: False, seconds=50)
    assert not [call for call in sent if call.path == core_path("pods", NAMESPACE) and call.method == "GET"]
    assert cluster.pass_until(lambda: stalled(cluster, "job-0")["reason"] == Reason.IMAGE_UNAVAILABLE, seconds=200)


def test_a_completed_job_that_waits_for_its_end_costs_no_request(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = ingestion_job(parallelism=SEGMENTS, ttlSecondsAfterFinished=86_400)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "completed", seconds=60)
    cluster.pass_until(lambda: False, seconds=60)
    sent = note_calls(cluster, monkeypatch)
    cluster.pass_until(lambda: False, seconds=600)
    assert len(sent) >= 4  # the resyncs
    assert {call.path for call in sent if call.by != "controllers"} == {ingestion_path(), batch_path()}


def test_a_resync_that_fails_is_tried_again_ever_less_often(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    overwhelmed = ApiError(status=504, reason="Timeout", message="the server was unable to return a response")
    refused = [True] * 8 + [False] + [True] * 2
    lists: list[float] = []
    commit = cluster.commit

    def answer(call: Call) -> JsonObject | ApiError:
        if call.path == batch_path():  # it comes after a list of jobs
            return commit(call)
        lists.append(cluster.seconds)
        return overwhelmed if refused.pop(0) else commit(call)

    monkeypatch.setattr(cluster, "commit", answer)
    cluster.start_operator()
    assert cluster.pass_until(lambda: not refused, seconds=1_000)
    pauses = [after - before for before, after in pairwise(lists)]
    assert pauses == pytest.approx([2, 4, 8, 16, 32, 64, 120, 120, 120, 2])


@pytest.mark.parametrize(("jobs", "pause"), [(1, 120), (3, 300), (7, 600)])
def test_thousands_of_jobs_are_listed_more_rarely(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, jobs: int, pause: float
) -> None:
    monkeypatch.setattr(ingestion_operator.main, "_RESYNC_SECONDS_FOR_EACH", 100.0)
    for number in range(jobs):
        cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(name=f"job-{number}"))
    sent = note_calls(cluster, monkeypatch)
    cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=2_000)
    lists = [call.sent for call in sent if call.path == ingestion_path() and not call.writes]
    assert [after - before for before, after in pairwise(lists)] == pytest.approx([pause] * (len(lists) - 1))
    assert len(lists) > 3


def test_a_job_and_its_config_map_are_read_now_and_then(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch tells of the Job. That a pod waits for its node is ordinary, and that its ConfigMap was deleted is not.

    What the watch has lost, and the ConfigMap, full looks see to.
    """
    start(cluster)
    cluster.verdicts[Stage.SEGMENTS, SEGMENTS - 1] = Verdict(slow=True)
    (own,) = (job["metadata"]["name"] for job in cluster.api.all("jobs"))
    path, pods = core_path("configmaps", NAMESPACE, own), core_path("pods", NAMESPACE)
    last = next(pod for pod in cluster.api.all("pods") if pod["metadata"]["name"].startswith(f"{own}-{SEGMENTS - 1}-"))
    cluster.api.request("DELETE", f"{pods}/{last['metadata']['name']}", body={})
    sent = note_calls(cluster, monkeypatch)
    cluster.pass_until(lambda: False, seconds=120)
    reads = [call.path for call in sent if not call.writes]
    assert 20 <= reads.count(pods) <= 26
    assert 0 < reads.count(path) <= reads.count(PATH) <= 4
    assert 0 < reads.count(child_path(NAMESPACE, own)) <= reads.count(PATH)


def test_why_pods_are_refused_is_asked_for_all_jobs_at_once(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server reads all Events of the namespace for it."""
    cluster.jobs.refuse_pods = True
    names_of_jobs = [f"job-{number}" for number in range(10)]
    for name in names_of_jobs:
        cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(name=name))
    cluster.start_operator()
    sent = note_calls(cluster, monkeypatch)
    cluster.pass_until(lambda: False, seconds=60)
    for name in names_of_jobs:
        found = stalled(cluster, name)
        assert (found["status"], found["reason"]) == ("True", Reason.POD_CREATION_FAILED)
    asked = [call for call in sent if call.path == core_path("events", NAMESPACE) and not call.writes]
    assert 5 <= len(asked) <= 30


def test_changes_that_the_status_does_not_show_cost_no_request(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where segments end often, a Job changes three times for each: ended, counted, the next one ready."""
    start(cluster)
    (own,) = cluster.api.all("jobs")
    path = child_path(NAMESPACE, own["metadata"]["name"])
    sent = note_calls(cluster, monkeypatch)
    for number in range(20):
        labels = {"labels": {"changed": str(number)}}
        cluster.api.request("PATCH", path, body={"metadata": labels}, content_type=MERGE_PATCH)
        cluster.pass_time(1.0)
        cluster.settle_down()
    assert len([call for call in sent if call.path == path and not call.writes]) <= 1


def test_counts_that_were_read_too_soon_to_be_written_are_written_soon(cluster: SimulatedCluster) -> None:
    only = start(cluster)
    for done in (1, 2):
        cluster.verdicts[Stage.SEGMENTS, done] = GOOD
        cluster.settle_down()
        look_at_all(only)
        cluster.pass_time(0.1)
        cluster.settle_down()
    assert live(cluster)["status"]["segments"]["completedCount"] == 1
    assert cluster.pass_until(lambda: live(cluster)["status"]["segments"]["completedCount"] == 2, seconds=2)


def test_what_happens_during_a_look_is_looked_at_right_after_it(cluster: SimulatedCluster) -> None:
    """Invariant 5: the look under way has read the job as it was before."""
    only = start(cluster)
    look_at_all(only)
    cluster.pass_time(0.1)
    (read,) = cluster.calls
    assert (read.method, read.path) == ("GET", PATH)
    cluster.settle(read)
    cluster.api.request("PATCH", PATH, body={"spec": {"cancelGeneration": 0}}, content_type=MERGE_PATCH)
    cluster.deliver(only, INGESTION_JOBS)
    assert cluster.pass_until(lambda: live(cluster)["status"]["attempts"][0].get("reason") == "Cancelled", seconds=1)


def test_somebody_elses_job_does_not_hide_news_of_ours(cluster: SimulatedCluster) -> None:
    only = start(cluster)
    pace = remembered(only)
    (body,) = cluster.api.all("jobs")
    own, foreign = read_child(body), copied(body)
    owner = {"controller": True, "uid": "uid-of-another"}
    foreign["metadata"] |= {"name": "foreign", "uid": "uid-of-another", "ownerReferences": [owner]}
    assert pace.expects(read_child(foreign))
    pace.begin_look(cluster.seconds)  # one is under way
    only.operator.intake.on_child_seen(foreign, deleted=False)
    assert pace.heard.child is None
    newer = replace(own, resource_version=own.resource_version + 1)
    assert pace.on_child_changed(newer, cluster.seconds) is not None


def test_counts_are_read_when_the_watch_tells_nothing(cluster: SimulatedCluster) -> None:
    """Invariant 5: a watch that is late or has lost something costs seconds."""
    only = start(cluster)
    cluster.verdicts[Stage.SEGMENTS, 0] = GOOD
    cluster.pass_until(lambda: False, seconds=0)

    def counted() -> bool:
        cluster.deliver(only, "jobs", lose=True)
        return bool(live(cluster)["status"]["segments"]["completedCount"] == 1)

    while cluster.undelivered(only, "jobs") is not None:
        cluster.deliver(only, "jobs", lose=True)
    assert cluster.pass_until(counted, seconds=40)


def test_counts_do_not_go_back_when_the_watch_tells_old_news_again(cluster: SimulatedCluster) -> None:
    """Invariant 5: what a look has read is newer than what a watch that begins anew brings."""
    only = start(cluster)
    for done in range(1, 4):
        cluster.verdicts[Stage.SEGMENTS, done] = GOOD
        cluster.pass_until(lambda: False, seconds=3)
    assert live(cluster)["status"]["segments"]["completedCount"] == 3
    for number in range(len(only.delivered)):
        cluster.repeat(only, number)
        cluster.pass_time(1.3)
        cluster.settle_down()
        assert live(cluster)["status"]["segments"]["completedCount"] == 3


def prune(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drop a field of each status, as a CRD does that is older than the operator, or a policy."""
    commit = cluster.commit

    def pruning(call: Call) -> JsonObject | Exception:
        if call.path.endswith("/status") and call.writes:
            call.arguments["body"]["status"].pop("progressPercent", None)
        return commit(call)

    monkeypatch.setattr(cluster, "commit", pruning)


def test_a_status_that_is_not_stored_whole_is_not_written_again_and_again(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(cluster, monkeypatch)
    body = ingestion_job(parallelism=SEGMENTS, ttlSecondsAfterFinished=86_400)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "completed", seconds=60)
    sent = note_calls(cluster, monkeypatch)
    cluster.pass_until(lambda: False, seconds=600)
    assert len([call for call in sent if call.writes]) <= 10


def test_the_next_look_is_taken_from_what_was_stored(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(cluster, monkeypatch)
    only = start(cluster)
    cluster.verdicts[Stage.SEGMENTS, 0] = GOOD
    cluster.pass_until(lambda: False, seconds=3)
    last = remembered(only).last
    assert last is not None
    kept = last.kept
    assert kept.job == IngestionJob.model_validate(live(cluster))
    assert kept.job.status.segments is not None
    assert kept.job.status.segments.completed_count == 1


def test_of_an_ingestion_job_no_more_is_kept_than_looks_use(cluster: SimulatedCluster) -> None:
    """Whoever may write one may fill its metadata, and there may be hundreds whose Jobs do not end."""
    only = start(cluster)
    filled: JsonObject = {
        "labels": {f"note-{number}": "" for number in range(10_000)},
        "annotations": {"note": "x" * 100_000, names.ANNOTATION_RETRY_ORIGIN: "x" * 100_000},
        "managedFields": [{"fieldsV1": {f"f:{number}": {} for number in range(10_000)}}],
    }
    cluster.api.request("PATCH", PATH, body={"metadata": filled}, content_type=MERGE_PATCH)
    cluster.pass_until(lambda: False, seconds=60)
    last = remembered(only).last
    assert last is not None
    assert last.kept.raw["metadata"]["resourceVersion"] == live(cluster)["metadata"]["resourceVersion"]
    assert len(repr(last.kept)) < 20_000


def test_of_all_ingestion_jobs_no_more_is_kept_than_there_is_room_for(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenant may make thousands, each as large as one may be, whose pods do not start. The others are read anew."""
    monkeypatch.setattr(ingestion_operator.memory, "_MOST_KEPT", 250_000)
    monkeypatch.setattr(ingestion_operator.pace, "_REST_OF_A_HUNDRED_SECONDS", 1_000.0)
    cluster.verdicts[Stage.PREPARE, None] = Verdict(image=True)
    large = {f"large-{number}": ",".join(["1"] * 30_000) for number in range(10)}
    small = {f"small-{number}": "1" for number in range(10)}
    only = cluster.start_operator()
    for name, chosen in (large | small).items():
        body = ingestion_job(name=name, parallelism=SEGMENTS, retrySegments=chosen)
        cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)

    def kept() -> list[str]:
        paces = {name: only.operator.memory.of(f"{NAMESPACE}/{name}") for name in large | small}
        return [name for name, pace in paces.items() if pace is not None and pace.last is not None]

    cluster.pass_until(lambda: False, seconds=500)
    assert len(kept()) == 3 + len(small)
    sent, seconds = note_calls(cluster, monkeypatch), 1_000
    cluster.pass_until(lambda: False, seconds=seconds)
    reads = Counter(call.path for call in sent if not call.writes)
    others = [reads[ingestion_path(NAMESPACE, name)] for name in large if name not in kept()]
    assert len(others) == 7
    assert all(1 <= looks <= seconds / rest_for(20) + 1 for looks in others), "no more often than others rest"
    for name in large:
        cluster.api.request("DELETE", ingestion_path(NAMESPACE, name), body={})
    large = {"later": large["large-0"]}
    body = ingestion_job(name="later", retrySegments=large["later"])
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.pass_until(lambda: False, seconds=500)
    assert kept() == ["later", *small], "what the others took is free again"


def test_a_stage_that_begins_long_after_the_attempt_is_not_asked_at_once_why_it_has_no_pods(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a thousand jobs end, each such list would be one more to wait for."""
    start(cluster, seconds=300)
    cluster.verdicts.clear()
    sent = note_calls(cluster, monkeypatch)
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "completed", seconds=60)
    lists = [call for call in sent if call.by != "controllers" and call.method == "GET"]
    asked = [call.arguments["query"].get("fieldSelector") for call in lists if call.path.endswith(("pods", "events"))]
    assert asked == [None]  # what the pods of the publishing Job have said


def test_ends_of_jobs_of_one_index_do_not_wait_for_each_other(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages of failed segments do, as they are large."""
    monkeypatch.setattr(ingestion_operator.reconcile, "_HARVESTS", 1)
    cluster.single = True
    for name in ("handbook", "other"):
        cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(name=name))
    cluster.start_operator()

    def harvests(call: Call) -> bool:
        return call.path == core_path("pods", NAMESPACE) and "fieldSelector" not in call.arguments["query"]

    assert cluster.pass_until(lambda: len([*filter(harvests, cluster.calls)]) == 2, seconds=10, held=harvests)
