"""Many at once: one generation for however many ask for it, one retry of each job however often the operator dies."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Iterable
from typing import Any

import pytest
from faults.rig import Run, api_of
from faults.scenarios import PREPARE, SEGMENTS, script
from faults.stand import FULL, Stand
from ingestion_crds import constants as names
from ingestion_crds.kube import ApiError
from support.builders import failure
from support.campaign import record
from support.kubelet import HANG, Exit, PodRun, fails

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

REQUESTS = 200
JOBS = 500 if FULL else 40
SEED = 20
LONGEST_LIFE_SECONDS = 4.0
LEAST_KILLS = 3
MOST_KILLS = 30  # most of the retries are through by then, and the rest has no need of more


async def test_retries_of_one_job_at_once_make_one_generation(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4."""
    async with stand.run() as run, api_of(run) as api:
        run.kubelet.script = script(segments=4, bad=frozenset({1, 2}))
        job_id = str((await run.create())["metadata"]["uid"])
        await run.settled("partial_failure")
        await api.known(job_id)
        run.kubelet.script = lambda pod: HANG

        async def by_rest(number: int) -> str:
            answer = await api.retry(job_id, key=f"key-{number}" if number % 2 else None)
            return f"REST {answer.status_code}"

        async def by_patch() -> str:
            try:
                await run.patch({"retryGeneration": 1})
            except ApiError as error:
                return f"patch {error.status}"
            return "patch 200"

        async def by_annotation(number: int) -> str:
            await run.annotate(f"token-{number}")
            return "annotation 200"

        asked = [by_rest(number) for number in range(REQUESTS)]
        asked += [request for number in range(REQUESTS // 4) for request in (by_patch(), by_annotation(number))]
        random.Random(SEED).shuffle(asked)
        answers = Counter(await asyncio.gather(*asked))
        print(dict(answers))
        # Once the attempt has begun, a further request is told so; nobody is told anything else.
        assert set(answers) <= {"REST 202", "REST 400", "patch 200", "annotation 200"}
        assert answers["REST 202"] > 0
        token = (await run.get())["metadata"]["annotations"][names.ANNOTATION_RETRY_REQUESTED]
        job = await run.until(lambda job: job["status"].get("lastHandledRetryRequest") == token)
        assert job["spec"]["retryGeneration"] == job["status"]["observedRetryGeneration"] == 1
        await run.wait(lambda: run.pods_run()[SEGMENTS, 1, 1] + run.pods_run()[SEGMENTS, 1, 2] == 2)
        run.kubelet.script = script(segments=4)
        job = await run.settled("completed", generation=1)
        await run.at_rest()
        assert job["spec"]["retryGeneration"] == 1
        assert [attempt["generation"] for attempt in job["status"]["attempts"]] == [0, 1]
        pods = {pod: count for pod, count in run.pods_run().items() if pod[:2] == (SEGMENTS, 1)}
        assert pods == {(SEGMENTS, 1, 1): 1, (SEGMENTS, 1, 2): 1}
    record(
        "retry asked for at once by REST, annotation and patch",
        injected=len(asked),
        survived=len(asked),
        invariants=(1, 2, 3, 4),
    )


async def test_each_of_many_jobs_is_retried_once_while_the_operator_dies_again_and_again(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    lives = random.Random(SEED)
    jobs = [f"job-{number:03}" for number in range(JOBS)]
    async with stand.run() as run:
        run.patience = 1200

        def end(pod: PodRun) -> Exit | None:
            if pod.generation == 0:
                return fails(failure("SourceNotFound", "s3://team-a/handbook.pdf: no such object"))
            # However fast the machine is, there are retries under way while the operator dies.
            return HANG if run.operator.kills < LEAST_KILLS else script(segments=1, mode="SinglePass")(pod)

        run.kubelet.script = end
        await in_turn(run.create(name, mode="SinglePass") for name in jobs)
        for name in jobs:
            await run.settled("failed", name=name)
        assert run.proxy.created["jobs"] == JOBS

        killer = asyncio.create_task(kill_again_and_again(run, lives))
        await in_turn(run.patch({"retryGeneration": 1}, name) for name in jobs)
        for name in jobs:
            await run.settled("completed", generation=1, name=name)
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)
        kills = run.operator.kills
        await run.at_rest()
        for name in jobs:
            job = await run.get(name)
            assert [attempt["generation"] for attempt in job["status"]["attempts"]] == [0, 1]
        assert run.proxy.created["jobs"] == 2 * JOBS
        assert run.pods_run() == {(PREPARE, 0, 0): JOBS, (PREPARE, 1, 0): JOBS}
        assert kills >= LEAST_KILLS
        print(f"{JOBS} jobs, {kills} kills")
    record(
        f"operator killed a random while after it is ready, {JOBS} retries under way",
        injected=kills,
        survived=kills,
        invariants=(1, 2, 3, 4, 5, 8),
    )


async def in_turn(requests: Iterable[Awaitable[Any]]) -> None:
    """Send many requests, a few dozen at a time."""
    lanes = asyncio.Semaphore(50)

    async def one(request: Awaitable[Any]) -> None:
        async with lanes:
            await request

    await asyncio.gather(*map(one, requests))


async def kill_again_and_again(run: Run, lives: random.Random) -> None:
    """Kill the operator a random while after its watches are open, as often as there is time, but not without end."""
    for _ in range(MOST_KILLS):
        before = run.proxy.seen["watch jobs"]
        run.operator.kill()
        while run.proxy.seen["watch jobs"] == before:
            await asyncio.sleep(0.02)
        await asyncio.sleep(lives.uniform(0, LONGEST_LIFE_SECONDS))
