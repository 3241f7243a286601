"""The life of a batch (`lives`): two of three documents are not where they should be, and are retried twice."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from ingestion_crds import constants as names
from ingestion_crds.kube import batch_path
from support.builders import ingestion_batch

from simulation.api import BATCHES, INGESTION_JOBS
from simulation.cluster import NAMESPACE, Call, Fate, SimulatedCluster
from simulation.lives import DISASTERS, Life, live_on

DOCUMENTS: Final = 3
MISSING: Final = {"Manual 0", "Manual 2"}


class BatchLife(Life):
    path = batch_path(NAMESPACE, "manuals")
    resource = BATCHES
    name = "manuals"
    generation = "endedGeneration"
    patience = 90.0
    most_steps = 10_000

    def begin(self) -> None:
        self.cluster = SimulatedCluster(single=True)
        self.cluster.kubelet.missing = set(MISSING)
        self.cluster.start_operator()
        self.cluster.api.request("POST", batch_path(NAMESPACE), body=ingestion_batch(documents=DOCUMENTS))

    def check_rest(self) -> None:
        before = len(self.cluster.api.changes)
        self.go_on(10 * self.patience, lambda: False)
        assert len(self.cluster.api.changes) == before, "invariant 8: it writes at rest"
        assert not self.cluster.broken.found, self.cluster.broken.found

    def counts(self, call: Call) -> bool:
        """What its jobs write themselves is another life's."""
        of_batches = f"/{BATCHES}/" in call.path
        of_jobs = f"/{INGESTION_JOBS}" in call.path and not call.path.endswith("/status")
        return call.writes and (of_batches or of_jobs)

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


@DISASTERS
def test_a_disaster_at_every_write_forgets_no_document_and_runs_none_twice(disaster: Fate | str) -> None:
    """Invariants 1 to 5, and 8."""
    ending, writes = live_on(BatchLife, disaster)
    assert ending["documents"]["progress"] == "3/3"
    assert ending["jobs"] == [("0", 2, 2), ("1", 0, 0), ("2", 2, 2)]
    assert ending["ran"] == Counter(
        {(place, 0): 1 for place in "012"} | {(place, n): 1 for place in "02" for n in (1, 2)}
    )
    assert writes > 12
