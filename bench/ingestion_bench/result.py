"""What came out of a case, as it is printed, stored and drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Self

from ingestion_bench.case import Budget, Measure

EXPONENT_AT_MOST = 1.1
"""Linear, with room for what a fit over a few sizes cannot know."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """All values of one measure of one case.

    Args:
        case: its name.
        baseline: the baseline in a few words; empty for none.
        ours: the product's values.
        theirs: the baseline's, pair by pair; empty for none.
        machine: where it was measured.
    """

    case: str
    what: str
    unit: str
    baseline: str
    budget: Budget | None
    growth: Mapping[str, float]
    ours: Sequence[float]
    theirs: Sequence[float] = field(default_factory=list)
    machine: str = ""

    @classmethod
    def of(cls, case: str, baseline: str, measure: Measure, ours: Sequence[float], theirs: Sequence[float]) -> Self:
        """Return the result of a measure."""
        return cls(
            case=case,
            what=measure.what,
            unit=measure.unit,
            baseline=baseline if theirs else "",
            budget=measure.budget,
            growth=measure.growth,
            ours=ours,
            theirs=theirs,
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return a result that `to_json` wrote."""
        budget = value["budget"]
        return cls(**{**value, "budget": Budget(**budget) if budget else None})

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON values, but for the machine, which the file says once for each case."""
        value = asdict(self)
        del value["machine"]
        return value

    @property
    def ratios(self) -> list[float]:
        """ours/theirs, pair by pair."""
        return [own / other for own, other in zip(self.ours, self.theirs, strict=bool(self.theirs))]

    @property
    def judged(self) -> list[float]:
        """What the budget is about: ratios, or values without a baseline, less what is allowed whatever the size."""
        own = [value - (self.budget.plus if self.budget else 0.0) for value in self.ours]
        return [value / other for value, other in zip(own, self.theirs, strict=True)] if self.theirs else own

    @property
    def verdict(self) -> str:
        """`ok` or `over`; empty without a budget. The median decides."""
        if self.budget is None:
            return ""
        return "ok" if self.budget.holds(median(self.judged)) else "over"


@dataclass(frozen=True, kw_only=True)
class Growth:
    """How a measure grows with one size, as a power of it.

    Args:
        what: the measure.
        over: the size.
        points: how many sizes.
        ours, theirs: the exponents over all sizes; None without a baseline.
        ours_last, theirs_last: those from the last but one size to the largest, which no fixed costs flatten.
    """

    what: str
    over: str
    points: int
    ours: float
    theirs: float | None
    ours_last: float
    theirs_last: float | None

    @property
    def verdict(self) -> str:
        """`over` above linear."""
        return "ok" if max(self.ours, self.ours_last) <= EXPONENT_AT_MOST else "over"


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return b of y = a·x^b by least squares over the logarithms.

    Args:
        points: (x, y), both positive, of at least two different x.
    """
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def growths(results: Sequence[Result]) -> list[Growth]:
    """Fit an exponent for each measure that was taken at three sizes or more on one machine.

    Raises:
        ValueError: one may grow, but was none or less, of which no exponent can be fitted.
    """
    series: dict[tuple[str, str], list[tuple[float, Result]]] = {}
    for result in results:
        for over, size in result.growth.items():
            series.setdefault((result.what, over), []).append((size, result))
    found = []
    for (what, over), everywhere in series.items():
        ((machine, _),) = Counter(result.machine for _, result in everywhere).most_common(1)
        taken = sorted(
            ((size, result) for size, result in everywhere if result.machine == machine), key=lambda point: point[0]
        )
        if len({size for size, _ in taken}) < 3:
            continue
        ours = [(size, median(result.ours)) for size, result in taken]
        theirs = [(size, median(result.theirs)) for size, result in taken if result.theirs]
        both = len(theirs) == len(ours)
        if not all(value > 0 for _, value in ours):
            raise ValueError(f"{what}: no exponent over {over} of {ours}")
        found.append(
            Growth(
                what=what,
                over=over,
                points=len(taken),
                ours=exponent(ours),
                theirs=exponent(theirs) if both else None,
                ours_last=exponent(ours[-2:]),
                theirs_last=exponent(theirs[-2:]) if both else None,
            )
        )
    return found
