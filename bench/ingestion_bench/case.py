"""What a case is: what is measured, against what, and the budget.

A case is an async generator function that sets up, yields a `Duel`, and tidies up:

    async def _get(stand: Stand) -> AsyncIterator[Duel]:
        async with stand.api() as api:
            yield Duel(ours=..., theirs=...)

    register(name="get", run=_get, measures=[Measure(what="GET", unit="s", budget=Budget(at_most=2.0))], ...)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Final

from ingestion_bench.stand import Plane, Stand

PAIRS: Final = 10

Sample = Mapping[str, float]
"""What one run measured: a value for each measure, by its `what`."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a measure may be.

    Args:
        at_most: of ours/theirs, or of ours alone where there is no baseline.
        at_least: the same, for rates.
        plus: taken off ours first, in the measure's unit: what is allowed whatever the size.
    """

    at_most: float | None = None
    at_least: float | None = None
    plus: float = 0.0

    @property
    def limit(self) -> float:
        """The number itself."""
        limit = self.at_least if self.at_most is None else self.at_most
        assert limit is not None
        return limit

    def holds(self, value: float) -> bool:
        """True when a ratio, or a value without a baseline, is within the budget."""
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of a case.

    Args:
        what: what is measured, as the table says it.
        unit: s, ms, requests, bytes, 1/s, ms/segment …
        budget: None for a number that is only shown.
        growth: what it may grow with, and how large that is here, such as {"N": 10_000, "k": 500}. Over all cases
            that share `what`, an exponent is fitted for each.
    """

    what: str
    unit: str
    budget: Budget | None = None
    growth: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Duel:
    """The two things that are compared; each call is one run.

    Args:
        ours: runs the product once.
        theirs: runs the baseline once; None where the budget is a count.
    """

    ours: Callable[[], Awaitable[Sample]]
    theirs: Callable[[], Awaitable[Sample]] | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """A registered case.

    Args:
        name: how it is chosen.
        about: one line: what is measured against what.
        baseline: the baseline in a few words; empty for none.
        pairs: how many pairs are run.
        on_request: runs only when it is named.
        plane: how its control plane is started.
    """

    name: str
    about: str
    baseline: str
    measures: Sequence[Measure]
    open: Callable[[Stand], AbstractAsyncContextManager[Duel]]
    pairs: int = PAIRS
    on_request: bool = False
    plane: Plane = field(default_factory=Plane)


CASES: Final[dict[str, Case]] = {}


def register(
    *,
    name: str,
    about: str,
    measures: Sequence[Measure],
    run: Callable[[Stand], AsyncIterator[Duel]],
    baseline: str = "",
    pairs: int = PAIRS,
    on_request: bool = False,
    plane: Plane | None = None,
) -> None:
    """Register a case; the arguments are those of `Case`, `run` is a generator function that yields its duel."""
    assert name not in CASES, name
    CASES[name] = Case(
        name=name,
        about=about,
        baseline=baseline,
        measures=measures,
        open=asynccontextmanager(run),
        pairs=pairs,
        on_request=on_request,
        plane=plane or Plane(),
    )


def chosen(patterns: Sequence[str]) -> list[Case]:
    """Return the cases that match shell patterns; without patterns, all but those that run on request.

    Raises:
        ValueError: a pattern matches nothing.
    """
    if not patterns:
        return [case for case in CASES.values() if not case.on_request]
    found: dict[str, Case] = {}
    for pattern in patterns:
        matching = {name: case for name, case in CASES.items() if fnmatchcase(name, pattern)}
        if not matching:
            raise ValueError(f"no case {pattern!r}; there are: {', '.join(CASES)}")
        found |= matching
    return list(found.values())
