"""Faults in numbers: many runs side by side, each compared with a run without a fault, and the tally of it all."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from faults.rig import Api, Outcome, Run, api_of, converged, running, settled_outcome
from faults.scenarios import Scenario, segmented
from ingestion_crds.kube import KubeClient
from local_cluster.control_plane import ControlPlane
from support.campaign import record

FULL = os.environ.get("INGESTION_FAULTS") == "full"
SIDE_BY_SIDE = 8
_UNSURE = 5

_REFERENCES: dict[str, Reference] = {}


class Struck(Protocol):
    """Counts how often a fault was injected."""

    injected: int


Arrange = Callable[[Run, Api | None], Struck]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a scenario comes to without a fault, and what each process changed on the way."""

    outcome: Outcome
    changes: Mapping[str, list[str]]

    @property
    def unsure(self) -> range:
        """The numbers of the operator's last changes, which another run may not come to.

        Counts are written while time passes: on a busy machine runs differ by up to five requests.
        """
        last = len(self.changes["operator"])
        return range(last - _UNSURE + 1, last + 1)


@dataclass(frozen=True, kw_only=True)
class Stand:
    """Where runs are made."""

    control_plane: ControlPlane
    kube: KubeClient
    folder: Path

    async def reference(self, scenario: Scenario) -> Reference:
        """Play a scenario without a fault, once in this process."""
        name = scenario.__name__
        if name not in _REFERENCES:
            async with AsyncExitStack() as stack:
                run, api = await self._start(stack, scenario)
                await scenario(run, api)
                outcome = await settled_outcome(run)
                await converged(run, outcome)
                changes = {"operator": [str(call) for call in run.proxy.calls]}
                if api is not None:
                    changes["API"] = [str(call) for call in api.proxy.calls]
                _REFERENCES[name] = Reference(outcome=outcome, changes=changes)
        return _REFERENCES[name]

    async def survive(
        self,
        scenario: Scenario,
        cases: Mapping[str, Arrange],
        *,
        invariants: tuple[int, ...],
        fault_of: Callable[[str], str] = lambda case: case,
        may_miss: Collection[str] = (),
        exactly: bool = True,
    ) -> None:
        """Play a scenario once with each fault, several side by side; each must come to what the reference came to.

        Args:
            scenario: what users do.
            cases: how each fault is arranged before the scenario begins, by a name of its own.
            invariants: those that the comparison checks.
            fault_of: the row of the table that a case belongs to.
            may_miss: cases whose fault may find nothing to strike; any other that was never injected tested nothing.
            exactly: False where answers are lost behind the proxy (`Outcome.at_least`).
        """
        expected = (await self.reference(scenario)).outcome
        lanes = asyncio.Semaphore(SIDE_BY_SIDE)
        wrong: dict[str, str] = {}
        struck: dict[str, Struck] = {}

        async def one(case: str, arrange: Arrange) -> None:
            async with lanes:
                try:
                    async with AsyncExitStack() as stack:
                        run, api = await self._start(stack, scenario)
                        struck[case] = arrange(run, api)
                        await scenario(run, api)
                        await converged(run, expected, exactly=exactly)
                        assert struck[case].injected or case in may_miss, "the fault was never injected"
                except Exception:
                    wrong[case] = traceback.format_exc()

        await asyncio.gather(*(one(case, arrange) for case, arrange in cases.items()))
        for fault in dict.fromkeys(map(fault_of, cases)):
            counted = {case: struck[case].injected for case in cases if fault_of(case) == fault and case in struck}
            survived = sum(count for case, count in counted.items() if case not in wrong)
            record(fault, injected=sum(counted.values()), survived=survived, invariants=invariants)
        assert not wrong, "\n\n".join(f"{case}\n{error}" for case, error in wrong.items())

    async def each(
        self,
        fault: str | Callable[[str], str],
        cases: Mapping[str, Callable[[Run], Awaitable[int]]],
        *,
        invariants: tuple[int, ...],
        may_miss: Collection[str] = (),
    ) -> None:
        """Run cases that check by themselves what they come to, several side by side.

        Args:
            fault: the row of the table, or what says to which row a case belongs.
            cases: each plays in a run of its own and returns how often it injected the fault.
            invariants: those that the cases check.
            may_miss: cases whose fault may find nothing to strike; any other that injected nothing tested nothing.
        """
        lanes = asyncio.Semaphore(SIDE_BY_SIDE)
        wrong: dict[str, str] = {}
        injected: dict[str, int] = {}

        async def one(case: str, play: Callable[[Run], Awaitable[int]]) -> None:
            async with lanes:
                try:
                    async with self.run() as run:
                        injected[case] = await play(run)
                        assert injected[case] or case in may_miss, "the fault was never injected"
                except Exception:
                    wrong[case] = traceback.format_exc()

        await asyncio.gather(*(one(case, play) for case, play in cases.items()))
        row_of = (lambda case: fault) if isinstance(fault, str) else fault
        for row in dict.fromkeys(map(row_of, cases)):
            survived = sum(count for case, count in injected.items() if case not in wrong and row_of(case) == row)
            failed = sum(row_of(case) == row for case in wrong)
            record(row, injected=survived + failed, survived=survived, invariants=invariants)
        assert not wrong, "\n\n".join(f"{case}\n{error}" for case, error in wrong.items())

    def run(self) -> AbstractAsyncContextManager[Run]:
        """Return a run in a namespace of its own, as an async context manager."""
        return running(control_plane=self.control_plane, kube=self.kube, folder=self.folder)

    async def _start(self, stack: AsyncExitStack, scenario: Scenario) -> tuple[Run, Api | None]:
        run = await stack.enter_async_context(self.run())
        api = await stack.enter_async_context(api_of(run)) if scenario is segmented else None
        return run, api
