"""Two replicas and a Lease: whoever dies, stops or is replaced, the work goes on and nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.kube import MERGE_PATCH, ApiError, KubeClient, child_path, ingestion_path, lease_path
from local_cluster import ports
from local_cluster.control_plane import APISERVER, ControlPlane
from support.builders import failure, ingestion_job, prepared
from support.campaign import record
from support.kubelet import HANG, Exit, FakeKubelet, PodRun, Script, fails
from support.operator_process import operator, write_config

pytestmark = pytest.mark.controlplane

PREPARE, SEGMENTS, PUBLISH = (stage.value for stage in names.Stage)
LEASE = "ingestion-operator"
PATIENCE_SECONDS = 240.0


@dataclass(kw_only=True)
class Replica:
    """One operator process."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    health: str

    def send(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    async def ended(self) -> int:
        """Wait until the process has ended by itself and return its exit code."""
        return await asyncio.to_thread(self.process.wait, PATIENCE_SECONDS)

    async def probe(self, path: str) -> int:
        async with httpx.AsyncClient(trust_env=False) as client:
            try:
                return (await client.get(self.health + path)).status_code
            except httpx.TransportError:
                return 0

    async def metric(self, name: str) -> float:
        async with httpx.AsyncClient(trust_env=False) as client:
            lines = (await client.get(f"{self.health}/metrics")).text.splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@dataclass(kw_only=True)
class Pair:
    """A namespace with replicas that share a Lease, a kubelet, and a record of what was seen there."""

    kube: KubeClient
    namespace: str
    kubelet: FakeKubelet
    start: Callable[..., Replica]
    holders: list[str] = field(default_factory=list)
    children: list[tuple[str, str]] = field(default_factory=list)

    async def create(self, name: str, **spec: Any) -> None:
        body = ingestion_job(name=name, namespace=self.namespace, **spec)
        await self.kube.request("POST", ingestion_path(self.namespace), body=body)

    async def get(self, name: str) -> JsonObject:
        return await self.kube.request("GET", ingestion_path(self.namespace, name))

    async def patch(self, name: str, spec: JsonObject) -> None:
        path = ingestion_path(self.namespace, name)
        await self.kube.request("PATCH", path, body={"spec": spec}, content_type=MERGE_PATCH)

    async def jobs(self) -> list[JsonObject]:
        return list((await self.kube.request("GET", child_path(self.namespace)))["items"])

    async def until(self, name: str, wish: Callable[[JsonObject], bool]) -> JsonObject:
        """Wait until an IngestionJob's status is as wished, and return it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not wish(status := (await self.get(name)).get("status", {})):
            self.kubelet.check()
            assert time.monotonic() < deadline, f"{name} is still {json.dumps(status, indent=1)}"
            await asyncio.sleep(0.05)
        return status

    async def settled(self, name: str, phase: str, *, generation: int = 0) -> JsonObject:
        def wish(status: JsonObject) -> bool:
            ended = status.get("observedRetryGeneration") == generation and status["phase"] in names.TERMINAL_PHASES
            return ended and "podsToRemove" not in status

        status = await self.until(name, wish)
        assert status["phase"] == phase, status
        return status

    async def held_by(self, name: str) -> None:
        """Wait until the Lease names a replica."""
        await self.watched(lambda: bool(self.holders) and self.holders[-1] == name, what=f"{name} holds the Lease")

    async def watched(self, wish: Callable[[], bool], *, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not wish():
            self.kubelet.check()
            assert time.monotonic() < deadline, f"never: {what}; holders {self.holders}"
            await asyncio.sleep(0.02)

    async def standing_by(self, replica: Replica) -> None:
        """Wait until a replica could take over."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while await replica.probe("/readyz") != 200:
            assert replica.process.poll() is None, replica.log.read_text()
            assert time.monotonic() < deadline, replica.log.read_text()
            await asyncio.sleep(0.1)

    async def two(self, **first: Any) -> tuple[Replica, Replica]:
        """Start two replicas; return the leader and the one that stands by."""
        leader = self.start("a", **first)
        await self.held_by("a")
        other = self.start("b")
        await self.standing_by(other)
        return leader, other

    def ran_once(self, *, jobs: set[str], segments: int) -> None:
        """Check that each job's stages and segments ran exactly once (invariants 1 and 2)."""
        runs = Counter((run.job, run.generation, run.stage, run.segment) for run in self.kubelet.runs)
        assert set(runs.values()) == {1}, runs
        expected = {(job, 0, SEGMENTS, segment) for job in jobs for segment in range(segments)}
        expected |= {(job, 0, stage, None) for job in jobs for stage in (PREPARE, PUBLISH)}
        assert set(runs) == expected
        assert len(self.children) == 3 * len(jobs), self.children
        assert len(dict(self.children)) == len(self.children), "a name was used twice"


async def follow(kube: KubeClient, path: str, see: Callable[[JsonObject], None]) -> None:
    """Tell of every event of a collection; the API server may end the watch, or go and come back meanwhile."""
    version = ""
    while True:
        try:
            if not version:
                version = (await kube.request("GET", path))["metadata"]["resourceVersion"]
            async for event in kube.watch(path, resource_version=version):
                version = event["object"]["metadata"]["resourceVersion"]
                see(event)
        except ApiError as error:
            if error.expired:  # what happened meanwhile is not known
                raise
            await asyncio.sleep(0.2)


@asynccontextmanager
async def background(*coroutines: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


@contextmanager
def replicas(*, control_plane: ControlPlane, namespace: str, folder: Path) -> Iterator[Callable[..., Replica]]:
    config = write_config(folder, tenants=[namespace])
    with ExitStack() as stack:

        def start(name: str, **options: Any) -> Replica:
            (port,) = ports.free(count=1)
            environment = {
                "INGESTION_LEASE_NAME": LEASE,
                "POD_NAMESPACE": namespace,
                "POD_NAME": name,
                "INGESTION_HEALTH_PORT": str(port),
            }
            log = folder / f"{name}.log"
            process = stack.enter_context(
                operator(
                    kubeconfig=control_plane.kubeconfig, config=config, log=log, environment=environment, **options
                )
            )
            stack.callback(_wake, process)
            return Replica(name=name, process=process, log=log, health=f"http://127.0.0.1:{port}")

        yield start


def _wake(process: subprocess.Popen[bytes]) -> None:
    """A process that a failed test left stopped would not hear that it is to end."""
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)


@pytest_asyncio.fixture
async def pair(control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path) -> AsyncIterator[Pair]:
    with replicas(control_plane=control_plane, namespace=namespace, folder=tmp_path) as start:
        async with FakeKubelet(client=kube, namespace=namespace, script=lambda run: Exit()) as kubelet:
            seen = Pair(kube=kube, namespace=namespace, kubelet=kubelet, start=start)

            def lease(event: JsonObject) -> None:
                holder = event["object"]["spec"].get("holderIdentity", "") if event["type"] != "BOOKMARK" else None
                if holder is not None and [holder] != seen.holders[-1:]:
                    seen.holders.append(holder)

            def child(event: JsonObject) -> None:
                if event["type"] == "ADDED":
                    metadata = event["object"]["metadata"]
                    seen.children.append((metadata["name"], metadata["uid"]))

            async with background(
                follow(kube, lease_path(namespace), lease), follow(kube, child_path(namespace), child)
            ):
                yield seen
    lines = [line for log in tmp_path.glob("*.log") for line in log.read_text().splitlines()]
    # When a process is told to end, its event loop may close kopf's watch before kopf does, and says so.
    errors = [line for line in lines if '"exception":' in line and "async_generator object infinite_watch" not in line]
    assert not errors, errors


def script(*, segments: int, held: Callable[[PodRun], bool] = lambda run: False) -> Script:
    """Return a script in which everything succeeds but what is held, which hangs."""

    def run(pod: PodRun) -> Exit | None:
        if held(pod):
            return HANG
        return Exit(says=prepared(segments=segments) if pod.stage == PREPARE else {"chunks": 7})

    return run


async def jobs_in_work(pair: Pair) -> set[str]:
    """Make jobs, of which each has finished half of its segments and cannot finish the others yet."""
    jobs = {f"job-{number}" for number in range(6)}
    pair.kubelet.script = script(segments=8, held=lambda run: run.stage == SEGMENTS and run.index % 2 == 1)
    for job in jobs:
        await pair.create(job)
    for job in jobs:
        await pair.until(job, lambda status: (status.get("segments") or {}).get("completedCount") == 4)
    return jobs


async def test_a_killed_leader_is_replaced_and_its_jobs_go_on(pair: Pair) -> None:
    """Invariants 1, 2, 3, 5."""
    leader, other = await pair.two()
    jobs = await jobs_in_work(pair)
    assert (await leader.metric("ingestion_leader"), await other.metric("ingestion_leader")) == (1, 0)
    assert await other.probe("/healthz") == 200
    leader.send(signal.SIGKILL)
    killed = time.monotonic()
    pair.kubelet.script = script(segments=8)
    await pair.held_by("b")
    seconds = time.monotonic() - killed
    for job in jobs:
        await pair.settled(job, "completed")
    assert await other.metric("ingestion_leader") == 1
    pair.ran_once(jobs=jobs, segments=8)
    assert pair.holders == ["a", "b"]
    print(f"taken over {seconds:.1f} s after kill -9")
    record("operator killed with -9, another takes over", injected=1, survived=1, invariants=[1, 2, 3, 5])


async def test_a_stopped_leader_that_wakes_does_not_act_on_what_it_knew(pair: Pair) -> None:
    """Invariants 1, 2, 3."""
    leader, _ = await pair.two()
    jobs = await jobs_in_work(pair)
    leader.send(signal.SIGSTOP)
    await pair.held_by("b")
    pair.kubelet.script = script(segments=8, held=lambda run: run.stage == PUBLISH)
    for job in jobs:
        await pair.until(job, _at(PUBLISH))
    leader.send(signal.SIGCONT)
    assert await leader.ended() == 1
    assert '"leaving: ' in leader.log.read_text()
    pair.kubelet.script = script(segments=8)
    for job in jobs:
        await pair.settled(job, "completed")
    pair.ran_once(jobs=jobs, segments=8)
    assert pair.holders == ["a", "b"]
    record("leader stopped until its Lease is another's, then woken", injected=1, survived=1, invariants=[1, 2, 3])


async def test_a_job_that_came_too_late_for_the_leader_is_removed_by_the_next(pair: Pair) -> None:
    """Invariant 1: it was sent before the leader died, and arrives when its parent is settled."""
    leader, _ = await pair.two()
    pair.kubelet.script = script(segments=2)
    await pair.create("job")
    await pair.settled("job", "completed")
    leader.send(signal.SIGSTOP)
    (tombstone,) = await pair.jobs()
    metadata = {key: tombstone["metadata"][key] for key in ("labels", "annotations", "ownerReferences")}
    for label in ("batch.kubernetes.io/controller-uid", "controller-uid", "batch.kubernetes.io/job-name", "job-name"):
        metadata["labels"].pop(label, None)
    template = {"spec": tombstone["spec"]["template"]["spec"]}
    spec = {"completions": 1, "completionMode": "Indexed", "suspend": True, "backoffLimit": 0, "template": template}
    late = {"metadata": {**metadata, "name": "too-late"}, "spec": spec}
    await pair.kube.request("POST", child_path(pair.namespace), body=late)
    await pair.held_by("b")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "too-late" in [item["metadata"]["name"] for item in await pair.jobs()]:
        assert time.monotonic() < deadline, await pair.jobs()
        await asyncio.sleep(0.1)
    assert (await pair.get("job"))["status"]["phase"] == "completed"


async def test_a_leader_that_is_told_to_end_hands_over_at_once(pair: Pair) -> None:
    leader, _ = await pair.two()
    jobs = await jobs_in_work(pair)
    told = time.monotonic()
    leader.send(signal.SIGTERM)
    pair.kubelet.script = script(segments=8)
    await pair.held_by("b")
    seconds = time.monotonic() - told
    assert await leader.ended() == 0
    for job in jobs:
        await pair.settled(job, "completed")
    pair.ran_once(jobs=jobs, segments=8)
    assert pair.holders == ["a", "", "b"], "the Lease was not released"
    print(f"handed over {seconds:.1f} s after SIGTERM")
    record("operator told to end, the Lease handed over", injected=1, survived=1, invariants=[1, 2, 3])


async def test_a_leader_whose_work_has_died_gives_up_the_lease(pair: Pair) -> None:
    """Invariant 5."""
    leader, _ = await pair.two(module="support.frail_operator")
    jobs = await jobs_in_work(pair)
    leader.send(signal.SIGUSR1)
    pair.kubelet.script = script(segments=8)
    assert await leader.ended() == 1
    assert "the work has stopped" in leader.log.read_text()
    await pair.held_by("b")
    for job in jobs:
        await pair.settled(job, "completed")
    pair.ran_once(jobs=jobs, segments=8)
    assert pair.holders == ["a", "", "b"]
    record("leader whose work has died", injected=1, survived=1, invariants=[1, 2, 5])


async def test_a_leader_that_cannot_reach_the_api_server_leaves(pair: Pair, control_plane: ControlPlane) -> None:
    """The API server hangs: connections stay open and nothing answers."""
    leader = pair.start("a")
    await pair.held_by("a")
    server = control_plane.pid(APISERVER)
    assert server is not None
    os.kill(server, signal.SIGSTOP)
    try:
        assert await leader.ended() == 1
    finally:
        os.kill(server, signal.SIGCONT)
    assert "the Lease was not renewed" in leader.log.read_text()
    again = pair.start("a")  # as the kubelet does, in the same pod
    await pair.standing_by(again)
    await pair.create("afterwards")
    pair.kubelet.script = script(segments=2)
    await pair.settled("afterwards", "completed")
    record("API server hangs until the leader leaves", injected=1, survived=1, invariants=[5])


async def test_a_restarted_container_goes_on_at_once(pair: Pair) -> None:
    """It has its pod's name, and so its own Lease: nobody has to wait for the end of it."""
    leader = pair.start("a")
    await pair.held_by("a")
    jobs = await jobs_in_work(pair)
    leader.send(signal.SIGKILL)
    assert await leader.ended() == -signal.SIGKILL
    pair.start("a")
    pair.kubelet.script = script(segments=8)
    for job in jobs:
        await pair.settled(job, "completed")
    pair.ran_once(jobs=jobs, segments=8)
    assert pair.holders == ["a"]


async def test_a_rolling_upgrade_with_jobs_in_every_stage(pair: Pair) -> None:
    """Invariants 1, 2, 3, 5, 8."""
    held_at = {"preparing": PREPARE, "processing": SEGMENTS, "publishing": PUBLISH, "suspended": SEGMENTS}
    held_at |= {"cancelled": SEGMENTS}

    def before(run: PodRun) -> Exit | None:
        if run.stage == held_at.get(run.job):
            return HANG
        if run.job == "failed":
            return fails(failure("SourceNotFound", "handbook.pdf is not there"))
        if run.job == "partly-failed" and run.segment == 2:
            return fails(failure("EmbeddingRejected", "content rejected"))
        return script(segments=4)(run)

    pair.kubelet.script = before
    old = pair.start("old")
    for name in (*held_at, "failed", "partly-failed", "completed"):
        await pair.create(name)
    await pair.create("never-begun", suspend=True)
    for name, stage in held_at.items():
        await pair.until(name, _at(stage))
    for name in ("processing", "suspended", "cancelled"):
        await pair.watched(partial(_all_run, pair, name), what=f"{name} runs")
    await pair.patch("suspended", {"suspend": True})
    await pair.patch("cancelled", {"cancelGeneration": 0})
    await pair.until("suspended", lambda status: _reason(status) == "Suspended")
    await pair.settled("cancelled", "failed")
    await pair.settled("failed", "failed")
    await pair.settled("partly-failed", "partial_failure")
    await pair.settled("completed", "completed")
    await pair.until("never-begun", lambda status: _reason(status) == "Suspended")
    at_rest = {name: await pair.get(name) for name in ("failed", "partly-failed", "completed", "cancelled")}

    new = pair.start("new")
    await pair.standing_by(new)
    old.send(signal.SIGTERM)
    assert await old.ended() == 0
    await pair.held_by("new")
    pair.kubelet.script = script(segments=4)
    for name in ("preparing", "processing", "publishing"):
        await pair.settled(name, "completed")
    assert at_rest == {name: await pair.get(name) for name in at_rest}, "something was written to jobs at rest"
    for name in ("suspended", "never-begun"):
        assert _reason((await pair.get(name))["status"]) == "Suspended"
        await pair.patch(name, {"suspend": False})
        await pair.settled(name, "completed")
    for name in ("failed", "partly-failed", "cancelled"):
        await pair.patch(name, {"retryGeneration": 1})
        await pair.settled(name, "completed", generation=1)
    again = [run.segment for run in pair.kubelet.runs if (run.job, run.generation) == ("partly-failed", 1)]
    assert [segment for segment in again if segment is not None] == [2]
    assert len(dict(pair.children)) == len(pair.children), "a name was used twice"
    once = Counter(run.segment for run in pair.kubelet.runs if run.job == "processing" and run.stage == SEGMENTS)
    assert once == {0: 1, 1: 1, 2: 1, 3: 1}
    record("rolling upgrade with jobs in every stage", injected=1, survived=1, invariants=[1, 2, 3, 5, 8])


def _at(stage: str) -> Callable[[JsonObject], bool]:
    return lambda status: status.get("stage") == stage


def _all_run(pair: Pair, name: str) -> bool:
    return sum(run.job == name and run.stage == SEGMENTS for run in pair.kubelet.runs) == 4


def _reason(status: JsonObject) -> str:
    return next((str(item["reason"]) for item in status.get("conditions", []) if item["type"] == "Ready"), "")
