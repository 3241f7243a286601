"""What may happen to the operator's watch streams: missed, late, doubled and outdated events, and streams that end.

kopf ends the process at an answer to its watch that it has no rule for, and Kubernetes starts it again; that is the
cure. The watch of Jobs is the operator's own, and goes on.
"""

from __future__ import annotations

from typing import Final

import pytest
from faults.proxy import refuse, reset
from faults.rig import Api, Run
from faults.scenarios import annotation
from faults.stand import FULL, Arrange, Stand, Struck
from faults.watch_faults import Cut, Dropped, Duplicated, Ended, Failing, Frozen, Late, WatchFault

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

INVARIANTS: Final = (1, 2, 3, 4, 5, 8)
BY_KOPF: Final = "ingestionjobs"
RESOURCES: Final = (BY_KOPF, "jobs")
# Without events the operator looks again by itself: every minute at a Job that runs, every two at everything.
LONG_SECONDS: Final = 1200.0


def stream(fault: WatchFault, *, patience: float | None = None, ends: bool = False) -> Arrange:
    """Put a fault on the operator's streams.

    Args:
        fault: what happens to them.
        patience: seconds that the scenario may take.
        ends: kopf ends the process at this fault, which is then started again.
    """

    def arrange(run: Run, api: Api | None) -> Struck:
        run.proxy.watch_fault = fault
        run.operator.may_end = ends
        run.patience = patience or run.patience
        return fault

    return arrange


def gone(resource: str) -> Arrange:
    """Answer 410 when a stream is opened."""

    def arrange(run: Run, api: Api | None) -> Struck:
        run.operator.may_end = resource == BY_KOPF
        return run.proxy.add(
            lambda call: (call.verb, call.resource) == ("watch", resource), refuse(410, reason="Expired"), times=2
        )

    return arrange


def gone_beside_a_reset(resource: str, other: str) -> Arrange:
    """Answer 410 to one stream while the other one cannot be opened."""

    def arrange(run: Run, api: Api | None) -> Struck:
        run.proxy.add(lambda call: (call.verb, call.resource) == ("watch", other), reset, times=8)
        return gone(resource)(run, api)

    return arrange


async def test_watch_events(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    cases: dict[str, Arrange] = {}
    for resource in RESOURCES:
        cases |= {
            f"watch events twice, and outdated ones after them: {resource}": stream(Duplicated(resource=resource)),
            f"watch events late: {resource}": stream(Late(resource=resource, times=10)),
            f"watch cut in the middle of an event: {resource}": stream(Cut(resource=resource, times=5)),
            f"watch ends in the middle of an event: {resource}": stream(
                Ended(resource=resource, times=5), ends=resource == BY_KOPF
            ),
            f"410 Gone in a watch: {resource}": stream(Failing(resource=resource, times=5)),
            f"410 Gone as the answer to a watch: {resource}": gone(resource),
            f"500 in a watch: {resource}": stream(
                Failing(resource=resource, times=3, code=500, reason="InternalError"), ends=resource == BY_KOPF
            ),
        }
    for resource, other in (RESOURCES, RESOURCES[::-1]):
        case = f"410 Gone as the answer to a watch while another cannot be opened: {resource}"
        cases[case] = gone_beside_a_reset(resource, other)
    if not FULL:
        cases = {case: arrange for case, arrange in cases.items() if case.startswith(("watch events twice", "410"))}
    await stand.survive(annotation, cases, invariants=INVARIANTS, fault_of=lambda case: case.partition(":")[0])


@pytest.mark.skipif(not FULL, reason="the operator looks again after minutes: part of `make faults`")
async def test_lost_watch_events_cost_minutes_and_no_job(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    cases: dict[str, Arrange] = {}
    for resource in (*RESOURCES, ",".join(RESOURCES)):
        frozen, dropped = Frozen(resource=resource, times=3), Dropped(resource=resource, share=0.6)
        cases |= {
            f"watch frozen: {resource}": stream(frozen, patience=LONG_SECONDS),
            f"watch events dropped: {resource}": stream(dropped, patience=LONG_SECONDS),
            f"all watch events dropped: {resource}": stream(Dropped(resource=resource), patience=LONG_SECONDS),
        }
    await stand.survive(annotation, cases, invariants=INVARIANTS, fault_of=lambda case: case.partition(":")[0])
