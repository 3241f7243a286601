"""What the watches and the full list show: it is noted, and the key of the job that it is about is queued."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.job import ChildUid, IngestionJob

from ingestion_operator.batch_intake import LEFT_ALONE, BatchIntake
from ingestion_operator.children import read_child
from ingestion_operator.memory import Memory
from ingestion_operator.pace import Kept
from ingestion_operator.questions import begins, settled
from ingestion_operator.queue import WorkQueue
from ingestion_operator.results import shorten

# An RFC 1123 subdomain, as every IngestionJob's name is: anything else would be another path on the API server, or a
# key of a quarter of a megabyte.
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

log = logging.getLogger(__name__)


class Intake:
    """Takes in what happens to IngestionJobs and their Jobs.

    A replica that stands by drops what it is shown: its list at the takeover brings what is not settled.

    Args:
        memory: what looks have left, and where it is noted for the next ones.
        queue: of the keys of jobs to be looked at.
        batches: takes in the same of the batches that some of the IngestionJobs belong to.
    """

    def __init__(self, *, memory: Memory, queue: WorkQueue, batches: BatchIntake) -> None:
        self._memory = memory
        self._queue = queue
        self._batches = batches
        self._unfinished: dict[ChildUid, str] = {}  # while standing by: UIDs of Jobs that run → keys of their parents
        self.leading = False

    def begin(self) -> None:
        """Take in from now on what is shown: this replica leads."""
        self.leading = True
        self._batches.begin()
        for key in self._unfinished.values():
            # The list passes over settled parents, and one of them may have a Job that came too late.
            self._memory.to_list.add(key)
            self._queue.add(key)
        self._unfinished.clear()

    def passes_over(self, body: Mapping[str, Any]) -> bool:
        """Return whether a state of an IngestionJob asks for nothing: looks know it, or this replica stands by.

        Then it is taken in, and `on_job_seen` would do no more.

        Args:
            body: the IngestionJob, as the watch shows it.
        """
        if not self.leading:
            return True
        self._batches.on_job_seen(body)  # the states that looks know too: most are what they have written
        key, resource_version = _key(body, body["metadata"]["name"]), body["metadata"]["resourceVersion"]
        pace = self._memory.of(key)
        if pace is None:
            return not self._memory.is_new(key, resource_version)
        if not pace.knows(resource_version):
            return False
        self._memory.open.add(key)
        return True

    def on_job_seen(self, body: Mapping[str, Any], *, listed: bool = False) -> None:
        """Take in a state of an IngestionJob, and queue its key where there is something to do.

        That is at once if the state was neither read nor written here, unless the body alone shows that the job is
        settled. If the full list shows a known state, it is later, and only where it is time to list the job's Jobs.

        Args:
            body: the IngestionJob.
            listed: the full list of the replica that leads has brought it, which is there for lost events: for those of
                Jobs too.
        """
        key, resource_version = _key(body, body["metadata"]["name"]), body["metadata"]["resourceVersion"]
        memory = self._memory
        pace = memory.of(key)
        due = listed and (pace is None or memory.listing_due(pace))
        if due:
            self._batches.on_job_seen(body)  # as `passes_over` does
        elif self.passes_over(body):
            return
        # A list is taken as it is: when etcd was restored, what is new has an older resourceVersion.
        news = pace is None or pace.on_job_seen(resource_version)
        try:
            job = IngestionJob.model_validate(body)
        except ValueError as error:
            log.error(LEFT_ALONE, shorten(str(error)), extra={"job": key})
            return
        if settled(job):
            # A list may be older than what has been done since. So a job that is followed is left to its next look.
            if pace is None or not listed:
                memory.open.discard(key)
            return
        memory.open.add(key)
        due = due and job.status.phase not in names.TERMINAL_PHASES
        if due:
            memory.to_list.add(key)
        if news:
            if pace is None and begins(job):
                memory.show(key, Kept.of(body, job))
            self._queue.add(key)
        elif due and pace is not None:
            self._queue.add_after(key, pace.remaining_rest(memory.monotonic()))

    def on_job_deleted(self, body: Mapping[str, Any]) -> None:
        """Take in that an IngestionJob is gone: the next look finds that out, and forgets it."""
        key = _key(body, body["metadata"]["name"])
        self._memory.open.discard(key)
        self._batches.on_job_seen(body, deleted=True)
        pace = self._memory.of(key)
        if pace is not None:
            pace.on_gone()
            self._queue.add(key)

    def on_child_seen(self, body: JsonObject, *, deleted: bool) -> None:
        """Take in a state of a Job, and queue the key of its parent, the IngestionJob that it was made for.

        That is at once if the Job has ended or is gone, or if it was not expected. One that runs is looked for even if
        its parent is settled. That an expected one runs on is not urgent: its parent rests between two looks.
        """
        try:
            child = read_child(body)
        except Exception:
            # One broken object must not stop the watch of the others.
            log.exception("a Job that is not understood: %s", body["metadata"]["name"])
            return
        owner = body["metadata"].get("annotations", {}).get(names.ANNOTATION_JOB_NAME)
        if not owner or not _NAME.fullmatch(owner):
            return
        key = _key(body, owner)
        gone = deleted or child.deleting
        runs = not (gone or child.finished)
        if not self.leading:
            self._unfinished.pop(child.uid, None)
            if runs:
                self._unfinished[child.uid] = key
            return
        memory = self._memory
        pace = memory.of(key)
        if not gone and (pace is None or not pace.expects(child)) and (runs or key in memory.open):
            memory.to_list.add(key)
            self._queue.add(key)
        elif pace is None:
            # Else the parent is at rest, as most are whose Jobs are listed at the start; or it is still to be seen, and
            # will be looked at then.
            if key in memory.open:
                self._queue.add(key)
        elif runs:
            wait = pace.on_child_changed(child, memory.monotonic()) if child.name in pace.expected else None
            if wait is not None:
                self._queue.add_after(key, wait)
        elif child.name in pace.expected or key in memory.to_list:
            # Else it was replaced: what becomes of it then is no news.
            if gone:
                pace.on_gone()
            else:
                pace.on_child_ended(child)
            self._queue.add(key)


def _key(body: Mapping[str, Any], name: str) -> str:
    return f"{body['metadata']['namespace']}/{name}"
