"""The object store refuses, fills up, breaks off or forgets to answer, at each place where a stage needs it.

One job walks through the places: each attempt meets the fault at the next one, fails, and is retried. After each of
them the code is right and can be retried, only unfinished segments ran, and readers saw one version whole all the time.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from faults.library import Library, library, segments_run
from faults.places import PLACES, WRITES
from faults.proxy import Act, Answer, Forward, hang, lose_answer, reset
from faults.rig import Run
from faults.scenarios import PREPARE, SEGMENTS
from faults.stand import FULL, Stand
from faults.store_proxy import StoreCall, refuse
from ingestion_crds import JsonObject
from ingestion_crds.constants import TERMINAL_PHASES
from ingestion_crds.errors import ERROR_CODES
from ingestion_crds.indexset import IndexSet
from support.machine import needs_mounts
from support.s3_server import S3Server, serving

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

INVARIANTS = (2, 3, 5, 6, 8)
UNAVAILABLE, FORBIDDEN = "StoreUnavailable", "StoreForbidden"


async def next_attempt(run: Run, books: Library, generation: int) -> JsonObject:
    """Begin an attempt and wait for its end."""
    if generation == 0:
        await books.create(run)
    else:
        await run.patch({"retryGeneration": generation})
    return await run.until(
        lambda job: (
            job["status"].get("observedRetryGeneration") == generation and job["status"]["phase"] in TERMINAL_PHASES
        )
    )


def check_failed(job: JsonObject, *, stage: str, code: str) -> None:
    """Check that an attempt says truly why it failed."""
    status = job["status"]
    some = status.get("segments", {}).get("completedCount", 0) and stage == SEGMENTS
    assert status["phase"] == ("partial_failure" if some else "failed"), status
    assert {failure["stage"] for failure in status["failures"]} == {stage}, status["failures"]
    assert set(status["failureSummary"]) == {code}, status
    assert all(failure["retryable"] is ERROR_CODES[code].retryable is True for failure in status["failures"])


async def walk(
    run: Run,
    *,
    server: S3Server,
    places: Sequence[str],
    act_on: Callable[[Library], Act],
    code: str,
    mend: Callable[[], None] = lambda: None,
) -> int:
    """Fail at each place in turn, then complete; return the number of places."""
    before: JsonObject = {}
    async with library(run, server) as books:
        for generation, name in enumerate(places):
            fault = books.proxy.add(PLACES[name], act_on(books), times=None)
            job = await next_attempt(run, books, generation)
            books.proxy.faults.remove(fault)
            mend()
            assert fault.injected, f"nothing to fail at {name}"
            check_failed(job, stage=PLACES[name].stage, code=code)
            check_segments(run, job, generation, before)
            await books.look()
            before = job["status"]
        job = await next_attempt(run, books, len(places))
        check_segments(run, job, len(places), before)
        await check_complete(run, books, job)
    return len(places)


async def strike(run: Run, *, server: S3Server, act_on: Callable[[Library], Act]) -> int:
    """Strike each write once: the worker's client tries again, and the job needs no retry."""
    async with library(run, server) as books:
        faults = [books.proxy.add(PLACES[name], act_on(books)) for name in WRITES if name != "PUT fence"]
        await check_complete(run, books, await next_attempt(run, books, 0))
        assert all(fault.injected for fault in faults)
        return sum(fault.injected for fault in faults)


def check_segments(run: Run, job: JsonObject, generation: int, before: JsonObject) -> None:
    """Check that an attempt ran none but unfinished segments, and lost no finished one."""
    had = IndexSet.parse(before.get("segments", {}).get("completed"))
    ran = segments_run(run, generation)
    total = job["status"].get("segments", {}).get("total", 0)
    assert not len(ran & had), f"{ran} ran, although {had} were complete"
    assert not len(ran) or ran == IndexSet.span(total) - had
    assert had <= IndexSet.parse(job["status"].get("segments", {}).get("completed"))


async def check_complete(run: Run, books: Library, job: JsonObject) -> None:
    """Check that the second version is there, whole, and that all is quiet."""
    assert job["status"]["phase"] == "completed", job["status"]
    assert await books.look() == 2
    books.check_whole(job)
    await run.at_rest()


async def slowly(call: StoreCall, forward: Forward) -> Answer:
    """Keep a request for a while."""
    await asyncio.sleep(2)
    return await forward()


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk of its own, which is soon full."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(ballast: Path) -> Act:
    """Fill the store's disk to the last byte before a request is sent on."""

    async def act(call: StoreCall, forward: Forward) -> Answer:
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        return await forward()

    return act


ONE_BY_ONE = {
    "refuses with 403": (lambda books: refuse(403), FORBIDDEN),
    "fails with 500": (lambda books: refuse(500), UNAVAILABLE),
    "fails with 503": (lambda books: refuse(503), UNAVAILABLE),
    "connection reset": (lambda books: reset, UNAVAILABLE),
}
WRITES_ONLY = {
    "is full (507)": (lambda books: refuse(507), UNAVAILABLE),
    "reset in the middle of a body": (lambda books: books.proxy.tear, UNAVAILABLE),
    "answer lost": (lambda books: lose_answer, UNAVAILABLE),
}
SAMPLE = ("PUT copy", "PUT output", "PUT pointer")


@pytest.mark.parametrize("what", [*ONE_BY_ONE, *WRITES_ONLY] if FULL else ["answer lost"])
async def test_a_store_that_fails_fails_the_attempt_and_a_retry_goes_on(
    stand: Stand, s3_server: S3Server, what: str
) -> None:
    """Invariants 2, 3, 5, 6, 8."""
    act_on, code = (ONE_BY_ONE | WRITES_ONLY)[what]
    wanted = (list(PLACES) if what in ONE_BY_ONE else WRITES) if FULL else SAMPLE
    # Each stage's places are a walk of their own, side by side.
    cases = {
        f"{what}: {', '.join(places)}": partial(walk, server=s3_server, places=places, act_on=act_on, code=code)
        for places in (
            [name for name in wanted if PLACES[name].stage == PREPARE],
            [name for name in wanted if PLACES[name].stage != PREPARE],
        )
    }
    await stand.each(f"store {what}", cases, invariants=INVARIANTS)


@pytest.mark.skipif(not FULL, reason="waits for the client's patience to end: part of `make faults`")
async def test_a_store_that_hangs_fails_the_attempt_and_a_retry_goes_on(stand: Stand, s3_server: S3Server) -> None:
    """Invariants 2, 3, 5, 6, 8."""
    cases = {
        place: partial(
            walk, server=s3_server, places=[place], act_on=lambda books: hang(asyncio.Event()), code=UNAVAILABLE
        )
        for place in ("GET source", *SAMPLE)
    }
    await stand.each("store hangs", cases, invariants=INVARIANTS)


@needs_mounts
async def test_a_full_disk_fails_the_attempt_and_a_retry_goes_on(stand: Stand, tmp_path: Path) -> None:
    """Invariants 2, 3, 5, 6, 8."""
    with small_disk(tmp_path / "disk") as disk, serving(disk) as server:
        ballast = disk / "ballast"
        play = partial(
            walk,
            server=server,
            places=WRITES if FULL else SAMPLE,
            act_on=lambda books: fill(ballast),
            code=UNAVAILABLE,
            mend=ballast.unlink,
        )
        await stand.each("store's disk full", {"disk full": play}, invariants=INVARIANTS)


async def test_a_store_that_fails_once_needs_no_retry(stand: Stand, s3_server: S3Server) -> None:
    """Invariants 2, 5, 6, 8."""
    acts = {
        "answer lost": lambda books: lose_answer,
        "reset in the middle of a body": lambda books: books.proxy.tear,
        "connection reset": lambda books: reset,
        "fails with 503": lambda books: refuse(503),
        "is slow": lambda books: slowly,
    }
    cases = {
        what: partial(strike, server=s3_server, act_on=act_on)
        for what, act_on in acts.items()
        if FULL or what == "answer lost"
    }
    await stand.each("store fails once, or is slow", cases, invariants=(2, 5, 6, 8))
