"""An asyncio event loop without real time: it runs until nothing is ready, and time moves only when it is told to."""

from __future__ import annotations

import asyncio
from typing import Any


class SimulatedLoop(asyncio.BaseEventLoop):
    """Deterministic: callbacks run in the order in which they became ready."""

    def __init__(self) -> None:
        super().__init__()
        self._seconds = 1_000.0
        self._selector = self  # BaseEventLoop asks it for I/O, which there is none of

    def time(self) -> float:
        """Return the simulated seconds."""
        return self._seconds

    def run_until_idle(self) -> None:
        """Run until every task waits for something that is not there, or for time to pass."""
        self.run_forever()

    @property
    def next_timer(self) -> float | None:
        """Seconds of the clock at which the next timer is due; None when none is set."""
        return min((handle.when() for handle in self._scheduled if not handle.cancelled()), default=None)  # type: ignore[attr-defined]

    def move_to(self, seconds: float) -> None:
        """Let time pass; what becomes ready is not run yet."""
        self._seconds = max(self._seconds, seconds)

    # What BaseEventLoop needs of a selector and a platform.

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None or timeout > 0:
            self.stop()
        return []

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
