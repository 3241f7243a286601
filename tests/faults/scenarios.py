"""The reference scenarios: what users do, from the first object to the last phase."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from faults.rig import Api, Run
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from support.builders import failure, prepared
from support.kubelet import HANG, Exit, PodRun, Script, fails

PREPARE, SEGMENTS, PUBLISH = (stage.value for stage in names.Stage)
VERSION: Final = "2b1d7a52-6c1e-4a0b-9f55-0d3c0f2f8a12"

Scenario = Callable[[Run, Api | None], Awaitable[None]]


def script(*, segments: int = 4, bad: frozenset[int] = frozenset(), mode: str = "Segmented") -> Script:
    """Return a script in which the bad segments fail for good in generation 0, and all else ends well."""

    def end(pod: PodRun) -> Exit | None:
        if pod.stage == PREPARE:
            return Exit(says=prepared(segments=segments, mode=mode, version=VERSION))
        if pod.stage == SEGMENTS and pod.generation == 0 and pod.segment in bad:
            return fails(failure("EmbeddingRejected", f"segment {pod.segment}: content rejected"))
        return Exit(says={"chunks": 7})

    return end


async def segmented(run: Run, api: Api | None) -> None:
    """Prepare, segments of which two fail, a retry by REST, publish."""
    assert api is not None
    run.kubelet.script = script(segments=4, bad=frozenset({1, 2}))
    made = await run.create()
    await run.settled("partial_failure")
    job_id = str(made["metadata"]["uid"])
    await api.known(job_id)
    answer = await api.retry(job_id, key="one")
    assert answer.status_code == 202, answer.text
    await run.settled("completed", generation=1)


async def single_pass(run: Run, api: Api | None) -> None:
    """A single pass that fails and is retried by a patch."""

    def end(pod: PodRun) -> Exit | None:
        if pod.generation == 0:
            return fails(failure("SourceNotFound", "s3://team-a/handbook.pdf: no such object"))
        return script(segments=1, mode="SinglePass")(pod)

    run.kubelet.script = end
    await run.create()
    await run.settled("failed")
    await run.patch({"retryGeneration": 1})
    await run.settled("completed", generation=1)


async def annotation(run: Run, api: Api | None) -> None:
    """Segments of which one fails, a retry by annotation."""
    run.kubelet.script = script(segments=2, bad=frozenset({1}))
    await run.create()
    await run.settled("partial_failure")
    await run.annotate("token")
    await run.settled("completed", generation=1)
    await run.until(lambda job: job["status"].get("lastHandledRetryRequest") == "token")


async def cancel_then_retry(run: Run, api: Api | None) -> None:
    """A cancelled attempt keeps what is done, and the retry runs the rest."""

    def end(pod: PodRun) -> Exit | None:
        if pod.stage == SEGMENTS and pod.generation == 0 and pod.segment in (1, 2):
            return HANG
        return script(segments=4)(pod)

    run.kubelet.script = end
    await run.create()
    await run.until(lambda job: job["status"].get("segments", {}).get("completedCount") == 2)
    await run.wait(lambda: run.pods_run()[SEGMENTS, 0, 1] + run.pods_run()[SEGMENTS, 0, 2] == 2)
    await run.patch({"cancelGeneration": 0})
    await run.settled("failed")
    await run.patch({"retryGeneration": 1})
    await run.settled("completed", generation=1)


async def suspend_and_resume(run: Run, api: Api | None) -> None:
    """A suspended job has no pods; resumed, it goes on."""
    resumed = False

    def end(pod: PodRun) -> Exit | None:
        return HANG if pod.stage == SEGMENTS and not resumed else script(segments=2)(pod)

    run.kubelet.script = end
    await run.create()
    await run.wait(lambda: run.pods_run()[SEGMENTS, 0, 0] + run.pods_run()[SEGMENTS, 0, 1] == 2)
    await run.patch({"suspend": True})
    await run.until(lambda job: _ready_reason(job) == "Suspended")
    while any(pod["metadata"]["labels"][names.LABEL_STAGE] == SEGMENTS for pod in await run.listed("pods")):
        run.check()
        await asyncio.sleep(0.05)
    resumed = True
    await run.patch({"suspend": False})
    await run.settled("completed")


def _ready_reason(job: JsonObject) -> str:
    conditions = job["status"].get("conditions", [])
    return next((str(item["reason"]) for item in conditions if item["type"] == "Ready"), "")


SCENARIOS: Final[dict[str, Scenario]] = {
    "segmented, retried by REST": segmented,
    "single pass, retried by patch": single_pass,
    "retried by annotation": annotation,
    "cancelled, then retried": cancel_then_retry,
    "suspended and resumed": suspend_and_resume,
}
