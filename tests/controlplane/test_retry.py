"""The operator against a real API server and Job controller: what a retry runs, and what it leaves alone."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from faults.proxy import Proxy, crash_after
from faults.rig import running
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.indexset import IndexSet
from ingestion_crds.kube import JSON_PATCH, MERGE_PATCH, ApiError, KubeClient, child_path, core_path, ingestion_path
from local_cluster.control_plane import ControlPlane
from support.builders import failure, ingestion_job, prepared
from support.kubelet import HANG, Exit, FakeKubelet, PodRun, Script, fails
from support.namespaces import forbid_all
from support.operator_process import operator, write_config

pytestmark = pytest.mark.controlplane

PREPARE, SEGMENTS, PUBLISH = (stage.value for stage in names.Stage)


def _at_rest(job: JsonObject) -> bool:
    """Return whether an attempt has ended, and its pods are removed."""
    return job["status"]["phase"] in names.TERMINAL_PHASES and "podsToRemove" not in job["status"]


class World:
    """A namespace with an operator and a kubelet."""

    def __init__(self, *, kube: KubeClient, namespace: str, kubelet: FakeKubelet) -> None:
        self.kube = kube
        self.namespace = namespace
        self.kubelet = kubelet

    async def create(self, **spec: Any) -> JsonObject:
        body = ingestion_job(namespace=self.namespace, **spec)
        return await self.kube.request("POST", ingestion_path(self.namespace), body=body)

    async def get(self) -> JsonObject:
        return await self.kube.request("GET", ingestion_path(self.namespace, "handbook"))

    async def patch(self, spec: JsonObject) -> JsonObject:
        return await self.kube.request(
            "PATCH", ingestion_path(self.namespace, "handbook"), body={"spec": spec}, content_type=MERGE_PATCH
        )

    async def annotate(self, token: str) -> None:
        body = {"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: token}}}
        path = ingestion_path(self.namespace, "handbook")
        await self.kube.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def until(self, wish: Callable[[JsonObject], bool], *, seconds: float = 240) -> JsonObject:
        deadline = time.monotonic() + seconds
        while True:
            job = await self.get()
            if wish(job):
                return job
            self.kubelet.check()
            if time.monotonic() > deadline:
                raise AssertionError(f"still {json.dumps(job.get('status'), indent=1)}")
            await asyncio.sleep(0.05)

    async def settled(self, phase: str, *, generation: int = 0, seconds: float = 240) -> JsonObject:
        def wish(job: JsonObject) -> bool:
            status = job.get("status", {})
            return status.get("observedRetryGeneration") == generation and _at_rest(job)

        job = await self.until(wish, seconds=seconds)
        assert job["status"]["phase"] == phase, job["status"]
        return job

    async def jobs(self) -> list[JsonObject]:
        return list((await self.kube.request("GET", child_path(self.namespace)))["items"])

    def segments_run(self, generation: int) -> list[int]:
        runs = [run.segment for run in self.kubelet.runs if run.generation == generation and run.stage == SEGMENTS]
        return sorted(segment for segment in runs if segment is not None)


@pytest_asyncio.fixture
async def world(control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path) -> AsyncIterator[World]:
    config = write_config(tmp_path, tenants=[namespace], providers=["known"])
    log = tmp_path / "operator.log"
    with operator(kubeconfig=control_plane.kubeconfig, config=config, log=log) as process:
        async with FakeKubelet(client=kube, namespace=namespace, script=lambda run: Exit()) as kubelet:
            yield World(kube=kube, namespace=namespace, kubelet=kubelet)
        assert process.poll() is None, log.read_text()
    assert '"exception":' not in log.read_text(), log.read_text()


def script(*, segments: int = 10, bad: set[int] | None = None, **stages: Exit) -> Script:
    """Return a script: prepare says so many segments, the bad ones fail for good, a stage may end otherwise."""

    def run(pod: PodRun) -> Exit | None:
        if pod.stage in stages:
            return stages[pod.stage]
        if pod.stage == PREPARE:
            return Exit(says=prepared(segments=segments, version="2b1d7a52-6c1e-4a0b-9f55-0d3c0f2f8a12"))
        if pod.stage == SEGMENTS and pod.segment in (bad or set()):
            return fails(failure("EmbeddingRejected", f"segment {pod.segment}: content rejected"))
        return Exit(says={"chunks": 7})

    return run


async def retry_by_patch(world: World, generation: int) -> None:
    await world.patch({"retryGeneration": generation})


async def retry_by_annotation(world: World, generation: int) -> None:
    await world.annotate(f"token-{generation}")


@pytest.mark.parametrize("way", [retry_by_patch, retry_by_annotation])
async def test_a_retry_runs_the_failed_segments_and_nothing_else(world: World, way: Any) -> None:
    """Invariants 1, 2, 3, 6."""
    world.kubelet.script = script(segments=10, bad={3, 7})
    await world.create()
    job = await world.settled("partial_failure")
    assert job["status"]["segments"] == {
        "total": 10,
        "completed": "0-2,4-6,8-9",
        "failed": "3,7",
        "completedCount": 8,
        "failedCount": 2,
        "progress": "8/10",
    }
    assert job["status"]["failureSummary"] == {"EmbeddingRejected": 2}
    assert [item["segment"] for item in job["status"]["failures"]] == [3, 7]
    assert job["status"]["failures"][0]["message"] == "segment 3: content rejected"
    assert job["status"]["version"]["state"] == "failed"
    pods = (await world.kube.request("GET", core_path("pods", world.namespace)))["items"]
    assert sorted(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] for pod in pods) == ["3", "7"]

    world.kubelet.script = script(segments=10)
    await way(world, 1)
    job = await world.settled("completed", generation=1)
    assert world.segments_run(0) == list(range(10))
    assert world.segments_run(1) == [3, 7]
    assert [run.stage for run in world.kubelet.runs if run.generation == 1] == [SEGMENTS, SEGMENTS, PUBLISH]
    status = job["status"]
    assert status["version"]["state"] == "active"
    assert status["segments"]["progress"] == "10/10"
    assert status["failures"] == []
    assert [attempt["trigger"] for attempt in status["attempts"]] == [
        "Initial",
        "Patch" if way is retry_by_patch else "Annotation",
    ]
    assert status["attempts"][0]["codes"] == {"EmbeddingRejected": 2}
    assert status["progressPercent"] == 100
    assert len(await world.jobs()) == 1  # the tombstone of publish
    conditions = {item["type"]: item["status"] for item in status["conditions"]}
    assert conditions["Ready"] == "True"
    assert conditions["Stalled"] == "False"
    assert conditions["Reconciling"] == "False"


@pytest.mark.parametrize("token", ["maintenant, s'il vous plaît", "<now> & ☃", "x" * 5000])
async def test_an_annotation_of_any_text_is_a_retry(world: World, token: str) -> None:
    """JSON may write a character in two ways, and the API server's `test` compares bytes."""
    world.kubelet.script = script(segments=2, bad={1})
    await world.create()
    await world.settled("partial_failure")
    world.kubelet.script = script(segments=2)
    await world.annotate(token)
    job = await world.settled("completed", generation=1)
    assert job["status"]["attempts"][1]["trigger"] == "Annotation"
    assert job["status"]["lastHandledRetryRequest"] == token[:256]


async def test_at_rest_the_operator_writes_nothing(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    """Invariant 8, of jobs that have ended and of one that waits, however often it lists them."""
    config, log = write_config(tmp_path, tenants=[namespace]), tmp_path / "operator.log"
    async with (
        Proxy(kubeconfig=control_plane.kubeconfig, folder=tmp_path, namespace=namespace) as proxy,
        FakeKubelet(client=kube, namespace=namespace, script=script(segments=2, bad={1})) as kubelet,
    ):
        with operator(kubeconfig=proxy.kubeconfig, config=config, log=log, module="support.hasty_operator"):
            world = World(kube=kube, namespace=namespace, kubelet=kubelet)
            body = ingestion_job(name="waits", namespace=namespace, suspend=True)
            await kube.request("POST", ingestion_path(namespace), body=body)
            await world.create()
            await world.settled("partial_failure")
            written = -1
            while written != len(proxy.calls):  # the last Events may come late
                written = len(proxy.calls)
                await asyncio.sleep(1)
            lists = proxy.seen["list ingestionjobs"]
            while proxy.seen["list ingestionjobs"] < lists + 3:
                await asyncio.sleep(0.1)
            assert proxy.calls[written:] == []


async def test_a_single_pass_job_is_reset_and_prepared_anew(world: World) -> None:
    world.kubelet.script = script(prepare_document=fails(failure("SourceNotFound", "handbook.pdf is not there")))
    await world.create()
    job = await world.settled("failed")
    assert job["status"]["failures"][0]["code"] == "SourceNotFound"
    assert job["status"]["failures"][0]["retryable"] is True
    first = {run.uid for run in world.kubelet.runs}
    world.kubelet.script = lambda run: HANG
    await world.patch({"retryGeneration": 1})
    job = await world.until(lambda job: job["status"].get("observedRetryGeneration") == 1)
    assert job["status"]["version"]["state"] in ("pending", "processing")
    assert job["status"]["segments"]["completedCount"] == 0
    assert "completionTime" not in job["status"]
    world.kubelet.script = script(prepare_document=Exit(says=prepared(segments=1, mode="SinglePass")))
    job = await world.settled("completed", generation=1)
    assert job["status"]["mode"] == "SinglePass"
    assert job["status"]["chunks"] == 12
    second = {run.uid for run in world.kubelet.runs} - first
    assert len(second) == 1


async def test_a_failed_publish_is_retried_alone(world: World) -> None:
    world.kubelet.script = script(segments=4, publish_version=fails(failure("StoreUnavailable", "the store is away")))
    await world.create(segmentBackoffLimit=0)
    job = await world.settled("failed")
    assert job["status"]["segments"]["progress"] == "4/4"
    assert job["status"]["attempts"][0]["reason"] == "PublishFailed"
    world.kubelet.script = script(segments=4)
    await world.patch({"retryGeneration": 1})
    await world.settled("completed", generation=1)
    assert [run.stage for run in world.kubelet.runs if run.generation == 1] == [PUBLISH]


async def test_all_segments_failed_is_failed(world: World) -> None:
    world.kubelet.script = script(segments=3, bad={0, 1, 2})
    await world.create()
    job = await world.settled("failed")
    assert job["status"]["segments"]["failed"] == "0-2"


async def test_retry_segments_cuts_the_retry(world: World) -> None:
    world.kubelet.script = script(segments=6, bad={1, 3, 5})
    await world.create()
    await world.settled("partial_failure")
    world.kubelet.script = script(segments=6)
    await world.patch({"retryGeneration": 1, "retrySegments": "3-4"})
    job = await world.settled("partial_failure", generation=1)
    assert world.segments_run(1) == [3]
    assert job["status"]["segments"]["failed"] == "1,5"
    assert job["status"]["failureSummary"] == {"EmbeddingRejected": 2}
    await world.patch({"retryGeneration": 2, "retrySegments": "0,2"})
    job = await world.settled("partial_failure", generation=2)
    assert world.segments_run(2) == []
    assert job["status"]["segments"]["failed"] == "1,5"
    await world.patch({"retryGeneration": 3, "retrySegments": "5-1"})  # the CRD cannot see what is wrong with it
    await world.settled("partial_failure", generation=3)
    assert world.segments_run(3) == []
    await world.patch({"retryGeneration": 4, "retrySegments": None})
    await world.settled("completed", generation=4)
    assert world.segments_run(4) == [1, 5]


async def test_a_transient_failure_is_run_again_by_the_cluster(world: World) -> None:
    seen: set[int] = set()

    def once(pod: PodRun) -> Exit | None:
        if pod.stage == SEGMENTS and pod.segment == 1 and pod.segment not in seen:
            seen.add(pod.segment)
            return fails(failure("EmbeddingUnavailable", "503"))
        return script(segments=2)(pod)

    world.kubelet.script = once
    await world.create()
    await world.settled("completed", seconds=240)


async def test_oom_killed_beats_the_message(world: World) -> None:
    end = Exit(code=137, says=failure("Interrupted"), reason="OOMKilled")
    world.kubelet.script = script(segments=2, process_segments=end)
    await world.create(segmentBackoffLimit=0)
    job = await world.settled("failed")
    assert job["status"]["failureSummary"] == {"OOMKilled": 2}
    assert job["status"]["failures"][0]["exitCode"] == 137


async def test_a_job_that_is_deleted_from_outside_ends_the_attempt(world: World) -> None:
    """Invariant 5."""
    world.kubelet.script = lambda pod: HANG if pod.stage == SEGMENTS else script(segments=3)(pod)
    await world.create()
    job = await world.until(lambda job: job["status"].get("stage") == SEGMENTS and _uid(job) is not None)
    name = job["status"]["attempts"][-1]["jobs"][-1]["name"]
    path = child_path(world.namespace, name)
    await world.kube.request("DELETE", path, body={"propagationPolicy": "Background"})
    job = await world.settled("failed")
    assert job["status"]["failureSummary"] == {"JobLost": 3}
    world.kubelet.script = script(segments=3)
    await world.patch({"retryGeneration": 1})
    await world.settled("completed", generation=1)


def _uid(job: JsonObject) -> str | None:
    attempts = job["status"].get("attempts", [])
    uid = attempts[-1]["jobs"][-1].get("uid") if attempts and attempts[-1]["jobs"] else None
    return str(uid) if uid else None


async def test_cancel_keeps_what_is_done_and_a_retry_goes_on(world: World) -> None:
    world.kubelet.script = lambda pod: (
        HANG if pod.stage == SEGMENTS and pod.segment in (1, 2) else script(segments=4)(pod)
    )
    await world.create()
    await world.until(lambda job: job["status"].get("segments", {}).get("completedCount") == 2)
    await world.patch({"cancelGeneration": 0})
    job = await world.settled("failed")
    assert job["status"]["attempts"][0]["reason"] == "Cancelled"
    assert job["status"]["segments"]["failed"] == "1-2"
    assert job["status"]["failureSummary"] == {"Cancelled": 2}
    world.kubelet.script = script(segments=4)
    await world.patch({"retryGeneration": 1})
    await world.settled("completed", generation=1)
    assert world.segments_run(1) == [1, 2]


async def test_suspend_stops_the_pods_and_resume_goes_on(world: World) -> None:
    world.kubelet.script = lambda pod: HANG if pod.stage == SEGMENTS else script(segments=2)(pod)
    await world.create()
    await world.until(lambda job: job["status"].get("stage") == SEGMENTS and len(world.segments_run(0)) == 2)
    await world.patch({"suspend": True})

    async def no_pods() -> None:
        while any(
            pod["status"]["phase"] == "Running"
            for pod in (await world.kube.request("GET", core_path("pods", world.namespace)))["items"]
        ):
            await asyncio.sleep(0.1)

    await asyncio.wait_for(no_pods(), 240)
    job = await world.until(lambda job: _condition(job, "Ready")["reason"] == "Suspended")
    assert _condition(job, "Reconciling")["status"] == "False"
    world.kubelet.script = script(segments=2)
    await world.patch({"suspend": False})
    await world.settled("completed")


async def test_what_somebody_else_suspends_waits_for_them_or_for_the_ingestion_job(world: World) -> None:
    """Invariants 5 and 8: Kueue would suspend it again whenever the operator resumed it."""
    world.kubelet.script = lambda pod: HANG if pod.stage == SEGMENTS else script(segments=2)(pod)
    await world.create()
    await world.until(lambda job: job["status"].get("stage") == SEGMENTS and len(world.segments_run(0)) == 2)
    path = child_path(world.namespace, next(job["metadata"]["name"] for job in await world.jobs() if _runs(job)))
    await world.kube.request("PATCH", path, body={"spec": {"suspend": True}}, content_type=MERGE_PATCH)
    job = await world.until(lambda job: _condition(job, "Ready")["reason"] == "Waiting")
    assert names.LABEL_QUEUE_NAME in _condition(job, "Ready")["message"]
    await asyncio.sleep(10)
    held = await world.kube.request("GET", path)
    assert held["spec"]["suspend"]
    assert held["metadata"]["generation"] == 2, "somebody changed it again"
    await world.patch({"suspend": True})
    await world.until(lambda job: _condition(job, "Ready")["reason"] == "Suspended")
    world.kubelet.script = script(segments=2)
    await world.patch({"suspend": False})
    await world.settled("completed")


def _runs(job: JsonObject) -> bool:
    return SEGMENTS in job["metadata"]["labels"].values()


async def test_cancel_of_a_suspended_attempt_keeps_what_is_done(world: World) -> None:
    world.kubelet.script = lambda pod: (
        HANG if pod.stage == SEGMENTS and pod.segment in (1, 2) else script(segments=4)(pod)
    )
    await world.create()
    await world.until(lambda job: job["status"].get("segments", {}).get("completedCount") == 2)
    await world.patch({"suspend": True})
    await world.until(lambda job: _condition(job, "Ready")["reason"] == "Suspended")
    await world.patch({"cancelGeneration": 0})
    job = await world.settled("failed")
    assert job["status"]["attempts"][0]["reason"] == "Cancelled"
    assert job["status"]["segments"]["completed"] == "0,3"
    assert (await world.kube.request("GET", child_path(world.namespace)))["items"] == []
    world.kubelet.script = script(segments=4)
    await world.patch({"retryGeneration": 1, "suspend": False})
    await world.settled("completed", generation=1)
    assert world.segments_run(1) == [1, 2]


def _condition(job: JsonObject, kind: str) -> JsonObject:
    return next((item for item in job["status"]["conditions"] if item["type"] == kind), {"reason": ""})


async def test_the_deadline_ends_an_attempt_and_may_be_changed_while_it_runs(world: World) -> None:
    world.kubelet.script = lambda pod: HANG if pod.segment == 1 else script(segments=2)(pod)
    await world.create(activeDeadlineSeconds=600)
    await world.until(lambda job: job["status"].get("segments", {}).get("completedCount") == 1)
    await world.patch({"activeDeadlineSeconds": 1})
    job = await world.settled("partial_failure")
    assert job["status"]["failureSummary"] == {"Deadline": 1}
    assert job["status"]["segments"]["completed"] == "0"


async def test_too_many_failures_stop_the_attempt(world: World) -> None:
    world.kubelet.script = script(segments=10, bad=set(range(10)))
    await world.create(maxFailedSegments=1, parallelism=2)
    job = await world.settled("failed")
    assert job["status"]["failureSummary"]["TooManyFailures"] >= 1
    assert sum(job["status"]["failureSummary"].values()) == 10


async def test_an_annotation_on_a_running_job_is_refused_and_marked_handled(world: World) -> None:
    world.kubelet.script = lambda pod: HANG
    await world.create()
    await world.until(lambda job: job["status"]["phase"] == "processing")
    await world.annotate("now")
    job = await world.until(lambda job: job["status"].get("lastHandledRetryRequest") == "now")
    assert job["spec"]["retryGeneration"] == 0
    events = (await world.kube.request("GET", core_path("events", world.namespace)))["items"]
    assert any(event["reason"] == "RetryRefused" and event["type"] == "Warning" for event in events)


async def test_a_namespace_without_a_tenant_is_stalled(world: World) -> None:
    other = f"{world.namespace}-x"
    await world.kube.request("POST", "/api/v1/namespaces", body={"metadata": {"name": other}})
    world.namespace = other
    await world.create()
    job = await world.until(lambda job: _condition(job, "Stalled").get("status") == "True")
    assert _condition(job, "Stalled")["reason"] == "NoStore"
    assert job["status"]["phase"] == "queued"


async def test_an_unknown_provider_is_stalled(world: World) -> None:
    await world.create(pipeline={"embedding": {"provider": "nobody", "model": "m", "dimensions": 3}})
    job = await world.until(lambda job: _condition(job, "Stalled").get("status") == "True")
    assert _condition(job, "Stalled")["reason"] == "UnknownProvider"
    assert "builtin, known" in _condition(job, "Stalled")["message"]


async def test_a_quota_that_refuses_pods_is_a_reason_not_silence(world: World) -> None:
    """Invariant 5."""
    quota = await forbid_all(world.kube, namespace=world.namespace, of="pods")
    await world.create()
    job = await world.until(lambda job: _condition(job, "Stalled").get("status") == "True", seconds=240)
    assert _condition(job, "Stalled")["reason"] == "PodCreationFailed"
    assert "exceeded quota" in _condition(job, "Stalled")["message"]
    world.kubelet.script = script(segments=1)
    await world.kube.request("DELETE", quota)
    await world.settled("completed", seconds=240)


async def test_a_deleted_and_recreated_job_adopts_nothing(world: World) -> None:
    """Invariant 7."""
    world.kubelet.script = script(segments=3, bad={1})
    first = await world.create()
    await world.settled("partial_failure")
    await world.kube.request("DELETE", ingestion_path(world.namespace, "handbook"))
    second = await world.create()
    job = await world.settled("partial_failure")
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    assert world.segments_run(0) == [0, 0, 1, 1, 2, 2]
    assert job["status"]["jobID"] == second["metadata"]["uid"]


async def test_children_go_with_their_job(world: World) -> None:
    world.kubelet.script = lambda pod: HANG
    await world.create()
    await world.until(lambda job: _uid(job) is not None)
    await world.kube.request("DELETE", ingestion_path(world.namespace, "handbook"))

    async def gone() -> None:
        while await world.jobs() or (await world.kube.request("GET", core_path("pods", world.namespace)))["items"]:
            await asyncio.sleep(0.1)

    await asyncio.wait_for(gone(), 240)


async def test_a_completed_job_goes_when_its_time_is_over(world: World) -> None:
    world.kubelet.script = script(segments=1)
    await world.create(ttlSecondsAfterFinished=1)

    async def gone() -> None:
        while True:
            try:
                await world.get()
            except ApiError as error:
                if not error.not_found:
                    raise
                return
            await asyncio.sleep(0.1)

    await asyncio.wait_for(gone(), 240)


async def test_an_annotation_that_cannot_be_answered_is_not_tried_without_end(world: World, tmp_path: Path) -> None:
    """The answer is a patch; where it makes the annotations too large, the API server refuses it every time."""
    world.kubelet.script = script(segments=2, bad={1})
    await world.create()
    await world.settled("partial_failure")
    full = {"example.com/full": "x" * (256 * 1024 - 130)}  # of 256 KiB that all annotations may have
    body = {"metadata": {"annotations": {**full, names.ANNOTATION_RETRY_REQUESTED: "token"}}}
    await world.kube.request("PATCH", ingestion_path(world.namespace, "handbook"), body=body, content_type=MERGE_PATCH)
    log = tmp_path / "operator.log"

    async def tried() -> int:
        while not (times := log.read_text().count("an annotation is not answered")):
            await asyncio.sleep(0.1)
        return times

    await asyncio.wait_for(tried(), 60)
    await asyncio.sleep(3)
    assert await tried() < 10
    body = {"metadata": {"annotations": {"example.com/full": None}}}
    await world.kube.request("PATCH", ingestion_path(world.namespace, "handbook"), body=body, content_type=MERGE_PATCH)
    world.kubelet.script = script(segments=2)
    await world.settled("completed", generation=1)


async def test_a_late_duplicate_is_removed_and_changes_nothing(world: World) -> None:
    """Invariant 1."""
    world.kubelet.script = lambda pod: HANG if pod.stage == SEGMENTS else script(segments=2)(pod)
    await world.create()
    job = await world.until(lambda job: job["status"].get("stage") == SEGMENTS and _uid(job) is not None)
    # Beside it there may still be the tombstone of prepare, which goes once this Job's UID is recorded.
    own = next(found for found in await world.jobs() if found["metadata"]["uid"] == _uid(job))
    late = {
        "metadata": {key: own["metadata"][key] for key in ("labels", "annotations", "ownerReferences")}
        | {"name": "late"},
        "spec": {key: own["spec"][key] for key in ("completions", "completionMode", "template", "parallelism")}
        | {"suspend": True},
    }
    for label in list(late["spec"]["template"]["metadata"]["labels"]):
        if label not in (names.LABEL_JOB_UID, names.LABEL_STAGE, names.LABEL_GENERATION):
            del late["spec"]["template"]["metadata"]["labels"][label]
    late["metadata"]["labels"] = {
        key: value for key, value in late["metadata"]["labels"].items() if "controller" not in key
    }
    await world.kube.request("POST", child_path(world.namespace), body=late)

    async def only_one() -> None:
        while [job["metadata"]["uid"] for job in await world.jobs()] != [own["metadata"]["uid"]]:
            await asyncio.sleep(0.1)

    await asyncio.wait_for(only_one(), 240)
    world.kubelet.script = script(segments=2)
    await world.settled("completed")


async def test_the_operator_picks_up_where_it_was_killed(
    control_plane: ControlPlane, kube: KubeClient, tmp_path: Path
) -> None:
    """Invariants 1, 2, 4: each write to the status is the last thing that a process does."""
    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as run:
        world = World(kube=kube, namespace=run.namespace, kubelet=run.kubelet)
        run.proxy.add(
            lambda call: str(call) == "patch ingestionjobs/status", crash_after(run.operator.kill), times=None
        )
        world.kubelet.script = script(segments=20, bad={4})
        await world.create()
        await world.settled("partial_failure")
        assert run.operator.kills >= 4
        assert world.segments_run(0) == list(range(20))
        run.proxy.faults.clear()
        world.kubelet.script = script(segments=20)
        await world.patch({"retryGeneration": 1})
        await world.settled("completed", generation=1)
        assert world.segments_run(1) == [4]


async def test_a_retry_of_something_else_is_refused_by_the_api_server(world: World) -> None:
    world.kubelet.script = script(segments=2)
    await world.create()
    await world.settled("completed")
    with pytest.raises(ApiError, match="only be raised by one, and only while the job is failed"):
        await world.patch({"retryGeneration": 1})
    operations = [{"op": "replace", "path": "/spec/retryGeneration", "value": 5}]
    with pytest.raises(ApiError, match="only be raised by one"):
        await world.kube.request(
            "PATCH", ingestion_path(world.namespace, "handbook"), body=operations, content_type=JSON_PATCH
        )
    assert IndexSet.parse((await world.get())["status"]["segments"]["completed"]) == IndexSet.span(2)


async def test_a_job_that_arrives_when_all_is_over_is_removed(world: World) -> None:
    """Invariant 1: a request to create a Job may be long on its way."""
    world.kubelet.script = lambda pod: HANG if pod.stage == SEGMENTS else script(segments=2)(pod)
    await world.create()
    job = await world.until(lambda job: job["status"].get("stage") == SEGMENTS and _uid(job) is not None)
    own = next(found for found in await world.jobs() if found["metadata"]["uid"] == _uid(job))
    late = {
        "metadata": {key: own["metadata"][key] for key in ("name", "labels", "annotations", "ownerReferences")},
        "spec": {key: own["spec"][key] for key in ("completions", "completionMode", "template", "parallelism")},
    }
    for labels in (late["metadata"]["labels"], late["spec"]["template"]["metadata"]["labels"]):
        for label in [label for label in labels if "controller-uid" in label or "job-name" in label]:
            del labels[label]
    world.kubelet.script = script(segments=2)
    status = (await world.settled("completed"))["status"]
    made = await world.kube.request("POST", child_path(world.namespace), body=late)

    async def gone() -> None:
        while made["metadata"]["uid"] in [job["metadata"]["uid"] for job in await world.jobs()]:
            await asyncio.sleep(0.1)

    await asyncio.wait_for(gone(), 240)
    assert (await world.get())["status"] == status
