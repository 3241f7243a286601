"""The largest document is one number: the chart's sources.maxBytes, for uploads and for workers alike."""

from __future__ import annotations

from pathlib import Path

import yaml
from ingestion_crds.config import Config
from ingestion_crds.constants import MAX_SOURCE_BYTES, WORKER_CONTAINER
from ingestion_worker.source import FetchLimits
from support.builders import worker_pod

CHART = Path(__file__).parents[2] / "charts" / "ingestion-operator"


def test_the_defaults_of_chart_configuration_and_worker_agree() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["sources"]["maxBytes"] == MAX_SOURCE_BYTES
    assert Config(worker_image="worker:test").max_source_bytes == MAX_SOURCE_BYTES
    assert FetchLimits().max_bytes == MAX_SOURCE_BYTES


def test_the_worker_is_told_the_configured_number() -> None:
    pod = worker_pod(Config(worker_image="worker:test", max_source_bytes=7_000_000_000))
    (container,) = pod["containers"]
    assert container["name"] == WORKER_CONTAINER
    assert {"name": "INGESTION_MAX_SOURCE_BYTES", "value": "7000000000"} in container["env"]
