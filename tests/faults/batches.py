"""A batch in a run: documents that are each done in a single pass, or fail as a script says."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from faults.rig import Run
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.batch import IngestionBatch
from ingestion_crds.kube import MERGE_PATCH, batch_path, ingestion_path
from support.builders import failure, ingestion_batch, prepared
from support.kubelet import Exit, PodRun, Script, fails

NAME = "manuals"
CODE = "SourceNotFound"


def index_of(pod: PodRun) -> int:
    """Return the place of the document that a pod belongs to."""
    return int(pod.job.rpartition("-")[2])


def documents_script(*, bad: Collection[int] = (), always: Collection[int] = ()) -> Script:
    """Return a script in which bad documents fail in their first attempt, some in each, and all others end well."""

    def end(pod: PodRun) -> Exit | None:
        index = index_of(pod)
        if index in always or (index in bad and pod.generation == 0):
            return fails(failure(CODE, f"document {index}: no such object"))
        return Exit(says=prepared(segments=1, mode="SinglePass"))

    return end


@dataclass(frozen=True, kw_only=True)
class BatchRun:
    """A run's batch, as its users see it."""

    run: Run

    async def create(self, documents: int, **spec: Any) -> JsonObject:
        body = ingestion_batch(name=NAME, documents=documents, namespace=self.run.namespace, **spec)
        return await self.run.kube.request("POST", batch_path(self.run.namespace), body=body)

    async def get(self) -> JsonObject:
        return await self.run.kube.request("GET", batch_path(self.run.namespace, NAME))

    async def patch(self, body: JsonObject) -> None:
        path = batch_path(self.run.namespace, NAME)
        await self.run.kube.request("PATCH", path, body=body, content_type=MERGE_PATCH)

    async def spec(self, **spec: Any) -> None:
        """Change the spec."""
        await self.patch({"spec": spec})

    async def until(self, wish: Callable[[JsonObject], bool]) -> JsonObject:
        """Wait until the batch is as wished and return it."""
        deadline = time.monotonic() + self.run.patience
        while not wish(batch := await self.get()):
            self.run.check()
            status = json.dumps(batch.get("status"), indent=1)
            assert time.monotonic() < deadline, f"still {status}\n{self.run.log_end()}"
            await asyncio.sleep(0.1)
        return batch

    async def ended(self, phase: str, *, generation: int = 0) -> JsonObject:
        """Wait until an attempt has ended; check its phase."""

        def wish(batch: JsonObject) -> bool:
            status = batch["status"]
            return status.get("endedGeneration") == generation and status["phase"] in names.TERMINAL_PHASES

        batch = await self.until(wish)
        IngestionBatch.model_validate(batch)
        assert batch["status"]["phase"] == phase, json.dumps(batch["status"], indent=1)
        return batch

    async def jobs(self) -> dict[int, JsonObject]:
        """Return the batch's IngestionJobs by their documents' places."""
        listed = await self.run.kube.request("GET", ingestion_path(self.run.namespace))
        return {int(job["metadata"]["labels"][names.LABEL_BATCH_INDEX]): job for job in listed["items"]}

    async def generations(self) -> dict[int, int]:
        """Return the jobs' retry generations."""
        return {index: job["spec"]["retryGeneration"] for index, job in sorted((await self.jobs()).items())}

    def attempts(self) -> Counter[tuple[int, int]]:
        """Return how many pods ran for each document and generation of its job."""
        return Counter((index_of(pod), pod.generation) for pod in self.run.kubelet.runs)


def condition(batch: JsonObject, kind: str) -> tuple[str, str]:
    """Return a condition's status and reason."""
    found = next(item for item in batch["status"]["conditions"] if item["type"] == kind)
    return found["status"], found["reason"]
