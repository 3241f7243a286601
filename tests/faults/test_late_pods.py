"""A pod goes on after the next attempt has published, or after its job was deleted and made again.

The machine of the pod froze and came back: its process was stopped, and Kubernetes has long given the pod up. What it
writes then must change nothing that anybody sees.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import pytest
from faults.library import DRAFT, Library, library
from faults.places import PLACES, Place
from faults.proxy import Act, Answer, Forward, Match, delay
from faults.rig import NAME, Run
from faults.scenarios import PREPARE, PUBLISH, SEGMENTS
from faults.stand import FULL, Stand
from faults.store_proxy import StoreCall
from ingestion_crds import JsonObject
from ingestion_crds.kube import ingestion_path
from ingestion_worker import layout
from support.builders import DOCUMENT, KNOWLEDGE_BASE
from support.kubelet import Exit, PodRun
from support.s3_server import S3Server

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

GOOD, BACKGROUND = "completed", {"propagationPolicy": "Background"}

Meanwhile = Callable[[Run, Library], Awaitable[None]]


def after(first: Match, then: Match) -> Match:
    """Match what `then` matches, once `first` has matched."""
    seen = False

    def match(call: StoreCall) -> bool:
        nonlocal seen
        if not seen:
            seen = first(call)
            return False
        return then(call)

    return match


def _reads(key: str) -> Place:
    return Place(stage="", verbs=("GET",), key=key)


_WRITES_FIRST_OUTPUT = Place(stage=PREPARE, verbs=("PUT",), key="/segments/")
_LOOKS_FOR_OUTPUT = Place(stage=SEGMENTS, verbs=("LIST",), key="/segments/.*/000001")


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a pod is stopped.

    Args:
        stage: whose pod.
        match: makes what matches the request at which it is stopped.
        sent: the request is a write, which is on its way while the pod stands still; otherwise a read, the last one
            before a write, and the pod goes on with what it read then.
        mode: of the job.
    """

    stage: str
    match: Callable[[], Match]
    sent: bool
    mode: str = "Segmented"


MOMENTS = {
    "prepare, before the number": Moment(
        stage=PREPARE, match=lambda: _reads("/claims/"), sent=False, mode="SinglePass"
    ),
    "prepare, its plan on the way": Moment(stage=PREPARE, match=lambda: PLACES["PUT plan"], sent=True),
    "single pass, its output on the way": Moment(
        stage=PREPARE, match=lambda: _WRITES_FIRST_OUTPUT, sent=True, mode="SinglePass"
    ),
    "single pass, before the pointer": Moment(
        stage=PREPARE, match=lambda: after(_WRITES_FIRST_OUTPUT, _reads("/history/")), sent=False, mode="SinglePass"
    ),
    "single pass, its pointer on the way": Moment(
        stage=PREPARE, match=lambda: PLACES["PUT pointer"], sent=True, mode="SinglePass"
    ),
    "segment, before its output": Moment(
        stage=SEGMENTS, match=lambda: after(_LOOKS_FOR_OUTPUT, _LOOKS_FOR_OUTPUT), sent=False
    ),
    "segment, its output on the way": Moment(stage=SEGMENTS, match=lambda: PLACES["PUT output"], sent=True),
    "publish, before the pointer": Moment(
        stage=PUBLISH, match=lambda: after(PLACES["LIST outputs"], _reads("/history/")), sent=False
    ),
    "publish, its pointer on the way": Moment(stage=PUBLISH, match=lambda: PLACES["PUT pointer"], sent=True),
}


@dataclass(kw_only=True)
class Late:
    """A pod that is stopped at a moment, and let go later."""

    run: Run
    books: Library
    moment: Moment
    _stopped: asyncio.Event = field(default_factory=asyncio.Event)
    _released: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.books.proxy.add(self.moment.match(), self._act)

    @property
    def pod(self) -> PodRun:
        """The pod, the first one of its stage and segment."""
        wanted = 1 if self.moment.stage == SEGMENTS else None
        return next(pod for pod in self.run.kubelet.runs if (pod.stage, pod.segment) == (self.moment.stage, wanted))

    async def stopped(self) -> None:
        """Wait until it is stopped."""
        await self.run.wait(self._stopped.is_set)

    async def go_on(self) -> Exit:
        """Let it go on, and wait for its end."""
        self._released.set()
        self.books.worker.resume(self.pod)
        await self.run.wait(lambda: self.books.worker.end_of(self.pod) is not None)
        end = self.books.worker.end_of(self.pod)
        assert end is not None
        return end

    async def _act(self, call: StoreCall, forward: Forward) -> Answer:
        act: Act = delay(self._released) if self.moment.sent else lambda call, forward: forward()
        answer = asyncio.ensure_future(act(call, forward))
        if not self.moment.sent:
            await answer
        await self.books.worker.pause(self.pod)
        self._stopped.set()
        return await answer


async def retried(run: Run, books: Library) -> None:
    """Give the attempt up and complete the next one."""
    await run.patch({"cancelGeneration": 0})
    await run.settled("failed")
    await run.patch({"retryGeneration": 1})
    await run.settled(GOOD, generation=1)


async def made_again(run: Run, books: Library) -> None:
    """Delete the job, make it again under its name, and complete it."""
    await run.kube.request("DELETE", ingestion_path(run.namespace, NAME), body=BACKGROUND)
    while await run.jobs() or await run.listed("pods"):
        run.check()
        await asyncio.sleep(0.05)
    await books.create(run)
    await run.settled(GOOD)


async def goes_on_late(run: Run, *, server: S3Server, moment: Moment, meanwhile: Meanwhile) -> int:
    """Stop a pod, let others complete the job meanwhile, let it go on, and compare all that can be seen."""
    # A pod of the first stage read a wrong text, which is mended before the others read it.
    draft = moment.stage == PREPARE
    async with library(run, server, mode=moment.mode) as books:
        late = Late(run=run, books=books, moment=moment)
        if draft:
            books.source(DRAFT)
        await books.create(run)
        await late.stopped()
        books.source()
        await meanwhile(run, books)
        assert await books.look() == 2
        await run.at_rest()
        job = await run.get()
        before = books.objects()
        end = await late.go_on()
        check_nothing_seen_changed(job, before, books.objects())
        check_harmless(end, job)
        assert await books.look() == 2
        assert await run.get() == job
        books.check_whole(job, one_plan=not draft)
        await run.at_rest()
    return 1


def check_nothing_seen_changed(job: JsonObject, before: dict[str, bytes], now: dict[str, bytes]) -> None:
    """Check that all objects are what they were, and that new ones are in no folder of the live version's plan."""
    assert {key: now.get(key) for key in before} == before
    version, plan = job["status"]["version"]["id"], job["status"]["version"]["planHash"]
    root = layout.version_prefix(knowledge_base=KNOWLEDGE_BASE, document_id=DOCUMENT, version_id="")
    for key in now.keys() - before.keys():
        assert key.startswith(root), key
        assert not (version in key and plan in key), key


def check_harmless(end: Exit, job: JsonObject) -> None:
    """Check that the late pod did not claim to have published anything but what is live."""
    said, live = end.says.get("version", {}), job["status"]["version"]
    assert end.code or said.get("state") != "active" or said["id"] == live["id"], end


SAMPLE = ("single pass, before the pointer", "segment, its output on the way", "publish, before the pointer")
# Who has no number yet has not begun: it takes the next one, as any new job does (docs/reliability.md).
NOT_BEGUN = "prepare, before the number"


async def late_pods(
    stand: Stand, server: S3Server, fault: str, meanwhile: Meanwhile, moments: Iterable[str], *invariants: int
) -> None:
    """Play each moment in a run of its own."""
    cases = {name: partial(goes_on_late, server=server, moment=MOMENTS[name], meanwhile=meanwhile) for name in moments}
    await stand.each(fault, cases, invariants=invariants)


async def test_a_pod_that_writes_after_the_next_attempt_published_changes_nothing(
    stand: Stand, s3_server: S3Server
) -> None:
    """Invariants 1, 2, 3, 6, 8."""
    moments = MOMENTS if FULL else SAMPLE
    await late_pods(stand, s3_server, "late pod after the next attempt published", retried, moments, 1, 2, 3, 6, 8)


async def test_a_pod_that_writes_after_its_job_was_made_again_changes_nothing(
    stand: Stand, s3_server: S3Server
) -> None:
    """Invariants 1, 6, 7, 8."""
    moments = [name for name in MOMENTS if name != NOT_BEGUN] if FULL else SAMPLE[-1:]
    await late_pods(stand, s3_server, "late pod after its job was made again", made_again, moments, 1, 6, 7, 8)
