"""What the watches and the full list show of batches and their jobs: it is noted, and the batch's key is queued."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from ingestion_crds import constants as names
from ingestion_crds.batch import IngestionBatch

from ingestion_operator.batch_memory import BatchMemory
from ingestion_operator.batch_plan import settled
from ingestion_operator.queue import WorkQueue
from ingestion_operator.results import shorten

LEFT_ALONE: Final = "left alone: this release does not understand what is there; a newer one may have written it: %s"

log = logging.getLogger(__name__)


class BatchIntake:
    """Takes in what happens to IngestionBatches and their IngestionJobs.

    A replica that stands by drops what it is shown, as `Intake` does.

    Args:
        memory: what looks have left.
        queue: of the keys of batches to be looked at.
    """

    def __init__(self, *, memory: BatchMemory, queue: WorkQueue) -> None:
        self._memory = memory
        self._queue = queue
        self.leading = False

    def begin(self) -> None:
        """Take in from now on what is shown: this replica leads."""
        self.leading = True

    def on_batch_seen(self, body: Mapping[str, Any], *, deleted: bool = False) -> None:
        """Take in a state of an IngestionBatch, and queue its key unless the state is known, or asks for nothing.

        That is at once unless it still rests; else it is soon due.

        Args:
            body: the IngestionBatch.
            deleted: it is gone.
        """
        if not self.leading:
            return
        metadata = body["metadata"]
        key = f"{metadata['namespace']}/{metadata['name']}"
        pace = self._memory.of(key)
        if deleted:
            if pace is not None:
                pace.stirred = True
                self._queue.add(key)  # the look finds that out, and forgets it
            return
        if pace is not None and metadata["resourceVersion"] in pace.resource_versions:
            return
        try:
            batch = IngestionBatch.model_validate(body)
        except ValueError as error:
            log.error(LEFT_ALONE, shorten(str(error)), extra={"job": key})
            return
        if pace is None and settled(batch):
            return
        self._memory.pace(key).heard = metadata["resourceVersion"]
        if (wait := self._memory.wait_for_news(key)) > 0:
            # Not before all that are due: who touches a few batches all the time would keep the others waiting.
            self._queue.add_after(key, wait)
        else:
            self._queue.add(key)

    def on_listed(self, body: Mapping[str, Any]) -> None:
        """Take in an IngestionBatch of the full list, which is there for lost events: for those of its jobs too."""
        self.on_batch_seen(body)
        key = f"{body['metadata']['namespace']}/{body['metadata']['name']}"
        pace = self._memory.of(key)
        if self.leading and pace is not None and not pace.parked:
            self._queue.add_after(key, self._memory.remaining_rest(key))

    def on_job_seen(self, body: Mapping[str, Any], *, deleted: bool = False) -> None:
        """Take in a state of any IngestionJob. Where it is news of a batch's, the batch is due after its rest.

        A batch at rest is looked at again where one of its jobs runs: somebody has retried that by itself.
        """
        metadata = body["metadata"]
        if names.LABEL_BATCH_UID not in metadata.get("labels", {}) or not self.leading:
            return
        owners = metadata.get("ownerReferences", [])
        owner = next((item for item in owners if item.get("controller")), None)
        if owner is None or owner.get("kind") != names.BATCH_KIND:
            return
        key = f"{metadata['namespace']}/{owner['name']}"
        pace, phase = self._memory.of(key), body.get("status", {}).get("phase")
        if pace is None:
            if deleted or phase in names.TERMINAL_PHASES:
                return
            pace = self._memory.pace(key)
        elif not deleted and pace.phases.get(metadata["name"]) == phase:
            return
        pace.stirred = True
        self._queue.add_after(key, self._memory.remaining_rest(key))
