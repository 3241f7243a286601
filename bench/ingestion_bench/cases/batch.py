"""What a batch adds to its documents: time, requests, and attempts of documents that had not failed."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from pathlib import Path
from typing import Final, TypeVar

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Phase
from ingestion_crds.job import IngestionJob
from ingestion_crds.kube import MERGE_PATCH, batch_path, ingestion_path
from local_cluster.control_plane import KWOK
from local_cluster.progress import say

from ingestion_bench import many
from ingestion_bench.audit import Audit, audited, without_events
from ingestion_bench.bare import get_and_ask
from ingestion_bench.case import Budget, Duel, Measure, Sample, register
from ingestion_bench.failed import body
from ingestion_bench.feed import Feed, Wish, counted
from ingestion_bench.stand import Stand, fresh_name

_STAGES: Final = Path(__file__).parents[1] / "documents.yaml"
_STARTS_A_SECOND: Final = 10
"""As many jobs as the operator makes or retries for batches (docs/batches.md)."""
_AT_REST: Final = frozenset({Phase.PARTIAL_FAILURE, Phase.COMPLETED})
_MADE: Final = "batch: create → all jobs created"
_ENDED: Final = "batch: create → all documents ended, in status"
_LAG: Final = "batch: last document ended → the batch's status says so"
_RETRIED: Final = "batch: retry of a tenth → completed, in status"
_REQUESTS: Final = "batch: operator's requests for each document"
_OWN: Final = "batch: of these for the batch, not its jobs"
_REQUESTS_RETRIED: Final = "batch: operator's requests for each retried document"
_ATTEMPTS: Final = "batch: attempts that its retry begins, for each failed document"

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Batch:
    """So many documents of two segments; of a tenth the first segment fails in the first attempt.

    Args:
        stand: where; an operator runs, kwok ends the pods as documents.yaml says, and there is an audit log.
        count: documents.
    """

    def __init__(self, *, stand: Stand, count: int) -> None:
        self._stand = stand
        self._count = count
        self._failing = len(range(0, count, 10))
        self._audit = Audit(stand.folder)

    async def ours(self) -> Sample:
        """Create a batch, and retry it."""
        stand = self._stand
        path, name = batch_path(stand.namespace), fresh_name("batch")
        async with self._feed() as jobs, Feed(stand.kube, path) as batches:
            created, last_ended = jobs.expect(counted(self._count)), jobs.expect(self._all_in(_AT_REST))
            ended, completed = (batches.expect(_batch_in(phase)) for phase in (Phase.PARTIAL_FAILURE, Phase.COMPLETED))
            await self._audit.read_until_silent()
            begun = time.perf_counter()
            await stand.kube.request("POST", path, body=self._batch(name))
            sample = {_MADE: await created - begun, _ENDED: await ended - begun, _LAG: await ended - await last_ended}
            sent = await self._audit.read_until_silent()
            begun = time.perf_counter()
            patch = {"spec": {"retryGeneration": 1}}
            one = batch_path(stand.namespace, name)
            await stand.kube.request("PATCH", one, body=patch, content_type=MERGE_PATCH)
            sample[_RETRIED] = await completed - begun
            sent_again = await self._audit.read_until_silent()
        found = (await stand.kube.request("GET", ingestion_path(stand.namespace)))["items"]
        attempts = sum(len(job["status"]["attempts"]) for job in found)
        await stand.kube.request("DELETE", one, body={"propagationPolicy": "Background"})
        await stand.quiet()
        return {
            **sample,
            **self._counted(sent, sent_again),
            _OWN: sum(map(_is_of_batch, sent)) / self._count,
            _ATTEMPTS: (attempts - self._count) / self._failing,
        }

    async def theirs(self) -> Sample:
        """Create the jobs, and retry those that have failed, as fast as the operator would for a batch."""
        stand = self._stand
        path, prefix = ingestion_path(stand.namespace), fresh_name("bare")

        async def create(index: int) -> IngestionJob:
            wanted = body(name=f"{prefix}-{index}", namespace=stand.namespace)
            return IngestionJob.model_validate(await stand.kube.request("POST", path, body=wanted))

        async with self._feed() as feed:
            created, ended = feed.expect(counted(self._count)), feed.expect(self._all_in(_AT_REST))
            completed = feed.expect(self._all_in({Phase.COMPLETED}))
            await self._audit.read_until_silent()
            begun = time.perf_counter()
            jobs = await _paced(range(self._count), create)
            sample = {_MADE: await created - begun, _ENDED: await ended - begun}
            sent = await self._audit.read_until_silent()
            begun = time.perf_counter()
            await _paced(jobs[::10], lambda job: get_and_ask(stand, job))
            sample[_RETRIED] = await completed - begun
            sent_again = await self._audit.read_until_silent()
        await many.remove(stand, jobs)
        await stand.quiet()
        return {**sample, **self._counted(sent, sent_again)}

    def _feed(self) -> Feed:
        return Feed(self._stand.kube, ingestion_path(self._stand.namespace))

    def _batch(self, name: str) -> JsonObject:
        single = body(name=name, namespace=self._stand.namespace)
        document = single["spec"].pop("document")
        documents = [{**document, "id": str(uuid.uuid4())} for _ in range(self._count)]
        return {**single, "kind": names.BATCH_KIND, "spec": {**single["spec"], "documents": documents}}

    def _all_in(self, phases: Collection[Phase]) -> Wish:
        """Return the wish that each job has been in one of the phases."""
        there: set[str] = set()

        def wish(event: JsonObject) -> bool:
            if event["object"].get("status", {}).get("phase") in phases:
                there.add(event["object"]["metadata"]["uid"])
            return len(there) == self._count

        return wish

    def _counted(self, sent: Collection[str], sent_again: Collection[str]) -> Sample:
        sent, sent_again = without_events(sent), without_events(sent_again)
        say(f"  {dict(Counter(sent))}; for the retry {dict(Counter(sent_again))}")
        return {_REQUESTS: len(sent) / self._count, _REQUESTS_RETRIED: len(sent_again) / self._failing}


def _batch_in(phase: Phase) -> Wish:
    return lambda event: bool(event["object"].get("status", {}).get("phase") == phase)


def _is_of_batch(request: str) -> bool:
    """True for what is sent for batches, until a retry; and for the rare list of all IngestionJobs."""
    verb, resource = request.split()
    return resource.startswith("ingestionbatches") or (resource == "ingestionjobs" and verb in ("create", "list"))


async def _paced(items: Iterable[_Item], do: Callable[[_Item], Awaitable[_Result]]) -> list[_Result]:
    """Do something with each item, one after the other, and not more often than the operator does for batches."""
    begun = time.perf_counter()
    found = []
    for place, item in enumerate(items):
        await asyncio.sleep(begun + place / _STARTS_A_SECOND - time.perf_counter())
        found.append(await do(item))
    return found


def _run(count: int) -> Callable[[Stand], AsyncIterator[Duel]]:
    async def duel(stand: Stand) -> AsyncIterator[Duel]:
        async with stand.operator():
            batch = Batch(stand=stand, count=count)
            yield Duel(ours=batch.ours, theirs=batch.theirs)

    return duel


for _count, _pairs in ((100, 3), (1_000, 1)):
    register(
        name=f"batch-{_count}",
        about=f"a batch of {_count:,} documents of two segments, and its retry, as a tenth fails; pods run for no time",
        baseline=f"the same IngestionJobs, created and retried by hand, {_STARTS_A_SECOND} a second",
        measures=[
            Measure(what=_MADE, unit="s"),
            Measure(what=_ENDED, unit="s"),
            Measure(what=_LAG, unit="s"),
            Measure(what=_RETRIED, unit="s"),
            Measure(what=_REQUESTS, unit=""),
            Measure(what=_OWN, unit=""),
            Measure(what=_REQUESTS_RETRIED, unit=""),
            Measure(what=_ATTEMPTS, unit="", budget=Budget(at_most=1.0)),
        ],
        run=_run(_count),
        pairs=_pairs,
        on_request=True,
        plane=audited(nodes=10, flags={KWOK: [f"--config={_STAGES}"]}),
    )
