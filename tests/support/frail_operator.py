"""The operator, with a work loop that ends on SIGUSR1 while everything else goes on: a fault nobody thought of."""

from __future__ import annotations

import asyncio
import signal
from types import FrameType

from ingestion_operator.main import main


def end_the_work(_signal: int, _frame: FrameType | None) -> None:
    """Cancel the task that works off the queue."""
    loop = asyncio.get_running_loop()
    for task in asyncio.all_tasks(loop):
        if task.get_name() == "work":
            loop.call_soon_threadsafe(task.cancel)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, end_the_work)
    main()
