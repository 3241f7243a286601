"""The largest document is one number: the chart's sources.maxBytes, for uploads and for workers alike."""

from __future__ import annotations

from pathlib import Path

import yaml
from ingestion_crds.config import Config, Tenant
from ingestion_crds.constants import MAX_SOURCE_BYTES, WORKER_CONTAINER, Stage
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import IngestionJob
from ingestion_operator.children import Dispatch, build_job
from ingestion_worker.source import FetchLimits
from support.builders import ingestion_job

CHART = Path(__file__).parents[2] / "charts" / "ingestion-operator"


def test_the_defaults_of_chart_configuration_and_worker_agree() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["sources"]["maxBytes"] == MAX_SOURCE_BYTES
    assert Config(worker_image="worker:test").max_source_bytes == MAX_SOURCE_BYTES
    assert FetchLimits().max_bytes == MAX_SOURCE_BYTES


def test_the_worker_is_told_the_configured_number() -> None:
    tenant = Tenant(namespace="team-a", bucket="team-a")
    body = ingestion_job()
    body["metadata"] |= {"uid": "u-1", "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1"}
    dispatch = Dispatch(
        job=IngestionJob.model_validate(body),
        stage=Stage.PREPARE,
        generation=0,
        segments=IndexSet(),
        deadline_seconds=60,
        config=Config(worker_image="worker:test", max_source_bytes=7_000_000_000, tenants=[tenant]),
        tenant=tenant,
        provider=None,
    )
    (container,) = build_job(dispatch)["spec"]["template"]["spec"]["containers"]
    assert container["name"] == WORKER_CONTAINER
    assert {"name": "INGESTION_MAX_SOURCE_BYTES", "value": "7000000000"} in container["env"]
