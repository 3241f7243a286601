"""What a page lists is what there is: reasons, metrics, options, columns. So is what the chart says of memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ingestion_api import searching
from ingestion_api.forms import IngestOptions
from ingestion_api.metrics import Metrics
from ingestion_api.options import Options
from ingestion_crds.constants import Reason, Trigger
from ingestion_crds.errors import ERROR_CODES
from ingestion_crds.job import Spec
from ingestion_crds.schema import custom_resource_definition, structural
from ingestion_operator import main, metrics
from ingestion_operator.leader import LEASE_SECONDS, RETRY_SECONDS
from ingestion_worker import search
from ingestion_worker.output import column_types
from ingestion_worker.store import PIECE_BYTES
from prometheus_client import CollectorRegistry, Counter, Metric
from prometheus_client.metrics import MetricWrapperBase

DOCS = Path(__file__).parents[2] / "docs"
CODE = re.compile(r"`([^`]+)`")
BLOCK = re.MULTILINE | re.DOTALL


def first_cells(page: str) -> set[str]:
    """Return all that stands in backticks in the first cells of a page's tables."""
    rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]
    return {word for row in rows for word in CODE.findall(row.split(" | ")[0])}


def names(collected: list[Metric]) -> set[str]:
    return {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in collected}


def test_the_page_of_waiting_jobs_lists_every_reason() -> None:
    assert {reason.value for reason in Reason} == first_cells("failed-segment-log.md")


def all_metrics() -> set[str]:
    registry = CollectorRegistry()
    for value in vars(metrics).values():
        if isinstance(value, MetricWrapperBase):
            registry.register(value)
    return names(list(registry.collect())) | names(list(Metrics().registry.collect()))


def yaml_blocks(page: str) -> list[Any]:
    return [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```$", (DOCS / page).read_text(), BLOCK)]


def alerts() -> dict[str, dict[str, Any]]:
    [groups] = [block["groups"] for block in yaml_blocks("operate.md") if "groups" in block]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_the_page_of_metrics_lists_every_metric() -> None:
    assert all_metrics() == {word for word in first_cells("operate.md") if word.startswith("ingestion_")}


def test_alerts_ask_for_metrics_and_codes_that_there_are() -> None:
    asked = " ".join(rule["expr"] for rule in alerts().values())
    assert set(re.findall(r"\bingestion_\w+", asked)) <= all_metrics()
    [codes] = re.findall(r'code=~"([^"]+)"', asked)
    for pattern in codes.split("|"):
        assert any(re.fullmatch(pattern, code) for code in ERROR_CODES), pattern


def test_counters_whose_labels_are_known_begin_at_0() -> None:
    """`rate` shows no increase of a series that was not there before, and an attempt's failures come all at once."""

    def values(counter: Counter, label: str) -> set[str]:
        return {sample.labels[label] for metric in counter.collect() for sample in metric.samples}

    assert values(metrics.FAILURES, "code") == set(ERROR_CODES)
    assert values(metrics.ATTEMPTS, "trigger") == set(Trigger)
    assert values(metrics.BATCH_ATTEMPTS_ENDED, "reason") == {"Succeeded", "DocumentsFailed", "Cancelled"}
    assert values(metrics.BATCH_DOCUMENTS_ENDED, "result") == {"completed", "failed"}
    assert values(Metrics().retries, "outcome") == {"bumped", "joined", "repeated", "refused"}


def test_the_alert_of_the_leader_fires_without_any_operator() -> None:
    assert "absent(ingestion_leader)" in alerts()["IngestionLeader"]["expr"]


def test_the_alert_of_the_leader_does_not_fire_when_another_takes_over() -> None:
    """Of a pod that is gone Prometheus has the last value for 2.1 scrapes, each minute by default (3.16, scrape.go)."""
    [minutes] = re.findall(r"^(\d+)m$", alerts()["IngestionLeader"]["for"])
    assert 60 * int(minutes) > 2.1 * 60 + LEASE_SECONDS + RETRY_SECONDS


def test_the_alert_of_the_queue_fires_before_the_operator_ends_itself() -> None:
    rule = alerts()["IngestionQueue"]
    [age], [minutes] = re.findall(r"> (\d+)$", rule["expr"]), re.findall(r"^(\d+)m$", rule["for"])
    assert int(age) + 60 * int(minutes) < main._STANDS_STILL_SECONDS


def test_the_operate_page_s_pod_monitor_finds_operator_and_api() -> None:
    [monitor] = [block for block in yaml_blocks("operate.md") if block.get("kind") == "PodMonitor"]
    [[name, value]] = monitor["spec"]["selector"]["matchLabels"].items()
    templates = DOCS.parent / "charts" / "ingestion-operator" / "templates"
    assert f"\n{name}: {value}\n" in (templates / "_helpers.tpl").read_text()
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    for file in ("operator.yaml", "api.yaml"):
        assert re.findall(r"\{name: (\w+), containerPort: ", (templates / file).read_text()) == [endpoint["port"]]


def test_jobs_are_found_by_fields_that_can_be_selected() -> None:
    [version] = custom_resource_definition()["spec"]["versions"]
    selectable = {field["jsonPath"].removeprefix(".") for field in version["selectableFields"]}
    assert set(re.findall(r"--field-selector ([\w.]+)=", (DOCS / "operate.md").read_text())) == selectable


def leaves(name: str, field: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each field below one of a schema that has none below it, by its path."""
    if "properties" not in field:
        yield name, field
    for below, part in field.get("properties", {}).items():
        yield from leaves(f"{name}.{below}", part)


def in_words(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "none" if value is None else f"`{value}`"


def test_the_page_of_the_rest_api_lists_every_option() -> None:
    rows = [line.split(" | ") for line in (DOCS / "rest-api.md").read_text().splitlines()]
    said = {row[0].removeprefix("| "): row[1:3] for row in rows}
    spec = structural(Spec)["properties"]
    names = [field.alias for field in IngestOptions.model_fields.values()]
    for path, field in (leaf for name in names for leaf in leaves(name, spec[name])):
        default, allowed = said[f"`{path}`"]
        assert default == in_words(field.get("default")), path
        if "maximum" in field:
            assert allowed == f"{in_words(field['minimum'])} to {in_words(field['maximum'])}", path


def test_the_page_of_the_rest_api_lists_every_code_of_an_error() -> None:
    sources = [path.read_text() for path in (DOCS.parent / "api" / "ingestion_api").rglob("*.py")]
    given = {code for text in sources for code in re.findall(r'\berror(?:: str = |=)"(\w+)"', text)}
    _, _, section = (DOCS / "rest-api.md").read_text().partition("## Errors")
    assert given <= set(CODE.findall(section.partition("## Search")[0]))


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
    # A hundred texts of four bytes a character, and two copies of an answer that has each twice: in JSON a control
    # character takes six.
    assert found * 2**20 > (4 + 2 * 2 * 6) * 100 * search._TEXTS["content"]
    kept = searching._TENANT_CACHES * options.cache_bytes
    assert searches * 2**20 == kept + searching._READ_BYTES + options.searches * found * 2**20
    assert uploads * 2**20 == options.uploads * 3 * PIECE_BYTES  # two parts on their way, and the next one
    jobs = 100 * said("the list of jobs … MiB for each 1,000")  # of 100,000
    assert said("The process takes … MiB") + searches + uploads + jobs < given


def test_the_page_of_formats_lists_every_column() -> None:
    assert set(column_types(dimensions=1)) <= first_cells("store-layout.md")


@pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
def test_the_commands_for_our_kind_cluster_never_mean_another_one(page: str) -> None:
    """Whatever KUBECONFIG the reader has exported for it."""
    blocks = re.findall(r"^```console\n(.*?)^```$", (DOCS.parent / page).read_text(), BLOCK)
    [block] = [each for each in blocks if "local_cluster kubeconfig" in each]
    assert block.startswith("$ export CLUSTER=kind\n")
