"""The plots of docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib as mpl
from matplotlib.figure import Figure

from ingestion_bench.result import Result

_OURS, _THEIRS = "#1f6feb", "#8c959f"
# The same file for the same numbers: no dates, no random identifiers.
mpl.rcParams["svg.hashsalt"] = "ingestion-operator"


def draw_growth(path: Path, results: Sequence[Result], *, over: str, title: str) -> None:
    """Draw measures that were taken at several sizes, ours beside the baseline's, on logarithmic axes.

    Args:
        path: the SVG file.
        results: of any number of measures.
        over: the size on the horizontal axis.
        title: above the plot.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for what, marker in zip(dict.fromkeys(result.what for result in results), "osD^v", strict=False):
        taken = sorted((result for result in results if result.what == what), key=lambda result: result.growth[over])
        sizes = [result.growth[over] for result in taken]
        axes.plot(sizes, [median(result.ours) for result in taken], color=_OURS, marker=marker, label=what)
        axes.fill_between(
            sizes,
            [min(result.ours) for result in taken],
            [max(result.ours) for result in taken],
            color=_OURS,
            alpha=0.12,
        )
        if all(result.theirs for result in taken):
            label = f"{taken[0].baseline} ({what.rpartition(': ')[2]})"
            values = [median(result.theirs) for result in taken]
            axes.plot(sizes, values, color=_THEIRS, marker=marker, linestyle="--", label=label)
    axes.set(xscale="log", yscale="log", xlabel=over, ylabel=results[0].unit, title=title)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def draw_ratios(path: Path, results: Sequence[Result]) -> None:
    """Draw every ratio as a box beside its budget."""
    shown = [result for result in results if result.theirs and result.budget is not None]
    figure = Figure(figsize=(7.5, 0.9 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{result.case}: {result.what.rpartition(': ')[2]}" for result in shown]
    axes.boxplot([result.judged for result in shown], orientation="horizontal", whis=(0, 100), tick_labels=labels)
    for row, result in enumerate(shown, start=1):
        assert result.budget is not None
        limit = result.budget.limit
        axes.plot([limit, limit], [row - 0.4, row + 0.4], color="#cf222e")
    axes.invert_yaxis()
    axes.set(
        xlabel="ours, less the milliseconds that the budget allows, / baseline; red: the budget",
        title="Ratios, pair by pair",
    )
    axes.tick_params(axis="y", labelsize="x-small")
    axes.grid(visible=True, axis="x", alpha=0.3)
    figure.savefig(path, metadata={"Date": None})
