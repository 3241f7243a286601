"""An operator whose clock is wrong by five minutes: the times that it writes are wrong, and nothing else."""

from __future__ import annotations

import pytest
from faults.proxy import Fault, crash_after
from faults.rig import Api, Run
from faults.scenarios import annotation, cancel_then_retry
from faults.stand import FULL, Arrange, Stand

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(3600)]

WRONG_SECONDS = 300.0


def wrong_by(seconds: float, *, jump_at: int) -> Arrange:
    """Have the operator's clock wrong from the start, and wrong the other way after a crash in the middle."""

    def arrange(run: Run, api: Api | None) -> Fault:
        run.operator.clock_seconds = seconds
        run.operator.kill()

        def jump() -> None:
            run.operator.clock_seconds = -seconds
            run.operator.kill()

        return run.proxy.add(lambda call: call.number == jump_at, crash_after(jump))

    return arrange


@pytest.mark.skipif(not FULL, reason="part of `make faults`")
async def test_a_wrong_clock_changes_times_alone(stand: Stand) -> None:
    """Invariants 1, 2, 3, 4, 5, 8."""
    for scenario in (annotation, cancel_then_retry):
        cases = {
            f"{seconds:+.0f} s, turned at change {jump_at}": wrong_by(seconds, jump_at=jump_at)
            for seconds in (WRONG_SECONDS, -WRONG_SECONDS)
            for jump_at in (7, 13, 19)
        }
        await stand.survive(
            scenario,
            cases,
            invariants=(1, 2, 3, 4, 5, 8),
            fault_of=lambda case: "operator's clock wrong by five minutes, either way",
        )
