"""What a process uses: processor time and memory, as the kernel counts them."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ingestion_bench.stand import PATIENCE_SECONDS

_TICK: Final = os.sysconf("SC_CLK_TCK")
_CALM: Final = 0.05
_CALM_SECONDS: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Of one process, all its threads together.

    Args:
        cpu_seconds: since it began, in user and kernel mode.
        resident_bytes: memory that is in RAM.
    """

    cpu_seconds: float
    resident_bytes: int


def usage(pid: int | None) -> Usage:
    """Return what a process uses.

    Source: proc_pid_stat(5), proc_pid_status(5)
    """
    assert pid is not None
    # The command's name may hold anything; the fields are counted from behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    ticks = int(fields[11]) + int(fields[12])
    return Usage(cpu_seconds=ticks / _TICK, resident_bytes=int(resident.split()[1]) * 1024)


async def calm(pid: int | None) -> None:
    """Wait until a process uses next to no processor time for a few seconds."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        before = usage(pid).cpu_seconds
        await asyncio.sleep(_CALM_SECONDS)
        if usage(pid).cpu_seconds - before <= _CALM * _CALM_SECONDS:
            return
        assert time.monotonic() < deadline, f"process {pid} does not come to rest"
