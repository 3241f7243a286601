"""Looks at a batch: what is heard meanwhile, what goes wrong with a single document, and how often they are taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.kube import MERGE_PATCH, TABLE, ApiError, batch_path, child_path, ingestion_path
from ingestion_operator import metrics
from support.builders import ingestion_batch

from simulation import api
from simulation.api import BATCHES, INGESTION_JOBS
from simulation.cluster import NAMESPACE, Call, Fate, SimulatedCluster
from simulation.controllers import Verdict
from simulation.stories import HANGS

# None of these may need the resync, two minutes later.
PATIENCE_SECONDS = 60.0
DENIED = ApiError(status=403, reason="Forbidden", message="denied")
DENIALS = [
    ApiError(status=status, reason=reason, message='admission webhook "x" denied the request: no')
    for status, reason in (  # webhooks name their own
        (404, "NotFound"),
        (409, "AlreadyExists"),
        (409, "Conflict"),
        (413, "RequestEntityTooLarge"),
        (500, "InternalError"),
    )
]
NO_WEBHOOK = ApiError(
    status=500, reason="InternalError", message='Internal error occurred: failed calling webhook "x": refused'
)
REFUSALS = pytest.mark.parametrize(
    "error",
    [DENIED, *DENIALS, NO_WEBHOOK],
    ids=["403", "404", "409 AlreadyExists", "409 Conflict", "413", "500", "webhook"],
)
# With how many requests it is found that one is refused.
TRIES = pytest.mark.parametrize(("error", "tries"), [(DENIED, 1), (NO_WEBHOOK, 4)], ids=["403", "webhook"])


@pytest.fixture
def cluster() -> Iterator[SimulatedCluster]:
    made = SimulatedCluster(single=True)
    try:
        yield made
        assert not made.broken.found
    finally:
        made.close()


def create(cluster: SimulatedCluster, *, documents: int = 3, name: str = "manuals", **spec: Any) -> None:
    body = ingestion_batch(documents=documents, name=name, **spec)
    cluster.api.request("POST", batch_path(NAMESPACE), body=body)


def patch(cluster: SimulatedCluster, **spec: Any) -> None:
    path = batch_path(NAMESPACE, "manuals")
    cluster.api.request("PATCH", path, body={"spec": spec}, content_type=MERGE_PATCH)


def patch_job(cluster: SimulatedCluster, index: int, body: JsonObject) -> None:
    path = ingestion_path(NAMESPACE, job(cluster, index)["metadata"]["name"])
    cluster.api.request("PATCH", path, body=body, content_type=MERGE_PATCH)


def job(cluster: SimulatedCluster, index: int) -> JsonObject:
    """Return a document's IngestionJob."""
    jobs = cluster.api.all(INGESTION_JOBS)
    return next(item for item in jobs if item["metadata"]["labels"].get(names.LABEL_BATCH_INDEX) == str(index))


def status(cluster: SimulatedCluster, name: str = "manuals") -> JsonObject:
    found = cluster.api.find(BATCHES, NAMESPACE, name)
    assert found is not None
    return dict(found["status"])


def ended(cluster: SimulatedCluster, phase: str, generation: int = 0, *, name: str = "manuals") -> Callable[[], bool]:
    def there() -> bool:
        now = status(cluster, name)
        return bool(now["phase"] == phase and now.get("endedGeneration") == generation)

    return there


def condition(cluster: SimulatedCluster, kind: str) -> JsonObject:
    """Return a condition of the batch; empty before its first look."""
    conditions = status(cluster).get("conditions", [])
    return next((item for item in conditions if item["type"] == kind), {})


def stalled(cluster: SimulatedCluster) -> JsonObject:
    """Return the batch's condition Stalled; empty before its first look."""
    return condition(cluster, "Stalled")


def until(
    cluster: SimulatedCluster,
    wish: Callable[[], bool],
    *,
    seconds: float = PATIENCE_SECONDS,
    held: Callable[[Call], bool] = lambda _: False,
) -> None:
    """Let everything go on but for requests that are held, until a wish comes true."""
    assert cluster.pass_until(wish, seconds=seconds, held=held), status(cluster)


def fail(cluster: SimulatedCluster) -> None:
    """Bring a batch to its end, whose first document is not where it should be until then."""
    cluster.kubelet.missing = {"Manual 0"}
    cluster.start_operator()
    create(cluster)
    until(cluster, ended(cluster, "partial_failure"))
    cluster.kubelet.missing.clear()


def refuse(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, fits: Callable[[Call], bool], error: ApiError = DENIED
) -> list[Call]:
    """Have the API server refuse some requests; return those that are made from now on."""
    commit, refused = cluster.commit, list[Call]()

    def judged(call: Call) -> JsonObject | ApiError:
        if not fits(call):
            return commit(call)
        refused.append(call)
        return error

    monkeypatch.setattr(cluster, "commit", judged)
    return refused


def makes(call: Call, document: str = "") -> bool:
    """Return whether a request makes the IngestionJob of a document, or of any."""
    made = call.method == "POST" and call.path == ingestion_path(NAMESPACE)
    return made and document in ("", call.arguments["body"]["spec"]["document"]["title"])


def patches_job(call: Call) -> bool:
    """Return whether a request changes an IngestionJob."""
    return call.method == "PATCH" and call.path.rpartition("/")[0] == ingestion_path(NAMESPACE)


def retries_job(call: Call) -> bool:
    """Return whether a request retries an IngestionJob."""
    return patches_job(call) and "retryGeneration" in call.arguments["body"].get("spec", {})


def lists_jobs(call: Call) -> bool:
    """Return whether a request lists the jobs of a batch."""
    return bool(call.arguments["accept"] == TABLE)


# ── what is heard while a look is taken ───────────────────────────────────────────────────────────────────────────


def test_a_retry_that_is_asked_for_while_a_look_ends_an_attempt_begins(cluster: SimulatedCluster) -> None:
    def ends(call: Call) -> bool:
        status_of_the_batch = f"{batch_path(NAMESPACE, 'manuals')}/status"
        return call.path == status_of_the_batch and "completionTime" in call.arguments["body"]["status"]

    cluster.kubelet.missing = {"Manual 0"}
    cluster.start_operator()
    create(cluster)
    until(cluster, lambda: any(map(ends, cluster.calls)), held=ends)
    [call] = filter(ends, cluster.calls)
    answer = cluster.hold_answer(call)
    cluster.kubelet.missing.clear()
    cluster.pass_time(5)
    patch(cluster, retryGeneration=1)
    cluster.settle_down()
    answer()
    until(cluster, ended(cluster, "completed", 1))


def test_a_batch_that_is_made_again_while_a_look_finds_it_gone_begins(cluster: SimulatedCluster) -> None:
    fail(cluster)
    path = batch_path(NAMESPACE, "manuals")

    def finds(call: Call) -> bool:
        return call.path == path and not call.writes

    patch(cluster, retryGeneration=1)
    until(cluster, lambda: any(map(finds, cluster.calls)), held=finds)
    cluster.api.request("DELETE", path, body={})
    [call] = filter(finds, cluster.calls)
    answer = cluster.hold_answer(call)
    cluster.pass_time(5)
    create(cluster)
    cluster.settle_down(held=finds)
    answer()
    until(cluster, ended(cluster, "completed"))


def test_news_of_a_batch_at_rest_survives_requests_that_fail(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(cluster)
    cluster.verdicts[Stage.PREPARE, None] = Verdict(hangs=True)
    unavailable = ApiError(status=500, reason="InternalError", message="etcdserver: timed out")
    refuse(cluster, monkeypatch, lists_jobs, unavailable)
    patch_job(cluster, 0, {"spec": {"retryGeneration": 1}})
    cluster.pass_until(lambda: False, seconds=5)
    cluster.verdicts.clear()
    until(cluster, lambda: job(cluster, 0)["status"]["phase"] == "completed")
    monkeypatch.undo()
    until(cluster, ended(cluster, "completed"))


def test_a_batch_that_is_back_from_a_backup_is_found_by_its_new_id(cluster: SimulatedCluster) -> None:
    """Its status came back with it and asks for nothing: it was never retried, and its generation is as then."""
    first, path = cluster.start_operator(), batch_path(NAMESPACE, "manuals")
    create(cluster)
    until(cluster, ended(cluster, "completed"))
    cluster.kill(first)
    backup = status(cluster)
    cluster.api.request("DELETE", path, body={})
    create(cluster)
    cluster.api.request("PATCH", f"{path}/status", body={"status": backup}, content_type=MERGE_PATCH)
    cluster.start_operator()
    until(cluster, lambda: status(cluster)["jobID"] != backup["jobID"])
    again = cluster.api.find(BATCHES, NAMESPACE, "manuals")
    assert again is not None
    assert again["status"] == {**backup, "jobID": again["metadata"]["uid"]}


# ── what cannot be done with one of its jobs ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"ownerReferences": None}, "NameConflict"),
        ({"finalizers": ["example.com/keeps"]}, "PodTerminating"),
    ],
)
def test_a_job_that_cannot_be_retried_is_named(cluster: SimulatedCluster, metadata: JsonObject, reason: str) -> None:
    fail(cluster)
    name = job(cluster, 0)["metadata"]["name"]
    patch_job(cluster, 0, {"metadata": metadata})
    if "finalizers" in metadata:
        cluster.api.request("DELETE", ingestion_path(NAMESPACE, name), body={})
    patch(cluster, retryGeneration=1)
    until(cluster, lambda: stalled(cluster)["reason"] == reason)
    assert name in stalled(cluster)["message"]
    sent = len(cluster.api.changes)
    cluster.pass_until(lambda: False, seconds=PATIENCE_SECONDS)
    assert len(cluster.api.changes) == sent


def test_a_job_that_is_in_no_list_is_named_until_its_label_is_back(cluster: SimulatedCluster) -> None:
    fail(cluster)
    uid = job(cluster, 0)["metadata"]["labels"][names.LABEL_BATCH_UID]
    patch_job(cluster, 0, {"metadata": {"labels": {names.LABEL_BATCH_UID: None}}})
    patch(cluster, retryGeneration=1)
    until(cluster, lambda: stalled(cluster)["reason"] == "NameConflict")
    assert names.LABEL_BATCH_UID in stalled(cluster)["message"]
    patch_job(cluster, 0, {"metadata": {"labels": {names.LABEL_BATCH_UID: uid}}})
    until(cluster, ended(cluster, "partial_failure", 1))
    patch(cluster, retryGeneration=2)
    until(cluster, ended(cluster, "completed", 2))


def suspend_by_hand(cluster: SimulatedCluster, child: JsonObject) -> None:
    """Suspend the Job of a document's IngestionJob."""
    path = child_path(NAMESPACE, child["metadata"]["name"])
    cluster.api.request("PATCH", path, body={"spec": {"suspend": True}}, content_type=MERGE_PATCH)


def test_a_batch_whose_jobs_are_all_held_by_somebody_else_waits(cluster: SimulatedCluster) -> None:
    """Until they are resumed, or it is suspended and goes on."""
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    cluster.start_operator()
    create(cluster)
    until(cluster, lambda: len(cluster.api.all("jobs")) == 3)
    first, *others = sorted(cluster.api.all("jobs"), key=lambda child: str(child["metadata"]["name"]))
    for child in others:
        suspend_by_hand(cluster, child)
    cluster.pass_until(lambda: False, seconds=PATIENCE_SECONDS)
    assert condition(cluster, "Ready")["reason"] == "ProcessingDocuments"
    suspend_by_hand(cluster, first)
    until(cluster, lambda: condition(cluster, "Ready")["reason"] == "Waiting")
    says = f"All jobs that run wait; {job(cluster, 0)['metadata']['name']}: somebody else has suspended the Job"
    assert condition(cluster, "Ready")["message"].startswith(says)
    assert {condition(cluster, kind)["status"] for kind in ("Reconciling", "Stalled")} == {"False"}
    cluster.verdicts.clear()
    patch(cluster, suspend=True)
    cluster.pass_until(lambda: False, seconds=PATIENCE_SECONDS)
    patch(cluster, suspend=False)
    until(cluster, ended(cluster, "completed"))


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────────


@REFUSALS
def test_a_document_that_is_refused_holds_up_no_others(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, error: ApiError
) -> None:
    cluster.start_operator()
    refuse(cluster, monkeypatch, lambda call: makes(call, "Manual 0"), error)
    create(cluster, documents=15)
    until(cluster, lambda: status(cluster).get("documents", {}).get("completed") == "1-14")
    assert stalled(cluster)["reason"] == "RejectedByCluster"
    monkeypatch.undo()
    until(cluster, ended(cluster, "completed"))


def test_a_webhook_that_is_away_for_a_moment_is_waited_for_without_a_word(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is away once more: it has answered since."""
    asked = Counter[str]()

    def is_away(call: Call) -> bool:
        title = call.arguments["body"]["spec"]["document"]["title"] if makes(call) else ""
        asked[title] += 1
        return title in ("Manual 0", "Manual 14") and asked[title] < 4

    cluster.start_operator()
    refuse(cluster, monkeypatch, is_away, NO_WEBHOOK)
    create(cluster, documents=15)
    until(cluster, ended(cluster, "completed"))
    assert asked["Manual 0"] == asked["Manual 14"] == 4
    seen = (change.after.get("status", {}) for change in cluster.api.changes if change.resource == BATCHES)
    assert not [item for now in seen for item in now.get("conditions", []) if item["reason"] == "RejectedByCluster"]


def test_a_quota_that_refuses_all_documents_is_not_asked_for_each(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.start_operator()
    asked = refuse(cluster, monkeypatch, makes)
    create(cluster, documents=15)
    cluster.pass_until(lambda: False, seconds=PATIENCE_SECONDS)
    assert 3 < len(asked) <= 9
    assert len({call.arguments["body"]["metadata"]["name"] for call in asked}) == len(asked)
    assert stalled(cluster)["message"].endswith("denied")


def check_pauses(asked: list[Call], seconds: float) -> None:
    """Check that there are at least four requests, so many seconds apart, or a few more."""
    pauses = [round(later.sent - earlier.sent, 3) for earlier, later in pairwise(asked)]
    assert len(pauses) >= 3
    assert all(seconds <= pause <= seconds + 2 for pause in pauses), pauses


@TRIES
def test_a_completed_batch_that_may_not_be_deleted_is_tried_again_in_a_while(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, error: ApiError, tries: int
) -> None:
    """Again and again, and nothing is written of it."""
    path = batch_path(NAMESPACE, "manuals")
    asked = refuse(cluster, monkeypatch, lambda call: call.method == "DELETE" and call.path == path, error)
    cluster.start_operator()
    create(cluster, ttlSecondsAfterFinished=60)
    assert cluster.pass_until(lambda: bool(asked), seconds=100)
    written = len(cluster.api.changes)
    cluster.pass_until(lambda: False, seconds=2_000)
    check_pauses(asked[tries - 1 :], 600)
    assert len(cluster.api.changes) == written
    monkeypatch.undo()
    assert cluster.pass_until(lambda: cluster.api.find(BATCHES, NAMESPACE, "manuals") is None, seconds=601)


def test_an_annotation_whose_answer_is_refused_is_tried_again_in_a_while(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that of a completed batch, for which nothing else is done any more."""
    cluster.start_operator()
    create(cluster)
    until(cluster, ended(cluster, "completed"))
    path = batch_path(NAMESPACE, "manuals")
    body = {"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: "now"}}}
    cluster.api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
    asked = refuse(cluster, monkeypatch, lambda call: call.method == "PATCH" and call.path == path)
    cluster.pass_until(lambda: False, seconds=100)
    check_pauses(asked, 30)
    monkeypatch.undo()
    until(cluster, lambda: status(cluster).get("lastHandledRetryRequest") == "now", seconds=31)


@REFUSALS
def test_a_retry_of_a_document_that_is_refused_is_said(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, error: ApiError
) -> None:
    fail(cluster)
    refuse(cluster, monkeypatch, patches_job, error)
    retry = {"spec": {"retryGeneration": 1}}
    cluster.api.request("PATCH", batch_path(NAMESPACE, "manuals"), body=retry, content_type=MERGE_PATCH)
    until(cluster, lambda: stalled(cluster).get("reason") == "RejectedByCluster")
    monkeypatch.undo()
    until(cluster, ended(cluster, "completed", 1))


@TRIES
def test_an_annotation_of_a_batch_that_runs_is_not_answered_at_each_look(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, error: ApiError, tries: int
) -> None:
    cluster.start_operator()
    create(cluster, documents=40)
    path = batch_path(NAMESPACE, "manuals")
    body = {"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: "now"}}}
    cluster.api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
    asked = refuse(cluster, monkeypatch, lambda call: call.method == "PATCH" and call.path == path, error)
    looks = note_lists(cluster, monkeypatch)
    cluster.pass_until(lambda: False, seconds=20)
    assert len(asked) == tries < len(looks)


def test_an_older_crd_of_jobs_is_named_until_it_is_applied(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = api._VERSIONS[INGESTION_JOBS]
    columns = [column for column in version["additionalPrinterColumns"] if column["name"] != "Attempt"]
    monkeypatch.setitem(version, "additionalPrinterColumns", columns)
    cluster.start_operator()
    create(cluster)
    until(cluster, lambda: "CRD" in stalled(cluster)["message"])
    assert not cluster.api.all(INGESTION_JOBS)
    monkeypatch.undo()
    until(cluster, ended(cluster, "completed"))


# ── how often ─────────────────────────────────────────────────────────────────────────────────────────────────────


def note_lists(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Return the requests for the jobs of a batch that are answered from now on."""
    commit, lists = cluster.commit, list[Call]()

    def note(call: Call) -> JsonObject | ApiError:
        if lists_jobs(call):
            lists.append(call)
        return commit(call)

    monkeypatch.setattr(cluster, "commit", note)
    return lists


@pytest.mark.parametrize("restarted", [False, True])
def test_a_batch_that_waits_for_its_time_to_live_is_not_read_with_its_jobs(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, *, restarted: bool
) -> None:
    cluster.start_operator()
    create(cluster, ttlSecondsAfterFinished=1_000)
    until(cluster, ended(cluster, "completed"))
    lists = note_lists(cluster, monkeypatch)
    if restarted:
        cluster.kill(cluster.operators[0])
        cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=900)
    assert not lists
    assert cluster.pass_until(lambda: cluster.api.find(BATCHES, NAMESPACE, "manuals") is None, seconds=300)


def test_a_suspended_batch_is_looked_at_rarely(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.start_operator()
    create(cluster, suspend=True)
    until(cluster, lambda: bool(status(cluster).get("conditions")))
    lists = note_lists(cluster, monkeypatch)
    cluster.pass_until(lambda: False, seconds=900)
    assert 1 <= len(lists) <= 2
    patch(cluster, suspend=False)
    until(cluster, ended(cluster, "completed"))


def die_with_the_last_create(cluster: SimulatedCluster) -> Call:
    """Make a batch, and end the operator as it makes the last of the jobs; return that request: it is to be late."""

    def last(call: Call) -> bool:
        return makes(call, "Manual 2")

    only = cluster.start_operator()
    create(cluster)
    until(cluster, lambda: any(map(last, cluster.calls)), held=last)
    [sent] = filter(last, cluster.kill(only))
    cluster.late.append(sent)
    return sent


def test_a_job_that_comes_too_late_for_its_batch_s_suspension_is_suspended(cluster: SimulatedCluster) -> None:
    """The operator that sent it has died, and the next one has told all jobs that there were."""
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    sent = die_with_the_last_create(cluster)
    patch(cluster, suspend=True)
    cluster.start_operator()
    until(cluster, lambda: status(cluster).get("passedOnSuspend") is True)
    cluster.arrive(sent)
    until(cluster, lambda: bool(job(cluster, 2)["spec"]["suspend"]))
    until(cluster, lambda: status(cluster).get("passedOnSuspend") is True)
    cluster.verdicts.clear()
    patch(cluster, suspend=False)
    until(cluster, ended(cluster, "completed"))


def test_a_late_job_is_suspended_although_what_was_refused_goes_well_in_the_same_look(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look is planned once more then, and has not asked which jobs are not suspended."""
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    sent = die_with_the_last_create(cluster)
    patch(cluster, suspend=True)
    cluster.start_operator()
    until(cluster, lambda: status(cluster).get("passedOnSuspend") is True)
    refuse(cluster, monkeypatch, patches_job)
    patch(cluster, cancelGeneration=0)
    until(cluster, lambda: stalled(cluster)["reason"] == "RejectedByCluster")
    monkeypatch.undo()
    cluster.arrive(sent)
    until(cluster, lambda: bool(job(cluster, 2)["spec"]["suspend"]))
    until(cluster, ended(cluster, "failed"))
    until(cluster, lambda: status(cluster).get("passedOnSuspend") is True)


def test_a_job_that_comes_too_late_for_its_batch_s_cancellation_is_cancelled(cluster: SimulatedCluster) -> None:
    """The attempt is over by then."""
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    sent = die_with_the_last_create(cluster)
    patch(cluster, cancelGeneration=0)
    cluster.start_operator()
    until(cluster, ended(cluster, "failed"))
    cluster.arrive(sent)
    until(cluster, lambda: job(cluster, 2)["spec"].get("cancelGeneration") == 0)
    until(cluster, ended(cluster, "failed"))
    assert status(cluster)["failureSummary"] == {"Cancelled": 3}


def test_a_cancellation_that_a_proxy_answers_with_404_is_passed_on_again(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That its job is gone, the API server alone can say."""
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    cluster.start_operator()
    create(cluster)
    until(cluster, lambda: len(cluster.api.all("jobs")) == 3)
    proxy = ApiError(status=404, reason="Unknown", message="<html>404 Not Found</html>")

    def cancels(call: Call) -> bool:
        return call.method == "PATCH" and "cancelGeneration" in call.arguments["body"].get("spec", {})

    asked = refuse(cluster, monkeypatch, cancels, proxy)
    patch(cluster, cancelGeneration=0)
    cluster.pass_until(lambda: False, seconds=5)
    assert asked
    monkeypatch.undo()
    until(cluster, ended(cluster, "failed"))


def test_a_batch_that_is_made_anew_under_its_name_is_cancelled_as_the_one_before(cluster: SimulatedCluster) -> None:
    """No look has seen that the name was free."""
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    cluster.start_operator()
    for _ in range(2):
        create(cluster)
        made = cluster.api.find(BATCHES, NAMESPACE, "manuals")
        assert made is not None
        uid = made["metadata"]["uid"]

        def jobs(uid: str = uid) -> list[JsonObject]:
            found = cluster.api.all(INGESTION_JOBS)
            return [item for item in found if item["metadata"]["ownerReferences"][0]["uid"] == uid]

        until(cluster, lambda: len(jobs()) == 3)
        patch(cluster, cancelGeneration=0)
        until(cluster, lambda: all(item["spec"].get("cancelGeneration") == 0 for item in jobs()))
        cluster.api.request("DELETE", batch_path(NAMESPACE, "manuals"))


def test_a_job_that_comes_too_late_and_has_ended_when_it_is_seen_belongs_to_the_attempt(
    cluster: SimulatedCluster,
) -> None:
    cluster.verdicts[Stage.PREPARE, None] = HANGS
    sent = die_with_the_last_create(cluster)
    patch(cluster, cancelGeneration=0)
    cluster.start_operator()
    until(cluster, ended(cluster, "failed"))
    cluster.verdicts.clear()
    cluster.arrive(sent)
    until(cluster, lambda: job(cluster, 2).get("status", {}).get("phase") == "completed", held=lists_jobs)
    until(cluster, ended(cluster, "partial_failure"))
    assert status(cluster)["documents"]["completed"] == "2"


def test_a_retry_that_comes_too_late_for_its_batch_s_cancellation_is_not_admitted(cluster: SimulatedCluster) -> None:
    """The operator that sent it has died, and the next one ends the attempt; nothing could stop the job then."""
    fail(cluster)
    patch(cluster, retryGeneration=1)
    until(cluster, lambda: any(map(retries_job, cluster.calls)), held=retries_job)
    [sent] = filter(retries_job, cluster.kill(cluster.operators[0]))
    cluster.late.append(sent)
    patch(cluster, cancelGeneration=1)
    cluster.start_operator()
    until(cluster, ended(cluster, "partial_failure", 1))
    cluster.arrive(sent)
    cluster.pass_until(lambda: False, seconds=PATIENCE_SECONDS)
    assert job(cluster, 0)["spec"]["retryGeneration"] == 0
    patch(cluster, retryGeneration=2)
    until(cluster, ended(cluster, "completed", 2))


def test_a_retry_that_comes_too_late_is_not_admitted_although_one_before_it_was_refused(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy is gone since."""
    fail(cluster)
    refuse(cluster, monkeypatch, patches_job)
    patch(cluster, retryGeneration=1)
    until(cluster, lambda: stalled(cluster).get("reason") == "RejectedByCluster")
    monkeypatch.undo()
    until(cluster, lambda: any(map(retries_job, cluster.calls)), held=retries_job)
    [sent] = filter(retries_job, cluster.calls)
    cluster.settle(sent, Fate.LATE)
    patch(cluster, cancelGeneration=1)
    until(cluster, ended(cluster, "partial_failure", 1))
    cluster.arrive(sent)
    cluster.pass_until(lambda: False, seconds=PATIENCE_SECONDS)
    assert job(cluster, 0)["spec"]["retryGeneration"] == 0


@pytest.mark.parametrize("retried", [True, False], ids=["once it is retried", "at once"])
def test_a_retry_that_is_cancelled_ends_although_a_job_may_not_be_changed(
    cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch, retried: bool
) -> None:
    fail(cluster)
    refuse(cluster, monkeypatch, patches_job)
    if retried:
        patch(cluster, retryGeneration=1)
        until(cluster, lambda: stalled(cluster).get("reason") == "RejectedByCluster")
    patch(cluster, retryGeneration=1, cancelGeneration=1)
    until(cluster, ended(cluster, "partial_failure", 1))
    monkeypatch.undo()
    patch(cluster, retryGeneration=2)
    until(cluster, ended(cluster, "completed", 2))


# ── what is counted ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_ends_is_counted_once(cluster: SimulatedCluster) -> None:
    """Also by an operator that takes over in between."""

    def counted() -> list[float]:
        ends = [metrics.BATCH_ATTEMPTS_ENDED.labels(reason=name) for name in ("Succeeded", "DocumentsFailed")]
        documents = [metrics.BATCH_DOCUMENTS_ENDED.labels(result=name) for name in ("completed", "failed")]
        return [counter._value.get() for counter in (*ends, *documents)]

    before = counted()
    cluster.kubelet.missing = {"Manual 0", "Manual 1"}
    first = cluster.start_operator()
    create(cluster)
    until(cluster, ended(cluster, "partial_failure"))
    cluster.kill(first)
    cluster.start_operator()
    cluster.kubelet.missing.discard("Manual 1")
    patch(cluster, retryGeneration=1)
    until(cluster, ended(cluster, "partial_failure", 1))
    cluster.kubelet.missing.clear()
    patch(cluster, retryGeneration=2)
    until(cluster, ended(cluster, "completed", 2))
    assert [now - was for now, was in zip(counted(), before, strict=True)] == [1, 2, 3, 3]
