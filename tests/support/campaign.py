"""What a fault campaign counted: each test appends its tally, and the table is printed at the end.

`python -m support.campaign FILE` (with `tests/` on the path) prints the table, and fails when a fault was not survived,
or never injected; `--write` puts it into docs/reliability.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ENV_RESULTS: Final = "INGESTION_FAULTS_RESULTS"
PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN: Final = "<!-- written by `python -m support.campaign FILE --write` -->"
END: Final = "<!-- end -->"


def record(fault: str, *, injected: int, survived: int, invariants: Iterable[int]) -> None:
    """Append one tally to the file that INGESTION_FAULTS_RESULTS names; without the variable do nothing.

    Args:
        fault: what was done, in the words of the table; tallies of the same fault are added up.
        injected: how often it was done.
        survived: after how many of them everything held that was checked.
        invariants: the numbers of the invariants that were checked (docs/reliability.md).
    """
    path = os.environ.get(ENV_RESULTS)
    if not path:
        return
    line = {"fault": fault, "injected": injected, "survived": survived, "invariants": sorted(set(invariants))}
    with Path(path).open("a") as out:
        out.write(json.dumps(line) + "\n")


@dataclass(slots=True)
class Row:
    """A line of the table."""

    injected: int = 0
    survived: int = 0
    invariants: set[int] = field(default_factory=set)


def read(path: Path) -> dict[str, Row]:
    """Return the tallies of a results file by fault, in the order of the first of each."""
    rows: dict[str, Row] = {}
    for line in path.read_text().splitlines():
        tally = json.loads(line)
        row = rows.setdefault(tally["fault"], Row())
        row.injected += tally["injected"]
        row.survived += tally["survived"]
        row.invariants |= set(tally["invariants"])
    return rows


def table(rows: dict[str, Row]) -> str:
    """Return the rows as a Markdown table, padded so that it reads well in a terminal too."""
    total = Row(
        injected=sum(row.injected for row in rows.values()), survived=sum(row.survived for row in rows.values())
    )
    cells = [("fault", "injected", "survived", "invariants checked")]
    cells += [
        (fault, str(row.injected), str(row.survived), ", ".join(map(str, sorted(row.invariants))))
        for fault, row in [*rows.items(), ("all", total)]
    ]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]

    def show(line: tuple[str, ...]) -> str:
        fault, *numbers, invariants = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        right = [text.strip().rjust(len(text)) for text in numbers]
        return "| " + " | ".join([fault, *right, invariants]) + " |"

    rule = f"| {'-' * widths[0]} | {'-' * (widths[1] - 1)}: | {'-' * (widths[2] - 1)}: | {'-' * widths[3]} |"
    return "\n".join([show(cells[0]), rule, *map(show, cells[1:])])


def write(rows: dict[str, Row]) -> None:
    """Put the table into the page, between the lines that mark its place."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE}: no lines {BEGIN} and {END}"
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{after}")


def main(arguments: list[str]) -> int:
    """Print the table of a results file; return 1 when it is empty, or a fault was not survived or never injected."""
    path, *options = arguments
    rows = read(Path(path)) if Path(path).exists() else {}
    print(table(rows))
    if options == ["--write"]:
        write(rows)
    return 0 if rows and all(0 < row.injected == row.survived for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
