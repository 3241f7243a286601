"""One child process with a log file, that never outlives this process."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from local_cluster.errors import LocalClusterError

STOP_SECONDS = 2.0
TAIL_LINES = 30

# The kernel sends the parent-death signal when the *thread* that started the child ends, so all children are
# started by one thread that lives as long as this process.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-cluster-starter")


def spawn(command: Sequence[str], **options: Any) -> "subprocess.Popen[bytes]":
    """Start a child that the kernel ends when this process is gone, in whatever way.

    Args:
        command: program and arguments.
        options: as `subprocess.Popen` takes them.
    """
    # setpriv, as a preexec_fn may deadlock in a program with threads (Python warns about it).
    guard = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    return _starter.submit(_start, [*guard, *command], options).result()


def _start(command: list[str], options: dict[str, Any]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, **options)


def interrupt_when_ended() -> None:
    """Let SIGTERM and a closed terminal end this process as Ctrl-C does, so that what it has begun is cleaned up.

    What is ignored stays so, as `nohup` has it.
    """
    for ends in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ends) != signal.SIG_IGN:
            signal.signal(ends, signal.default_int_handler)


def wait_until_interrupted(*, look_seconds: float = 1.0) -> None:
    """Wait in the main thread until the handler of a signal raises, as that of Ctrl-C does.

    `signal.pause` sleeps through a signal that comes between Python's last look for one and the call itself; here
    such a signal is seen when the next look comes.
    """
    while True:
        time.sleep(look_seconds)


class Process:
    """A program that can be started, stopped, killed and started again with the same arguments.

    `environment` is added to the inherited one, from which KUBECONFIG is left out.
    """

    def __init__(
        self, *, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.name = name
        self.command = list(command)
        self.log = log
        self._environment = dict(environment or {})
        self.started = False
        """Whether it should be running: started, and neither stopped nor killed through this object since."""
        self._running: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._running.pid if self._running and self._running.poll() is None else None

    def start(self) -> None:
        """Start the program; its output is appended to the log file."""
        if self.pid is not None:
            return
        with self.log.open("ab") as output:
            self._running = spawn(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in a terminal must not reach it before its parent decides
                env={**os.environ, "KUBECONFIG": "", **self._environment},
            )
        self.started = True

    def stop(self) -> None:
        """End the program politely, after 2 s by force; returns when it is gone.

        An API server with open watches would take a minute.
        """
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the program at once, as a crash would; returns when it is gone."""
        self._end(signal.SIGKILL)

    def check(self) -> None:
        """Raise LocalClusterError with the end of the log if the program is not running."""
        if self.pid is None:
            code = self._running.returncode if self._running else "none"
            raise LocalClusterError(f"{self.name} is not running (exit code {code})\n{self.tail()}")

    def tail(self) -> str:
        """The last lines of the log, under a heading with its path."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([f"--- end of {self.log}:", *lines[-TAIL_LINES:]])

    def _end(self, how: signal.Signals) -> None:
        running = self._running
        self.started = False
        if running is None:
            return
        with contextlib.suppress(ProcessLookupError):
            running.send_signal(how)
        try:
            running.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
