"""How long a retry takes, beside the bare Indexed Job that it comes to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final

import httpx
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Phase, Stage
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import child_path, core_path, ingestion_path

from ingestion_bench import failed
from ingestion_bench.bare import LABEL, bare_child
from ingestion_bench.case import PAIRS, Budget, Duel, Measure, Sample, register
from ingestion_bench.failed import scattered
from ingestion_bench.feed import Feed, counted, of
from ingestion_bench.past import Past
from ingestion_bench.stand import Plane, Stand

_BUDGET: Final = Budget(at_most=1.5, plus=0.080)


def measured(past: Past) -> tuple[str, str]:
    """Return what is measured: until all pods are created, and until their end is seen in status.

    Retries of all segments are a series of their own: when their last pods start, all others have ended and are still
    there.
    """
    retry = "retry of all" if len(past.failed) == past.segments else "retry"
    return f"{retry}: POST → all pods created", f"{retry}: POST → segments finished, seen in status"


def parallelism(past: Past) -> int:
    """Return how many segments run at the same time: all of a retry, as far as the CRD allows."""
    return min(len(past.failed), 10_000)


class Retry:
    """One size of retry, and the bare Job of the same size.

    Args:
        stand: where; an operator runs.
        api: the REST API.
        past: what the jobs went through.
    """

    def __init__(self, *, stand: Stand, api: httpx.AsyncClient, past: Past) -> None:
        self._stand = stand
        self._api = api
        self._past = past
        self._k = len(past.failed)
        self._parallelism = parallelism(past)
        self._measured = measured(past)

    async def ours(self) -> Sample:
        """POST a retry of a failed job and see it through."""
        stand = self._stand
        job = await failed.store(stand, self._past, parallelism=self._parallelism)
        ours = f"{names.LABEL_JOB_UID}={job.metadata.uid},{names.LABEL_STAGE}={Stage.SEGMENTS}"
        async with (
            Feed(stand.kube, ingestion_path(stand.namespace)) as jobs,
            Feed(stand.kube, core_path("pods", stand.namespace), selector=ours) as pods,
        ):
            created, done = pods.expect(counted(self._k)), jobs.expect(of(job, _segments_recorded))
            completed = jobs.expect(of(job, lambda body: body["status"]["phase"] == Phase.COMPLETED))
            begun = time.perf_counter()
            answer = await self._api.post(f"/ingestion-jobs/{job.job_id}/retry")
            assert answer.status_code == 202, answer.text
            sample = dict(zip(self._measured, (await created - begun, await done - begun), strict=True))
            await completed
        await stand.kube.request("DELETE", ingestion_path(stand.namespace, job.metadata.name))
        await stand.quiet()
        return sample

    async def theirs(self, spare: IngestionJob) -> Sample:
        """Create by hand the Job that a retry of the spare job would create, and see it through."""
        stand = self._stand
        child = bare_child(stand, spare)
        name = child.body["metadata"]["name"]
        config_maps, jobs_path = core_path("configmaps", stand.namespace), child_path(stand.namespace)
        await stand.kube.request("POST", config_maps, body=child.config_map)
        async with (
            Feed(stand.kube, jobs_path, selector=f"{LABEL}={name}") as jobs,
            Feed(stand.kube, core_path("pods", stand.namespace), selector=f"{LABEL}={name}") as pods,
        ):
            created, done = pods.expect(counted(self._k)), jobs.expect(lambda event: _complete(event["object"]))
            begun = time.perf_counter()
            await stand.kube.request("POST", jobs_path, body=child.body)
            sample = dict(zip(self._measured, (await created - begun, await done - begun), strict=True))
        gone = {"propagationPolicy": "Background"}
        await stand.kube.request("DELETE", f"{jobs_path}/{name}", body=gone)
        await stand.kube.request("DELETE", f"{config_maps}/{name}")
        await stand.quiet()
        return sample


def _segments_recorded(body: JsonObject) -> bool:
    """True when the end of the retry's segments is in the job's status."""
    attempt = body["status"]["attempts"][-1]
    ended = [record["stage"] for record in attempt["jobs"] if "completionTime" in record]
    return attempt["generation"] > 0 and Stage.SEGMENTS in ended


def _complete(body: JsonObject) -> bool:
    conditions = body["status"].get("conditions", [])
    return any(item["type"] == "Complete" and item["status"] == "True" for item in conditions)


async def _duel(stand: Stand, *, past: Past) -> AsyncIterator[Duel]:
    async with stand.operator(), stand.api() as api:
        spare = await failed.store(stand, past, with_last_job=False, parallelism=parallelism(past))
        retry = Retry(stand=stand, api=api, past=past)
        yield Duel(ours=retry.ours, theirs=partial(retry.theirs, spare))


def _run(past: Past) -> Callable[[Stand], AsyncIterator[Duel]]:
    return lambda stand: _duel(stand, past=past)


for _k, _n, _pairs in (
    (3, 50, PAIRS),
    (50, 1_000, PAIRS),
    (250, 5_000, PAIRS),
    (500, 10_000, PAIRS),
    (5_000, 100_000, 1),
    (2_500, 2_500, 2),
    (5_000, 5_000, 2),
    (10_000, 10_000, 1),
    (20_000, 20_000, 1),
    (100_000, 100_000, 1),
):
    _past = Past(segments=_n, failed=scattered(count=_k, of=_n))
    _growth = {"N": _n} if _k == _n else {"k": _k, "N": _n}
    register(
        name=f"retry-{_k}-of-{_n}",
        about=f"a retry of {_k:,} failed segments of {_n:,}, from the REST POST on",
        baseline="the bare Indexed Job",
        measures=[Measure(what=what, unit="s", budget=_BUDGET, growth=_growth) for what in measured(_past)],
        run=_run(_past),
        pairs=_pairs,
        on_request=_k >= 2_500,
        plane=Plane(nodes=10),
    )
