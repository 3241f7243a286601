"""One life, again and again: at each write of the operator in turn it dies, or the request fares badly.

The life: something fails, a retry by annotation fails again, a retry by patch completes. However it was disturbed, it
ends as the undisturbed one.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.kube import MERGE_PATCH

from simulation.cluster import NAMESPACE, Call, Fate, SimulatedCluster

FULL: Final = os.environ.get("INGESTION_FAULTS") == "full"
DEATHS: Final = ("killed before it is sent", "killed before its answer", "killed, and it arrives later")
FATES: Final = (Fate.LOST_ANSWER, Fate.REFUSED_409, Fate.LOST_REQUEST, Fate.LATE, Fate.REFUSED_500, Fate.REFUSED_504)
LATE: Final = (DEATHS[2], Fate.LATE)
DISASTERS: Final = pytest.mark.parametrize("disaster", [*DEATHS, *(FATES if FULL else FATES[:2])], ids=str)


class Life(ABC):
    """A life in a cluster of its own, with one write disturbed.

    Args:
        number: which of the operator's writes is disturbed; a number beyond the last disturbs none.
        disaster: what becomes of it: a `Fate`, or one of DEATHS.
    """

    cluster: SimulatedCluster
    # Of what lives.
    path: str
    resource: str
    name: str
    # In its status: which attempt has ended.
    generation: str
    # A conflict and an error are looked at again at once: none of these may need the resync, two minutes later.
    patience: float
    most_steps: int

    def __init__(self, number: int, disaster: Fate | str) -> None:
        self.number = number
        self.disaster = disaster
        self.writes = 0

    @abstractmethod
    def begin(self) -> None:
        """Start the operator, and create what cannot be completed yet."""

    @abstractmethod
    def check_rest(self) -> None:
        """Check what holds once nothing goes on."""

    @abstractmethod
    def ending(self) -> Any:
        """Return how it ended, but for what differs from one life to the next."""

    @abstractmethod
    def counts(self, call: Call) -> bool:
        """Return whether a request is one of the writes that are disturbed in turn."""

    def run(self) -> Any:
        """Live it, and return how it ended."""
        try:
            self.begin()
            self.until("partial_failure", 0)
            self.ask({"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: "now"}}})
            self.until("partial_failure", 1)
            self.cluster.verdicts.clear()
            self.cluster.kubelet.missing.clear()
            self.ask({"spec": {"retryGeneration": 2}})
            self.until("completed", 2)
            while self.cluster.late:
                self.cluster.arrive(self.cluster.late[0])
            self.go_on(self.patience, lambda: False)
            self.check_rest()
            return self.ending()
        finally:
            self.cluster.close()

    def ask(self, body: JsonObject) -> None:
        self.cluster.api.request("PATCH", self.path, body=body, content_type=MERGE_PATCH)

    def live(self) -> JsonObject:
        found = self.cluster.api.find(self.resource, NAMESPACE, self.name)
        assert found is not None
        return found

    def until(self, phase: str, generation: int) -> None:
        def there() -> bool:
            status = self.live()["status"]
            return bool(status["phase"] == phase and status.get(self.generation) == generation)

        self.go_on(self.patience, there)
        assert there(), f"invariant 5: {generation} is not {phase}: {self.live()['status']}"

    def go_on(self, seconds: float, wish: Callable[[], bool]) -> None:
        """Let everything go on, and the disaster come when it is its write's turn."""
        end = self.cluster.seconds + seconds
        for _ in range(self.most_steps):
            if wish():
                return
            calls = [call for call in self.cluster.calls if self.counts(call)]
            if calls:
                self.writes += 1
                if self.writes == self.number:
                    self.strike(calls[0])
                else:
                    self.cluster.settle(calls[0])
            elif not self.cluster.step(0):
                due = self.cluster.next_time()
                if due is None or self.cluster.seconds + due > end:
                    return
                self.cluster.pass_time(due)
        raise AssertionError(f"invariant 8: {self.most_steps} steps, and no end")

    def strike(self, call: Call) -> None:
        if isinstance(self.disaster, Fate):
            self.cluster.settle(call, self.disaster)
            return
        self.cluster.kill(self.cluster.operators[0])
        if self.disaster == DEATHS[1]:
            self.cluster.commit(call)
        elif self.disaster == DEATHS[2]:
            self.cluster.late.append(call)
        self.cluster.start_operator()


def live_on(life: type[Life], disaster: Fate | str) -> tuple[Any, int]:
    """Live once undisturbed, then once for each write, with that one disturbed.

    Returns:
        How all of them ended, and how many writes there are.
    """
    undisturbed = life(0, disaster)
    ending = undisturbed.run()
    for number in range(1, undisturbed.writes + 1):
        assert life(number, disaster).run() == ending, f"write {number}"
    return ending, undisturbed.writes
