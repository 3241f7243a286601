"""Pods whose containers are the real worker, over a store of the test's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

from faults.processes import start_worker
from faults.rig import Api, Run
from faults.scenarios import SEGMENTS
from ingestion_crds import constants as names
from support.builders import failure
from support.kubelet import HANG, Exit, PodRun, fails
from support.worker_builders import sentences

SEGMENT_CHARACTERS: Final = 1024


class RealWorker:
    """A script that runs the worker for each pod, but for those that are to fail without it.

    Args:
        folder: where files and logs go.
        store: the variables that say where the tenant's store is.
        failing: which pods fail at once.
    """

    def __init__(
        self, *, folder: Path, store: Mapping[str, str], failing: Callable[[PodRun], bool] = lambda pod: False
    ) -> None:
        self._folder = folder
        self._store = store
        self._failing = failing
        self._processes: dict[str, ForkServerProcess] = {}

    def __call__(self, pod: PodRun) -> Exit | None:
        """Start a pod's container, or say whether it has ended and how."""
        if self._failing(pod):
            return fails(failure("EmbeddingRejected", f"segment {pod.segment}: content rejected"))
        if pod.uid not in self._processes:
            self._processes[pod.uid] = self._start(pod, self._folder / pod.uid)
        return self.end_of(pod)

    async def pause(self, pod: PodRun) -> None:
        """Stop a pod's process with SIGSTOP, as on a machine that froze, and wait until it stands still."""
        process = Path("/proc") / str(self._pid(pod))
        os.kill(self._pid(pod), signal.SIGSTOP)
        # One thread has to take the signal before all of them stop; on a busy machine the others go on until then.
        while any(stat.read_text().rpartition(")")[2].split()[0] != "T" for stat in process.glob("task/*/stat")):
            await asyncio.sleep(0.005)

    def resume(self, pod: PodRun) -> None:
        """Let a stopped process go on as if nothing had happened."""
        os.kill(self._pid(pod), signal.SIGCONT)

    def end_of(self, pod: PodRun) -> Exit | None:
        """Return how a pod's process ended, HANG while it has not; it may be one whose pod is long gone."""
        process = self._processes[pod.uid]
        if process.exitcode is None:
            return HANG
        said = self._folder / pod.uid / "termination-log"
        return Exit(code=process.exitcode, says=json.loads(said.read_bytes()) if said.exists() else None)

    def end(self) -> None:
        """End the processes that still run."""
        for process in self._processes.values():
            process.kill()
            process.join()

    def _pid(self, pod: PodRun) -> int:
        pid = self._processes[pod.uid].pid
        assert pid is not None
        return pid

    def _start(self, pod: PodRun, folder: Path) -> ForkServerProcess:
        folder.mkdir()
        (folder / "attempt.json").write_text(pod.file)
        environment = dict(pod.env)
        environment |= {
            names.ENV_ATTEMPT_FILE: str(folder / "attempt.json"),
            names.ENV_COMPLETION_INDEX: str(pod.index),
            "INGESTION_TERMINATION_LOG": str(folder / "termination-log"),
        }
        environment.pop("AWS_ENDPOINT_URL", None)
        environment |= self._store
        return start_worker(command=pod.command, environment=environment)


async def really_ingested(run: Run, api: Api | None) -> None:
    """A text in several segments, of which two fail; a retry; the version is published."""
    store = run.folder / "store" / run.namespace
    (store / "uploads").mkdir(parents=True)
    (store / "uploads" / "handbook.txt").write_text(sentences(count=60))
    run.kubelet.script = RealWorker(
        folder=run.folder,
        store={names.ENV_STORE_URL: f"file://{store}"},
        failing=lambda pod: pod.stage == SEGMENTS and pod.generation == 0 and pod.segment in (1, 2),
    )
    document = {
        "id": "8d0a7f0e-64f1-4f59-8a2c-7b9d2f3c4e55",
        "title": "Handbook",
        "source": {"uri": f"s3://{run.namespace}/uploads/handbook.txt"},
    }
    segmentation = {"charactersPerSegment": SEGMENT_CHARACTERS}
    await run.create(mode="Segmented", document=document, segmentation=segmentation)
    await run.settled("partial_failure")
    await run.patch({"retryGeneration": 1})
    await run.settled("completed", generation=1)
