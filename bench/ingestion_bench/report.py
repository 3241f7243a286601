"""The table of a run, and its JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from ingestion_crds import JsonObject
from local_cluster import versions

from ingestion_bench.case import CASES, Budget
from ingestion_bench.result import EXPONENT_AT_MOST, Growth, Result, growths

_HEAD = ("case", "what", "runs", "ours", "baseline", "ratio: min", "median", "max", "budget", "")
_GROWTH_HEAD = ("grows", "with", "sizes", "ours", "baseline", "last step", "baseline", "budget", "")


def machine() -> JsonObject:
    """Return what the numbers depend on besides the code."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memoryGiB": round(memory / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "kubernetes": versions.KUBERNETES,
        "kwok": versions.KWOK,
        "commit": commit.stdout.strip(),
        "load": os.getloadavg()[0],
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def store(path: Path, results: Mapping[str, Sequence[Result]]) -> None:
    """Write results by case into a JSON file, over those of the same cases and beside those of others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: JsonObject = json.loads(path.read_text()) if path.exists() else {}
    about = machine()
    for case, found in results.items():
        content[case] = {"machine": about, "results": [result.to_json() for result in found]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def load(path: Path) -> list[Result]:
    """Return the results of a JSON file."""
    return [
        replace(Result.from_json(value), machine=case["machine"]["cpu"])
        for case in json.loads(path.read_text()).values()
        for value in case["results"]
    ]


def merge(path: Path, *, into: Path) -> None:
    """Put the results of one JSON file into another, over those of the same cases and beside those of others."""
    content: JsonObject = json.loads(into.read_text()) if into.exists() else {}
    content |= json.loads(path.read_text())
    ordered = {case: content[case] for case in CASES if case in content}
    into.write_text(json.dumps(ordered, indent=1) + "\n")


def machines(path: Path) -> str:
    """Say what of a JSON file was measured when, where and of which commit."""
    cases: dict[str, list[str]] = {}
    for case, measured in json.loads(path.read_text()).items():
        machine = measured["machine"]
        about = (
            f"{machine['time'][:10]}, {machine['cores']} cores ({machine['cpu']}), {machine['memoryGiB']} GiB, Linux"
            f" {machine['kernel']}, Python {machine['python']}, Kubernetes {machine['kubernetes']},"
            f" kwok {machine['kwok']}, commit {machine['commit']}"
        )
        cases.setdefault(about, []).append(case)
    return "\n".join(f"- {about}: {', '.join(found)}" for about, found in sorted(cases.items()))


def tables(results: Sequence[Result]) -> str:
    """Return the results as Markdown tables that read well in a terminal too."""
    parts = [_table(_HEAD, [_row(result) for result in results])]
    if found := growths(results):
        parts.append(_table(_GROWTH_HEAD, [_growth_row(growth) for growth in found]))
    return "\n\n".join(parts)


def _row(result: Result) -> tuple[str, ...]:
    ratios = result.ratios
    shown = [f"{value:.2f}" for value in (min(ratios), median(ratios), max(ratios))] if ratios else ["", "", ""]
    return (
        result.case,
        result.what,
        str(len(result.ours)),
        _number(median(result.ours), result.unit),
        _number(median(result.theirs), result.unit) if result.theirs else "",
        *shown,
        _budget(result.budget, result.unit, against=bool(result.theirs)),
        result.verdict,
    )


def _growth_row(growth: Growth) -> tuple[str, ...]:
    numbers = (growth.ours, growth.theirs, growth.ours_last, growth.theirs_last)
    shown = ("" if number is None else f"{number:.2f}" for number in numbers)
    linear = f"linear, ≤ {EXPONENT_AT_MOST:g}"
    return (growth.what, growth.over, str(growth.points), *shown, linear, growth.verdict)


def _budget(budget: Budget | None, unit: str, *, against: bool) -> str:
    if budget is None:
        return ""
    sign = "≥" if budget.at_most is None else "≤"
    text = f"{sign} {budget.limit:g} ×" if against else f"{sign} {_number(budget.limit, unit)}"
    return f"{text} + {_number(budget.plus, unit)}" if budget.plus else text


def _number(value: float, unit: str) -> str:
    if unit == "s" and value < 1:
        return f"{value * 1000:.3g} ms"
    if unit == "bytes":
        return f"{value / 1024:,.1f} KiB"
    return f"{value:,.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in [head, *rows]) for column in range(len(head))]

    def show(line: Sequence[str]) -> str:
        return "| " + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) + " |"

    return "\n".join([show(head), "| " + " | ".join("-" * width for width in widths) + " |", *map(show, rows)])
