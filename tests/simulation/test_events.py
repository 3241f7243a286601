"""Events are for people: the log has them too, and no job waits until one is sent."""

from __future__ import annotations

from collections.abc import Iterator

import ingestion_operator.event_recorder
import pytest
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.kube import batch_path, ingestion_path
from support.builders import ingestion_batch, ingestion_job

from simulation.api import BATCHES, INGESTION_JOBS
from simulation.cluster import NAMESPACE, Call, Fate, RunningOperator, SimulatedCluster
from simulation.controllers import Verdict

BEGINS = "Attempt 0 begins at prepare_document (Initial)"
ENDS = "Attempt 0: 1 of 4 segments failed: DocumentEncrypted 1"


@pytest.fixture
def cluster() -> Iterator[SimulatedCluster]:
    made = SimulatedCluster()
    made.verdicts[Stage.SEGMENTS, 0] = Verdict(code="DocumentEncrypted")
    try:
        yield made
        assert not made.broken.found
    finally:
        made.close()


def tells(call: Call) -> bool:
    return call.tells


def told(cluster: SimulatedCluster) -> list[str]:
    return [event["message"] for event in cluster.api.all("events")]


def run(cluster: SimulatedCluster, *bodies: JsonObject) -> RunningOperator:
    """Run jobs, or batches, to their ends while no Event is answered."""
    for body in bodies or (ingestion_job(),):
        path = ingestion_path if body["kind"] == names.KIND else batch_path
        cluster.api.request("POST", path(NAMESPACE), body=body)
    only = cluster.start_operator()

    def ended() -> bool:
        resources = cluster.api.all(INGESTION_JOBS) + cluster.api.all(BATCHES)
        return all(item.get("status", {}).get("phase") == "partial_failure" for item in resources)

    assert cluster.pass_until(ended, seconds=300, held=tells), "they wait for an Event"
    return only


def test_no_job_waits_until_it_is_told_of(cluster: SimulatedCluster) -> None:
    run(cluster)
    assert [call.arguments["body"]["message"] for call in filter(tells, cluster.calls)] == [BEGINS]
    cluster.settle_down()
    assert told(cluster) == [BEGINS, ENDS]


def test_no_batch_waits_until_it_is_told_of(cluster: SimulatedCluster) -> None:
    run(cluster, ingestion_batch(documents=2))
    kinds = {call.arguments["body"]["involvedObject"]["kind"] for call in filter(tells, cluster.calls)}
    assert kinds == {"IngestionJob", "IngestionBatch"}


def test_one_that_cannot_be_sent_keeps_no_other_back(cluster: SimulatedCluster) -> None:
    run(cluster)
    [call] = filter(tells, cluster.calls)
    cluster.settle(call, Fate.REFUSED_403)
    cluster.settle_down()
    assert told(cluster) == [ENDS]


def test_of_more_than_can_wait_only_the_log_tells(cluster: SimulatedCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's webhook may hang at each: memory is for other things."""
    monkeypatch.setattr(ingestion_operator.event_recorder, "_MOST_WAITING", 1)
    run(cluster, ingestion_job(), ingestion_job(name="other"))
    cluster.settle_down()
    assert told(cluster) == [BEGINS, BEGINS]


def test_those_that_wait_are_sent_before_the_operator_ends(cluster: SimulatedCluster) -> None:
    only = run(cluster)
    stop = cluster.loop.create_task(only.operator.stop())
    cluster.loop.run_until_idle()
    cluster.settle_down()
    assert told(cluster) == [BEGINS, ENDS]
    assert stop.done()


def test_an_operator_that_is_stopped_does_not_wait_for_them(cluster: SimulatedCluster) -> None:
    only = run(cluster)
    stop = cluster.loop.create_task(only.operator.stop())
    cluster.loop.run_until_idle()
    cluster.pass_time(2)
    assert stop.done()
