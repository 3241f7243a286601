"""Processes of the product that start fast, die hard, and are started again, as a Deployment does.

They are forked from a server that has imported the product once: a process of its own with its own memory and
connections, which SIGKILL ends at any instruction, only without the seconds of importing.
Source: https://docs.python.org/3/library/multiprocessing.html#contexts-and-start-methods
"""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Self

import time_machine
from ingestion_worker.main import run_container
from kubernetes.aio.config import kube_config

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "__main__",
        "ingestion_operator.main",
        "ingestion_api.main",
        "ingestion_worker.prepare",
        "ingestion_worker.segment",
        "ingestion_worker.publish",
    ]
)
_POLL_SECONDS = 0.02


def start_worker(*, command: str, environment: Mapping[str, str]) -> ForkServerProcess:
    """Start a worker's container as a process; its exit code is the container's."""
    process = _CONTEXT.Process(target=_work, args=(command, dict(environment)), daemon=False)
    process.start()
    return process


def _work(command: str, environment: Mapping[str, str]) -> None:
    sys.exit(run_container(command=command, env=environment))


def _run(module: str, environment: Mapping[str, str], log: str, clock_seconds: float) -> None:
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.pop("KUBERNETES_SERVICE_HOST", None)
    os.environ.update(environment)
    # The client read the variable when the server imported it.
    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = environment["KUBECONFIG"]
    if clock_seconds:
        wrong = datetime.now(UTC) + timedelta(seconds=clock_seconds)
        time_machine.travel(wrong, tick=True).start()  # the wall clock; the monotonic one goes on
    importlib.import_module(module).main()


class Supervised:
    """A process that is started again whenever it has ended; use it as an async context manager.

    Args:
        module: whose `main` is run.
        environment: its variables, besides the inherited ones.
        log: the file that its output is appended to.
    """

    def __init__(self, *, module: str, environment: Mapping[str, str], log: Path) -> None:
        self._module = module
        self._environment = environment
        self.log = log
        self.clock_seconds = 0.0  # how much the clock of the next process is fast
        self.starts = 0
        self.kills = 0
        self.may_end = False  # the fault is one that ends the process, and starting it again is the cure
        self._stopping = False
        self._process: ForkServerProcess | None = None
        self._held = asyncio.Event()
        self._held.set()

    async def __aenter__(self) -> Self:
        self._start()
        self._task = asyncio.create_task(self._supervise())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        self._held.set()
        if self._process is not None:
            self._process.kill()
        await self._task

    @property
    def running(self) -> bool:
        """True while a process runs."""
        return self._process is not None and self._process.is_alive()

    def kill(self) -> None:
        """End the process with SIGKILL, if one runs; another one is started."""
        if self._process is not None:
            self.kills += 1
            self._process.kill()

    def check(self) -> None:
        """Raise what went wrong: a process that ended by itself."""
        if self._task.done():
            self._task.result()

    def hold(self) -> None:
        """Start no other process until `release`."""
        self._held.clear()

    def release(self) -> None:
        """Start processes again."""
        self._held.set()

    def _start(self) -> None:
        self.starts += 1
        arguments = (self._module, self._environment, str(self.log), self.clock_seconds)
        self._process = _CONTEXT.Process(target=_run, args=arguments, daemon=True)
        self._process.start()

    async def _supervise(self) -> None:
        while (process := self._process) is not None:
            while process.is_alive():
                await asyncio.sleep(_POLL_SECONDS)
            code = process.exitcode
            self._process = None
            process.close()
            if self._stopping:
                return
            assert code == -signal.SIGKILL or self.may_end, (
                f"{self._module} ended by itself: {code}\n{self.log.read_text()}"
            )
            await self._held.wait()
            if self._stopping:
                return
            self._start()
