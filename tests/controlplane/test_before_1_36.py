"""The operator on a control plane whose suspended Jobs keep their startTime, as in Kubernetes 1.33 to 1.35."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest
from controlplane.test_retry import SEGMENTS, World, script
from ingestion_crds.kube import KubeClient
from local_cluster.control_plane import ControlPlane
from support.kubelet import HANG, Exit, FakeKubelet, PodRun
from support.namespaces import make_namespace
from support.operator_process import operator, write_config

pytestmark = pytest.mark.controlplane

DEADLINE_SECONDS = 30


def hangs(pod: PodRun) -> Exit | None:
    """Of the segments the first is done alone."""
    return HANG if pod.stage == SEGMENTS and pod.segment else script(segments=3)(pod)


async def test_a_job_that_was_suspended_past_its_deadline_goes_on(
    control_plane_before_1_36: ControlPlane, tmp_path: Path
) -> None:
    """Invariants 2 and 5: its time begins anew."""
    plane, log = control_plane_before_1_36, tmp_path / "operator.log"
    async with await KubeClient.connect(kubeconfig=str(plane.kubeconfig)) as kube:
        namespace = await make_namespace(kube)
        config = write_config(tmp_path, tenants=[namespace])
        with operator(kubeconfig=plane.kubeconfig, config=config, log=log):
            async with FakeKubelet(client=kube, namespace=namespace, script=hangs) as kubelet:
                world = World(kube=kube, namespace=namespace, kubelet=kubelet)
                await world.create(activeDeadlineSeconds=DEADLINE_SECONDS)
                await world.until(lambda job: job["status"].get("segments", {}).get("completedCount") == 1)
                await world.patch({"suspend": True})
                began = await suspended(world)
                await asyncio.sleep((began - datetime.now(UTC)).total_seconds() + DEADLINE_SECONDS + 1)
                assert await suspended(world) == began
                kubelet.script = script(segments=3)
                await world.patch({"suspend": False})
                job = await world.settled("completed")
                assert job["status"]["segments"]["completed"] == "0-2"
                assert world.segments_run(0).count(0) == 1


async def suspended(world: World) -> datetime:
    """Wait until the Job of the segments is suspended, and return when it began."""
    while True:
        jobs = [job for job in await world.jobs() if job["metadata"]["name"].endswith("-segments-g0")]
        if jobs and any(item["type"] == "Suspended" for item in jobs[0]["status"].get("conditions", [])):
            return datetime.fromisoformat(jobs[0]["status"]["startTime"])
        await asyncio.sleep(0.1)
