"""Batches against a real API server: what is made, what a retry runs, what it costs, and where it is interrupted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from faults.batches import CODE, NAME, BatchRun, condition, documents_script, index_of
from faults.proxy import Act, Call, Fault, crash_after, crash_before, delay, lose_answer, refuse
from faults.rig import Run, running
from faults.stand import Stand
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.batch import document_job_name
from ingestion_crds.kube import MERGE_PATCH, KubeClient, batch_path, ingestion_path
from local_cluster import binaries
from local_cluster.control_plane import ControlPlane
from support.builders import ingestion_job
from support.kubelet import HANG, Exit, PodRun

pytestmark = pytest.mark.controlplane

# Beside what its jobs cost: a look of three requests a second (the batch, its jobs, its status); another look or two at
# the beginning and the end of an attempt, and when something happens to the batch; a read of each job that is retried.
EACH_SECOND = 3
LOOKS_BESIDE = 12


@pytest_asyncio.fixture
async def run(control_plane: ControlPlane, kube: KubeClient, tmp_path: Path) -> AsyncIterator[Run]:
    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as made:
        yield made


@pytest.fixture
def stand(control_plane: ControlPlane, kube: KubeClient, tmp_path: Path) -> Stand:
    return Stand(control_plane=control_plane, kube=kube, folder=tmp_path)


async def test_a_retry_runs_the_failed_documents_and_nothing_else(run: Run) -> None:
    batch = BatchRun(run=run)
    run.kubelet.script = documents_script(bad={1, 4})
    await batch.create(6, parallelism=3)
    ended = await batch.ended("partial_failure")
    documents = ended["status"]["documents"]
    assert documents == {
        "total": 6,
        "made": "0-5",
        "completed": "0,2-3,5",
        "failed": "1,4",
        "queuedCount": 0,
        "processingCount": 0,
        "completedCount": 4,
        "partialFailureCount": 0,
        "failedCount": 2,
        "progress": "4/6",
    }
    jobs = await batch.jobs()
    assert [(item["index"], item["job"], item["code"]) for item in ended["status"]["failures"]] == [
        (index, jobs[index]["metadata"]["name"], CODE) for index in (1, 4)
    ]
    assert "document 1: no such object" in ended["status"]["failures"][0]["message"]
    assert ended["status"]["failureSummary"] == {CODE: 2}
    assert condition(ended, "Stalled") == ("True", "DocumentsFailed")
    assert {job["spec"]["parallelism"] for job in jobs.values()} == {3}
    await run.at_rest()

    await batch.spec(retryGeneration=1)
    ended = await batch.ended("completed", generation=1)
    assert condition(ended, "Ready") == ("True", "Succeeded")
    assert await batch.generations() == {0: 0, 1: 1, 2: 0, 3: 0, 4: 1, 5: 0}
    jobs = await batch.jobs()
    assert {index for index, job in jobs.items() if job["spec"]["parentGeneration"] == 1} == {1, 4}
    assert {job["status"]["attempts"][-1]["trigger"] for index, job in jobs.items() if index in (1, 4)} == {"Batch"}
    assert batch.attempts() == Counter({(index, 0): 1 for index in range(6)} | {(1, 1): 1, (4, 1): 1})
    await run.at_rest()


async def test_an_annotation_retries_and_a_completed_batch_refuses_it(run: Run) -> None:
    batch = BatchRun(run=run)
    run.kubelet.script = documents_script(bad={0})
    await batch.create(2)
    await batch.ended("partial_failure")
    await batch.patch({"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: "one"}}})
    await batch.ended("completed", generation=1)
    await batch.patch({"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: "two"}}})
    refused = await batch.until(lambda body: body["status"].get("lastHandledRetryRequest") == "two")
    assert refused["spec"]["retryGeneration"] == 1
    events = await run.listed("events")
    assert "RetryRefused" in {item["reason"] for item in events if item["involvedObject"]["kind"] == names.BATCH_KIND}
    await run.at_rest()


async def test_kubectl_says_how_far_a_batch_is(run: Run, control_plane: ControlPlane, tmp_path: Path) -> None:
    batch = BatchRun(run=run)
    run.kubelet.script = documents_script(always={1})
    await batch.create(3)
    await batch.ended("partial_failure")
    environment = {
        "PATH": f"{binaries.ensure(names=['kubectl'])}{os.pathsep}{os.environ['PATH']}",
        "KUBECONFIG": str(control_plane.kubeconfig),
        "HOME": str(tmp_path),  # where kubectl keeps what it has discovered
    }
    command = ["kubectl", "-n", run.namespace, "get", "ib"]
    printed = await asyncio.to_thread(subprocess.run, command, env=environment, check=True, capture_output=True)
    header, row = printed.stdout.decode().splitlines()
    assert header.split() == ["NAME", "PHASE", "DOCUMENTS", "PARTIAL", "FAILED", "RETRIES", "REASON", "AGE"]
    assert row.split()[:7] == [NAME, "partial_failure", "2/3", "0", "1", "0", "DocumentsFailed"]


async def test_a_suspended_batch_goes_on_and_a_cancelled_one_can_be_retried(run: Run) -> None:
    batch, hangs = BatchRun(run=run), True

    def end(pod: PodRun) -> Exit | None:
        return HANG if hangs else documents_script()(pod)

    run.kubelet.script = end
    await batch.create(3)
    await batch.until(lambda body: body["status"].get("documents", {}).get("processingCount") == 3)
    await batch.spec(suspend=True)
    await batch.until(lambda body: body["status"].get("passedOnSuspend") is True)
    assert {job["spec"]["suspend"] for job in (await batch.jobs()).values()} == {True}
    assert condition(await batch.get(), "Ready") == ("Unknown", "Suspended")
    await batch.spec(suspend=False)
    await batch.until(lambda body: body["status"].get("passedOnSuspend") is False)
    assert {job["spec"]["suspend"] for job in (await batch.jobs()).values()} == {False}

    await batch.spec(cancelGeneration=0)
    ended = await batch.ended("failed")
    assert condition(ended, "Failed") == ("True", "Cancelled")
    hangs = False
    await batch.spec(retryGeneration=1)
    await batch.ended("completed", generation=1)
    assert await batch.generations() == {0: 1, 1: 1, 2: 1}


async def test_the_garbage_collector_takes_the_jobs_of_a_deleted_batch(run: Run) -> None:
    """Invariant 7: one that is made again under its name has jobs of its own."""
    batch = BatchRun(run=run)
    run.kubelet.script = documents_script()
    await batch.create(2)
    await batch.ended("completed")
    before = {job["metadata"]["name"] for job in (await batch.jobs()).values()}
    await run.kube.request("DELETE", batch_path(run.namespace, NAME))
    await batch.create(2)
    await batch.ended("completed")

    async def gone() -> bool:
        after = (await run.kube.request("GET", ingestion_path(run.namespace)))["items"]
        return not before & {job["metadata"]["name"] for job in after}

    await run.come_true(gone)
    assert len(await batch.jobs()) == 2


async def test_a_job_that_is_deleted_is_missed_unless_its_document_is_completed(run: Run) -> None:
    batch = BatchRun(run=run)
    run.kubelet.script = documents_script(always={1})
    await batch.create(3)
    await batch.ended("partial_failure")
    for job in (await batch.jobs()).values():
        await run.kube.request("DELETE", ingestion_path(run.namespace, job["metadata"]["name"]))
    run.kubelet.script = documents_script()
    await batch.spec(retryGeneration=1)
    ended = await batch.ended("completed", generation=1)
    assert ended["status"]["documents"]["completed"] == "0-2"
    assert list(await batch.jobs()) == [1]


async def test_a_batch_in_no_tenant_s_namespace_says_so(run: Run, control_plane: ControlPlane, tmp_path: Path) -> None:
    (run.folder / "config.yaml").write_text("workerImage: worker:test\n")
    run.operator.kill()
    batch = BatchRun(run=run)
    await batch.create(2)
    stalled = await batch.until(lambda body: len(body["status"]["conditions"]) > 1)
    assert condition(stalled, "Stalled") == ("True", "NoStore")
    assert await batch.jobs() == {}


async def test_another_s_job_of_that_name_is_no_document_of_the_batch(run: Run) -> None:
    batch = BatchRun(run=run)
    run.proxy.add(lambda call: str(call) == "create ingestionjobs", refuse(503), times=None)
    made = await batch.create(1)
    job = await batch.until(lambda body: body["status"].get("observedRetryGeneration") == 0)
    name = document_job_name(name=NAME, uid=made["metadata"]["uid"], index=0)
    await run.kube.request(
        "POST", ingestion_path(run.namespace), body=ingestion_job(name=name, namespace=run.namespace, suspend=True)
    )
    run.proxy.faults.clear()
    job = await batch.until(lambda body: condition(body, "Ready")[1] == "NameConflict")
    assert condition(job, "Stalled") == ("True", "NameConflict")
    await run.kube.request("DELETE", ingestion_path(run.namespace, name))


async def test_a_job_that_a_finalizer_keeps_is_named_and_made_again_once_it_is_gone(run: Run) -> None:
    batch = BatchRun(run=run)
    run.kubelet.script = documents_script(always={1})
    await batch.create(2)
    await batch.ended("partial_failure")
    path = ingestion_path(run.namespace, (await batch.jobs())[1]["metadata"]["name"])

    async def keep(*finalizers: str) -> None:
        body = {"metadata": {"finalizers": list(finalizers)}}
        await run.kube.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    await keep("example.com/keeps")
    await run.kube.request("DELETE", path)
    await batch.spec(retryGeneration=1)
    stalled = await batch.until(lambda body: condition(body, "Ready")[1] == "PodTerminating")
    assert condition(stalled, "Stalled") == ("True", "PodTerminating")
    await keep()
    ended = await batch.ended("partial_failure", generation=1)
    assert [item["code"] for item in ended["status"]["failures"]] == ["JobLost"]
    run.kubelet.script = documents_script()
    await batch.spec(retryGeneration=2)
    await batch.ended("completed", generation=2)
    await run.at_rest()


# ── interrupted ───────────────────────────────────────────────────────────────────────────────────────────────

DOCUMENTS = 6
FAILED = {0, 2, 3, 5}


def nth(what: str, number: int) -> Callable[[Call], bool]:
    """Return what fits the n-th of such requests."""
    numbers = count(1)
    return lambda call: str(call) == what and next(numbers) == number


async def interrupted(run: Run, *, faults: Callable[[Run], Sequence[Fault]]) -> int:
    """Check that each document is run once, and each failed one once more; return how often a fault was injected."""
    batch = BatchRun(run=run)
    run.kubelet.script = documents_script(bad=FAILED)
    added = faults(run)
    await batch.create(DOCUMENTS)
    await batch.ended("partial_failure")
    await batch.spec(retryGeneration=1)
    await batch.ended("completed", generation=1)
    assert await batch.generations() == {index: int(index in FAILED) for index in range(DOCUMENTS)}
    once = {(index, 0): 1 for index in range(DOCUMENTS)} | {(index, 1): 1 for index in FAILED}
    assert batch.attempts() == Counter(once)
    assert run.proxy.created[names.PLURAL] <= DOCUMENTS
    await run.at_rest()
    assert all(fault.injected for fault in added)
    return sum(fault.injected for fault in added)


async def test_a_kill_while_jobs_are_made_or_retried_loses_none_and_doubles_none(stand: Stand) -> None:
    """Invariants 1 and 4, at the first request, one in the middle, and the last one."""

    def killed(run: Run, *, when: Callable[[Callable[[], None]], Act], at: int) -> list[Fault]:
        places = {"create ingestionjobs": at, "patch ingestionjobs": min(at, len(FAILED))}
        return [run.proxy.add(nth(what, number), when(run.operator.kill)) for what, number in places.items()]

    cases = {
        f"{name}: {at}": partial(interrupted, faults=partial(killed, when=when, at=at))
        for name, when in {"before": crash_before, "after": crash_after}.items()
        for at in (1, 3, DOCUMENTS)
    }
    await stand.each("operator killed as a batch's jobs are made or retried", cases, invariants=(1, 4))


async def test_a_failing_api_server_loses_no_document_and_retries_none_twice(stand: Stand) -> None:
    """Invariants 1 and 4."""

    def failing(run: Run, *, what: str, act: Act) -> list[Fault]:
        numbers = count()
        return [run.proxy.add(lambda call: str(call) == what and next(numbers) % 2 == 0, act, times=3)]

    acts = {"answer lost": lose_answer, **{str(status): refuse(status) for status in (500, 409, 429)}}
    cases = {
        f"{name}: {what}": partial(interrupted, faults=partial(failing, what=what, act=act))
        for name, act in acts.items()
        for what in ("create ingestionjobs", "patch ingestionjobs", "patch ingestionbatches/status")
    }
    await stand.each("request for a batch fails", cases, invariants=(1, 4))


async def test_a_retry_that_arrives_late_is_not_admitted_again(run: Run) -> None:
    """The first patch hangs until everything is over, and its sender was killed: the second one was enough."""
    batch, release = BatchRun(run=run), asyncio.Event()
    run.kubelet.script = documents_script(always=FAILED)
    await batch.create(DOCUMENTS)
    await batch.ended("partial_failure")
    fault = run.proxy.add(lambda call: str(call) == "patch ingestionjobs", delay(release))
    await batch.spec(retryGeneration=1)
    await run.wait(lambda: fault.injected == 1)
    run.operator.kill()
    await batch.ended("partial_failure", generation=1)
    release.set()
    await run.at_rest()
    assert await batch.generations() == {index: int(index in FAILED) for index in range(DOCUMENTS)}


# ── restored from a backup ────────────────────────────────────────────────────────────────────────────────────


async def take_back(run: Run, batch: BatchRun, *, with_status: bool) -> None:
    """Delete the batch and restore it with its jobs, while no operator runs. They name the former batch, and go."""
    run.operator.hold()
    run.operator.kill()
    await run.wait(lambda: not run.operator.running)
    backup, jobs = await batch.get(), await batch.jobs()
    path = batch_path(run.namespace, NAME)

    async def no_jobs() -> bool:
        return not await batch.jobs()

    await run.kube.request("DELETE", path, body={"propagationPolicy": "Background"})
    await run.come_true(no_jobs)
    made = await run.kube.request("POST", batch_path(run.namespace), body=to_restore(backup))
    assert made["metadata"]["uid"] != backup["metadata"]["uid"]
    if with_status:
        await run.kube.request("PATCH", f"{path}/status", body={"status": backup["status"]}, content_type=MERGE_PATCH)
    for job in jobs.values():
        await run.kube.request("POST", ingestion_path(run.namespace), body=to_restore(job))
    await run.come_true(no_jobs)
    run.kubelet.runs.clear()
    run.operator.release()


def to_restore(backup: JsonObject) -> JsonObject:
    """Return an object as a backup has it, without its status."""
    metadata = {key: backup["metadata"].get(key) for key in ("name", "labels", "annotations", "ownerReferences")}
    return {**{key: backup[key] for key in ("apiVersion", "kind", "spec")}, "metadata": metadata}


@pytest.mark.parametrize("runs", [False, True], ids=["at rest", "while a document runs"])
async def test_a_batch_that_is_restored_with_its_status_remembers_what_is_completed(run: Run, runs: bool) -> None:
    """It is another object, and is found by its own id."""
    batch, usual = BatchRun(run=run), documents_script(always={1})
    completed, left = ("0", [1, 2]) if runs else ("0,2", [1])
    run.kubelet.script = lambda pod: HANG if runs and index_of(pod) == 2 else usual(pod)
    await batch.create(3)

    def known(body: JsonObject) -> bool:
        documents = body["status"].get("documents", {})
        return documents.get("completed") == completed and documents["failedCount"] == 1

    await batch.until(known)
    if not runs:
        await batch.ended("partial_failure")
    await take_back(run, batch, with_status=True)
    await batch.until(lambda body: body["status"]["jobID"] == body["metadata"]["uid"])
    await run.at_rest()
    ended = (await batch.ended("partial_failure"))["status"]
    assert ended["documents"]["completed"] == completed
    assert [(item["index"], item["code"]) for item in ended["failures"]] == [(index, "JobLost") for index in left]
    await run.at_rest()
    assert await batch.jobs() == {}
    run.kubelet.script = documents_script()
    await batch.spec(retryGeneration=1)
    ended = (await batch.ended("completed", generation=1))["status"]
    assert ended["documents"]["completed"] == "0-2"
    assert sorted(index_of(pod) for pod in run.kubelet.runs) == sorted(await batch.jobs()) == left
    await run.at_rest()


async def test_a_batch_that_is_restored_without_its_status_ingests_all_of_its_documents_again(run: Run) -> None:
    batch = BatchRun(run=run)
    run.kubelet.script = documents_script(always={1})
    await batch.create(3)
    await batch.ended("partial_failure")
    await take_back(run, batch, with_status=False)
    run.kubelet.script = documents_script()
    await batch.ended("completed")
    assert sorted(index_of(pod) for pod in run.kubelet.runs) == sorted(await batch.jobs()) == [0, 1, 2]
    await run.at_rest()


# ── what it costs ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_batch_of_a_hundred_costs_few_requests_beside_its_jobs(run: Run) -> None:
    batch, bad = BatchRun(run=run), set(range(0, 100, 10))
    run.kubelet.script = documents_script(bad=bad)
    made: Counter[str] = Counter()

    def note(call: Call) -> bool:
        # The lists of single namespaces are the batch's tables: the full list names none.
        if call.resource == names.BATCH_PLURAL and call.verb != "list":
            made[str(call)] += 1
        if call.resource == names.PLURAL and call.namespace and call.verb in ("list", "create"):
            made[str(call)] += 1
        if str(call) == "patch ingestionjobs":
            made[str(call)] += 1
        return False

    run.proxy.add(note, refuse(500), times=None)
    begun = time.monotonic()
    await batch.create(100)
    await batch.ended("partial_failure")
    seconds = time.monotonic() - begun
    print(f"{seconds:.0f} s", first := dict(made))
    assert made.pop("create ingestionjobs") == 100
    assert made.total() <= LOOKS_BESIDE + EACH_SECOND * seconds, first
    await run.at_rest()

    made.clear()
    begun = time.monotonic()
    await batch.spec(retryGeneration=1)
    await batch.ended("completed", generation=1)
    seconds = time.monotonic() - begun
    print(f"{seconds:.0f} s", second := dict(made))
    assert made.pop("patch ingestionjobs") == len(bad)
    assert made.total() <= LOOKS_BESIDE + EACH_SECOND * seconds, second
    await run.at_rest()
