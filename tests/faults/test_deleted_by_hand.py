"""Somebody deletes what belongs to a job, at each stage: the job goes on, or ends and can be retried."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from faults.rig import Run
from faults.scenarios import SEGMENTS, script
from faults.stages import STAGES, comes_to_the_same, held_at, job_of, until_pods_run
from faults.stand import FULL, Stand
from ingestion_crds.kube import child_path, core_path

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

BACKGROUND = {"propagationPolicy": "Background"}


async def job_while_it_runs(run: Run, *, stage: str) -> int:
    run.kubelet.script = held_at(stage)
    await run.create()
    await until_pods_run(run, stage, count=3 if stage == SEGMENTS else 1)
    name = (await job_of(run, stage))["metadata"]["name"]
    await run.kube.request("DELETE", child_path(run.namespace, name), body=BACKGROUND)
    job = await run.settled("failed")
    assert set(job["status"]["failureSummary"]) == {"JobLost"}
    await comes_to_the_same(run)
    return 1


async def job_before_its_harvest(run: Run, *, stage: str) -> int:
    """The Job is finished, and deleted before the operator saw that."""
    run.kubelet.script = held_at(stage)
    await run.create()
    await until_pods_run(run, stage, count=3 if stage == SEGMENTS else 1)
    run.operator.hold()
    run.operator.kill()
    await run.wait(lambda: not run.operator.running)
    run.kubelet.script = script(segments=3)
    while "completionTime" not in (job := await job_of(run, stage))["status"]:
        await asyncio.sleep(0.05)
    await run.kube.request("DELETE", child_path(run.namespace, job["metadata"]["name"]), body=BACKGROUND)
    run.operator.release()
    ended = await run.settled("failed")
    assert set(ended["status"]["failureSummary"]) == {"JobLost"}
    await comes_to_the_same(run)
    return 1


async def config_map_while_pods_run(run: Run, *, stage: str) -> int:
    run.kubelet.script = held_at(stage)
    await run.create()
    await until_pods_run(run, stage, count=3 if stage == SEGMENTS else 1)
    name = (await job_of(run, stage))["metadata"]["name"]
    await run.kube.request("DELETE", core_path("configmaps", run.namespace, name))
    await comes_to_the_same(run)
    assert run.pods_run().total() == 5
    return 1


async def config_map_before_pods_start(run: Run, *, stage: str) -> int:
    """Pods that start later need it: it is made again."""
    run.kubelet.script = held_at(stage)
    await run.create(parallelism=1)
    pod = await until_pods_run(run, stage, count=1)
    name = (await job_of(run, stage))["metadata"]["name"]
    await run.kube.request("DELETE", core_path("configmaps", run.namespace, name))
    if stage != SEGMENTS:  # the only pod has its file already: another one has to start
        await run.kube.request("DELETE", core_path("pods", run.namespace, pod["metadata"]["name"]))
    await comes_to_the_same(run)
    return 1


async def pod_while_it_runs(run: Run, *, stage: str) -> int:
    run.kubelet.script = held_at(stage)
    await run.create()
    pod = await until_pods_run(run, stage, count=3 if stage == SEGMENTS else 1)
    await run.kube.request("DELETE", core_path("pods", run.namespace, pod["metadata"]["name"]))
    await comes_to_the_same(run)
    return 1


async def pod_before_its_harvest(run: Run, *, stage: str) -> int:
    """The pod is finished, and deleted with what it said before the operator read it."""
    run.kubelet.script = held_at(stage)
    await run.create()
    await until_pods_run(run, stage, count=3 if stage == SEGMENTS else 1)
    run.operator.hold()
    run.operator.kill()
    await run.wait(lambda: not run.operator.running)
    run.kubelet.script = script(segments=3)
    while "completionTime" not in (await job_of(run, stage))["status"]:
        await asyncio.sleep(0.05)
    await run.kube.request("DELETE", core_path("pods", run.namespace), body=BACKGROUND)
    run.operator.release()
    await comes_to_the_same(run)
    return 1


CASES: dict[str, Callable[..., Awaitable[int]]] = {
    "Job deleted by hand while it runs": job_while_it_runs,
    "Job deleted by hand before its result is read": job_before_its_harvest,
    "ConfigMap deleted by hand while its pods run": config_map_while_pods_run,
    "ConfigMap deleted by hand before its pods start": config_map_before_pods_start,
    "pod deleted by hand while it runs": pod_while_it_runs,
    "pod deleted by hand before its result is read": pod_before_its_harvest,
}


@pytest.mark.parametrize("fault", CASES)
async def test_what_is_deleted_by_hand_stops_nothing_for_good(stand: Stand, fault: str) -> None:
    """Invariants 1, 2, 3, 5, 8."""
    if not FULL and fault != "ConfigMap deleted by hand before its pods start":
        pytest.skip("part of `make faults`")
    stages = STAGES if FULL else (SEGMENTS,)
    cases = {stage: partial(CASES[fault], stage=stage) for stage in stages}
    await stand.each(fault, cases, invariants=(1, 2, 3, 5, 8))
