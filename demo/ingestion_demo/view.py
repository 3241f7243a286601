"""What the demo prints."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

WIDTH: Final = 40


def title(text: str) -> None:
    """Announce a chapter."""
    print(f"\n== {text}", flush=True)


def line(text: str) -> None:
    """Say one thing."""
    print(f"   {text}", flush=True)


class Progress:
    """A job's progress as one line that is redrawn, or a new line for each change where that cannot be."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._last = ""
        self._redraw = sys.stdout.isatty()

    def show(self, job: dict[str, Any]) -> None:
        """Show an answer of GET /ingestion-jobs/{id}."""
        total, done = job["segment_count"] or 0, job["processed_segments"]
        filled = WIDTH * done // total if total else 0
        state = (
            f"{job['status']:<16}[{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{total} segments, "
            f"{job['progress_pct']:.0f} %, {job['stage'] or '-'}"
        )
        if state == self._last:
            return
        self._last = state
        text = f"   {time.monotonic() - self._begin:6.1f} s  {state}"
        print(f"\r\x1b[K{text}" if self._redraw else text, end="" if self._redraw else "\n", flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._redraw:
            print(flush=True)


class Story:
    """What happened, with times, for the table at the end."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._rows: list[tuple[str, float, str]] = []

    @contextmanager
    def step(self, what: str, result: str = "") -> Iterator[list[str]]:
        """Time a block as a row; append to the list to say what came of it."""
        title(what)
        begin = time.monotonic()
        said = [result] if result else []
        yield said
        self._rows.append((what, time.monotonic() - begin, "; ".join(said)))

    def table(self) -> str:
        """The rows as a table, with the whole time last."""
        rows = [*self._rows, ("everything", time.monotonic() - self._begin, "")]
        wide = max(len(what) for what, _, _ in rows)
        return "\n".join(f"   {what:<{wide}}  {seconds:7.1f} s  {result}".rstrip() for what, seconds, result in rows)
