"""`python -m ingestion_bench [CASE …]`: run cases, print the table, write JSON, draw the plots."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from local_cluster.progress import say

import ingestion_bench.cases  # noqa: F401  # registers them
from ingestion_bench import report
from ingestion_bench.case import CASES, Case, chosen
from ingestion_bench.result import Result, growths
from ingestion_bench.run import run

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / ".make" / "bench.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; return 1 when a budget, or growth, is not met, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(prog="ingestion_bench", description=__doc__)
    parser.add_argument("case", nargs="*", help="names or shell patterns; none means all but the longest")
    parser.add_argument("--list", action="store_true", help="say which cases there are")
    parser.add_argument("--pairs", type=int, help="pairs of runs, instead of each case's own number")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go (%(default)s)")
    parser.add_argument("--docs", action="store_true", help="write table and plots of the stored results into docs/")
    options = parser.parse_args(arguments)
    if options.list:
        for case in CASES.values():
            print(f"{case.name:28} {case.about}{' (by name only)' if case.on_request else ''}")
        return 0
    if options.docs:
        from ingestion_bench import page

        page.write(options.json)
        return 0
    try:
        wanted = chosen(options.case)
    except ValueError as error:
        say(str(error))
        return 2
    results = asyncio.run(_run_all(wanted, pairs=options.pairs, path=options.json))
    print(report.tables(results))
    verdicts = [result.verdict for result in results] + [growth.verdict for growth in growths(results)]
    return int("over" in verdicts)


async def _run_all(wanted: Sequence[Case], *, pairs: int | None, path: Path) -> list[Result]:
    """Run cases one after the other; each is stored as soon as it is done."""
    results: list[Result] = []
    for case in wanted:
        found = await run(case, pairs=pairs)
        report.store(path, {case.name: found})
        results += found
    return results


if __name__ == "__main__":
    sys.exit(main())
