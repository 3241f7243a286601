"""What the stories about one job, `handbook`, have in common."""

from __future__ import annotations

from typing import Any, Final

import pytest
from ingestion_crds import JsonObject
from ingestion_crds.constants import Stage
from ingestion_crds.kube import ingestion_path, job_path
from support.builders import ingestion_job

from simulation.api import INGESTION_JOBS
from simulation.cluster import NAMESPACE, Call, RunningOperator, SimulatedCluster
from simulation.controllers import Verdict

PATH: Final = ingestion_path(NAMESPACE, "handbook")
KEY: Final = f"{NAMESPACE}/handbook"
SEGMENTS: Final = 40
HANGS: Final = Verdict(hangs=True)


def live(cluster: SimulatedCluster, name: str = "handbook") -> JsonObject:
    """Return an IngestionJob as it is stored."""
    found = cluster.api.find(INGESTION_JOBS, NAMESPACE, name)
    assert found is not None
    return found


def stalled(cluster: SimulatedCluster, name: str = "handbook") -> JsonObject:
    """Return a job's condition Stalled."""
    conditions = live(cluster, name)["status"]["conditions"]
    found: JsonObject = next(item for item in conditions if item["type"] == "Stalled")
    return found


def start(cluster: SimulatedCluster, *, first: Verdict = HANGS, seconds: float = 20, **spec: Any) -> RunningOperator:
    """Begin a job whose segments all hang, but perhaps for the first, and let it run for a while."""
    cluster.verdicts |= {(Stage.SEGMENTS, segment): HANGS for segment in range(SEGMENTS)}
    cluster.verdicts[Stage.SEGMENTS, 0] = first
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS, **spec))
    only = cluster.start_operator()
    cluster.pass_until(lambda: False, seconds=seconds)
    assert live(cluster)["status"]["stage"] == Stage.SEGMENTS
    return only


def fail_in_part(cluster: SimulatedCluster) -> RunningOperator:
    """Bring a job to its end, of whose segments the first cannot be processed."""
    cluster.verdicts[Stage.SEGMENTS, 0] = Verdict(code="DocumentEncrypted")
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(parallelism=SEGMENTS))
    only = cluster.start_operator()
    assert cluster.pass_until(lambda: live(cluster)["status"]["phase"] == "partial_failure", seconds=600)
    return only


def make_late(cluster: SimulatedCluster, **metadata: Any) -> str:
    """Make a Job like the one that is recorded last, which never runs; return its path."""
    own = cluster.api.all("jobs")[-1]
    copied = {key: own["metadata"][key] for key in ("labels", "annotations", "ownerReferences")}
    body = {"metadata": {**copied, "name": "late", **metadata}, "spec": {**own["spec"], "suspend": True}}
    cluster.api.request("POST", job_path(NAMESPACE), body=body)
    return job_path(NAMESPACE, "late")


def note_calls(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Return the list that all requests from now on are put in."""
    sent: list[Call] = []
    commit = cluster.commit

    def noting(call: Call) -> JsonObject | Exception:
        sent.append(call)
        return commit(call)

    monkeypatch.setattr(cluster, "commit", noting)
    return sent
