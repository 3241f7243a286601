"""Pods whose containers are the real worker, over a store in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
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
        store: the tenant's store.
        failing: which pods fail at once.
    """

    def __init__(self, *, folder: Path, store: Path, failing: Callable[[PodRun], bool]) -> None:
        self._folder = folder
        self._store = store
        self._failing = failing
        self._processes: dict[str, ForkServerProcess] = {}

    def __call__(self, pod: PodRun) -> Exit | None:
        """Start a pod's container, or say whether it has ended and how."""
        if self._failing(pod):
            return fails(failure("EmbeddingRejected", f"segment {pod.segment}: content rejected"))
        folder = self._folder / pod.uid
        process = self._processes.get(pod.uid)
        if process is None:
            process = self._processes[pod.uid] = self._start(pod, folder)
        if process.exitcode is None:
            return HANG
        return Exit(code=process.exitcode, says=json.loads((folder / "termination-log").read_bytes()))

    def _start(self, pod: PodRun, folder: Path) -> ForkServerProcess:
        folder.mkdir()
        (folder / "attempt.json").write_text(pod.file)
        environment = dict(pod.env)
        environment |= {
            names.ENV_ATTEMPT_FILE: str(folder / "attempt.json"),
            names.ENV_STORE_URL: f"file://{self._store}",
            names.ENV_JOB_INDEX: str(pod.index),
            "INGESTION_TERMINATION_LOG": str(folder / "termination-log"),
        }
        environment.pop("AWS_ENDPOINT_URL", None)
        return start_worker(command=pod.command, environment=environment)


async def really_ingested(run: Run, api: Api | None) -> None:
    """A text in several segments, of which two fail; a retry; the version is published."""
    store = run.folder / "store" / run.namespace
    (store / "uploads").mkdir(parents=True)
    (store / "uploads" / "handbook.txt").write_text(sentences(count=60))
    run.kubelet.script = RealWorker(
        folder=run.folder,
        store=store,
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
