"""Writes the tables and plots of docs/performance.md from stored results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ingestion_bench import plots, report
from ingestion_bench.case import CASES
from ingestion_bench.result import Result

_DOCS: Final = Path(__file__).parents[2] / "docs"
_PAGE: Final = _DOCS / "performance.md"
_PLOTS: Final = _DOCS / "performance"
_BEGIN: Final = "<!-- written by `python -m ingestion_bench --docs` -->"
_END: Final = "<!-- end -->"


def write(path: Path) -> None:
    """Put the results of a JSON file into the page.

    Raises:
        ValueError: the page has no place for them.
    """
    order = list(CASES)
    results = sorted(report.load(path), key=lambda result: order.index(result.case))
    page = _PAGE.read_text()
    before, found, rest = page.partition(_BEGIN)
    _, ended, after = rest.partition(_END)
    if not (found and ended):
        raise ValueError(f"{_PAGE}: no lines {_BEGIN} and {_END}")
    _PLOTS.mkdir(exist_ok=True)
    parts = [_machines(path), report.tables(results), *_draw(results)]
    _PAGE.write_text(before + _BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + _END + after)


def _machines(path: Path) -> str:
    machines = [case["machine"] for case in json.loads(path.read_text()).values()]
    last = max(machines, key=lambda machine: str(machine["time"]))
    commits = ", ".join(sorted({machine["commit"] for machine in machines}))
    return (
        f"Measured {last['time'][:10]} on {last['cores']} cores ({last['cpu']}), {last['memoryGiB']} GiB, Linux"
        f" {last['kernel']}, Python {last['python']}, Kubernetes {last['kubernetes']}, kwok {last['kwok']};"
        f" commit {commits}."
    )


def _draw(results: Sequence[Result]) -> list[str]:
    lines = []
    plots.draw_ratios(_PLOTS / "ratios.svg", results)
    lines.append("![Ratios of all cases beside their budgets](performance/ratios.svg)")
    retries = [result for result in results if result.case.startswith("retry-") and "k" in result.growth]
    if len({result.growth["k"] for result in retries}) > 1:
        title = "A retry of k failed segments, and the bare Indexed Job of k"
        plots.draw_growth(_PLOTS / "retry.svg", retries, over="k", title=title)
        lines.append("![Time of a retry over the number of failed segments](performance/retry.svg)")
    return lines
