"""Writes the tables and plots of docs/performance.md from stored results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ingestion_bench import plots, report
from ingestion_bench.result import Result

_DOCS: Final = Path(__file__).parents[2] / "docs"
_PAGE: Final = _DOCS / "performance.md"
_PLOTS: Final = _DOCS / "performance"
_RESULTS: Final = _PLOTS / "results.json"
_BEGIN: Final = "<!-- written by `python -m ingestion_bench --docs` -->"
_END: Final = "<!-- end -->"


def write(path: Path) -> None:
    """Put the results of a JSON file into the page, over those of the same cases and beside those of others.

    The page's results are kept beside its plots: a case is measured again when what it measures has changed, wherever
    that is, and each names its machine and commit.

    Raises:
        ValueError: the page has no place for them.
    """
    page = _PAGE.read_text()
    before, found, rest = page.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not (found and ended):
        raise ValueError(f"{_PAGE}: no lines {_BEGIN} and {_END}")
    _PLOTS.mkdir(exist_ok=True)
    report.merge(path, into=_RESULTS)
    results = report.load(_RESULTS)
    parts = [report.tables(results), *_draw(results), report.machines(_RESULTS)]
    _PAGE.write_text(before + _BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + _END + after)


def _draw(results: Sequence[Result]) -> list[str]:
    lines = []
    if any(result.theirs and result.budget is not None for result in results):
        plots.draw_ratios(_PLOTS / "ratios.svg", results)
        lines.append("![Ratios of all cases beside their budgets](performance/ratios.svg)")
    retries = [result for result in results if result.case.startswith("retry-") and "k" in result.growth]
    if len({result.growth["k"] for result in retries}) > 1:
        title = "A retry of k failed segments, and the bare Indexed Job of k"
        plots.draw_growth(_PLOTS / "retry.svg", retries, over="k", title=title)
        lines.append("![Time of a retry over the number of failed segments](performance/retry.svg)")
    return lines
