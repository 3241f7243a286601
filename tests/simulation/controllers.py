"""The cluster's own parts: the Job controller, the garbage collector, and the kubelets with their workers.

Each offers steps, and a step is one thing that it does; in which order steps are taken is the caller's choice.

Source of the Job controller: kubernetes v1.36, pkg/controller/job/job_controller.go, indexed_job_utils.go,
pod_failure_policy.go; of a suspension also earlier ones (`Release`). Functions that follow one of theirs say so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Stage
from ingestion_crds.errors import ERROR_CODES
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import format_time
from ingestion_crds.kube import ApiError

from simulation.api import (
    FOREGROUND,
    JOB_TRACKING,
    ORPHAN,
    ApiServer,
    Change,
    Release,
    copied,
    ended,
    finished,
    key_of,
    owner_of,
)

Step = Callable[[], None]

_INDEX: Final = names.LABEL_COMPLETION_INDEX
_FAILURES: Final = "batch.kubernetes.io/job-index-failure-count"
_IGNORED: Final = "batch.kubernetes.io/job-index-ignored-failure-count"
NOT_READ: Final = {"pageCount": 4, "pages": "2-4,6", "attachments": 2}
"""What of its document each worker says is in no chunk."""
_BACKOFF_SECONDS: Final = 10
_LONGEST_BACKOFF_SECONDS: Final = 600
_BY: Final = "kube-controller-manager"
_KUBELET: Final = "kubelet"


def _index(pod: JsonObject) -> int:
    return int(pod["metadata"]["annotations"][_INDEX])


def _tracked(pod: JsonObject) -> bool:
    return JOB_TRACKING in pod["metadata"].get("finalizers", [])


def _deleting(body: JsonObject) -> bool:
    return "deletionTimestamp" in body["metadata"]


def _count(pod: JsonObject, annotation: str) -> int:
    return int(pod["metadata"]["annotations"].get(annotation, "0"))


class JobController:
    """Runs Indexed Jobs.

    A sync has two halves, as in `trackJobStatusAndRemoveFinalizers`: pods and status first; then the finalizers
    go, and the Job is finished. Between the two anything may happen.
    """

    def __init__(self, api: ApiServer, now: Callable[[], datetime]) -> None:
        self._api = api
        self._now = now
        self._dirty: dict[str, tuple[str, str]] = {}  # UID → namespace and name
        self._halves: dict[str, Step] = {}
        self._orphans: dict[str, JsonObject] = {}
        self._later: dict[str, tuple[datetime, str, str]] = {}
        self.refuse_pods = False
        api.on_change.append(self._see)

    def _see(self, change: Change) -> None:
        metadata = change.after["metadata"]
        if change.resource == "jobs" and change.kind != "DELETED":
            self._dirty[metadata["uid"]] = (metadata["namespace"], metadata["name"])
        elif change.resource == "pods":
            owner = owner_of(change.after)
            if owner is not None:
                self._dirty[owner["uid"]] = (metadata["namespace"], owner["name"])
            elif _tracked(change.after) and change.kind != "DELETED":
                self._orphans[metadata["uid"]] = change.after

    def steps(self) -> Iterator[Step]:
        """Yield what can be done now."""
        now = self._now()
        for uid, (when, namespace, name) in list(self._later.items()):
            if when <= now:
                del self._later[uid]
                self._dirty[uid] = (namespace, name)
        for uid in list(self._halves):
            yield partial(self._second_half, uid)
        for uid in list(self._orphans):
            yield partial(self._release, uid)
        for uid, (namespace, name) in list(self._dirty.items()):
            if uid not in self._halves:
                yield partial(self._sync, uid, namespace, name)

    def next_time(self) -> datetime | None:
        """Return when a deadline or a backoff is over."""
        return min((when for when, _, _ in self._later.values()), default=None)

    def look_again(self, job: JsonObject, seconds: float) -> None:
        """Sync a Job again after so many seconds."""
        metadata = job["metadata"]
        when = self._now() + timedelta(seconds=max(seconds, 0))
        known = self._later.get(metadata["uid"])
        if known is None or when < known[0]:
            self._later[metadata["uid"]] = (when, metadata["namespace"], metadata["name"])

    def _pods(self, uid: str) -> list[JsonObject]:
        return [copied(pod) for pod in self._api.peek("pods") if (owner_of(pod) or {}).get("uid") == uid]

    def _sync(self, uid: str, namespace: str, name: str) -> None:
        self._dirty.pop(uid, None)
        job = self._api.find("jobs", namespace, name)
        if job is None or job["metadata"]["uid"] != uid:
            self._release_orphans(uid)
            return
        if finished(job) or "managedBy" in job["spec"]:
            return
        _JobSync(self, self._api, job, self._pods(uid), self._now()).run()

    def _release_orphans(self, uid: str) -> None:
        """Take the finalizer off pods whose Job is gone (syncOrphanPod)."""
        for pod in self._pods(uid):
            if _tracked(pod):
                _without_finalizer(self._api, pod, JOB_TRACKING)

    def _second_half(self, uid: str) -> None:
        self._halves.pop(uid)()

    def _release(self, uid: str) -> None:
        """Take the finalizer off a pod that has no Job (syncOrphanPod)."""
        _without_finalizer(self._api, self._orphans.pop(uid), JOB_TRACKING)

    def go_on(self, uid: str, half: Step) -> None:
        """Have the second half of a sync done later."""
        self._halves[uid] = half


def _without_finalizer(api: ApiServer, body: JsonObject, finalizer: str) -> None:
    resource = "pods" if body["kind"] == "Pod" else "jobs" if body["kind"] == "Job" else names.PLURAL
    live = api.find(*key_of(resource, body))
    if live is None or live["metadata"]["uid"] != body["metadata"]["uid"]:
        return
    left = [item for item in live["metadata"].get("finalizers", []) if item != finalizer]
    live["metadata"]["finalizers"] = left
    if not left:
        del live["metadata"]["finalizers"]
    api.update(key_of(resource, body), live, by=_BY)


class _JobSync:
    """One sync of one Job (syncJob)."""

    def __init__(
        self, controller: JobController, api: ApiServer, job: JsonObject, pods: list[JsonObject], now: datetime
    ) -> None:
        self._controller = controller
        self._api = api
        self._job = job
        self._spec = job["spec"]
        self._status = job["status"]
        self._pods = sorted(pods, key=_index)
        self._now = now
        self._active = [pod for pod in self._pods if not ended(pod) and not _deleting(pod)]
        self._terminating = [pod for pod in self._pods if not ended(pod) and _deleting(pod)]
        before = IndexSet.parse(self._status.get("completedIndexes"))
        self._succeeded = before | IndexSet.of(
            _index(pod) for pod in self._pods if pod["status"]["phase"] == "Succeeded" and _tracked(pod)
        )
        self._failed = IndexSet.parse(self._status.get("failedIndexes")) | IndexSet.of(
            _index(pod) for pod in self._pods if _tracked(pod) and self._fails_index(pod)
        )
        self._final: JsonObject | None = None  # Complete or Failed, to be added in the second half

    def run(self) -> None:
        """Do the first half."""
        if "startTime" not in self._status and not self._spec["suspend"]:
            self._status["startTime"] = format_time(self._now)
        interim = self._interim()
        if interim is not None:
            if not any(item["type"] == interim["type"] for item in self._conditions):
                self._conditions.append(interim)
            self._delete_pods(self._active)
        else:
            self._manage()
            if len(self._succeeded) >= self._spec["completions"] and not self._active:
                interim = self._condition(
                    "SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods"
                )
                self._conditions.append(interim)
            else:
                self._note_suspension()
        if interim is not None:
            kind = "Complete" if interim["type"] == "SuccessCriteriaMet" else "Failed"
            self._final = {**interim, "type": kind}
        released = [pod for pod in self._pods if _tracked(pod) and self._may_be_released(pod)]
        try:
            self._write_counts()
        except ApiError:
            self._controller.look_again(self._job, _BACKOFF_SECONDS)
            return
        self._controller.go_on(self._job["metadata"]["uid"], lambda: self._second_half(released))

    @property
    def _conditions(self) -> list[JsonObject]:
        conditions: list[JsonObject] = self._status.setdefault("conditions", [])
        return conditions

    def _condition(self, kind: str, reason: str, message: str, status: str = "True") -> JsonObject:
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": format_time(self._now),
        }

    def _interim(self) -> JsonObject | None:
        """Return the condition that decides the Job's end before its pods have ended."""
        for item in self._conditions:
            if item["type"] in ("SuccessCriteriaMet", "FailureTarget") and item["status"] == "True":
                return item
        deadline = self._spec.get("activeDeadlineSeconds")
        if deadline is not None and not self._spec["suspend"] and "startTime" in self._status:
            left = datetime.fromisoformat(self._status["startTime"]) + timedelta(seconds=deadline) - self._now
            if left <= timedelta():
                return self._condition(
                    "FailureTarget", "DeadlineExceeded", "Job was active longer than specified deadline"
                )
            self._controller.look_again(self._job, left.total_seconds())
        most = self._spec.get("maxFailedIndexes")
        if most is not None and len(self._failed) > most:
            text = "Job has exceeded the specified maximal number of failed indexes"
            return self._condition("FailureTarget", "MaxFailedIndexesExceeded", text)
        if self._failed and len(self._failed) + len(self._succeeded) >= self._spec["completions"]:
            return self._condition("FailureTarget", "FailedIndexes", "Job has failed indexes")
        return None

    def _fails_index(self, pod: JsonObject) -> bool:
        """isIndexFailed."""
        if pod["status"]["phase"] != "Failed":
            return False
        counted, action = self._policy(pod)
        return action == "FailIndex" or (counted and _count(pod, _FAILURES) >= self._spec["backoffLimitPerIndex"])

    def _policy(self, pod: JsonObject) -> tuple[bool, str]:
        """Return whether a failure counts, and the action of the first rule that matches (matchPodFailurePolicy)."""
        conditions = {(item["type"], item["status"]) for item in pod["status"].get("conditions", [])}
        for rule in self._spec.get("podFailurePolicy", {}).get("rules", []):
            if "onPodConditions" in rule:
                matches = any((item["type"], item["status"]) in conditions for item in rule["onPodConditions"])
            else:
                matches = any(
                    state["name"] == rule["onExitCodes"].get("containerName", state["name"])
                    and state.get("state", {}).get("terminated", {}).get("exitCode", 0) in rule["onExitCodes"]["values"]
                    and state["state"]["terminated"]["exitCode"] != 0
                    for state in pod["status"].get("containerStatuses", [])
                    if "terminated" in state.get("state", {})
                )
            if matches:
                return rule["action"] != "Ignore", rule["action"]
        return True, "Count"

    def _manage(self) -> None:
        """Create or delete pods (manageJob)."""
        if _deleting(self._job):
            return
        if self._spec["suspend"]:
            self._put_out(self._active)
            return
        wanted = max(min(self._spec["completions"] - len(self._succeeded), self._spec["parallelism"]), 0)
        surplus = len(self._active) - wanted
        if surplus > 0:
            # ActivePods: those that do not run yet go first.
            order = sorted(self._active, key=lambda pod: pod["status"]["phase"] == "Running")
            self._put_out(order[:surplus])
            return
        missing = wanted - len(self._active) - len(self._terminating)
        taken = self._succeeded | self._failed
        taken |= IndexSet.of(_index(pod) for pod in [*self._active, *self._terminating])
        free = [index for index in range(self._spec["completions"]) if index not in taken][: max(missing, 0)]
        self._create_pods(free)

    def _create_pods(self, indexes: list[int]) -> None:
        kept = self._kept()
        waits = [self._backoff(kept.get(index)) for index in indexes]
        ready = [index for index, wait in zip(indexes, waits, strict=True) if wait <= 0]
        if not ready and waits:
            self._controller.look_again(self._job, min(waits))
        for index in ready:
            if self._controller.refuse_pods:
                self._tell_of_refusal()
                self._controller.look_again(self._job, _BACKOFF_SECONDS)
                return
            self._active.append(self._create_pod(index, kept.get(index)))

    def _tell_of_refusal(self) -> None:
        metadata = self._job["metadata"]
        involved = {"kind": "Job", "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"]}
        body = {
            "metadata": {"generateName": "refused-"},
            "involvedObject": involved,
            "reason": "FailedCreate",
            "type": "Warning",
            "message": "Error creating: pods is forbidden: exceeded quota: none",
            "lastTimestamp": format_time(self._now),
        }
        self._api.create("events", metadata["namespace"], body, by=_BY)

    def _kept(self) -> dict[int, JsonObject]:
        """Return failed pods whose failure count the next pod of their index takes over.

        getPodsWithDelayedDeletionPerIndex.
        """
        active = {_index(pod) for pod in self._active}
        kept: dict[int, JsonObject] = {}
        for pod in self._pods:
            index = _index(pod)
            settled = index in self._succeeded or index in self._failed or index in active
            if pod["status"]["phase"] != "Failed" or not _tracked(pod) or settled:
                continue
            if index not in kept or _attempts(kept[index]) <= _attempts(pod):
                kept[index] = pod
        return kept

    def _backoff(self, pod: JsonObject | None) -> float:
        """Return the seconds until an index may run again (getRemainingTimePerIndex)."""
        if pod is None:
            return 0.0
        seconds = min(_BACKOFF_SECONDS * 2 ** _attempts(pod), _LONGEST_BACKOFF_SECONDS)
        since = datetime.fromisoformat(_finished_at(pod))
        return (since + timedelta(seconds=seconds) - self._now).total_seconds()

    def _create_pod(self, index: int, replaced: JsonObject | None) -> JsonObject:
        metadata, template = self._job["metadata"], self._spec["template"]
        failures = ignored = 0
        if replaced is not None:
            counted, _ = self._policy(replaced)
            failures = _count(replaced, _FAILURES) + counted
            ignored = _count(replaced, _IGNORED) + (not counted)
        annotations = {_INDEX: str(index), _FAILURES: str(failures)} | ({_IGNORED: str(ignored)} if ignored else {})
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": metadata["name"], "uid": metadata["uid"]}
        body = {
            "metadata": {
                "generateName": f"{metadata['name']}-{index}-",
                "labels": {**template["metadata"]["labels"], _INDEX: str(index)},
                "annotations": {**template["metadata"].get("annotations", {}), **annotations},
                "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
                "finalizers": [JOB_TRACKING],
            },
            # The simulated scheduler binds at once.
            "spec": {**template["spec"], "nodeName": "node-0"},
        }
        return self._api.create("pods", metadata["namespace"], body, by=_BY)

    def _put_out(self, pods: list[JsonObject]) -> None:
        """Delete pods that are not wanted now: without their finalizer, so that nothing counts (deleteJobPods)."""
        for pod in pods:
            _without_finalizer(self._api, pod, JOB_TRACKING)
        self._delete_pods(pods)

    def _delete_pods(self, pods: list[JsonObject]) -> None:
        for pod in list(pods):
            self._api.delete(key_of("pods", pod), {"propagationPolicy": "Background"}, by=_BY)
            self._active.remove(pod)
            self._terminating.append(pod)

    def _note_suspension(self) -> None:
        known = next((item for item in self._conditions if item["type"] == "Suspended"), None)
        wanted = "True" if self._spec["suspend"] else "False"
        if known is None and wanted == "False":
            return
        if known is not None and known["status"] == wanted:
            return
        if known is not None:
            self._conditions.remove(known)
        reason, message = ("JobSuspended", "Job suspended") if wanted == "True" else ("JobResumed", "Job resumed")
        self._conditions.append(self._condition("Suspended", reason, message, status=wanted))
        # The deadline counts from the resumption: where the old time has stayed, it was asked with that, above.
        if wanted == "False":
            self._status["startTime"] = format_time(self._now)
        elif self._api.release is Release.CLEARED:
            self._status.pop("startTime", None)

    def _may_be_released(self, pod: JsonObject) -> bool:
        """canRemoveFinalizer."""
        if _deleting(self._job) or self._final is not None or pod["status"]["phase"] == "Succeeded":
            return True
        kept = self._kept().get(_index(pod))
        return pod["status"]["phase"] == "Failed" and (
            kept is None or kept["metadata"]["uid"] != pod["metadata"]["uid"]
        )

    def _write_counts(self) -> None:
        ready = [pod for pod in self._active if _ready(pod)]
        self._status |= {
            "active": len(self._active),
            "ready": len(ready),
            "terminating": len(self._terminating),
            "succeeded": len(self._succeeded),
            "completedIndexes": _written(self._succeeded),
            "failedIndexes": _written(self._failed),
        }
        self._write()

    def _write(self) -> None:
        live = self._api.find(*key_of("jobs", self._job))
        if live is not None and live["metadata"]["uid"] == self._job["metadata"]["uid"]:
            live["status"] = self._status
            self._api.update(key_of("jobs", self._job), live, subresource="status", by=_BY)

    def _second_half(self, released: list[JsonObject]) -> None:
        """Take the finalizers off, and finish the Job once no pod terminates any more (enactJobFinished)."""
        live = self._api.find(*key_of("jobs", self._job))
        if live is None or live["metadata"]["uid"] != self._job["metadata"]["uid"]:
            return
        for pod in released:
            _without_finalizer(self._api, pod, JOB_TRACKING)
        if self._final is None or self._terminating:
            return
        self._status = live["status"]
        if finished(live):
            return
        self._conditions.append({**self._final, "lastTransitionTime": format_time(self._now)})
        if self._final["type"] == "Complete":
            self._status["completionTime"] = format_time(self._now)
        self._write()


def _ready(pod: JsonObject) -> bool:
    """True while a pod runs, unless somebody says that it is not ready."""
    unready = any(item["type"] == "Ready" and item["status"] == "False" for item in pod["status"].get("conditions", []))
    return pod["status"]["phase"] == "Running" and not unready


def _written(indexes: IndexSet) -> str:
    """Write an index set as the Job controller does: two neighbours are no range (orderedIntervals.String)."""
    parts = [(str(first), "," if last == first + 1 else "-", last) for first, last in indexes.ranges]
    return ",".join(first if first == str(last) else f"{first}{between}{last}" for first, between, last in parts)


def _attempts(pod: JsonObject) -> int:
    return _count(pod, _FAILURES) + _count(pod, _IGNORED)


def _finished_at(pod: JsonObject) -> str:
    for state in pod["status"].get("containerStatuses", []):
        if "terminated" in state.get("state", {}):
            return str(state["state"]["terminated"]["finishedAt"])
    return str(pod["metadata"].get("deletionTimestamp") or pod["metadata"]["creationTimestamp"])


class GarbageCollector:
    """Deletes what has lost its owner, and ends foreground and orphaning deletions."""

    def __init__(self, api: ApiServer) -> None:
        self._api = api

    def steps(self) -> Iterator[Step]:
        """Yield what can be done now."""
        alive = self._api.uids()
        for resource in ("jobs", "configmaps", "pods"):
            for body in self._api.peek(resource):
                owner = owner_of(body)
                if owner is not None and owner["uid"] not in alive and not _deleting(body):
                    yield partial(self._delete, key_of(resource, body), body["metadata"]["uid"])
        for resource in (names.PLURAL, "jobs"):
            for body in self._api.peek(resource):
                finalizers = body["metadata"].get("finalizers", [])
                if FOREGROUND in finalizers:
                    yield from self._foreground(body)
                elif ORPHAN in finalizers:
                    yield partial(self._orphan, copied(body))

    def _delete(self, key: tuple[str, str, str], uid: str) -> None:
        try:
            self._api.delete(key, {"propagationPolicy": "Background", "preconditions": {"uid": uid}}, by=_BY)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def _dependents(self, body: JsonObject) -> list[tuple[str, JsonObject]]:
        uid = body["metadata"]["uid"]
        return [
            (resource, item)
            for resource in ("jobs", "configmaps", "pods")
            for item in self._api.all(resource)
            if (owner_of(item) or {}).get("uid") == uid
        ]

    def _foreground(self, body: JsonObject) -> Iterator[Step]:
        dependents = self._dependents(body)
        for resource, item in dependents:
            if not _deleting(item):
                yield partial(self._delete, key_of(resource, item), item["metadata"]["uid"])
        if not any((owner_of(item) or {}).get("blockOwnerDeletion") for _, item in dependents):
            yield partial(_without_finalizer, self._api, body, FOREGROUND)

    def _orphan(self, body: JsonObject) -> None:
        for resource, item in self._dependents(body):
            del item["metadata"]["ownerReferences"]
            self._api.update(key_of(resource, item), item, by=_BY)
        _without_finalizer(self._api, body, ORPHAN)


# ── the worker ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(slots=True)
class Store:
    """A tenant's object store, as the worker uses it (docs/store-layout.md).

    Args:
        outputs: how often each segment's output was created: version, plan, segment → count.
        active: versions by the number of publishes that made them visible.
        fences: the generation below which nothing of a job is published any more.
        wrongs: what must never be.
    """

    outputs: dict[tuple[str, str, int], int] = field(default_factory=dict)
    active: dict[str, int] = field(default_factory=dict)
    fences: dict[str, int] = field(default_factory=dict)
    wrongs: list[str] = field(default_factory=list)

    def raise_fence(self, uid: str, generation: int) -> None:
        """Shut out publishes of earlier generations."""
        self.fences[uid] = max(self.fences.get(uid, 0), generation)

    def put_segment(self, version: str, plan: str, segment: int) -> None:
        """Create a segment's output unless it is there."""
        self.outputs.setdefault((version, plan, segment), 1)

    def publish(self, *, uid: str, generation: int, version: str, plan: str, total: int) -> bool:
        """Make a version visible; False when a later generation has fenced this one off."""
        if version in self.active:
            return True
        if self.fences.get(uid, 0) > generation:
            return False
        missing = [segment for segment in range(total) if (version, plan, segment) not in self.outputs]
        if missing:
            self.wrongs.append(f"invariant 6: published without segments {missing}")
        self.active[version] = 1
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a pod ends when nothing disturbs it.

    Args:
        code: an error code of the table; empty for success.
        hangs: it never ends by itself.
        image: its image is not to be had, so that it never starts.
        slow: its node never gets as far as to make its container.
        sidecar: somebody adds a container to it, which goes on when the worker has ended.
    """

    code: str = ""
    hangs: bool = False
    image: bool = False
    slow: bool = False
    sidecar: bool = False

    def __post_init__(self) -> None:
        assert not self.code or self.code in ERROR_CODES, f"there is no code {self.code}"


GOOD: Final = Verdict()


class Kubelet:
    """Runs pods: a start, the worker's effect, the end; and what deletion does to them.

    Args:
        api: the API server.
        store: what the workers write to.
        now: the wall clock.
        verdict: how the pod of a stage and a segment ends.
        segments: how many segments a document has, and whether it is done in a single pass.
    """

    def __init__(
        self,
        api: ApiServer,
        store: Store,
        now: Callable[[], datetime],
        verdict: Callable[[str, int | None], Verdict],
        segments: Callable[[], tuple[int, bool]],
    ) -> None:
        self._api = api
        self._store = store
        self._now = now
        self._verdict = verdict
        self._segments = segments
        self._cache: dict[tuple[str, str], JsonObject] = {}  # immutable ConfigMaps are read once
        self._effects: dict[str, JsonObject] = {}  # pod UID → what it has committed and will say
        self.started: list[tuple[str, int, int | None]] = []
        self.silent = False  # its node is lost: pods stay as they are
        self.missing: set[str] = set()  # titles of documents that are not where they should be

    def steps(self) -> Iterator[Step]:
        """Yield what can be done now."""
        if self.silent:
            return
        for pod in self._api.peek("pods"):
            key = key_of("pods", pod)
            if names.LABEL_STAGE not in pod["metadata"]["labels"]:
                continue  # another's pod, which hangs
            if ended(pod):
                if _deleting(pod) and pod["metadata"].get("deletionGracePeriodSeconds"):
                    yield partial(self._remove, key)
            elif _deleting(pod):
                yield partial(self._kill, key)
            elif pod["status"]["phase"] == "Pending":
                if self._can_start(pod):
                    yield partial(self._start, key)
            elif pod["metadata"]["uid"] not in self._effects:
                if not self._verdict_of(pod).hangs:
                    yield partial(self._work, key)
            elif not (self._verdict_of(pod).sidecar and "terminated" in pod["status"]["containerStatuses"][0]["state"]):
                yield partial(self._exit, key)

    def _can_start(self, pod: JsonObject) -> bool:
        state = pod["status"].get("containerStatuses", [{}])[0].get("state", {})
        verdict = self._verdict_of(pod)
        if verdict.image:
            return bool(state.get("waiting", {}).get("reason") != "ErrImagePull")
        return self._file(pod) is not None and not verdict.slow

    def _file(self, pod: JsonObject) -> JsonObject | None:
        """Return the ConfigMap's data; an immutable one that was read before is not read again."""
        namespace = pod["metadata"]["namespace"]
        volume = next(item for item in pod["spec"]["volumes"] if "configMap" in item)
        key = (namespace, volume["configMap"]["name"])
        found = self._api.find("configmaps", *key)
        if found is not None and (key not in self._cache or not found.get("immutable")):
            self._cache[key] = found["data"]
        return self._cache.get(key) if found is not None else None

    def _env(self, pod: JsonObject) -> dict[str, str]:
        container = pod["spec"]["containers"][0]
        return {item["name"]: item["value"] for item in container["env"] if "value" in item}

    def _segment(self, pod: JsonObject, attempt: JsonObject) -> int | None:
        return IndexSet.parse(attempt["segments"]).member(_index(pod)) if "segments" in attempt else None

    def _verdict_of(self, pod: JsonObject) -> Verdict:
        file = self._file(pod)
        attempt = json.loads(file[names.ATTEMPT_KEY]) if file else {}
        return self._verdict(self._env(pod)[names.ENV_STAGE], self._segment(pod, attempt))

    def _live(self, key: tuple[str, str, str]) -> JsonObject:
        pod = self._api.find(*key)
        assert pod is not None
        return pod

    def _set(self, pod: JsonObject, status: JsonObject) -> None:
        pod["status"] = {**pod["status"], **status}
        self._api.update(key_of("pods", pod), pod, subresource="status", by=_KUBELET)

    def _container(self, **state: Any) -> list[JsonObject]:
        return [{"name": names.WORKER_CONTAINER, "state": state}]

    def _start(self, key: tuple[str, str, str]) -> None:
        pod = self._live(key)
        if self._verdict_of(pod).image:
            waiting = {"reason": "ErrImagePull", "message": "not found"}
            self._set(pod, {"containerStatuses": self._container(waiting=waiting)})
            return
        self._set(pod, {"phase": "Running", "containerStatuses": self._container(running={})})

    def _work(self, key: tuple[str, str, str]) -> None:
        """Do what the worker does up to its commit."""
        pod = self._live(key)
        env, file = self._env(pod), self._file(pod)
        text = file[names.ATTEMPT_KEY] if file else "{}"
        attempt = json.loads(text)
        uid, generation, stage = env[names.ENV_JOB_UID], int(env[names.ENV_GENERATION]), env[names.ENV_STAGE]
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        if digest != env[names.ENV_MAP_DIGEST] or attempt["job"]["uid"] != uid or attempt["generation"] != generation:
            self._effects[pod["metadata"]["uid"]] = {"code": "AttemptMismatch", "message": "another attempt's file"}
            return
        segment = self._segment(pod, attempt)
        self.started.append((uid, generation, segment))
        if stage != Stage.SEGMENTS and generation > 0:
            self._store.raise_fence(uid, generation)
        code = "SourceNotFound" if attempt["document"]["title"] in self.missing else self._verdict(stage, segment).code
        if code:
            says: JsonObject = {"code": code, "message": f"{stage} {segment}", "retryable": True}
        else:
            says = self._succeed(stage, attempt, uid, generation, segment)
        self._effects[pod["metadata"]["uid"]] = says

    def _succeed(self, stage: str, attempt: JsonObject, uid: str, generation: int, segment: int | None) -> JsonObject:
        total, single = self._segments()
        version = attempt["version"]
        if stage == Stage.PREPARE:
            said = {"id": version["id"], "number": 1, "planHash": "41ab"}
            if not single:
                return {"mode": "Segmented", "segments": total, "version": said}
            self._store.put_segment(version["id"], "41ab", 0)
            arguments = {"uid": uid, "generation": generation, "version": version["id"], "plan": "41ab", "total": 1}
            if not self._store.publish(**arguments):
                return {"code": "Fenced", "message": "a later attempt has begun"}
            published = {"version": {**said, "state": "active"}, "chunks": 3, "notRead": NOT_READ}
            return {"mode": "SinglePass", "segments": 1, **published}
        if stage == Stage.SEGMENTS:
            assert segment is not None
            self._store.put_segment(version["id"], version["planHash"], segment)
            return {"segment": segment, "chunks": 1}
        published = self._store.publish(
            uid=uid,
            generation=generation,
            version=version["id"],
            plan=version["planHash"],
            total=attempt["totalSegments"],
        )
        if not published:
            return {"code": "Fenced", "message": "a later attempt has begun"}
        return {"version": {**version, "state": "active"}, "chunks": 7, "notRead": NOT_READ}

    def _exit(self, key: tuple[str, str, str]) -> None:
        pod = self._live(key)
        says = self._effects[pod["metadata"]["uid"]]
        code = 0
        if says.get("code"):
            code = ERROR_CODES[says["code"]].exit_code or 1 if says["code"] in ERROR_CODES else 1
        self._end(pod, code, says, sidecar=self._verdict_of(pod).sidecar)

    def _end(self, pod: JsonObject, code: int, says: JsonObject | None, *, sidecar: bool = False) -> None:
        terminated: JsonObject = {"exitCode": code, "finishedAt": format_time(self._now())}
        if says is not None:
            terminated["message"] = json.dumps(says)
        containers = self._container(terminated=terminated)
        if sidecar:
            unready = {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
            added = {"name": "proxy", "state": {"running": {}}}
            self._set(pod, {"containerStatuses": [*containers, added], "conditions": [unready]})
            return
        self._set(
            pod,
            {
                "phase": "Failed" if code else "Succeeded",
                "containerStatuses": containers,
            },
        )

    def _kill(self, key: tuple[str, str, str]) -> None:
        """A pod that is deleted gets SIGTERM: it ends well only if its effect is committed."""
        pod = self._live(key)
        says = self._effects.get(pod["metadata"]["uid"])
        if says is not None and not says.get("code") and pod["status"]["phase"] == "Running":
            self._end(pod, 0, says)
        else:
            self._end(pod, 143, None)

    def _remove(self, key: tuple[str, str, str]) -> None:
        self._api.delete(key, {"gracePeriodSeconds": 0}, by=_KUBELET)

    def evict(self, key: tuple[str, str, str]) -> None:
        """Put a pod out, as a drained node does."""
        pod = self._live(key)
        disrupted = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        self._set(pod, {"conditions": [*pod["status"].get("conditions", []), disrupted]})
        self._api.delete(key, {}, by="kubectl")
