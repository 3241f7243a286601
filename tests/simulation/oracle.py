"""What must hold whatever happens: the invariants of docs/reliability.md, checked at every committed change.

Each violation names the invariant by its number.
"""

from __future__ import annotations

import json

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Phase, Stage, VersionState
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import Attempt, AttemptJob, IngestionJob, Status

from simulation.api import INGESTION_JOBS, Change, finished, owner_of
from simulation.cluster import SimulatedCluster


class ViolationError(AssertionError):
    """An invariant does not hold."""


def attempt_segments(cluster: SimulatedCluster, job: JsonObject) -> IndexSet:
    """Return the segments that a Job's ConfigMap gives out."""
    metadata = job["metadata"]
    found = cluster.api.find("configmaps", metadata["namespace"], metadata["name"])
    text = json.loads(found["data"][names.ATTEMPT_KEY]).get("segments", "") if found else ""
    return IndexSet.parse(text)


class Oracle:
    """Watches a cluster from outside.

    Args:
        cluster: whose changes are checked.

    A story in which somebody makes the operator break an invariant takes that off `violations`.
    """

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self._made: dict[str, JsonObject] = {}  # every Job that was ever made, by UID
        self._tokens: dict[str, set[str]] = {}  # IngestionJob UID → annotation tokens that raised a generation
        self.writes = 0  # by operators
        self.violations: list[str] = []
        cluster.api.on_change.append(self._see)

    def raise_found(self) -> None:
        """Raise what was found.

        Raises:
            ViolationError: with all of it.
        """
        found = [*self.violations, *self.cluster.store.wrongs, *self.cluster.broken.found]
        if found:
            raise ViolationError("\n".join(found))

    def _need(self, holds: bool, words: str) -> None:
        if not holds:
            self.violations.append(words)

    def _see(self, change: Change) -> None:
        ours = change.by.startswith("operator")
        self.writes += ours
        if change.resource == INGESTION_JOBS and change.kind == "MODIFIED":
            assert change.before is not None
            before, after = IngestionJob.model_validate(change.before), IngestionJob.model_validate(change.after)
            if ours and before.status != after.status:
                self._status_written(before, after)
            self._spec_written(before, after, ours)
        elif change.resource == "jobs":
            if change.kind == "ADDED":
                self._made[change.after["metadata"]["uid"]] = change.after
                if ours:
                    self._job_made(change.after)
            elif ours and "deletionTimestamp" in change.after["metadata"]:
                assert change.before is not None
                # What is changed of a Job that somebody else has deleted already does not delete it.
                if "deletionTimestamp" not in change.before["metadata"]:
                    self._job_deleted(change.after)
        elif change.resource == "pods" and ours:
            self._pod_removed(change.after)

    def _owner(self, uid: str) -> IngestionJob | None:
        for body in self.cluster.api.peek(INGESTION_JOBS):
            if body["metadata"]["uid"] == uid:
                return IngestionJob.model_validate(body)
        return None

    # ── what is written ───────────────────────────────────────────────────────────────────────────────────────

    def _status_written(self, before: IngestionJob, after: IngestionJob) -> None:
        old, new = before.status, after.status
        self._need(_completed(old) <= _completed(new), f"invariant 3: {_completed(old)} became {_completed(new)}")
        generations = [attempt.generation for attempt in new.attempts]
        self._need(
            generations == sorted(set(generations)), f"invariant 4: a generation twice, or out of order: {generations}"
        )
        known = {attempt.generation: attempt for attempt in new.attempts}
        for attempt in old.attempts:
            kept = known.get(attempt.generation)
            if kept is None:
                trimmed = len(new.attempts) == names.MAX_ATTEMPTS
                self._need(trimmed, f"invariant 4: attempt {attempt.generation} is forgotten")
            else:
                self._attempt_kept(attempt, kept)
        if new.attempts and new.attempts[-1].generation not in {attempt.generation for attempt in old.attempts}:
            self._attempt_begun(old, new)
        for attempt in new.attempts:
            if attempt.reason is not None and attempt.segments:
                told = attempt.completed + attempt.failed == attempt.segments
                self._need(told, f"invariant 2: attempt {attempt.generation} does not say what became of all segments")
            for record in attempt.jobs:
                self._job_recorded(after, attempt, record, old)
        if new.phase is Phase.COMPLETED or (new.version and new.version.state is VersionState.ACTIVE):
            version = new.version.id if new.version else ""
            self._need(version in self.cluster.store.active, "invariant 6: called active, and it is not published")
        plans = [status.version.plan_hash for status in (old, new) if status.version and status.version.plan_hash]
        self._need(len(set(plans)) < 2, "invariant 6: one version of two plans")

    def _attempt_kept(self, old: Attempt, new: Attempt) -> None:
        place = f"attempt {old.generation}"
        self._need(old.reason in (None, new.reason), f"invariant 4: {place} ends twice")
        self._need(old.completion_time in (None, new.completion_time), f"invariant 4: {place} is over, and goes on")
        self._need(len(new.jobs) >= len(old.jobs), f"invariant 1: {place} forgets a Job")
        for was, record in zip(old.jobs, new.jobs, strict=False):
            self._need(was.name == record.name, f"invariant 1: {place} renames {was.name}")
            self._need(was.uid in (None, record.uid), f"invariant 1: {place} takes another Job for {was.name}")
            done = was.completion_time in (None, record.completion_time)
            self._need(done, f"invariant 1: {place} goes on with {was.name}, which is over")

    def _attempt_begun(self, old: Status, new: Status) -> None:
        if not old.attempts:
            return
        last, begun = old.attempts[-1], new.attempts[-1]
        self._need(last.completion_time is not None, f"invariant 1: attempt {last.generation} is not over")
        self._need(begun.generation == last.generation + 1, f"invariant 4: {begun.generation} after {last.generation}")
        self._nothing_runs(old, f"attempt {begun.generation} begins")

    def _nothing_runs(self, status: Status, when: str) -> None:
        for attempt in status.attempts:
            for record in attempt.jobs:
                live = self._live(record.uid)
                over = live is None or finished(live)
                self._need(over, f"invariant 1: {when} while {record.name} runs")

    def _live(self, uid: str | None) -> JsonObject | None:
        return next((job for job in self.cluster.api.peek("jobs") if job["metadata"]["uid"] == uid), None)

    def _job_recorded(self, job: IngestionJob, attempt: Attempt, record: AttemptJob, old: Status) -> None:
        live = self._live(record.uid)
        if attempt.completion_time is not None and live is not None:
            self._need(finished(live), f"invariant 1: attempt {attempt.generation} is over, and {record.name} runs")
        if record.uid is None or any(record.uid == was.uid for item in old.attempts for was in item.jobs):
            return
        made = self._made[record.uid]
        owner = owner_of(made) or {}
        self._need(owner.get("uid") == job.metadata.uid, f"invariant 7: adopted {record.name}, which is another's")
        digest = made["metadata"].get("annotations", {}).get(names.ANNOTATION_MAP_DIGEST)
        self._need(digest == record.map_digest, f"invariant 7: adopted {record.name} of another content")

    def _spec_written(self, before: IngestionJob, after: IngestionJob, ours: bool) -> None:
        raised = after.spec.retry_generation - before.spec.retry_generation
        self._need(raised in (0, 1), f"invariant 4: raised by {raised}")
        if not ours:
            return
        origin = names.ANNOTATION_RETRY_ORIGIN
        if before.metadata.annotations.get(origin) != after.metadata.annotations.get(origin):
            self._need(raised == 1, "invariant 4: an annotation was taken for a retry that somebody else had made")
        if raised:
            token = before.metadata.annotations.get(names.ANNOTATION_RETRY_REQUESTED, "")
            used = self._tokens.setdefault(before.metadata.uid, set())
            self._need(token not in used, f"invariant 4: the annotation {token!r} raised the generation twice")
            used.add(token)
            handled = after.metadata.annotations.get(names.ANNOTATION_RETRY_HANDLED)
            self._need(handled == token, "invariant 4: the annotation is raised for, and not marked handled")

    def _job_made(self, made: JsonObject) -> None:
        owner = self._owner((owner_of(made) or {}).get("uid", ""))
        if owner is None:
            return  # late: the garbage collector takes it
        name = made["metadata"]["name"]
        records = [record for attempt in owner.status.attempts for record in attempt.jobs]
        record = next((record for record in records if record.name == name), None)
        if record is None:
            self.violations.append(f"invariant 1: {name} is made, and was not recorded before")
            return
        if record.uid is not None or record.completion_time is not None:
            return  # late: it has to be gone in the end
        for other in records:
            live = self._live(other.uid)
            self._need(live is None or finished(live), f"invariant 1: {name} is made while {other.name} runs")
        if record.stage is Stage.SEGMENTS:
            again = attempt_segments(self.cluster, made) & _completed(owner.status)
            self._need(not again, f"invariant 2: {again} are recorded complete, and dispatched again")

    def _job_deleted(self, deleted: JsonObject) -> None:
        owner = self._owner((owner_of(deleted) or {}).get("uid", ""))
        if owner is None:
            return
        records = [record for attempt in owner.status.attempts for record in attempt.jobs]
        recorded = [record.uid for record in records if record.uid]
        succeeded = bool(records) and records[-1].uid is None  # what comes after it is recorded, and is to be made
        limit = owner.spec.cancel_generation
        cancelled = limit is not None and limit >= owner.status.attempts[-1].generation
        # A cancellation that has reached its Job cannot be taken back.
        cancelled = cancelled or deleted["spec"].get("activeDeadlineSeconds") == 0
        newest = bool(recorded) and recorded[-1] == deleted["metadata"]["uid"]
        outlives = newest and owner.status.attempts[-1].completion_time is not None and not finished(deleted)
        self._need(
            not newest or succeeded or cancelled or outlives,
            f"invariant 1: {deleted['metadata']['name']} is deleted, and is the newest",
        )

    def _pod_removed(self, pod: JsonObject) -> None:
        owner = self._owner(pod["metadata"]["labels"][names.LABEL_JOB_UID])
        if owner is None:
            return
        uid = pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"]
        records = [record for attempt in owner.status.attempts for record in attempt.jobs if record.uid == uid]
        durable = any(record.completion_time is not None for record in records)
        self._need(durable, f"invariant 2: {pod['metadata']['name']} is removed before what it said is recorded")

    # ── at the end ────────────────────────────────────────────────────────────────────────────────────────────

    def at_rest(self, body: JsonObject) -> None:
        """Check what is left of a job that has come to rest."""
        job = IngestionJob.model_validate(body)
        status, uid = job.status, job.metadata.uid
        self._need(
            status.observed_retry_generation == job.spec.retry_generation,
            f"invariant 4: generation {job.spec.retry_generation} is lost",
        )
        self._need(status.attempts[-1].generation == job.spec.retry_generation, "invariant 4: no attempt of it")
        token = job.metadata.annotations.get(names.ANNOTATION_RETRY_REQUESTED)
        self._need(status.last_handled_retry_request == token, f"invariant 4: the annotation {token!r} is lost")
        owned = [
            item
            for item in self.cluster.api.peek("jobs")
            # Without its labels a Job is the operator's no more, unless it is the recorded one.
            if (owner_of(item) or {}).get("uid") == uid and item["metadata"].get("labels")
        ]
        for item in owned:
            self._need(finished(item), f"invariant 1: {item['metadata']['name']} runs, and the job is {status.phase}")
        self._need(len(owned) <= 1, f"invariant 1: left over: {[item['metadata']['name'] for item in owned]}")
        # A Job that somebody disowned is nobody's, and so are its pods; those that may not be removed stay.
        ours = {item["metadata"]["uid"] for item in owned} - self.cluster.kept_pods
        for pod in self.cluster.api.all("pods"):
            if (owner_of(pod) or {}).get("uid") in ours:
                phase = pod["status"]["phase"]
                self._need(phase == "Failed", f"invariant 5: a pod is left over, and it is {phase}")
        if status.segments is not None and status.version is not None:
            outputs = {key[2] for key in self.cluster.store.outputs if key[0] == status.version.id}
            lost = _completed(status) - IndexSet.of(outputs)
            self._need(not lost, f"invariant 2: {lost} are recorded complete, and have no output")
        self.raise_found()


def _completed(status: Status) -> IndexSet:
    if status.segments is None or status.mode is None:
        return IndexSet()
    return IndexSet.parse(status.segments.completed)
