"""An IngestionJob comes back from a backup: it begins at its generation, and takes nothing from its former self.

It has a new UID then. A restore leaves the status out, or writes it back; the Jobs of the old object are gone with it,
or were orphaned and still run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Final

import pytest
from faults.rig import NAME, Run
from faults.scenarios import PREPARE, PUBLISH, SEGMENTS, script
from faults.stages import held_at, until_pods_run
from faults.stand import FULL, Stand
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.kube import MERGE_PATCH, ApiError, ingestion_path
from support.kubelet import HANG, Exit, PodRun, Wait

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

INVARIANTS: Final = (1, 2, 3, 4, 5, 7, 8)
GENERATION: Final = 3


async def take_back(run: Run, backup: JsonObject, *, propagation: str, with_status: bool) -> JsonObject:
    """Delete the IngestionJob and restore it from a backup, while no operator runs."""
    run.operator.hold()
    run.operator.kill()
    await run.wait(lambda: not run.operator.running)
    path = ingestion_path(run.namespace, NAME)
    await run.kube.request("DELETE", path, body={"propagationPolicy": propagation})
    await run.come_true(partial(is_gone, run))
    body = {
        "apiVersion": backup["apiVersion"],
        "kind": backup["kind"],
        "metadata": {"name": NAME, "annotations": backup["metadata"].get("annotations", {})},
        "spec": backup["spec"],
    }
    restored = await run.kube.request("POST", ingestion_path(run.namespace), body=body)
    if with_status:
        await run.kube.request("PATCH", f"{path}/status", body={"status": backup["status"]}, content_type=MERGE_PATCH)
    run.operator.release()
    assert restored["metadata"]["uid"] != backup["metadata"]["uid"]
    return restored


async def is_gone(run: Run) -> bool:
    try:
        await run.get()
    except ApiError as error:
        if not error.not_found:
            raise
        return True
    return False


def ran(run: Run, owner: JsonObject) -> Counter[tuple[str, int, int]]:
    """Return how many pods ran for one of the objects that had the name."""
    return Counter(
        (pod.stage, pod.generation, pod.index if pod.segment is None else pod.segment)
        for pod in run.kubelet.runs
        if pod.env[names.ENV_JOB_UID] == owner["metadata"]["uid"]
    )


async def is_refused(run: Run, generation: int) -> bool:
    try:
        await run.patch({"retryGeneration": generation})
    except ApiError as error:
        return error.status == 422
    return False


def fails_in(generation: int, segment: int) -> Callable[[PodRun], Exit | Wait | None]:
    """Return a script in which a segment fails in a generation."""
    usual, bad = script(segments=3), script(segments=3, bad=frozenset({segment}))
    return lambda pod: bad(replace(pod, generation=0)) if pod.generation == generation else usual(pod)


async def begins_there(run: Run) -> int:
    """The status is lost: everything runs once, as the generation that the spec says, and a retry is the next one."""
    run.kubelet.script = fails_in(GENERATION, 1)
    await run.create(retryGeneration=GENERATION)
    found = await run.settled("partial_failure", generation=GENERATION)
    assert [(attempt["generation"], attempt["trigger"]) for attempt in found["status"]["attempts"]] == [(3, "Initial")]
    everything = Counter({(PREPARE, 3, 0): 1, (SEGMENTS, 3, 0): 1, (SEGMENTS, 3, 1): 1, (SEGMENTS, 3, 2): 1})
    assert run.pods_run() == everything
    assert await is_refused(run, GENERATION - 1)
    assert await is_refused(run, GENERATION + 2)
    await run.patch({"retryGeneration": GENERATION + 1})
    found = await run.settled("completed", generation=GENERATION + 1)
    await run.at_rest()
    assert run.pods_run() == everything + Counter({(SEGMENTS, 4, 1): 1, (PUBLISH, 4, 0): 1})
    assert [attempt["generation"] for attempt in found["status"]["attempts"]] == [3, 4]
    return 1


async def failed_once(run: Run) -> JsonObject:
    """Return a backup of a job that failed in part in its first retry, which an annotation asked for."""
    run.kubelet.script = script(segments=3, bad=frozenset({1, 2}))
    await run.create()
    await run.settled("partial_failure")
    run.kubelet.script = fails_in(1, 2)
    await run.annotate("token")
    await run.settled("partial_failure", generation=1)
    await run.at_rest()
    return await run.get()


async def goes_on_from_its_status(run: Run) -> int:
    """The status is restored: nothing runs by itself, and a retry runs what was unfinished."""
    backup = await failed_once(run)
    restored = await take_back(run, backup, propagation="Background", with_status=True)
    await run.until(lambda job: job["status"]["jobID"] == restored["metadata"]["uid"])
    await run.at_rest()
    assert not ran(run, restored)
    assert (await run.get())["status"]["segments"] == backup["status"]["segments"]
    await run.annotate("another token")
    found = await run.settled("completed", generation=2)
    await run.at_rest()
    assert ran(run, restored) == Counter({(SEGMENTS, 2, 2): 1, (PUBLISH, 2, 0): 1})
    assert found["status"]["version"]["id"] == backup["status"]["version"]["id"]
    return 1


async def is_found_by_its_new_id(run: Run) -> int:
    """It was never retried, so that its restored status asks for nothing: it says who it is all the same."""
    run.kubelet.script = script(segments=3, bad=frozenset({2}))
    await run.create()
    await run.settled("partial_failure")
    await run.at_rest()
    backup = await run.get()
    restored = await take_back(run, backup, propagation="Background", with_status=True)
    await run.until(lambda job: job["status"]["jobID"] == restored["metadata"]["uid"])
    await run.at_rest()
    assert not ran(run, restored)
    assert (await run.get())["status"]["segments"] == backup["status"]["segments"]
    return 1


async def begins_anew_without_its_status(run: Run) -> int:
    """The status is lost, the annotations are not: the answered token is no retry, and the generation runs once."""
    backup = await failed_once(run)
    run.kubelet.script = script(segments=3)
    restored = await take_back(run, backup, propagation="Background", with_status=False)
    found = await run.settled("completed", generation=1)
    await run.at_rest()
    segments = {(SEGMENTS, 1, segment): 1 for segment in range(3)}
    assert ran(run, restored) == Counter({(PREPARE, 1, 0): 1, (PUBLISH, 1, 0): 1} | segments)
    assert found["spec"]["retryGeneration"] == 1
    return 1


async def beside_what_still_runs(run: Run) -> int:
    """The old object's Job was orphaned and still runs: it ends by itself, and nobody looks at it."""
    run.kubelet.script = held_at(SEGMENTS)
    old = await run.create()
    await until_pods_run(run, SEGMENTS, count=3)
    (orphan,) = [job for job in await run.jobs() if job["metadata"]["labels"][names.LABEL_STAGE] == SEGMENTS]
    restored = await take_back(run, await run.get(), propagation="Orphan", with_status=False)

    def end(pod: PodRun) -> Exit | Wait | None:
        return HANG if pod.env[names.ENV_JOB_UID] == old["metadata"]["uid"] else script(segments=3)(pod)

    run.kubelet.script = end
    await run.settled("completed")
    await run.at_rest()
    assert ran(run, restored).total() == 5
    run.kubelet.script = script(segments=3)
    await run.come_true(partial(is_complete, run, orphan["metadata"]["uid"]))
    await run.at_rest()
    assert run.pods_run().total() == 9
    return 1


async def is_complete(run: Run, uid: str) -> bool:
    return any(job["metadata"]["uid"] == uid and "completionTime" in job["status"] for job in await run.jobs())


async def in_the_middle(run: Run) -> int:
    """The status says that a Job runs, which went with the old object: the attempt is lost, and a retry goes on."""
    run.kubelet.script = held_at(SEGMENTS)
    await run.create()
    await until_pods_run(run, SEGMENTS, count=3)
    restored = await take_back(run, await run.get(), propagation="Foreground", with_status=True)
    found = await run.settled("failed")
    assert set(found["status"]["failureSummary"]) == {"JobLost"}
    run.kubelet.script = script(segments=3)
    await run.patch({"retryGeneration": 1})
    await run.settled("completed", generation=1)
    await run.at_rest()
    segments = {(SEGMENTS, 1, segment): 1 for segment in range(3)}
    assert ran(run, restored) == Counter({(PUBLISH, 1, 0): 1} | segments)
    return 1


CASES: Final[dict[str, Callable[[Run], Awaitable[int]]]] = {
    "status lost": begins_there,
    "status restored": goes_on_from_its_status,
    "status restored, never retried": is_found_by_its_new_id,
    "status lost, annotations restored": begins_anew_without_its_status,
    "status lost, old Job still runs": beside_what_still_runs,
    "status of a running attempt restored, old Job gone": in_the_middle,
}


async def test_what_is_restored_begins_at_its_generation_and_adopts_nothing(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 7, 8."""
    cases = CASES if FULL else {case: CASES[case] for case in ("status lost", "status restored")}
    await stand.each(lambda case: f"restored from a backup: {case}", cases, invariants=INVARIANTS)
