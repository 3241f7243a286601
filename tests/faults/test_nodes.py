"""Pods are evicted, and nodes go away and come back: their segments run again, and nothing counts as a failure.

The eviction API, the taint and node controllers and the pod garbage collector are the real ones. A node is an object
without a machine: it is lost when its condition says so, as the node controller says of a kubelet that is silent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio
from faults.rig import Run
from faults.scenarios import PREPARE, PUBLISH, SEGMENTS, script
from faults.stages import STAGES, comes_to_the_same, held_at, stalled, until_pods_run
from faults.stand import FULL, SIDE_BY_SIDE, Stand
from ingestion_crds import JsonObject
from ingestion_crds.constants import LABEL_STAGE, Reason
from ingestion_crds.kube import MERGE_PATCH, KubeClient, core_path
from local_cluster.control_plane import APISERVER, CONTROLLER_MANAGER, ControlPlane
from support.builders import failure
from support.crd import install_crd
from support.kubelet import Exit, fails

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

INVARIANTS: Final = (1, 2, 3, 5, 8)
NODES: Final = "/api/v1/nodes"
TERMINATED: Final = Exit(code=143, reason="Error")
# A container that says as its pod is evicted that its failure is permanent has not failed either.
PERMANENT: Final = fails(failure("EmbeddingRejected", "interrupted"))


# ── evictions ─────────────────────────────────────────────────────────────────────────────────────────────────


async def pods_of(run: Run, stage: str) -> list[JsonObject]:
    return [pod for pod in await run.listed("pods") if pod["metadata"]["labels"][LABEL_STAGE] == stage]


async def completes(run: Run, *, again: Counter[tuple[str, int, int]]) -> None:
    """Let all pods end well, and check that only what was put out ran again, and that nothing says it failed."""
    run.kubelet.script = script(segments=3)
    job = await run.settled("completed")
    await run.at_rest()
    once = Counter({(PREPARE, 0, 0): 1, (PUBLISH, 0, 0): 1} | {(SEGMENTS, 0, segment): 1 for segment in range(3)})
    assert run.pods_run() == once + again
    assert job["status"]["segments"]["completed"] == "0-2"
    assert job["status"]["version"]["state"] == "active"
    assert not job["status"].get("failures")
    assert not job["status"].get("failureSummary")
    assert [attempt["generation"] for attempt in job["status"]["attempts"]] == [0]
    assert [found["metadata"]["labels"][LABEL_STAGE] for found in await run.jobs()] == [PUBLISH]


async def evicted(run: Run, *, stage: str, end: Exit) -> int:
    """All pods of a stage are evicted, while a failure would end the stage at once."""
    run.kubelet.when_told_to_end = end
    run.kubelet.script = held_at(stage)
    await run.create(segmentBackoffLimit=0)
    await until_pods_run(run, stage, count=3 if stage == SEGMENTS else 1)
    pods = await pods_of(run, stage)
    for pod in pods:
        name = pod["metadata"]["name"]
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
        await run.kube.request("POST", core_path("pods", run.namespace, name) + "/eviction", body=eviction)
    await run.wait(lambda: sum(pod.stage == stage for pod in run.kubelet.runs) == 2 * len(pods))
    await completes(run, again=Counter((stage, 0, index) for index in range(len(pods))))
    return len(pods)


async def test_evicted_pods_run_again_and_nothing_has_failed(stand: Stand) -> None:
    """Invariants 1, 2, 3, 5, 8."""
    ends = {"by the signal": TERMINATED, "for good, as it says": PERMANENT}
    cases = {
        f"{stage}, container ended {how}": partial(evicted, stage=stage, end=end)
        for stage in (STAGES if FULL else (SEGMENTS,))
        for how, end in ends.items()
    }
    await stand.each("pods evicted", cases, invariants=INVARIANTS)


# ── nodes ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def plane_with_nodes() -> Iterator[ControlPlane]:
    """A control plane of its own, as a node would take the pods of all other tests; a node is given up in seconds."""
    flags = {
        APISERVER: ["--default-not-ready-toleration-seconds=1", "--default-unreachable-toleration-seconds=1"],
        # Nobody sends a heartbeat: the nodes are what the test says they are.
        CONTROLLER_MANAGER: ["--node-monitor-period=1s", "--node-monitor-grace-period=2h"],
    }
    with ControlPlane(extra_flags=flags) as plane:
        asyncio.run(install_crd(plane.kubeconfig))
        yield plane


@pytest_asyncio.fixture
async def stand_with_nodes(plane_with_nodes: ControlPlane, tmp_path: Path) -> AsyncIterator[Stand]:
    async with await KubeClient.connect(kubeconfig=str(plane_with_nodes.kubeconfig)) as kube:
        # With more than half of the nodes lost, the node controller takes it for a broken network, and evicts no pod.
        for number in range(2 * SIDE_BY_SIDE):
            await node(kube, f"steady-{number}")
        yield Stand(control_plane=plane_with_nodes, kube=kube, folder=tmp_path)


async def node(kube: KubeClient, name: str, *, only_for: str = "") -> None:
    """Add a node that is ready for pods: of everybody, or those of one namespace alone."""
    room = {"cpu": "100", "memory": "1Ti", "ephemeral-storage": "1Ti", "pods": "100"}
    body = {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"taints": [{"key": "reserved", "value": only_for, "effect": "NoSchedule"}]} if only_for else {},
        "status": {"allocatable": room, "capacity": room},
    }
    await kube.request("POST", NODES, body=body)
    await is_ready(kube, name)


async def is_ready(kube: KubeClient, name: str, ready: str = "True") -> None:
    """Say of a node that it is ready, or (Unknown) that nothing is heard of it."""
    body = {"status": {"conditions": [{"type": "Ready", "status": ready, "reason": "Test"}]}}
    await kube.request("PATCH", f"{NODES}/{name}/status", body=body, content_type=MERGE_PATCH)


Return = Callable[[Run, str, list[JsonObject]], Awaitable[None]]


async def lost(run: Run, *, stage: str, comes_back: Return) -> int:
    """The node of a stage's pods is not heard of any more; its pods are taken off it, and end only with it."""
    name = f"node-{run.namespace}"
    await starts_on(run, name, stage)
    await is_ready(run.kube, name, "Unknown")
    await run.come_true(partial(are_to_go, run, stage))
    pods = await pods_of(run, stage)
    await comes_back(run, name, pods)
    await completes(run, again=Counter((stage, 0, index) for index in range(len(pods))))
    await run.kube.request("DELETE", f"{NODES}/{name}")
    return 1


async def are_to_go(run: Run, stage: str) -> bool:
    return all("deletionTimestamp" in pod["metadata"] for pod in await pods_of(run, stage))


async def lost_for_a_moment(run: Run, *, stage: str) -> int:
    """The node is heard of again before its pods are taken off: they just go on."""
    name = f"node-{run.namespace}"
    patient = {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3600}
    await starts_on(run, name, stage, patient)
    await is_ready(run.kube, name, "Unknown")
    await run.come_true(partial(is_unreachable, run, name))
    await it_is_heard_of_again(run, name, [])
    await completes(run, again=Counter())
    await run.kube.request("DELETE", f"{NODES}/{name}")
    return 1


async def cancelled_and_deleted_by_force(run: Run, *, stage: str) -> int:
    """A Job that is to end lets go of its pods: then force ends the attempt, and a retry runs what is left."""
    name = f"node-{run.namespace}"
    await starts_on(run, name, stage)
    await is_ready(run.kube, name, "Unknown")
    await run.come_true(partial(are_to_go, run, stage))
    await run.patch({"cancelGeneration": 0})
    await delete_by_force(run, await pods_of(run, stage))
    job = await run.settled("failed")
    assert job["status"]["attempts"][0]["reason"] == Reason.CANCELLED
    await it_is_heard_of_again(run, name, [])
    await comes_to_the_same(run)
    await run.kube.request("DELETE", f"{NODES}/{name}")
    return 1


async def starts_on(run: Run, name: str, stage: str, *tolerations: JsonObject) -> None:
    """Bring a job to a stage whose pods run on a node of their own, of which nothing is heard from then on."""
    await node(run.kube, name, only_for=run.namespace)
    run.kubelet.on_nodes = True
    run.kubelet.when_told_to_end = TERMINATED
    run.kubelet.script = held_at(stage)
    reserved = {"key": "reserved", "operator": "Equal", "value": run.namespace, "effect": "NoSchedule"}
    template = {"nodeSelector": {"kubernetes.io/hostname": name}, "tolerations": [reserved, *tolerations]}
    await run.create(segmentBackoffLimit=0, template=template)
    await until_pods_run(run, stage, count=3 if stage == SEGMENTS else 1)
    run.kubelet.lost_nodes = {name}


async def is_unreachable(run: Run, name: str) -> bool:
    return UNREACHABLE in {taint["key"] for taint in (await get_node(run, name))["spec"]["taints"]}


async def get_node(run: Run, name: str) -> JsonObject:
    return await run.kube.request("GET", f"{NODES}/{name}")


async def it_is_heard_of_again(run: Run, name: str, pods: list[JsonObject]) -> None:
    run.kubelet.lost_nodes = ()
    await is_ready(run.kube, name)


async def somebody_is_told_first(run: Run, name: str, pods: list[JsonObject]) -> None:
    """Nobody comes: the job says what it waits for, and where."""
    await somebody_is_told(run, name)
    await it_is_heard_of_again(run, name, pods)


async def somebody_is_told(run: Run, name: str) -> None:
    job = await run.until(lambda job: bool(stalled(job)))
    assert stalled(job)["reason"] == Reason.POD_TERMINATING
    assert name in stalled(job)["message"]


async def its_pods_are_deleted_by_force(run: Run, name: str, pods: list[JsonObject]) -> None:
    """They stay, and nothing runs in their place: the Job controller holds each until it has ended."""
    await delete_by_force(run, pods)
    await somebody_is_told(run, name)
    assert {pod["metadata"]["uid"] for pod in pods} == {pod["metadata"]["uid"] for pod in await run.listed("pods")}
    await it_is_replaced(run, name, pods)


async def delete_by_force(run: Run, pods: list[JsonObject]) -> None:
    for pod in pods:
        path = core_path("pods", run.namespace, pod["metadata"]["name"])
        await run.kube.request("DELETE", path, body={"gracePeriodSeconds": 0})


async def it_is_replaced(run: Run, name: str, pods: list[JsonObject]) -> None:
    """The node is deleted; the garbage collector ends the pods of a node that does not exist, in a minute."""
    await run.kube.request("DELETE", f"{NODES}/{name}")
    await run.come_true(partial(are_gone, run, pods))
    run.kubelet.lost_nodes = ()
    await node(run.kube, name, only_for=run.namespace)


async def it_is_declared_dead(run: Run, name: str, pods: list[JsonObject]) -> None:
    """An administrator says that the machine is off: the garbage collector ends what still terminates on it."""
    dead = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
    before = (await get_node(run, name))["spec"]["taints"]
    await set_taints(run, name, [*before, dead])
    await run.come_true(partial(are_gone, run, pods))
    run.kubelet.lost_nodes = ()
    await set_taints(run, name, [taint for taint in before if taint["key"] == "reserved"])
    await is_ready(run.kube, name)


async def set_taints(run: Run, name: str, taints: list[JsonObject]) -> None:
    body = {"spec": {"taints": taints}}
    await run.kube.request("PATCH", f"{NODES}/{name}", body=body, content_type=MERGE_PATCH)


async def are_gone(run: Run, pods: list[JsonObject]) -> bool:
    uids = {pod["metadata"]["uid"] for pod in pods}
    return not uids & {pod["metadata"]["uid"] for pod in await run.listed("pods")}


UNREACHABLE: Final = "node.kubernetes.io/unreachable"
RETURNS: Final[dict[str, Callable[..., Awaitable[int]]]] = {
    "node lost, and heard of again": partial(lost, comes_back=it_is_heard_of_again),
    "node lost for a moment": lost_for_a_moment,
    "node lost for minutes": partial(lost, comes_back=somebody_is_told_first),
    "node lost, deleted and replaced": partial(lost, comes_back=it_is_replaced),
    "node lost and declared out of service": partial(lost, comes_back=it_is_declared_dead),
    "node lost, its pods deleted by force": partial(lost, comes_back=its_pods_are_deleted_by_force),
    "node lost, attempt cancelled, its pods deleted by force": cancelled_and_deleted_by_force,
}
IN_SECONDS: Final = ("node lost, and heard of again", "node lost for a moment")
SAMPLE: Final = f"node lost, and heard of again: {SEGMENTS}"


async def test_what_ran_on_a_lost_node_runs_again(stand_with_nodes: Stand) -> None:
    """Invariants 1, 2, 3, 5, 8."""
    cases = {
        f"{fault}: {stage}": partial(play, stage=stage)
        for fault, play in RETURNS.items()
        for stage in (STAGES if fault in IN_SECONDS else (SEGMENTS,))
    }
    if not FULL:
        cases = {SAMPLE: cases[SAMPLE]}
    await stand_with_nodes.each(lambda case: case.partition(":")[0], cases, invariants=INVARIANTS)
