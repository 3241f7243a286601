"""One life of a batch, again and again: at each write of the operator in turn it dies, or the request fares badly.

The life: one of three documents is not where it should be, a retry by annotation fails again, a retry by patch
completes. However it was disturbed, it ends as the undisturbed one, and each document was run as often.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, Final

import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.kube import MERGE_PATCH, batch_path
from support.builders import ingestion_batch

from simulation.api import BATCHES, INGESTION_JOBS
from simulation.cluster import NAMESPACE, Call, Fate, SimulatedCluster

FULL: Final = os.environ.get("INGESTION_FAULTS") == "full"
DEATHS: Final = ("killed before it is sent", "killed before its answer", "killed, and it arrives later")
FATES: Final = (Fate.LOST_ANSWER, Fate.REFUSED_409, Fate.LOST_REQUEST, Fate.LATE, Fate.REFUSED_500, Fate.REFUSED_504)
DOCUMENTS: Final = 3
MISSING: Final = {"Manual 0", "Manual 2"}
# A conflict and an error are looked at again at once: none of these may need the resync, two minutes later.
PATIENCE_SECONDS: Final = 90.0
MOST_STEPS: Final = 10_000


def is_for_the_batch(call: Call) -> bool:
    """Return whether a request writes for a batch: what its jobs write themselves is another test's."""
    of_batches = f"/{BATCHES}/" in call.path
    of_jobs = f"/{INGESTION_JOBS}" in call.path and not call.path.endswith("/status")
    return call.writes and (of_batches or of_jobs)


class Life:
    """A batch's life in a cluster of its own, with one write disturbed.

    Args:
        number: which of the writes for the batch is disturbed; a number beyond the last disturbs none.
        disaster: what becomes of it: a `Fate`, or one of DEATHS.
    """

    def __init__(self, number: int, disaster: Fate | str) -> None:
        self.cluster = SimulatedCluster(single=True)
        self.number = number
        self.disaster = disaster
        self.writes = 0

    def run(self) -> Any:
        """Live it, and return how it ended."""
        try:
            self.cluster.kubelet.missing = set(MISSING)
            self.cluster.start_operator()
            self.cluster.api.request("POST", batch_path(NAMESPACE), body=ingestion_batch(documents=DOCUMENTS))
            self.until("partial_failure", 0)
            self.ask({"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: "now"}}})
            self.until("partial_failure", 1)
            self.cluster.kubelet.missing.clear()
            self.ask({"spec": {"retryGeneration": 2}})
            self.until("completed", 2)
            while self.cluster.late:
                self.cluster.arrive(self.cluster.late[0])
            self.go_on(PATIENCE_SECONDS, lambda: False)
            before = len(self.cluster.api.changes)
            self.go_on(10 * PATIENCE_SECONDS, lambda: False)
            assert len(self.cluster.api.changes) == before, "invariant 8: it writes at rest"
            assert not self.cluster.broken.found, self.cluster.broken.found
            return self.ending()
        finally:
            self.cluster.close()

    def ask(self, body: JsonObject) -> None:
        path = batch_path(NAMESPACE, "manuals")
        self.cluster.api.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    def live(self) -> JsonObject:
        found = self.cluster.api.find(BATCHES, NAMESPACE, "manuals")
        assert found is not None
        return found

    def until(self, phase: str, generation: int) -> None:
        def there() -> bool:
            status = self.live()["status"]
            return bool(status["phase"] == phase and status.get("endedGeneration") == generation)

        self.go_on(PATIENCE_SECONDS, there)
        assert there(), f"invariant 5: {generation} is not {phase}: {self.live()['status']}"

    def go_on(self, seconds: float, wish: Any) -> None:
        """Let everything go on, and the disaster come when it is its write's turn."""
        end = self.cluster.seconds + seconds
        for _ in range(MOST_STEPS):
            if wish():
                return
            calls = [call for call in self.cluster.calls if is_for_the_batch(call)]
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
        status, jobs = self.live()["status"], self.cluster.api.all(INGESTION_JOBS)
        places = {job["metadata"]["uid"]: job["metadata"]["labels"][names.LABEL_BATCH_INDEX] for job in jobs}
        return {
            "documents": status["documents"],
            "jobs": sorted(
                (places[job["metadata"]["uid"]], job["spec"]["retryGeneration"], job["spec"]["parentGeneration"])
                for job in jobs
            ),
            "triggers": sorted(attempt["trigger"] for job in jobs for attempt in job["status"]["attempts"]),
            "ran": Counter((places[uid], generation) for uid, generation, _ in self.cluster.kubelet.started),
        }


@pytest.mark.parametrize("disaster", [*DEATHS, *(FATES if FULL else FATES[:2])], ids=str)
def test_a_disaster_at_every_write_forgets_no_document_and_runs_none_twice(disaster: Fate | str) -> None:
    """Invariants 1 to 5, and 8."""
    undisturbed = Life(0, disaster)
    ending = undisturbed.run()
    assert ending["documents"]["progress"] == "3/3"
    assert ending["jobs"] == [("0", 2, 2), ("1", 0, 0), ("2", 2, 2)]
    assert ending["ran"] == Counter(
        {(place, 0): 1 for place in "012"} | {(place, n): 1 for place in "02" for n in (1, 2)}
    )
    assert undisturbed.writes > 12
    for number in range(1, undisturbed.writes + 1):
        assert Life(number, disaster).run() == ending, f"write {number}"
