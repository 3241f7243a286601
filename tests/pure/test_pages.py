"""What a page lists is what there is: reasons, metrics, options, columns. So is what the chart says of memory."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from ingestion_api import searching
from ingestion_api.metrics import Metrics
from ingestion_api.options import Options
from ingestion_api.routes.ingest import IngestOptions
from ingestion_crds.constants import Reason
from ingestion_operator import metrics
from ingestion_worker import search
from ingestion_worker.output import column_types
from ingestion_worker.store import PIECE_BYTES
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.metrics import MetricWrapperBase

DOCS = Path(__file__).parents[2] / "docs"
CODE = re.compile(r"`([^`]+)`")


def first_cells(page: str) -> set[str]:
    """Return all that stands in backticks in the first cells of a page's tables."""
    rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]
    return {word for row in rows for word in CODE.findall(row.split(" | ")[0])}


def names(collected: list[Metric]) -> set[str]:
    return {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in collected}


def test_the_page_of_waiting_jobs_lists_every_reason() -> None:
    assert {reason.value for reason in Reason} == first_cells("failed-segment-log.md")


def test_the_page_of_metrics_lists_every_metric() -> None:
    registry = CollectorRegistry()
    for value in vars(metrics).values():
        if isinstance(value, MetricWrapperBase):
            registry.register(value)
    there = names(list(registry.collect())) | names(list(Metrics().registry.collect()))
    assert there == {word for word in first_cells("operate.md") if word.startswith("ingestion_")}


def test_the_page_of_the_rest_api_lists_every_option() -> None:
    [row] = [line for line in (DOCS / "rest-api.md").read_text().splitlines() if line.startswith("| `options`")]
    assert {field.alias for field in IngestOptions.model_fields.values()} <= set(CODE.findall(row))


def test_the_memory_of_the_api_adds_up_as_the_chart_says() -> None:
    text = (DOCS.parent / "charts/ingestion-operator/values.yaml").read_text()
    given = float(yaml.safe_load(text)["api"]["resources"]["limits"]["memory"].removesuffix("Mi"))
    comment = re.sub(r"\n *# ", " ", text)

    def said(words: str) -> float:
        [number] = re.findall(words.replace("…", r"([\d.]+)"), comment)
        return float(number)

    searches, uploads = said("Searches take up to … MiB"), said("uploads take up to … MiB")
    options = Options(namespace="system")
    found = said("and … MiB for what each of four has found")
    assert (
        found * 2**20 > 3 * 100 * 4 * search._TEXTS["content"]
    )  # of a hundred texts three copies, of four bytes a character
    kept = searching._TENANT_CACHES * options.cache_bytes
    assert searches * 2**20 == kept + searching._READ_BYTES + options.searches * found * 2**20
    assert uploads * 2**20 == options.uploads * 3 * PIECE_BYTES  # two parts on their way, and the next one
    jobs = 100 * said("the list of jobs … MiB for each 1,000")  # of 100,000
    assert said("The process takes … MiB") + searches + uploads + jobs < given


def test_the_page_of_formats_lists_every_column() -> None:
    assert set(column_types(dimensions=1)) <= first_cells("store-layout.md")
