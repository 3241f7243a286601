"""One life of a document, again and again: at each write of the operator in turn it dies, or the request fares badly.

The life: three of four segments are done, a retry by annotation fails again, a retry by patch completes. However it
was disturbed, it ends as the undisturbed one, and each segment's worker ran as often.
"""

from __future__ import annotations

import os
from typing import Any, Final

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.kube import MERGE_PATCH, ingestion_path
from support.builders import ingestion_job
from support.campaign import record

from simulation.api import INGESTION_JOBS
from simulation.cluster import NAMESPACE, Call, Fate, SimulatedCluster
from simulation.controllers import Verdict
from simulation.oracle import Oracle
from simulation.stories import PATH

FULL: Final = os.environ.get("INGESTION_FAULTS") == "full"
DEATHS: Final = ("killed before it is sent", "killed before its answer", "killed, and it arrives later")
FATES: Final = (Fate.LOST_ANSWER, Fate.REFUSED_409, Fate.LOST_REQUEST, Fate.LATE, Fate.REFUSED_500, Fate.REFUSED_504)
LATE: Final = (DEATHS[2], Fate.LATE)
# A conflict and an error are looked at again at once: none of these may need the resync, two minutes later.
PATIENCE_SECONDS: Final = 60.0
MOST_STEPS: Final = 5_000


class Life:
    """A document's life in a cluster of its own, with one write disturbed.

    Args:
        number: which of the operator's writes is disturbed; a number beyond the last disturbs none.
        disaster: what becomes of it: a `Fate`, or one of DEATHS.
    """

    def __init__(self, number: int, disaster: Fate | str) -> None:
        self.cluster = SimulatedCluster(segments=4)
        self.oracle = Oracle(self.cluster)
        self.number = number
        self.disaster = disaster
        self.writes = 0

    def run(self) -> Any:
        """Live it, and return how it ended."""
        try:
            self.cluster.verdicts["process_segments", 2] = Verdict(code="EmbeddingRejected")
            self.cluster.start_operator()
            self.cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job())
            self.until("partial_failure", 0)
            self.ask({"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: "now"}}})
            self.until("partial_failure", 1)
            self.cluster.verdicts.clear()
            self.ask({"spec": {"retryGeneration": 2}})
            self.until("completed", 2)
            while self.cluster.late:
                self.cluster.arrive(self.cluster.late[0])
            self.go_on(PATIENCE_SECONDS, lambda: False)
            self.oracle.at_rest(self.live())
            return self.ending()
        finally:
            self.cluster.close()

    def ask(self, body: JsonObject) -> None:
        self.cluster.api.request("PATCH", PATH, body=body, content_type=MERGE_PATCH)

    def live(self) -> JsonObject:
        found = self.cluster.api.find(INGESTION_JOBS, NAMESPACE, "handbook")
        assert found is not None
        return found

    def until(self, phase: str, generation: int) -> None:
        def there() -> bool:
            status = self.live()["status"]
            return bool(status["phase"] == phase and status.get("observedRetryGeneration") == generation)

        self.go_on(PATIENCE_SECONDS, there)
        assert there(), f"invariant 5: {generation} is not {phase}: {self.live()['status']}"

    def go_on(self, seconds: float, wish: Any) -> None:
        """Let everything go on, and the disaster come when it is its write's turn."""
        end = self.cluster.seconds + seconds
        for _ in range(MOST_STEPS):
            if wish():
                return
            calls = [call for call in self.cluster.calls if call.writes and not call.tells]
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
        raise AssertionError(f"invariant 8: {MOST_STEPS} steps, and no end")

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

    def ending(self) -> Any:
        status = self.live()["status"]
        return {
            "segments": status["segments"],
            "attempts": [
                {key: attempt.get(key) for key in ("generation", "trigger", "segments", "completed", "failed", "codes")}
                for attempt in status["attempts"]
            ],
            "ran": sorted((generation, -1 if segment is None else segment) for _, generation, segment in self.ran),
            "children": len(self.cluster.api.all("jobs")),
            # One whose creation comes too late stays (docs/reliability.md).
            "files": None if self.disaster in LATE else len(self.cluster.api.all("configmaps")),
        }

    @property
    def ran(self) -> list[tuple[str, int, int | None]]:
        return self.cluster.kubelet.started


@pytest.mark.parametrize("disaster", [*DEATHS, *(FATES if FULL else FATES[:2])], ids=str)
def test_a_disaster_at_every_write_changes_nothing(disaster: Fate | str) -> None:
    """Invariants 1 to 6."""
    undisturbed = Life(0, disaster)
    ending = undisturbed.run()
    assert ending["segments"]["progress"] == "4/4"
    assert [entry for entry in ending["ran"] if entry[1] >= 0] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (2, 2)]
    assert undisturbed.writes > 20
    for number in range(1, undisturbed.writes + 1):
        assert Life(number, disaster).run() == ending, f"write {number}"
    words = disaster if isinstance(disaster, str) else f"request: {disaster.value}"
    record(
        f"simulation, every write: {words}",
        injected=undisturbed.writes,
        survived=undisturbed.writes,
        invariants=range(1, 7),
    )
