"""The results of `make bench` that docs/performance.md is written from."""

from __future__ import annotations

import json
from pathlib import Path

import ingestion_bench.cases  # noqa: F401  # registers them
import pytest
from ingestion_bench import report
from ingestion_bench.case import CASES
from ingestion_bench.result import Result, growths

DOCS = Path(__file__).parents[2] / "docs"


def measured(path: Path, *names: str, value: float) -> Path:
    """Store results of these cases."""
    found = {name: [Result.of(name, "", measure, [value], []) for measure in CASES[name].measures] for name in names}
    report.store(path, found)
    return path


def test_results_stay_beside_those_of_other_machines_until_their_case_is_measured_again(tmp_path: Path) -> None:
    page = measured(tmp_path / "results.json", "running-1000", "size-50-of-1000", value=1.0)
    report.merge(measured(tmp_path / "bench.json", "size-50-of-1000", "api-get", value=2.0), into=page)
    values = {result.case: result.ours for result in report.load(page)}
    assert values == {"api-get": [2.0], "running-1000": [1.0], "size-50-of-1000": [2.0]}
    assert list(values) == [name for name in CASES if name in values]


def test_the_page_shows_what_is_stored() -> None:
    page = (DOCS / "performance.md").read_text()
    assert report.tables(report.load(DOCS / "performance" / "results.json")) in page
    assert report.machines(DOCS / "performance" / "results.json") in page


def timed(size: float, *, seconds: float, machine: str = "here") -> Result:
    return Result(
        case=f"case-{size:g}",
        what="seconds",
        unit="s",
        baseline="",
        budget=None,
        growth={"k": size},
        ours=[seconds],
        theirs=[],
        machine=machine,
    )


def test_growth_above_linear_is_seen_behind_a_floor_that_flattens_the_fit() -> None:
    (growth,) = growths([timed(k, seconds=1 + (k / 250) ** 2) for k in (500, 3, 50, 250)])
    assert growth.ours < 1
    assert growth.ours_last > 1.3
    assert growth.verdict == "over"


def test_growth_is_fitted_to_what_one_machine_measured() -> None:
    elsewhere = timed(1000, seconds=1e6, machine="elsewhere")
    (growth,) = growths([timed(1, seconds=1), timed(10, seconds=10), timed(100, seconds=100), elsewhere])
    assert (growth.points, growth.verdict) == (3, "ok")
    assert growths([timed(1, seconds=1), timed(10, seconds=10), elsewhere]) == []


def test_what_may_grow_is_never_left_out_in_silence() -> None:
    with pytest.raises(ValueError, match="seconds: no exponent over k"):
        growths([timed(1, seconds=1), timed(10, seconds=-2), timed(100, seconds=-3)])


def test_each_commit_is_named_with_its_cases(tmp_path: Path) -> None:
    page = measured(tmp_path / "results.json", "running-1000", "api-get", value=1.0)
    content = json.loads(page.read_text())
    content["api-get"]["machine"] |= {"commit": "abc1234", "time": "2026-01-02T00:00:00+00:00"}
    page.write_text(json.dumps(content))
    first, second = report.machines(page).splitlines()
    assert first.startswith("- 2026-01-02")
    assert first.endswith("commit abc1234: api-get")
    assert second.endswith(": running-1000")
