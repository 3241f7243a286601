"""Who asks for a retry, by REST, annotation or patch, and what it runs."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from ingestion_api.auth import Principal
from ingestion_api.idempotency import key_digest
from ingestion_api.job_index import JobIndex
from ingestion_api.jobs import Jobs
from ingestion_api.metrics import Metrics
from ingestion_api.retry import Retries
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.kube import MERGE_PATCH, ingestion_path
from ingestion_operator import metrics
from support.builders import ingestion_job

from simulation.api import INGESTION_JOBS
from simulation.cluster import NAMESPACE, SimulatedClient, SimulatedCluster
from simulation.controllers import NOT_READ, Verdict
from simulation.stories import SEGMENTS, live

JOB = "9f0b8e6e-54a1-4d59-8a2c-7b9d2f3c4e55"
PATH = ingestion_path(NAMESPACE, JOB)


class Rest:
    """The retry endpoint, as one API has it."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self._cluster = cluster
        client: Any = SimulatedClient(cluster, "api")

        async def build() -> tuple[Jobs, Retries]:
            index = JobIndex(kube=client, metrics=Metrics())
            jobs = Jobs(kube=client, index=index)
            return jobs, Retries(kube=client, jobs=jobs, index=index, metrics=Metrics())

        self._jobs, self._retries = cluster.run(build())

    def post(self, key: str | None = None) -> None:
        """Ask for a retry, and let its requests arrive."""

        async def ask() -> None:
            job = await self._jobs.find(namespace=NAMESPACE, wanted=uuid.UUID(JOB))
            await self._retries.accept(caller=Principal(key_id="k1", namespace=NAMESPACE), job=job, key=key_digest(key))

        task = self._cluster.loop.create_task(ask())
        self._cluster.loop.run_until_idle()
        while not task.done():
            calls = [call for call in self._cluster.calls if call.by == "api"]
            if calls:
                self._cluster.settle(calls[0])
                self._cluster.loop.run_until_idle()
            else:
                self._cluster.pass_time(0.2)
        task.result()


def patch(cluster: SimulatedCluster, body: JsonObject) -> None:
    cluster.api.request("PATCH", PATH, body=body, content_type=MERGE_PATCH)


def reach(cluster: SimulatedCluster, phase: str, generation: int) -> JsonObject:
    """Let time pass until an attempt has ended so, and return the status."""

    def there() -> bool:
        status = live(cluster, JOB)["status"]
        return status["phase"] == phase and status.get("observedRetryGeneration") == generation

    assert cluster.pass_until(there, seconds=600), live(cluster, JOB)["status"]
    status: JsonObject = live(cluster, JOB)["status"]
    return status


@pytest.fixture
def failed(cluster: SimulatedCluster) -> SimulatedCluster:
    """A job of which two segments have failed for good."""
    cluster.verdicts = dict.fromkeys([(Stage.SEGMENTS, 0), (Stage.SEGMENTS, 3)], Verdict(code="EmbeddingRejected"))
    body = ingestion_job(name=JOB, parallelism=SEGMENTS, ttlSecondsAfterFinished=1)
    cluster.api.request("POST", ingestion_path(NAMESPACE), body=body)
    cluster.start_operator()
    reach(cluster, "partial_failure", 0)
    return cluster


def generation(cluster: SimulatedCluster) -> int:
    return int(live(cluster, JOB)["spec"]["retryGeneration"])


def ran(cluster: SimulatedCluster, generation: int) -> list[int]:
    return sorted(
        segment for _, started, segment in cluster.kubelet.started if started == generation and segment is not None
    )


@pytest.mark.parametrize("by", ["REST", "annotation"])
def test_a_retry_runs_all_that_failed_after_one_of_some(failed: SimulatedCluster, by: str) -> None:
    """Invariant 3: `retrySegments` is a wish of the one who patched it."""
    patch(failed, {"spec": {"retryGeneration": 1, "retrySegments": "0"}})
    reach(failed, "partial_failure", 1)
    assert ran(failed, 1) == [0]
    failed.verdicts.clear()
    patch(failed, {"spec": {"ttlSecondsAfterFinished": None}})
    if by == "REST":
        Rest(failed).post()
    else:
        patch(failed, {"metadata": {"annotations": {names.ANNOTATION_RETRY_REQUESTED: "now"}}})
    reach(failed, "completed", 2)
    assert ran(failed, 2) == [0, 3]


def test_it_is_recorded_who_asked(failed: SimulatedCluster) -> None:
    Rest(failed).post()
    attempt = reach(failed, "partial_failure", 1)["attempts"][-1]
    assert (attempt["trigger"], attempt["requestedBy"]) == ("REST", "key:k1")
    patch(failed, {"spec": {"retryGeneration": 2}})
    attempt = reach(failed, "partial_failure", 2)["attempts"][-1]
    assert (attempt["trigger"], attempt.get("requestedBy")) == ("Patch", None)


def test_the_key_of_a_request_that_joined_another_is_kept_too(failed: SimulatedCluster) -> None:
    rest = Rest(failed)
    rest.post("first")
    rest.post("joined")
    assert generation(failed) == 1
    reach(failed, "partial_failure", 1)
    rest.post("joined")
    assert generation(failed) == 1


def test_the_last_twenty_keys_are_kept(failed: SimulatedCluster) -> None:
    rest = Rest(failed)
    for number in range(21):
        rest.post(f"key-{number}")
    reach(failed, "partial_failure", 1)
    for number in range(1, 21):
        rest.post(f"key-{number}")
        assert generation(failed) == 1, number
    rest.post("key-0")
    assert generation(failed) == 2


def test_the_twenty_first_attempt_begins_as_any_other(failed: SimulatedCluster) -> None:
    """Invariants 4 and 5: the CRD takes twenty."""
    for number in range(1, 24):
        patch(failed, {"spec": {"retryGeneration": number}})
        attempts = reach(failed, "partial_failure", number)["attempts"]
        assert attempts[-1]["generation"] == number
        assert len(attempts) == min(number + 1, 20)


def test_a_failed_job_is_not_deleted_when_its_time_to_live_is_over(failed: SimulatedCluster) -> None:
    failed.pass_until(lambda: False, seconds=60)
    patch(failed, {"spec": {"parallelism": 2}})
    failed.pass_until(lambda: False, seconds=60)
    assert failed.api.find(INGESTION_JOBS, NAMESPACE, JOB) is not None


def test_what_was_not_read_is_told_and_counted_once(failed: SimulatedCluster) -> None:
    """The pods that said it are removed right after."""
    counted = [metrics.PAGES_NOT_READ, metrics.ATTACHMENTS_NOT_READ]

    def values() -> list[float]:
        return [sample.value for metric in counted for sample in metric.collect()[0].samples if "total" in sample.name]

    before = values()
    assert "notRead" not in live(failed, JOB)["status"]
    failed.verdicts.clear()
    patch(failed, {"spec": {"retryGeneration": 1, "ttlSecondsAfterFinished": None}})
    assert reach(failed, "completed", 1)["notRead"] == NOT_READ
    failed.pass_until(lambda: False, seconds=600)
    assert [after - value for after, value in zip(values(), before, strict=True)] == [4, 2]
    told = "Attempt 1: The version is active; pages without text: 4; attachments that are not read: 2"
    assert [event["message"] for event in failed.api.all("events")].count(told) == 1
