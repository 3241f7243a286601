"""The life of a document (`lives`): three of four segments are done, and the one that failed is retried twice."""

from __future__ import annotations

from typing import Any

from ingestion_crds.kube import ingestion_path
from support.builders import ingestion_job
from support.campaign import record

from simulation.api import INGESTION_JOBS
from simulation.cluster import NAMESPACE, Call, Fate, SimulatedCluster
from simulation.controllers import Verdict
from simulation.lives import DISASTERS, LATE, Life, live_on
from simulation.oracle import Oracle
from simulation.stories import PATH


class DocumentLife(Life):
    path = PATH
    resource = INGESTION_JOBS
    name = "handbook"
    generation = "observedRetryGeneration"
    patience = 60.0
    most_steps = 5_000

    def begin(self) -> None:
        self.cluster = SimulatedCluster(segments=4)
        self.oracle = Oracle(self.cluster)
        self.cluster.verdicts["process_segments", 2] = Verdict(code="EmbeddingRejected")
        self.cluster.start_operator()
        self.cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job())

    def check_rest(self) -> None:
        self.oracle.at_rest(self.live())

    def counts(self, call: Call) -> bool:
        return call.writes and not call.tells

    def ending(self) -> Any:
        status, ran = self.live()["status"], self.cluster.kubelet.started
        return {
            "segments": status["segments"],
            "attempts": [
                {key: attempt.get(key) for key in ("generation", "trigger", "segments", "completed", "failed", "codes")}
                for attempt in status["attempts"]
            ],
            "ran": sorted((generation, -1 if segment is None else segment) for _, generation, segment in ran),
            "children": len(self.cluster.api.all("jobs")),
            # One whose creation comes too late stays (docs/reliability.md).
            "files": None if self.disaster in LATE else len(self.cluster.api.all("configmaps")),
        }


@DISASTERS
def test_a_disaster_at_every_write_changes_nothing(disaster: Fate | str) -> None:
    """Invariants 1 to 6: each segment's worker runs as often as undisturbed, too."""
    ending, writes = live_on(DocumentLife, disaster)
    assert ending["segments"]["progress"] == "4/4"
    assert [entry for entry in ending["ran"] if entry[1] >= 0] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (2, 2)]
    assert writes > 20
    words = disaster if isinstance(disaster, str) else f"request: {disaster.value}"
    record(f"simulation, every write: {words}", injected=writes, survived=writes, invariants=range(1, 7))
