"""What an API server, and the network before it, may do to the operator's requests: each kind on each verb."""

from __future__ import annotations

import asyncio
from itertools import product
from typing import Final

import pytest
from faults.proxy import Act, Fault, deny, hang, lose_answer, refuse, reset
from faults.rig import Api, Run
from faults.scenarios import annotation, suspend_and_resume
from faults.stand import FULL, Arrange, Stand

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

INVARIANTS: Final = (1, 2, 3, 4, 5, 8)
READS: Final = ("get ingestionjobs", "list jobs", "list pods")
STREAMS: Final = ("list ingestionjobs", "watch ingestionjobs", "watch jobs")
WRITES: Final = (
    "patch ingestionjobs/status",
    "patch ingestionjobs",
    "create configmaps",
    "create jobs",
    "create events",
    "delete configmaps",
    "delete jobs",
    "deletecollection pods",
)
ANYWHERE: Final[dict[str, Act]] = {
    "429 Too Many Requests": refuse(429, retry_after=1),
    "500 Internal Error": refuse(500),
    "504 Timeout": refuse(504),
    "connection reset before the request is carried out": reset,
}
ON_WRITES: Final[dict[str, Act]] = {
    "409 Conflict": refuse(409),
    "500 although it is carried out": deny(500),
    "504 although it is carried out": deny(504),
    "answer lost by a connection reset": lose_answer,
}
SAMPLE: Final = (
    "500 Internal Error: list jobs",
    "409 Conflict: patch ingestionjobs/status",
    "429 Too Many Requests: create configmaps",
    "answer lost by a connection reset: create jobs",
    "504 although it is carried out: patch ingestionjobs",
    "connection reset before the request is carried out: deletecollection pods",
)


def on(what: str, act: Act, *, times: int = 2) -> Arrange:
    """Do something to the first requests of a kind."""

    def arrange(run: Run, api: Api | None) -> Fault:
        return run.proxy.add(lambda call: str(call) == what, act, times=times)

    return arrange


def kind_of(case: str) -> str:
    return case.partition(":")[0]


async def test_errors_on_each_verb(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    everywhere = product(ANYWHERE.items(), (*READS, *STREAMS, *WRITES))
    cases = {f"{kind}: {what}": on(what, act) for (kind, act), what in everywhere}
    cases |= {f"{kind}: {what}": on(what, act) for (kind, act), what in product(ON_WRITES.items(), WRITES)}
    if not FULL:
        cases = {case: cases[case] for case in SAMPLE}
    await stand.survive(annotation, cases, invariants=INVARIANTS, fault_of=kind_of)


@pytest.mark.skipif(not FULL, reason="a request that hangs takes half a minute: part of `make faults`")
async def test_a_hang_on_each_verb(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    never = asyncio.Event()
    cases = {f"hang: {what}": on(what, hang(never), times=1) for what in (*READS, *STREAMS, *WRITES)}
    await stand.survive(annotation, cases, invariants=INVARIANTS, fault_of=kind_of)


async def test_errors_on_the_patch_of_a_job(stand: Stand) -> None:
    """Invariants 1, 2, 3, 5, 8."""
    cases = {f"{kind}: patch jobs": on("patch jobs", act) for kind, act in (ANYWHERE | ON_WRITES).items()}
    if not FULL:
        cases = dict(list(cases.items())[-1:])
    await stand.survive(suspend_and_resume, cases, invariants=INVARIANTS, fault_of=kind_of)
