"""Runs a parser in a child process with bounds on memory, processor time and wall-clock time.

Documents come from anywhere. A file that inflates a thousandfold, nests a hundred thousand times or crashes a C library
takes the child with it, and the pod reports which document it was.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ingestion_crds.errors import ERROR_CODES

from ingestion_worker.outcome import WorkerError

_CGROUP_FILES: Final = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserLimits:
    """Bounds of one child: address space in bytes, processor and wall-clock seconds, bytes of text it may write."""

    memory_bytes: int = 1536 * 2**20
    cpu_seconds: int = 120
    wall_seconds: float = 600.0
    output_bytes: int = 256 * 2**20


def default_limits() -> ParserLimits:
    """Return the bounds for this container: three quarters of its memory limit, so that the parent lives to report.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max), v1's memory.limit_in_bytes
    """
    limits = ParserLimits()
    for name in _CGROUP_FILES:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            # The address space is larger than what is resident: libraries map about 200 MiB they never touch.
            allowed = int(text) * 3 // 4 + 200 * 2**20
            return ParserLimits(memory_bytes=max(400 * 2**20, min(limits.memory_bytes, allowed)))
    return limits


def run_parser(
    *, operation: str, name: str, arguments: dict[str, Any], limits: ParserLimits | None = None
) -> dict[str, Any]:
    """Run one operation of `parsing.child` and return its result.

    Args:
        operation: a key of `parsing.child.OPERATIONS`.
        name: the document's name, for messages.
        arguments: the operation's arguments, as JSON.
        limits: bounds of the child.

    Raises:
        WorkerError: the code the parser reports, or DocumentTooComplex when the child went over a bound or crashed.
    """
    limits = limits or default_limits()
    request = {
        "operation": operation,
        "name": name,
        "arguments": arguments,
        "memoryBytes": limits.memory_bytes,
        "cpuSeconds": limits.cpu_seconds,
        "outputBytes": limits.output_bytes,
        "parent": os.getpid(),
    }
    # A parser sees no credentials: a hijacked one finds none in its environment, and `main` closes the parent's to it.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "INGESTION_"))}
    command = [sys.executable, "-m", "ingestion_worker.parsing.child"]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=limits.wall_seconds,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        # A child that gets a processor to itself comes to that bound first.
        had = f"in which it had less than {limits.cpu_seconds} s of processor time"
        raise _too_complex(name, f"was not read within {limits.wall_seconds:g} s, {had}", arguments) from error
    if done.returncode != 0:
        raise _too_complex(name, _death(done.returncode, limits, done.stderr), arguments)
    try:
        reply: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise _too_complex(name, "ended the parser without a result", arguments) from error
    if "error" in reply:
        # What a hijacked parser says is not believed.
        known = ERROR_CODES.get(reply["error"]["code"])
        raise WorkerError(known.code if known else "Internal", reply["error"]["message"])
    result: dict[str, Any] = reply["result"]
    return result


def _death(code: int, limits: ParserLimits, stderr: bytes) -> str:
    memory = f"{limits.memory_bytes // 2**20} MiB of memory"
    if code == -signal.SIGXCPU:
        return f"needs more than {limits.cpu_seconds} s of processor time"
    if code == -signal.SIGKILL:  # by the kernel, at the container's limit
        return f"needs more than {memory}"
    # Libraries in C that get no more memory crash, or say something else.
    if code < 0:
        return f"crashed the parser, which may use {memory} (signal {-code})"
    tail = stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
    return f"ended the parser, which may use {memory} ({tail or f'exit code {code}'})"


def _too_complex(name: str, what: str, arguments: dict[str, Any]) -> WorkerError:
    page = _last_page(arguments)
    return WorkerError("DocumentTooComplex", f"{name}{page} {what}")


def _last_page(arguments: dict[str, Any]) -> str:
    # The page texts written so far say how far the child came.
    if "first" not in arguments or "output" not in arguments:
        return ""
    try:
        with Path(arguments["output"]).open("rb") as file:
            lines = sum(1 for _ in file)
    except OSError:
        lines = 0
    return f", page {arguments['first'] - bool(arguments.get('before')) + lines + 1},"
