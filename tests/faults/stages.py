"""A job brought to one of its stages, for a fault that comes there, and what it has to come to afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from faults.rig import Run
from faults.scenarios import PREPARE, PUBLISH, SEGMENTS, script
from ingestion_crds import JsonObject
from ingestion_crds.constants import LABEL_STAGE
from support.kubelet import HANG, Exit, PodRun

STAGES = (PREPARE, SEGMENTS, PUBLISH)


def held_at(stage: str) -> Callable[[PodRun], Exit | None]:
    """Return a script whose pods of one stage go on running."""
    return lambda pod: HANG if pod.stage == stage else script(segments=3)(pod)


async def until_pods_run(run: Run, stage: str, *, count: int) -> JsonObject:
    """Wait until so many pods of a stage run, under a Job whose UID is recorded; return one."""
    await run.until(lambda job: _has_recorded_uid(job, stage))
    while True:
        pods = [
            pod
            for pod in await run.listed("pods")
            if pod["metadata"]["labels"][LABEL_STAGE] == stage and pod["status"]["phase"] == "Running"
        ]
        if len(pods) == count:
            return pods[0]
        run.check()
        await asyncio.sleep(0.05)


def _has_recorded_uid(job: JsonObject, stage: str) -> bool:
    attempts = job["status"].get("attempts", [])
    return any(record["stage"] == stage and "uid" in record for attempt in attempts for record in attempt["jobs"])


async def job_of(run: Run, stage: str) -> JsonObject:
    return next(job for job in await run.jobs() if job["metadata"]["labels"][LABEL_STAGE] == stage)


async def comes_to_the_same(run: Run) -> None:
    """Let the pods end well, retry if the attempt failed, and check that the job is complete and at rest."""
    run.kubelet.script = script(segments=3)
    job = await run.until(lambda job: job["status"]["phase"] in ("failed", "partial_failure", "completed"))
    if job["status"]["phase"] != "completed":
        await run.patch({"retryGeneration": 1})
        job = await run.settled("completed", generation=1)
    assert job["status"]["segments"]["completed"] == "0-2"
    assert job["status"]["version"]["state"] == "active"
    await run.at_rest()
    assert [job["metadata"]["labels"][LABEL_STAGE] for job in await run.jobs()] == [PUBLISH]


def stalled(job: JsonObject) -> JsonObject:
    """Return the condition Stalled if it is true, else nothing."""
    conditions = job["status"].get("conditions", [])
    return next((item for item in conditions if (item["type"], item["status"]) == ("Stalled", "True")), {})
