"""Run other programs and turn their failures into readable errors."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_cluster.errors import LocalClusterError

TAIL_CHARACTERS = 4000
INTERRUPTED_SECONDS = 30.0
"""What a program gets to end by itself when this one is interrupted."""
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
    to_its_end: bool = False,
) -> str:
    """Run `command` to its end and return its standard output.

    `env` is added to this process's environment; `timeout` is in seconds; `show` lets the output through to
    stderr while it runs (the answer is then empty).

    When this process is interrupted so is the program, and it has INTERRUPTED_SECONDS to end before it is killed; with
    `to_its_end` as long as it takes. A second interrupt kills it at once.

    Raises LocalClusterError when the program is missing, exits non-zero or takes longer than `timeout`; the
    message carries the end of its output.
    """
    arguments = [str(part) for part in command]
    try:
        with subprocess.Popen(
            arguments,
            env={**os.environ, "PATH": search_path(), **(env or {})},
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=2 if show else subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=to_its_end,  # what a terminal sends to all that it runs does not reach it
        ) as program:
            try:
                stdout, stderr = program.communicate(stdin, timeout=timeout)
            except KeyboardInterrupt:
                program.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.communicate(timeout=None if to_its_end else INTERRUPTED_SECONDS)
                raise
            finally:
                program.kill()  # what has ended is left alone
    except FileNotFoundError as error:
        raise LocalClusterError(f"{arguments[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise LocalClusterError(f"{' '.join(arguments)} did not end within {timeout} s") from error
    if program.returncode:
        tail = f"{stdout or ''}{stderr or ''}"[-TAIL_CHARACTERS:]
        raise LocalClusterError(f"{' '.join(arguments)} failed with exit code {program.returncode}\n{tail}".rstrip())
    return stdout or ""


def succeeds(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, timeout: float | None = None
) -> bool:
    """Whether `command` exists and exits with 0 within `timeout` seconds."""
    try:
        run(command, env=env, timeout=timeout)
    except LocalClusterError:
        return False
    return True
