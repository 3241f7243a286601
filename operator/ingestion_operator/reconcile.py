"""The reconcile loop: read a snapshot, plan, write the status, act, look again; every step durable before the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.config import Config
from ingestion_crds.constants import Reason, Stage
from ingestion_crds.job import ChildUid, IngestionJob, Status, dump_status
from ingestion_crds.kube import ApiError

from ingestion_operator import metrics
from ingestion_operator.acting import Acting
from ingestion_operator.actions import Action, AnswerAnnotation, CreateChild, DeleteChild, Event, PatchChild, RemovePods
from ingestion_operator.children import ChildJob, read_child
from ingestion_operator.cluster import KubeCluster, merge_diff
from ingestion_operator.creation_failures import CreationFailures
from ingestion_operator.memory import Memory, Point
from ingestion_operator.obstacles import OBSTACLES, Waiting, may_lack_config_map, read_obstacle
from ingestion_operator.pace import Kept, LastLook
from ingestion_operator.plan import Plan, Snapshot, plan
from ingestion_operator.questions import (
    at_rest,
    current,
    ended,
    expected_names,
    rejection_said,
    settled,
    stalled,
    wants_diagnosis,
    wants_harvest,
)
from ingestion_operator.results import Results
from ingestion_operator.summary import only_counts_changed, only_observations_changed

_ROUNDS: Final = 12
# Pages of 500 failed pods that are in memory at the same time, some 17 MB each: many large Jobs may end at once.
_HARVESTS: Final = 4


def utc_now() -> datetime:
    """Return the time in UTC, whole seconds, as Kubernetes stores it."""
    return datetime.now(UTC).replace(microsecond=0)


class Reconciler:
    """Brings one IngestionJob at a time to what its spec says.

    Args:
        cluster: the API server.
        config: the installation's configuration.
        memory: what is remembered of each job.
        now: the wall clock, for times that are recorded.
        is_due: is asked whether nothing has happened to the job that is looked at: it is merely due.
    """

    def __init__(
        self,
        *,
        cluster: KubeCluster,
        config: Config,
        memory: Memory,
        now: Callable[[], datetime] = utc_now,
        is_due: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._cluster = cluster
        self._jobs = cluster.ingestion_jobs
        self._config = config
        self._memory = memory
        self._now = now
        self._is_due = is_due
        self._acting = Acting(cluster=cluster, memory=memory, now=now)
        self._harvests = asyncio.Semaphore(_HARVESTS)
        self._creation_failures = CreationFailures(cluster=cluster, monotonic=memory.monotonic)

    # ── looks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def reconcile(self, key: str) -> float | None:
        """Look at one job until nothing is left to do at once. Which look is taken when: see `pace`.

        Args:
            key: namespace/name.

        Returns:
            Seconds after which to look again although nothing happened, or None.

        Raises:
            ApiError: when the API server cannot be worked with; look again later.
            ConflictError: when something changed meanwhile; look again.
        """
        pace, listing = self._memory.pace(key), key in self._memory.to_list
        self._memory.share(key)  # others have come or gone since the last look
        if not listing and (idle := pace.idle(self._memory.monotonic())) > 0:
            return idle
        shown, known = self._memory.begin_look(key)
        try:
            if shown is not None and not listing:
                return await self._look_at_beginning(key, shown)
            if known is None or listing:
                return await self._full_look(key)
            kept, child = known
            if at_rest(kept.job) and child.uid == kept.job.status.pods_to_remove:
                return await self._look_at_pods(key, kept, child)
            if child.finished:
                return await self._look_at_end(key, kept, child)
            return await self._look_at_counts(key, kept, child)
        except Exception:
            pace.distrust()
            raise

    async def _full_look(self, key: str) -> float | None:
        """Read the IngestionJob and its Jobs live, and act on what is there."""
        namespace, _, name = key.partition("/")
        raw = await self._jobs.find(namespace=namespace, name=name)
        if raw is None:
            self._memory.to_list.discard(key)
            self._memory.littered.discard(key)
            return self._memory.forget(key)
        raw, job = kept = Kept.of(raw, IngestionJob.model_validate(raw))
        self._memory.remember(key, kept)
        listing = key in self._memory.to_list
        if settled(job) and not listing:
            return self._memory.forget(key)
        self._memory.to_list.discard(key)  # before anything is read: what is heard of from now on may not be among it
        try:
            children = await self._read_children(key, job, everything=listing)
            snapshot = Snapshot(job=job, config=self._config, children=children)
            return await self._act(key, raw, snapshot)
        except Exception:
            if listing:
                self._memory.to_list.add(key)
            raise

    async def _look_at_beginning(self, key: str, shown: Kept) -> float | None:
        """Begin an attempt from the IngestionJob as the watch has shown it, without reading that again.

        The first thing to do is to record the attempt, by a write under the job's resourceVersion. That proves that
        nothing else has happened to it, or is refused. Nor is the Job of the last attempt read if it was seen to end:
        it is deleted by its recorded UID, which is refused where a late duplicate has taken its name.
        """
        raw, job = shown
        self._memory.remember(key, shown)
        children = await self._read_children(key, job, everything=False, known=ended(job))
        snapshot = Snapshot(job=job, config=self._config, children=children)
        return await self._act(key, raw, snapshot, proven=False)

    async def _look_at_end(self, key: str, kept: Kept, child: ChildJob) -> float | None:
        """Take in that the Job of the running stage has ended, as the watch has shown it, without reading that again.

        A Job that has ended does not change any more. And the end is recorded before anything is done about it, by a
        write under the resourceVersion of the IngestionJob as it was last read or written. That proves that nothing
        else has happened to it, such as a cancellation whose event is still on its way, or is refused.
        """
        record = current(kept.job)
        if record is None or record.uid != child.uid:
            return await self._full_look(key)
        snapshot = Snapshot(job=kept.job, config=self._config, children=(child,))
        return await self._act(key, kept.raw, snapshot, proven=False)

    async def _look_at_pods(self, key: str, kept: Kept, child: ChildJob) -> float | None:
        """Remove pods that an attempt has left, as the look before has put off.

        That needs no proof: the status said so, and what is done after it is done by a write under the resourceVersion.
        """
        return await self._act(key, kept.raw, Snapshot(job=kept.job, config=self._config, children=(child,)))

    async def _act(self, key: str, raw: JsonObject, snapshot: Snapshot, *, proven: bool = True) -> float | None:
        """Plan, write and act until nothing is left to do at once; return the delay.

        Args:
            key: namespace/name.
            raw: the IngestionJob.
            snapshot: what exists.
            proven: it was read live; else the first round must write, or a full look is taken instead.
        """
        for _ in range(_ROUNDS):
            snapshot = await self._read_pods(key, snapshot)
            rejection = snapshot.rejection
            decided = plan(snapshot, now=self._now())
            (raw, job), wait = await self._write(key, Kept(raw, snapshot.job), decided)
            written = job.metadata.resource_version != snapshot.job.metadata.resource_version
            proven = proven or written
            if not proven:
                return await self._full_look(key)
            snapshot = replace(snapshot, job=job)
            if written:  # the harvest is recorded with it; that of the next stage is another one
                snapshot = replace(snapshot, harvest=None, harvest_truncated=False)
            if wait is not None:
                return self._keep(key, raw, snapshot, wait, unwritten=True)
            if self._is_due(key) or not _only_removes_left_pods(decided, job):
                for action in decided.actions:
                    raw, snapshot = await self._acting.apply(action, raw, snapshot)
            self._cluster.events.tell(raw, decided.events, now=self._now())
            if settled(snapshot.job):
                return self._memory.forget(key)
            if _only_pods_are_left(decided.actions, snapshot.tidied):
                return self._put_off(key, raw, snapshot)
            if not written and not _moves_on(decided.actions) and snapshot.rejection == rejection:
                return self._keep(key, raw, snapshot, decided.look_again)
        return 1.0  # long, but each round was durable: give other jobs their turn

    async def _look_at_counts(self, key: str, kept: Kept, child: ChildJob) -> float | None:
        """Write a running Job's counts, from the IngestionJob as it was last read or written, and its Job as last seen.

        Counts, and why its pods do not start: nothing else is decided here, and nothing is decided from these. The
        IngestionJob's resourceVersion stands in the write, so an outdated one is refused. Whatever else is to be done
        is decided anew by a full look.
        """
        pace, (raw, job) = self._memory.pace(key), kept
        snapshot = Snapshot(job=job, config=self._config, children=(child,))
        if _running(snapshot) is None or rejection_said(job) is not None:
            return await self._full_look(key)
        diagnosed = pace.diagnosed
        snapshot = await self._read_pods(key, snapshot, thorough=False)
        decided = plan(snapshot, now=self._now())
        # A reason that was found while the Job changed may be over.
        writable = only_observations_changed if pace.heard.child is None else only_counts_changed
        if decided.actions or decided.events or not writable(job.status, decided.status):
            pace.diagnosed = diagnosed  # it is to be found again
            return await self._full_look(key)
        (raw, job), wait = await self._write(key, kept, decided)
        snapshot = replace(snapshot, job=job)
        return self._keep(key, raw, snapshot, wait or decided.look_again, unwritten=wait is not None)

    def _keep(
        self, key: str, raw: JsonObject, snapshot: Snapshot, wait: float | None, *, unwritten: bool = False
    ) -> float | None:
        """Keep the IngestionJob for the next look if its Job runs; return the delay, longer where many wait alike."""
        pace, child = self._memory.pace(key), _running(snapshot) if snapshot.rejection is None else None
        if snapshot.rejection is None:
            self._memory.webhook_failures.pop(key, None)
        last = LastLook(Kept(raw, snapshot.job), child, unwritten) if child is not None else None
        self._memory.end_look(key, last)
        if snapshot.job.status.phase in names.TERMINAL_PHASES:
            self._memory.join(key, None)
            return self._memory.tidy_later(key, wait)  # for its time to live
        self._memory.join(key, _point(child) if wait is not None else Point.HELD)
        if wait is None:
            return None
        if pace.last is None:
            return max(wait, pace.rest)
        if key in self._memory.to_list:
            return wait
        idle = pace.idle(self._memory.monotonic())
        return idle if pace.child_has_news else max(wait, idle)

    def _put_off(self, key: str, raw: JsonObject, snapshot: Snapshot) -> float:
        """Leave pods that are to be removed, or more of them, until nothing else waits.

        A Job's pods are deleted one by one. Neither ends of other jobs nor the next retry of this one wait for that.
        """
        uid = snapshot.job.status.pods_to_remove
        if uid is None:  # they are a stage's that went well; the next one runs
            self._memory.to_list.add(key)  # only a list has its Job
            self._keep(key, raw, snapshot, 0.0)
            return 0.0
        child = snapshot.child(uid)
        left = LastLook(Kept(raw, snapshot.job), child) if child is not None and child.finished else None
        self._memory.end_look(key, left)
        self._memory.join(key, None)
        return 0.0

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_children(
        self, key: str, job: IngestionJob, *, everything: bool, known: ChildJob | None = None
    ) -> tuple[ChildJob, ...]:
        """Read the Jobs that are recorded, but for one that is known, or all where there may be others.

        There may be others at the first look at a job that is not at rest, as after a start, and after any error. Also
        where one was heard of, or lost events are to be made good, which `everything` says. Of a job at rest there was
        no other Job when its last attempt ended, and the watch tells of one that came since.
        """
        pace, expected, now = self._memory.pace(key), expected_names(job), self._memory.monotonic()
        if not everything and (pace.listed is not None or at_rest(job)):
            children = await self._read_recorded_children(job, known)
            pace.listed = now if pace.listed is None else pace.listed
            return children
        children = await self._read_all_children(job)
        pace.listed = now
        if any(_is_owned(child, job) and not child.finished and child.name not in expected for child in children):
            self._memory.to_list.add(key)  # until it is gone
        return children

    async def _read_recorded_children(self, job: IngestionJob, known: ChildJob | None) -> tuple[ChildJob, ...]:
        """Read the Jobs that exist by what is recorded, each by its name: a list takes forty times as long."""
        found = [
            known if known is not None and known.name == name else await self._find_child(job.metadata.namespace, name)
            for name in expected_names(job)
        ]
        return tuple(child for child in found if child is not None)

    async def _read_all_children(self, job: IngestionJob) -> tuple[ChildJob, ...]:
        """Read the Jobs that carry the job's UID, and the one of the running stage."""
        namespace = job.metadata.namespace
        listed = self._cluster.list_children(namespace=namespace, job_uid=job.metadata.uid)
        children = [read_child(item) async for item in listed]
        record = current(job)
        if record is not None and all(child.uid != record.uid and child.name != record.name for child in children):
            # Not in the list by its label: gone, not made yet, somebody took the label off, or it is another's.
            found = await self._find_child(namespace, record.name)
            if found is not None:
                children.append(found)
        return tuple(children)

    async def _find_child(self, namespace: str, name: str) -> ChildJob | None:
        raw = await self._cluster.find_child(namespace=namespace, name=name)
        return read_child(raw) if raw is not None else None

    async def _read_pods(self, key: str, snapshot: Snapshot, *, thorough: bool = True) -> Snapshot:
        """Add what the pods of the running stage say, where the plan needs it.

        Args:
            key: namespace/name.
            snapshot: what exists.
            thorough: see too whether pods wait for a ConfigMap that somebody deleted, which hardly ever happens.
        """
        record = current(snapshot.job)
        if record is None:
            return replace(snapshot, obstacle=None)
        child = next(
            (child for child in snapshot.children if record.uid in (None, child.uid) and child.name == record.name),
            None,
        )
        if child is None:
            return snapshot
        namespace = snapshot.job.metadata.namespace
        if snapshot.tenant is None:
            return snapshot  # nothing is decided there, and nothing may be read
        if wants_harvest(snapshot.job, child) and snapshot.harvest is None:
            results, failed_only = Results(), record.stage is Stage.SEGMENTS
            try:
                async with self._harvests if failed_only else nullcontext():
                    more = await self._cluster.list_pods(
                        namespace=namespace, child_uid=child.uid, failed_only=failed_only, take=results.take
                    )
            except ApiError as error:
                return replace(snapshot, rejection=_refusal(child, error))
            return replace(snapshot, harvest=results.harvest, harvest_truncated=more)
        try:
            return await self._diagnose(key, snapshot, child, thorough=thorough)
        except ApiError as error:
            refused = Waiting(reason=Reason.REJECTED_BY_CLUSTER, message=_refusal(child, error))
            return replace(snapshot, obstacle=refused)

    async def _diagnose(self, key: str, snapshot: Snapshot, child: ChildJob, *, thorough: bool) -> Snapshot:
        """Add why pods of the running stage's Job do not start, or do not end: asked now and then, else as before.

        Args:
            key: namespace/name.
            snapshot: what exists.
            child: the Job.
            thorough: as in `_read_pods`.
        """
        namespace, pace = snapshot.job.metadata.namespace, self._memory.pace(key)
        if pace.diagnosis_due(child, self._memory.monotonic()):
            pace.diagnosed = self._memory.monotonic()
            pods: list[JsonObject] = []
            said = None
            if child.active:
                pods = await self._cluster.list_unstarted_pods(namespace=namespace, child_uid=child.uid)
            else:
                said = await self._creation_failures.of(namespace=namespace, child_uid=child.uid, now=self._now())
            if not pods and not child.ready:  # those that are there have started, or were deleted, and do not end
                pods = await self._cluster.list_unfinished_pods(namespace=namespace, child_uid=child.uid)
            obstacle = read_obstacle(pods=pods, creation_failure=said, now=self._now())
            lacking = thorough and any(map(may_lack_config_map, pods))
            del pods  # a stranger may have filled them: not all looks are to hold theirs while they wait
            gone = lacking and await self._cluster.find_config_map(namespace=namespace, name=child.name) is None
            return replace(snapshot, obstacle=obstacle, config_map_gone=gone)
        if wants_diagnosis(child) and snapshot.obstacle is None:
            return replace(snapshot, obstacle=_obstacle_before(snapshot.job))
        return snapshot

    # ── writing ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _write(self, key: str, kept: Kept, decided: Plan) -> tuple[Kept, float | None]:
        """Write the status if it differs; return the object as it is now, and a delay if the write waits."""
        raw, job = kept
        if decided.status == job.status:
            return kept, None
        wanted = dump_status(decided.status)
        patch = merge_diff(raw.get("status", {}), wanted)
        if not patch:
            return kept, None
        if only_counts_changed(job.status, decided.status) and not decided.actions:
            left = self._memory.pace(key).counts_wait(self._memory.monotonic())
            if left > 0:
                return kept, left
        raw = await self._jobs.write_status(raw, patch)
        if raw["status"] == wanted:  # else the CRD is an older one, or a policy changed it
            # All else in the answer was so before: the patch named the resourceVersion.
            metadata = job.metadata.changed(resource_version=raw["metadata"]["resourceVersion"])
            written = job.changed(metadata=metadata, status=decided.status)
        else:
            written = IngestionJob.model_validate(raw)
        raw, _ = kept = Kept.of(raw, written)
        self._memory.remember(key, kept)
        self._cluster.events.tell(raw, tuple(_transitions(job.status, decided.status)), now=self._now())
        return kept, None


def _refusal(child: ChildJob, error: ApiError) -> str:
    """Return what there is to say where a Job's pods may not be read; raises any other error."""
    if not error.refused:
        raise error
    return f"{child.name}: {error.message}"


def _is_owned(child: ChildJob, job: IngestionJob) -> bool:
    return child.owner_uid == job.metadata.uid


def _running(snapshot: Snapshot) -> ChildJob | None:
    """Return the Job of the running stage, if its UID is recorded and it has not ended."""
    record = current(snapshot.job)
    child = snapshot.child(record.uid) if record is not None else None
    return None if child is None or child.finished else child


def _point(child: ChildJob | None) -> Point:
    if child is None:
        return Point.BLOCKED
    return Point.RUNNING if child.ready or child.succeeded or child.failed else Point.STARTING


def _only_removes_left_pods(decided: Plan, job: IngestionJob) -> bool:
    """True when the plan is to remove the pods of an attempt that is over, and nothing else."""
    alone = [isinstance(action, RemovePods) for action in decided.actions] == [True]
    return alone and job.status.pods_to_remove is not None


def _only_pods_are_left(actions: tuple[Action, ...], tidied: frozenset[ChildUid]) -> bool:
    """True when nothing is still to be done at once but to remove more pods."""
    left = [action for action in actions if isinstance(action, RemovePods) and action.child_uid not in tidied]
    return bool(left) and not _moves_on(tuple(action for action in actions if action not in left))


def _moves_on(actions: tuple[Action, ...]) -> bool:
    """True when the plan has to be made again with what the actions did."""
    return any(
        isinstance(action, CreateChild | PatchChild | RemovePods | AnswerAnnotation | DeleteChild) for action in actions
    )


def _obstacle_before(job: IngestionJob) -> Waiting | None:
    """Return the reason that was found last time, so that it does not flicker between two diagnoses."""
    said = stalled(job.status)
    if said is None or said.reason not in OBSTACLES:
        return None
    return Waiting(reason=said.reason, message=said.message)


def _transitions(before: Status, after: Status) -> list[Event]:
    """Return the events that tell of a change, and count it."""
    events: list[Event] = []
    old = {attempt.generation: attempt for attempt in before.attempts}
    ready = next((item for item in after.conditions if item.type == "Ready"), None)
    for attempt in after.attempts:
        earlier = old.get(attempt.generation)
        if earlier is None:
            metrics.ATTEMPTS.labels(trigger=attempt.trigger.value).inc()
            stage = after.stage.value if after.stage else ""
            text = f"Attempt {attempt.generation} begins at {stage} ({attempt.trigger.value})"
            events.append(Event(reason=Reason.ATTEMPT_STARTED, message=text))
        if attempt.completion_time is not None and (earlier is None or earlier.completion_time is None):
            assert attempt.reason is not None
            metrics.ATTEMPTS_ENDED.labels(reason=attempt.reason.value).inc()
            for code, count in (attempt.codes or {}).items():
                metrics.FAILURES.labels(code=code).inc(count)
            if after.not_read is not None:
                metrics.PAGES_NOT_READ.inc(after.not_read.page_count)
                metrics.ATTACHMENTS_NOT_READ.inc(after.not_read.attachments)
            text = f"Attempt {attempt.generation}: {ready.message if ready else after.phase.value}"
            events.append(Event(reason=attempt.reason, message=text, warning=after.phase in names.RETRYABLE_PHASES))
    if after.phase in names.TERMINAL_PHASES:
        return events
    said, was = stalled(after), stalled(before)
    if said is not None and (was is None or was.reason != said.reason):
        events.append(Event(reason=said.reason, message=said.message, warning=True))
    return events
