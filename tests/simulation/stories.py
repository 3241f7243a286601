"""What the stories about one job, `handbook`, have in common."""

from __future__ import annotations

from typing import Any, Final

import pytest
from ingestion_crds import JsonObject
from ingestion_crds.constants import Stage
from ingestion_crds.kube import MERGE_PATCH, child_path, ingestion_path
from support.builders import ingestion_job

from simulation.api import INGESTION_JOBS, Change
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


def says_why(job: JsonObject) -> str | None:
    """Return the reason that an unfinished job gives, None when it gives none."""
    conditions: dict[str, JsonObject] = {item["type"]: item for item in job["status"].get("conditions", [])}
    ready = conditions.get("Ready", {})
    stalled = conditions.get("Stalled", {})
    if stalled.get("status") == "True":
        return str(stalled["reason"])
    return str(ready["reason"]) if ready.get("reason") in ("Suspended", "Waiting") else None


def create(cluster: SimulatedCluster, **spec: Any) -> JsonObject:
    """Create the job and return it."""
    return cluster.api.request("POST", ingestion_path(NAMESPACE), body=ingestion_job(**spec))


def patch(cluster: SimulatedCluster, **spec: Any) -> None:
    """Change what the job wants."""
    cluster.api.request("PATCH", PATH, body={"spec": spec}, content_type=MERGE_PATCH)


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


def reach(cluster: SimulatedCluster, phase: str, generation: int = 0, *, seconds: float = 120) -> JsonObject:
    """Let time pass until an attempt has ended so, and return the status."""

    def there() -> bool:
        status = live(cluster)["status"]
        return status["phase"] == phase and status.get("observedRetryGeneration") == generation

    assert cluster.pass_until(there, seconds=seconds), live(cluster)["status"]
    status: JsonObject = live(cluster)["status"]
    return status


def warnings(cluster: SimulatedCluster) -> list[str]:
    """Return what the Events of type Warning say."""
    return [event["message"] for event in cluster.api.all("events") if event["type"] == "Warning"]


def suspend(cluster: SimulatedCluster) -> None:
    """Suspend an attempt of which the first segment is done, and let its pods end."""
    patch(cluster, suspend=True)
    assert cluster.pass_until(lambda: not cluster.api.all("pods") or _all_ended(cluster), seconds=60)
    cluster.pass_time(5)
    cluster.settle_down()
    assert cluster.api.all("jobs")[-1]["spec"]["suspend"]


def _all_ended(cluster: SimulatedCluster) -> bool:
    return all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in cluster.api.all("pods"))


def turns(change: Change) -> bool:
    """Return whether a Job is suspended, or resumed."""
    if change.resource != "jobs" or change.before is None:
        return False
    return bool(change.before["spec"]["suspend"] != change.after["spec"]["suspend"])


def make_late(cluster: SimulatedCluster, **metadata: Any) -> str:
    """Make a Job like the one that is recorded last, which never runs; return its path."""
    own = cluster.api.all("jobs")[-1]
    copied = {key: own["metadata"][key] for key in ("labels", "annotations", "ownerReferences")}
    body = {"metadata": {**copied, "name": "late", **metadata}, "spec": {**own["spec"], "suspend": True}}
    cluster.api.request("POST", child_path(NAMESPACE), body=body)
    return child_path(NAMESPACE, "late")


def note_calls(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Return the list that all requests from now on are put in."""
    sent: list[Call] = []
    commit = cluster.commit

    def noting(call: Call) -> JsonObject | Exception:
        sent.append(call)
        return commit(call)

    monkeypatch.setattr(cluster, "commit", noting)
    return sent
