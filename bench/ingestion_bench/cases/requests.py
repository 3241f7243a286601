"""How many requests API and operator send for a retry, whatever its size."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Final

import httpx
from ingestion_crds import JsonObject
from ingestion_crds.constants import Phase, Stage
from ingestion_crds.kube import ingestion_path
from local_cluster.progress import say

from ingestion_bench import failed
from ingestion_bench.audit import Audit, audited, without_events
from ingestion_bench.case import Budget, Duel, Measure, Sample, register
from ingestion_bench.failed import scattered
from ingestion_bench.feed import Feed, of
from ingestion_bench.past import Past
from ingestion_bench.stand import Stand

TO_UID: Final = "requests: POST → Job UID recorded"
TO_COMPLETED: Final = "requests: UID → completed, less 2 for each second"
_TO_COMPLETED_ALL: Final = "requests: UID → completed, all"
TO_UID_AT_MOST: Final = 12
TO_COMPLETED_AT_MOST: Final = 25
EACH_SECOND: Final = 2
"""One read and one status write."""
_RUNS: Final = 3


class Counting:
    """Counts the requests of retries of one size.

    Args:
        stand: where; operator and API run, and the API server keeps an audit log.
        api: the REST API.
        past: what the jobs went through.
        parallelism: of the attempts.
    """

    def __init__(self, *, stand: Stand, api: httpx.AsyncClient, past: Past, parallelism: int) -> None:
        self._stand = stand
        self._api = api
        self._past = past
        self._parallelism = parallelism
        self._audit = Audit(stand.folder)

    async def ours(self) -> Sample:
        """Retry a failed job and count."""
        stand = self._stand
        job = await failed.store(stand, self._past, parallelism=self._parallelism)
        async with Feed(stand.kube, ingestion_path(stand.namespace)) as jobs:
            recorded = jobs.expect(of(job, _uid_recorded))
            completed = jobs.expect(of(job, lambda body: body["status"]["phase"] == Phase.COMPLETED))
            await self._audit.read_until_silent()  # what is sent because of how the job was stored
            answer = await self._api.post(f"/ingestion-jobs/{job.job_id}/retry")
            assert answer.status_code == 202, answer.text
            begun = await recorded
            first = without_events(self._audit.read())
            seconds = await completed - begun
            rest = without_events(self._audit.read())
        say(f"  {dict(Counter(first))}; then in {seconds:.1f} s {dict(Counter(rest))}")
        await stand.kube.request("DELETE", ingestion_path(stand.namespace, job.metadata.name))
        await stand.quiet()
        return {
            TO_UID: len(first),
            TO_COMPLETED: len(rest) - EACH_SECOND * seconds,
            _TO_COMPLETED_ALL: len(rest),
        }


def _uid_recorded(body: JsonObject) -> bool:
    attempt = body["status"]["attempts"][-1]
    return attempt["generation"] > 0 and any(
        record["stage"] == Stage.SEGMENTS and "uid" in record for record in attempt["jobs"]
    )


def _run(past: Past, parallelism: int) -> Callable[[Stand], AsyncIterator[Duel]]:
    async def duel(stand: Stand) -> AsyncIterator[Duel]:
        async with stand.operator(), stand.api() as api:
            counting = Counting(stand=stand, api=api, past=past, parallelism=parallelism)
            await counting.ours()  # what a process does once is not the retry's
            yield Duel(ours=counting.ours)

    return duel


for _k, _n, _parallelism in ((3, 50, 10), (50, 1_000, 10), (250, 5_000, 10), (500, 10_000, 500)):
    register(
        name=f"requests-{_k}-of-{_n}",
        about=f"requests for a retry of {_k:,} of {_n:,} segments, {_parallelism} at a time; no Events, no watches",
        measures=[
            Measure(what=TO_UID, unit="", budget=Budget(at_most=TO_UID_AT_MOST), growth={"k": _k, "N": _n}),
            Measure(what=TO_COMPLETED, unit="", budget=Budget(at_most=TO_COMPLETED_AT_MOST)),
            Measure(what=_TO_COMPLETED_ALL, unit=""),
        ],
        run=_run(Past(segments=_n, failed=scattered(count=_k, of=_n)), _parallelism),
        pairs=_RUNS,
        plane=audited(nodes=3),
    )
