"""The reconcile loop: read a snapshot, plan, write the status, act, look again; every step durable before the next."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.config import Config
from ingestion_crds.constants import Reason, Stage
from ingestion_crds.job import IngestionJob, Status, dump_status, format_time
from ingestion_crds.kube import ApiError

from ingestion_operator import metrics
from ingestion_operator.actions import (
    Action,
    CreateChildren,
    DeleteConfigMap,
    DeleteIngestionJob,
    DeleteJob,
    Event,
    PatchIngestionJob,
    PatchJob,
    RemovePods,
    RestoreConfigMap,
)
from ingestion_operator.children import ChildJob, is_child_name, read_job
from ingestion_operator.cluster import KubeCluster, merge_diff
from ingestion_operator.creation_failures import CreationFailures
from ingestion_operator.obstacles import Obstacle, may_lack_config_map, read_obstacle
from ingestion_operator.pace import Kept, LastLook, Pace, rest_for
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
# By a quota, by admission, by a namespace that is being deleted: a person is told, and it is tried again later.
_REFUSALS: Final = (400, 403, 422)
# A webhook that does not answer may do so in a moment: nobody is told of the first tries.
_TRIES_OF_WEBHOOKS: Final = 4
_TRY_TO_TIDY_SECONDS: Final = 600.0
# For so long no Job is made where the cluster changes each so that it is of no use: its pods start for nothing.
_TRY_TO_MAKE_SECONDS: Final = 120.0
# Pages of 500 pods that are in memory at the same time, some 17 MB each: many large Jobs may end at once.
_HARVESTS: Final = 4
# Enough for what the watch, which is seconds late at worst, may still show of jobs from before they were at rest.
_MOST_FORGOTTEN: Final = 1_000

log = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Return the time in UTC, whole seconds, as Kubernetes stores it."""
    return datetime.now(UTC).replace(microsecond=0)


class _Point(Enum):
    """How far a job that is not at rest has come. Those at the same point share the looks.

    HELD: it is suspended, or being deleted: no look follows, so there is none to share.
    BLOCKED: no Job of it runs: it waits for a tenant, a quota, or for somebody.
    STARTING: its Job waits for its first pods, or for its queue.
    RUNNING: a pod of its Job is ready or has ended.
    """

    HELD = auto()
    BLOCKED = auto()
    STARTING = auto()
    RUNNING = auto()


class ConflictError(Exception):
    """Something changed under the plan: read and plan anew."""


class Reconciler:
    """Brings one IngestionJob at a time to what its spec says.

    Args:
        cluster: the API server.
        config: the installation's configuration.
        now: the wall clock, for times that are recorded.
        monotonic: the clock for pacing, in seconds.
    """

    def __init__(
        self,
        *,
        cluster: KubeCluster,
        config: Config,
        now: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._now = now
        self._monotonic = monotonic
        self._harvests = asyncio.Semaphore(_HARVESTS)
        self._creation_failures = CreationFailures(cluster=cluster, monotonic=monotonic)
        self._paces: dict[str, Pace] = {}
        self._crowds: dict[_Point, set[str]] = {point: set() for point in _Point}  # keys by what the last look found
        self._to_list: set[str] = set()  # keys of jobs of which the next look is a full one, and lists all Jobs
        self._unanswered: Counter[str] = Counter()  # keys, by how often a webhook has kept something from being done
        self._littered: set[str] = set()  # keys of jobs with a finished Job that the API server kept from being deleted
        self._shown: dict[str, Kept] = {}  # by keys of which nothing else is remembered; see `on_attempt_wanted`
        self._forgotten: dict[str, int] = {}  # keys of jobs that were settled, or gone, with their last resourceVersion

    # ── what the watch shows ──────────────────────────────────────────────────────────────────────────────────────

    def on_job_seen(self, key: str, resource_version: str) -> bool:
        """Take in a state of an IngestionJob; return False when looks know that one, or a later one."""
        if key in self._paces:
            return self._paces[key].on_job_seen(resource_version)
        # Where many jobs run, the watch is seconds late: it may still show what was written before the job was at rest.
        return int(resource_version) > self._forgotten.get(key, 0)  # KEP-5504

    def on_attempt_wanted(self, key: str, shown: Kept) -> None:
        """Take in an IngestionJob whose next attempt is to begin: the first look is taken at that, without a read."""
        if key not in self._paces:
            self._shown[key] = shown

    def on_job_deleted(self, key: str) -> None:
        """Take in that an IngestionJob is gone: the next look finds that out, and forgets it."""
        if key in self._paces:
            self._paces[key].on_gone()

    def on_child_changed(self, key: str, child: ChildJob) -> float | None:
        """Take in that an expected Job runs on; return in how many seconds that is to be looked at, None for never."""
        pace = self._paces[key]
        return pace.on_child_changed(child, self._monotonic()) if child.name in pace.expected else None

    def on_child_ended(self, key: str, child: ChildJob) -> bool:
        """Take in that a Job has ended; return False when no look waits for that."""
        if not self._waits_for(key, child):
            return False
        if key in self._paces:
            self._paces[key].on_child_ended(child)
        return True

    def on_child_gone(self, key: str, child: ChildJob) -> bool:
        """Take in that a Job is gone, or is to go; return False when no look waits for that."""
        if not self._waits_for(key, child):
            return False
        if key in self._paces:
            self._paces[key].on_gone()
        return True

    def _waits_for(self, key: str, child: ChildJob) -> bool:
        """True unless a Job was replaced: what becomes of it then is no news."""
        return key not in self._paces or child.name in self._paces[key].expected or key in self._to_list

    # ── what is known ─────────────────────────────────────────────────────────────────────────────────────────────

    def follows(self, key: str) -> bool:
        """Return whether anything is remembered of a job."""
        return key in self._paces

    def expects(self, key: str, child: ChildJob) -> bool:
        """Return whether a Job is no reason to list: a look reads it by its name, or it has another owner."""
        pace = self._paces.get(key)
        return pace is not None and pace.uid != "" and (child.name in pace.expected or child.owner_uid != pace.uid)

    def up_to_date(self, key: str) -> bool:
        """Return whether another look would find nothing new: what was heard is what the last one wrote or left."""
        if key in self._to_list:
            return False
        return key not in self._paces or self._paces[key].idle(self._monotonic()) > 0

    def remaining_rest(self, key: str) -> float:
        """Return for how many seconds a job need not be looked at, if nothing has happened that is known of."""
        return self._paces[key].remaining_rest(self._monotonic()) if key in self._paces else 0.0

    def list_at_next_look(self, key: str) -> None:
        """Have the next look list all Jobs of a job, although it may be settled: some may not be recorded.

        A request to create a Job can be so long on its way that it arrives when everything is over.
        """
        self._to_list.add(key)

    def listing_due(self, key: str) -> bool:
        """Return whether it is time to list all Jobs of a job that is not at rest, although nothing was heard.

        That is for lost watch events, which befall all jobs alike: so all that are not at rest share the lists, and not
        only those at the same point.
        """
        if key not in self._paces:
            return True
        rest = rest_for(sum(map(len, self._crowds.values())))
        return self._paces[key].listing_due(self._monotonic(), rest=rest)

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
        shown, listing = self._shown.pop(key, None), key in self._to_list
        pace, now = self._pace(key), self._monotonic()
        self._share(key)  # others have come or gone since the last look
        if not listing and (idle := pace.idle(now)) > 0:
            return idle
        known = pace.begin_look(now)
        try:
            if shown is not None and not listing:
                return await self._look_at_beginning(key, shown)
            if known is None or listing:
                return await self._full_look(key)
            kept, child = known
            if child.finished:
                return await self._look_at_end(key, kept, child)
            return await self._look_at_counts(key, kept, child)
        except Exception:
            pace.distrust()
            raise

    async def _full_look(self, key: str) -> float | None:
        """Read the IngestionJob and its Jobs live, and act on what is there."""
        namespace, _, name = key.partition("/")
        try:
            raw = await self._cluster.get_ingestion_job(namespace=namespace, name=name)
        except ApiError as error:
            if error.not_found:
                self._to_list.discard(key)
                self._littered.discard(key)
                return self._forget(key)
            raise
        job = self._understand(key, raw)
        listing = key in self._to_list
        if settled(job) and not listing:
            return self._forget(key)
        self._to_list.discard(key)  # before anything is read: what is heard of from now on may not be among it
        try:
            jobs = await self._read_jobs(key, job, everything=listing)
            snapshot = Snapshot(job=job, config=self._config, jobs=jobs)
            return await self._act(key, raw, snapshot)
        except Exception:
            if listing:
                self.list_at_next_look(key)
            raise

    async def _look_at_beginning(self, key: str, shown: Kept) -> float | None:
        """Begin an attempt from the IngestionJob as the watch has shown it, without reading that again.

        The first thing to do is to record the attempt, by a write under the job's resourceVersion. That proves that
        nothing else has happened to it, or is refused. Nor is the Job of the last attempt read if it was seen to end:
        it is deleted by its recorded UID, which is refused where a late duplicate has taken its name.
        """
        raw, job = shown
        self._remember(key, shown)
        jobs = await self._read_jobs(key, job, everything=False, known=ended(job))
        snapshot = Snapshot(job=job, config=self._config, jobs=jobs)
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
        snapshot = Snapshot(job=kept.job, config=self._config, jobs=(child,))
        return await self._act(key, kept.raw, snapshot, proven=False)

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
            if wait is not None:
                return self._keep(key, raw, snapshot, wait, unwritten=True)
            for action in decided.actions:
                raw, snapshot = await self._apply(action, raw, snapshot)
            await self._tell(raw, decided.events)
            if settled(snapshot.job):
                return self._forget(key)
            if not written and not _moves_on(decided.actions) and snapshot.rejection == rejection:
                return self._keep(key, raw, snapshot, decided.look_again)
        return 1.0  # long, but each round was durable: give other jobs their turn

    async def _look_at_counts(self, key: str, kept: Kept, child: ChildJob) -> float | None:
        """Write a running Job's counts, from the IngestionJob as it was last read or written, and its Job as last seen.

        Counts, and why its pods do not start: nothing else is decided here, and nothing is decided from these. The
        IngestionJob's resourceVersion stands in the write, so an outdated one is refused. Whatever else is to be done
        is decided anew by a full look.
        """
        pace, (raw, job) = self._pace(key), kept
        snapshot = Snapshot(job=job, config=self._config, jobs=(child,))
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

    def _pace(self, key: str) -> Pace:
        now = self._monotonic()
        return self._paces.setdefault(key, Pace(looked=now, diagnosed=now))

    def _forget(self, key: str) -> float | None:
        """Forget a job that is settled or gone, unless it has changed under the look; return the delay."""
        if self._pace(key).outdated:
            return 0.0
        versions = self._paces.pop(key).versions
        if key not in self._littered:
            self._unanswered.pop(key, None)
        self._leave_crowd(key)
        self._forgotten.pop(key, None)
        self._forgotten[key] = max(map(int, versions), default=0)
        if len(self._forgotten) > _MOST_FORGOTTEN:
            del self._forgotten[next(iter(self._forgotten))]
        return self._tidy_later(key, None)

    def _tidy_later(self, key: str, wait: float | None) -> float | None:
        """Return the delay of a job at rest, shorter where a finished Job was left behind that may go by then."""
        if key not in self._littered:
            return wait
        self._littered.discard(key)
        self.list_at_next_look(key)
        return _TRY_TO_TIDY_SECONDS if wait is None else min(wait, _TRY_TO_TIDY_SECONDS)

    def _share(self, key: str) -> None:
        for crowd in self._crowds.values():
            if key in crowd:
                self._pace(key).rest = rest_for(len(crowd))

    def _leave_crowd(self, key: str) -> None:
        for crowd in self._crowds.values():
            crowd.discard(key)

    def _understand(self, key: str, raw: JsonObject) -> IngestionJob:
        job = IngestionJob.model_validate(raw)
        self._remember(key, Kept(raw, job))
        return job

    def _remember(self, key: str, kept: Kept) -> None:
        self._pace(key).remember(kept, self._monotonic())

    def _keep(
        self, key: str, raw: JsonObject, snapshot: Snapshot, wait: float | None, *, unwritten: bool = False
    ) -> float | None:
        """Keep the IngestionJob for the next look if its Job runs; return the delay, longer where many wait alike."""
        pace, child = self._pace(key), _running(snapshot) if snapshot.rejection is None else None
        if snapshot.rejection is None:
            self._unanswered.pop(key, None)
        pace.end_look(LastLook(Kept(raw, snapshot.job), child, unwritten) if child is not None else None)
        self._leave_crowd(key)
        if snapshot.job.status.phase in names.TERMINAL_PHASES:
            return self._tidy_later(key, wait)  # for its time to live
        self._crowds[_point(child) if wait is not None else _Point.HELD].add(key)
        self._share(key)
        if wait is None:
            return None
        if child is None:
            return max(wait, pace.rest)
        if key in self._to_list:
            return wait
        idle = pace.idle(self._monotonic())
        return idle if pace.child_has_news else max(wait, idle)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_jobs(
        self, key: str, job: IngestionJob, *, everything: bool, known: ChildJob | None = None
    ) -> tuple[ChildJob, ...]:
        """Read the Jobs that are recorded, but for one that is known, or all where there may be others.

        There may be others at the first look at a job that is not at rest, as after a start, and after any error. Also
        where one was heard of, or lost events are to be made good, which `everything` says. Of a job at rest there was
        no other Job when its last attempt ended, and the watch tells of one that came since.
        """
        pace, expected, now = self._pace(key), expected_names(job), self._monotonic()
        if not everything and (pace.listed is not None or at_rest(job)):
            jobs = await self._read_recorded_jobs(job, known)
            pace.listed = now if pace.listed is None else pace.listed
            return jobs
        jobs = await self._read_all_jobs(job)
        pace.listed = now
        if any(_is_owned(child, job) and not child.finished and child.name not in expected for child in jobs):
            self.list_at_next_look(key)  # until it is gone
        return jobs

    async def _read_recorded_jobs(self, job: IngestionJob, known: ChildJob | None) -> tuple[ChildJob, ...]:
        """Read the Jobs that exist by what is recorded, each by its name: a list takes forty times as long."""
        found = [
            known if known is not None and known.name == name else await self._find_job(job.metadata.namespace, name)
            for name in expected_names(job)
        ]
        return tuple(child for child in found if child is not None)

    async def _read_all_jobs(self, job: IngestionJob) -> tuple[ChildJob, ...]:
        """Read the Jobs that carry the job's UID, and the one of the running stage."""
        namespace = job.metadata.namespace
        listed = self._cluster.list_jobs(namespace=namespace, owner_uid=job.metadata.uid)
        children = [read_job(item) async for item in listed]
        record = current(job)
        if record is not None and all(child.uid != record.uid and child.name != record.name for child in children):
            # Not in the list by its label: gone, not made yet, somebody took the label off, or it is another's.
            found = await self._find_job(namespace, record.name)
            if found is not None:
                children.append(found)
        return tuple(children)

    async def _find_job(self, namespace: str, name: str) -> ChildJob | None:
        try:
            return read_job(await self._cluster.get_job(namespace=namespace, name=name))
        except ApiError as error:
            if error.not_found:
                return None
            raise

    async def _read_pods(self, key: str, snapshot: Snapshot, *, thorough: bool = True) -> Snapshot:
        """Add what the pods of the running stage say, where the plan needs it.

        Args:
            key: namespace/name.
            snapshot: what exists.
            thorough: see too whether pods wait for a ConfigMap that somebody deleted, which hardly ever happens.
        """
        record = current(snapshot.job)
        if record is None:
            return replace(snapshot, harvest=None, harvest_truncated=False, obstacle=None)
        child = next(
            (child for child in snapshot.jobs if record.uid in (None, child.uid) and child.name == record.name), None
        )
        if child is None:
            return snapshot
        namespace = snapshot.job.metadata.namespace
        if self._config.tenant(namespace) is None:
            return snapshot  # nothing is decided there, and nothing may be read
        if wants_harvest(snapshot.job, child) and snapshot.harvest is None:
            results, failed_only = Results(), record.stage is Stage.SEGMENTS
            async with self._harvests:
                more = await self._cluster.list_pods(
                    namespace=namespace, job_uid=child.uid, failed_only=failed_only, take=results.take
                )
            return replace(snapshot, harvest=results.harvest, harvest_truncated=more)
        pace = self._pace(key)
        if pace.diagnosis_due(child, self._monotonic()):
            pace.diagnosed = self._monotonic()
            if child.active:
                pods = await self._cluster.list_unstarted_pods(namespace=namespace, job_uid=child.uid)
                said = None
            else:  # those that are there were deleted, and have not ended
                pods = await self._cluster.list_unfinished_pods(namespace=namespace, job_uid=child.uid)
                said = await self._creation_failures.of(namespace=namespace, job_uid=child.uid, now=self._now())
            return replace(
                snapshot,
                obstacle=read_obstacle(pods=pods, creation_failure=said, now=self._now()),
                config_map_gone=thorough
                and any(map(may_lack_config_map, pods))
                and await self._config_map_gone(namespace, child.name),
            )
        if wants_diagnosis(child) and snapshot.obstacle is None:
            return replace(snapshot, obstacle=_obstacle_before(snapshot.job))
        return snapshot

    async def _config_map_gone(self, namespace: str, name: str) -> bool:
        try:
            await self._cluster.get_config_map(namespace=namespace, name=name)
        except ApiError as error:
            if error.not_found:
                return True
            raise
        return False

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
            left = self._pace(key).counts_wait(self._monotonic())
            if left > 0:
                return kept, left
        try:
            raw = await self._cluster.patch_status(
                namespace=job.metadata.namespace,
                name=job.metadata.name,
                resource_version=raw["metadata"]["resourceVersion"],
                status=patch,
            )
        except ApiError as error:
            if error.conflict or error.not_found:
                metrics.CONFLICTS.inc()
                raise ConflictError(str(error)) from error
            raise
        metrics.STATUS_WRITES.inc()
        if raw["status"] == wanted:  # else the CRD is an older one, or a policy changed it
            # All else in the answer was so before: the patch named the resourceVersion.
            metadata = job.metadata.model_copy(update={"resource_version": raw["metadata"]["resourceVersion"]})
            written = job.model_copy(update={"metadata": metadata, "status": decided.status})
        else:
            written = IngestionJob.model_validate(raw)
        kept = Kept(raw, written)
        self._remember(key, kept)
        await self._tell(raw, tuple(_transitions(job.status, decided.status)))
        return kept, None

    async def _apply(self, action: Action, raw: JsonObject, snapshot: Snapshot) -> tuple[JsonObject, Snapshot]:
        """Take one action and return what is known after it."""
        namespace, name = snapshot.job.metadata.namespace, snapshot.job.metadata.name
        match action:
            case CreateChildren():
                return raw, await self._create(action, snapshot)
            case RestoreConfigMap():
                try:
                    await self._create_config_map(namespace, action.config_map)
                except ApiError as error:
                    return raw, self._rejected(snapshot, action.config_map["metadata"]["name"], error)
                return raw, replace(snapshot, config_map_gone=False)
            case DeleteJob():
                return raw, await self._delete_job(snapshot, action)
            case DeleteConfigMap():
                await self._delete_config_map(snapshot, action.name)
            case PatchJob():
                try:
                    await self._cluster.patch_job(
                        namespace=namespace, name=action.name, uid=action.uid, spec=action.spec
                    )
                except ApiError as error:
                    if error.conflict or error.not_found:
                        raise ConflictError(str(error)) from error
                    return raw, self._rejected(snapshot, action.name, error)
            case RemovePods():
                await self._remove_pods(snapshot.job, action)
                return raw, replace(snapshot, tidied=snapshot.tidied | {action.job_uid})
            case PatchIngestionJob():
                # Texts are not to be tested: the API server compares their bytes, and JSON has two ways to write "é".
                version = raw["metadata"]["resourceVersion"]
                unchanged = {"op": "test", "path": "/metadata/resourceVersion", "value": version}
                try:
                    raw = await self._cluster.patch_ingestion_job(
                        namespace=namespace, name=name, operations=[unchanged, *action.operations]
                    )
                except ApiError as error:
                    if error.conflict or error.not_found:
                        raise ConflictError(str(error)) from error
                    self._expect_refusal(snapshot.job.key, error)
                    # A failed `test` is 422 Invalid: the object is not what the plan was made from.
                    live = await self._cluster.get_ingestion_job(namespace=namespace, name=name)
                    if live["metadata"]["resourceVersion"] != version:
                        raise ConflictError(str(error)) from error
                    log.warning("an annotation is not answered: %s", error, extra={"job": snapshot.job.key})
                    return raw, replace(snapshot, answer_refused=True)
                await self._tell(raw, (action.told,) if action.told else ())
                # A policy may have taken the mark off that the patch has made.
                return raw, replace(snapshot, job=self._understand(snapshot.job.key, raw), answered=action.token)
            case DeleteIngestionJob():
                await self._cluster.delete_ingestion_job(namespace=namespace, name=name, uid=action.uid)
        return raw, snapshot

    async def _delete_job(self, snapshot: Snapshot, action: DeleteJob) -> Snapshot:
        namespace = snapshot.job.metadata.namespace
        # The ConfigMap first: while the Job is there, a crash between the two is made good.
        await self._delete_config_map(snapshot, action.name)
        try:
            await self._cluster.delete_job(namespace=namespace, name=action.name, uid=action.uid)
        except ApiError as error:
            if any(not child.finished for child in snapshot.jobs if child.uid == action.uid):
                return self._rejected(snapshot, action.name, error)
            self._tolerate(snapshot.job.key, "a finished Job stays", error)
            self._littered.add(snapshot.job.key)
            return replace(snapshot, jobs=tuple(child for child in snapshot.jobs if child.uid != action.uid))
        return replace(snapshot, jobs=await self._jobs_after_deletion(snapshot, action), rejection=None)

    async def _delete_config_map(self, snapshot: Snapshot, name: str) -> None:
        if not is_child_name(name, job=snapshot.job):
            return  # whoever copies a Job copies its owner too: the ConfigMap of that name is a stranger's
        try:
            await self._cluster.delete_config_map(namespace=snapshot.job.metadata.namespace, name=name)
        except ApiError as error:
            self._tolerate(snapshot.job.key, "a ConfigMap stays", error)

    async def _jobs_after_deletion(self, snapshot: Snapshot, action: DeleteJob) -> tuple[ChildJob, ...]:
        """Return the Jobs but for one that was deleted; one that could still run is seen to be gone."""
        others = tuple(child for child in snapshot.jobs if child.uid != action.uid)
        if all(child.finished for child in snapshot.jobs if child.uid == action.uid):
            return others
        found = await self._find_job(snapshot.job.metadata.namespace, action.name)
        return others if found is None or found.uid != action.uid else (*others, found)

    async def _remove_pods(self, job: IngestionJob, action: RemovePods) -> None:
        try:
            await self._cluster.remove_pods(namespace=job.metadata.namespace, job_uid=action.job_uid, keep=action.keep)
        except ApiError as error:
            # Pods that stay take up room. An attempt that does not end because of them would cost the job.
            self._tolerate(job.key, "finished pods stay", error)

    async def _create(self, action: CreateChildren, snapshot: Snapshot) -> Snapshot:
        """Create ConfigMap and Job; what exists already is ours if owner and digest match, which the plan checks.

        One that has lost its digest as it was created is not the plan's either, which takes it for another release's
        and deletes it. That is not to begin anew at once.
        """
        namespace, pace, now = snapshot.job.metadata.namespace, self._pace(snapshot.job.key), self._monotonic()
        if pace.made_in_vain is not None and now - pace.made_in_vain < _TRY_TO_MAKE_SECONDS:
            return replace(snapshot, rejection=_changed(action.job))
        rejection = None
        try:
            await self._create_config_map(namespace, action.config_map)
            try:
                created = await self._cluster.create_job(body=action.job)
                if read_job(created).map_digest != action.job["metadata"]["annotations"][names.ANNOTATION_MAP_DIGEST]:
                    pace.made_in_vain, rejection = now, _changed(action.job)
            except ApiError as error:
                if not error.already_exists:
                    raise
                created = await self._cluster.get_job(namespace=namespace, name=action.job["metadata"]["name"])
        except ApiError as error:
            return self._rejected(snapshot, action.job["metadata"]["name"], error)
        return replace(snapshot, jobs=(*snapshot.jobs, read_job(created)), rejection=rejection)

    async def _create_config_map(self, namespace: str, wanted: JsonObject) -> None:
        try:
            await self._cluster.create_config_map(body=wanted)
        except ApiError as error:
            if not error.already_exists:
                raise
            await self._replace_config_map(namespace, wanted)

    async def _replace_config_map(self, namespace: str, wanted: JsonObject) -> None:
        """See to it that the ConfigMap that is there is the wanted one."""
        name = wanted["metadata"]["name"]
        found = await self._cluster.get_config_map(namespace=namespace, name=name)
        if found.get("data") == wanted["data"]:
            return
        if found["metadata"].get("ownerReferences") != wanted["metadata"]["ownerReferences"]:
            raise ApiError(
                status=403,
                reason="NameConflict",
                message=f"the ConfigMap {name} exists with other content: delete it",
            )
        # Another release wrote it, for a Job that is not there. Should that still come, its pods refuse the new file.
        await self._cluster.delete_config_map(namespace=namespace, name=name, uid=found["metadata"]["uid"])
        await self._cluster.create_config_map(body=wanted)

    def _rejected(self, snapshot: Snapshot, name: str, error: ApiError) -> Snapshot:
        """Return what is known once the API server has refused something; raises any other error."""
        self._expect_refusal(snapshot.job.key, error)
        return replace(snapshot, rejection=f"{name}: {error.message}")

    def _tolerate(self, key: str, what: str, error: ApiError) -> None:
        """Go on without a deletion that the API server has refused; raises any other error."""
        self._expect_refusal(key, error)
        log.warning("%s: %s", what, error, extra={"job": key})

    def _expect_refusal(self, key: str, error: ApiError) -> None:
        """Raise the error unless it can be lived with: a refusal, or a webhook that does not answer for long."""
        if error.status in _REFUSALS:
            return
        if error.status == 500 and "webhook" in error.message:
            self._unanswered[key] += 1
            if self._unanswered[key] >= _TRIES_OF_WEBHOOKS:
                return
        raise error

    async def _tell(self, raw: JsonObject, events: tuple[Event, ...]) -> None:
        """Send events. They are for people: one that cannot be sent is logged, and holds nothing up."""
        for event in events:
            fields = {"job": f"{raw['metadata']['namespace']}/{raw['metadata']['name']}", "reason": event.reason.value}
            log.log(logging.WARNING if event.warning else logging.INFO, event.message, extra=fields)
            try:
                await self._cluster.create_event(
                    job=raw,
                    reason=event.reason,
                    message=event.message,
                    warning=event.warning,
                    now=format_time(self._now()),
                )
            except ApiError as error:
                log.warning("event not sent: %s", error, extra=fields)


def _changed(job: JsonObject) -> str:
    """Return what there is to say of a Job that has lost its digest."""
    allowed = f"a policy may add some, and must keep {names.ANNOTATION_MAP_DIGEST}"
    return f"{job['metadata']['name']}: the cluster changes the Job's annotations: {allowed}"


def _is_owned(child: ChildJob, job: IngestionJob) -> bool:
    return child.owner_uid == job.metadata.uid


def _running(snapshot: Snapshot) -> ChildJob | None:
    """Return the Job of the running stage, if its UID is recorded and it has not ended."""
    record = current(snapshot.job)
    if record is None or record.uid is None:
        return None
    return next((child for child in snapshot.jobs if child.uid == record.uid and not child.finished), None)


def _point(child: ChildJob | None) -> _Point:
    if child is None:
        return _Point.BLOCKED
    return _Point.RUNNING if child.ready or child.succeeded or child.failed else _Point.STARTING


def _moves_on(actions: tuple[Action, ...]) -> bool:
    """True when the plan has to be made again with what the actions did."""
    return any(isinstance(action, CreateChildren | RemovePods | PatchIngestionJob | DeleteJob) for action in actions)


def _obstacle_before(job: IngestionJob) -> Obstacle | None:
    """Return the reason that was found last time, so that it does not flicker between two diagnoses."""
    said = stalled(job.status)
    if said is None or said.reason not in (
        Reason.IMAGE_UNAVAILABLE,
        Reason.POD_CREATION_FAILED,
        Reason.POD_PENDING,
        Reason.POD_UNSCHEDULABLE,
        Reason.POD_TERMINATING,
        Reason.REJECTED_BY_CLUSTER,
    ):
        return None
    return Obstacle(reason=said.reason, message=said.message)


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
            text = f"Attempt {attempt.generation}: {ready.message if ready else after.phase.value}"
            events.append(Event(reason=attempt.reason, message=text, warning=after.phase in names.RETRYABLE_PHASES))
    if after.phase in names.TERMINAL_PHASES:
        return events
    said, was = stalled(after), stalled(before)
    if said is not None and (was is None or was.reason != said.reason):
        events.append(Event(reason=said.reason, message=said.message, warning=True))
    return events
