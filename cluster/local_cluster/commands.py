"""Run other programs and turn their failures into readable errors."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_cluster.errors import LocalClusterError

TAIL_CHARACTERS = 4000
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")
"""Where programs of the system are that root's PATH leaves out after a plain `su`, or in cron."""


def search_path() -> str:
    """PATH, and where the programs of the system are besides."""
    given = os.environ.get("PATH", os.defpath)
    return os.pathsep.join([given, *(folder for folder in SYSTEM_FOLDERS if folder not in given.split(os.pathsep))])


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
    show: bool = False,
) -> str:
    """Run `command` to its end and return its standard output.

    `env` is added to this process's environment; `timeout` is in seconds; `show` lets the output through to
    stderr while it runs (the answer is then empty).

    Raises LocalClusterError when the program is missing, exits non-zero or takes longer than `timeout`; the
    message carries the end of its output.
    """
    arguments = [str(part) for part in command]
    try:
        done = subprocess.run(
            arguments,
            env={**os.environ, "PATH": search_path(), **(env or {})},
            cwd=cwd,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            stdout=2 if show else subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise LocalClusterError(f"{arguments[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LocalClusterError(f"{' '.join(arguments)} did not end within {timeout} s") from error
    if done.returncode:
        tail = f"{done.stdout or ''}{done.stderr or ''}"[-TAIL_CHARACTERS:]
        raise LocalClusterError(f"{' '.join(arguments)} failed with exit code {done.returncode}\n{tail}".rstrip())
    return done.stdout or ""


def succeeds(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> bool:
    """Whether `command` exists and exits with 0 within `timeout` seconds."""
    try:
        run(command, env=env, timeout=timeout)
    except LocalClusterError:
        return False
    return True
