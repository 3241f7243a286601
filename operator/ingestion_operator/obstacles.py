"""Why a job does not go on, as its pods, their Job and the Events about it say it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Reason
from ingestion_crds.job import format_time

from ingestion_operator.children import ChildJob
from ingestion_operator.results import START_REASONS, shorten

LONGEST_MESSAGE: Final = 512
"""So much of a message is said, in bytes."""
OBSTACLES: Final = frozenset(
    {
        Reason.IMAGE_UNAVAILABLE,
        Reason.POD_CREATION_FAILED,
        Reason.POD_PENDING,
        Reason.POD_UNSCHEDULABLE,
        Reason.POD_TERMINATING,
        Reason.REJECTED_BY_CLUSTER,
    }
)
"""Why pods do not start, or do not end, or may not be asked."""
_IMAGE_REASONS: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)
_CREATING_REASONS: Final = frozenset({"ContainerCreating", "PodInitializing"})
_UNSCHEDULED_REASONS: Final = frozenset({"Unschedulable", "SchedulingGated"})
_OVERDUE: Final = timedelta(seconds=60)
# A large image may take some minutes; what takes longer is worth a word.
_STARTING: Final = timedelta(minutes=3)
# By default Kubernetes takes pods off such a node after five minutes; some are to stay for as long as it takes.
_SILENT: Final = timedelta(minutes=3)
# The Job controller keeps a pod, and makes no other in its place, until somebody says that it has ended. Where its node
# does not, the pod garbage collector does, once the Node is gone. To delete the pod by force is of no use.
_IF_LOST: Final = "Then delete the Node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Why a job does not go on: a reason and a message, as a container's `state.waiting` has them."""

    reason: Reason
    message: str


def no_store(namespace: str) -> Waiting:
    """Return what there is to say of a namespace that is no tenant's."""
    # Who reads this may be nobody's tenant, and is not to learn who the others are.
    text = f"namespace {namespace} has no object store: it has to be added to `tenants` in the chart's values.yaml"
    return Waiting(reason=Reason.NO_STORE, message=text)


def read_obstacle(*, pods: Iterable[JsonObject], creation_failure: str | None, now: datetime) -> Waiting | None:
    """Return why a Job's pods do not start, or do not end, or None when nothing says so.

    Args:
        pods: pods of the Job that have not started, or have not ended.
        creation_failure: why some could not be created.
        now: the time.
    """
    found = (check(pod, now) for pod in pods for check in _CHECKS)
    first = next((obstacle for obstacle in found if obstacle is not None), None)
    if first is None and creation_failure is not None:
        return _obstacle(Reason.POD_CREATION_FAILED, creation_failure)
    return first


def stays(child: ChildJob, now: datetime) -> Waiting | None:
    """Return what there is to say of a Job that somebody deleted and that is not gone, or None if it may soon be."""
    if child.deleted is None or now - child.deleted <= _OVERDUE:
        return None
    text = f"the Job {child.name} was deleted at {format_time(child.deleted)}, and is not gone: a finalizer holds it"
    return _obstacle(Reason.POD_TERMINATING, f"{text}, or one of its pods")


def may_lack_config_map(pod: JsonObject) -> bool:
    """Return whether a pod may wait for its ConfigMap: its node makes its containers, or has not yet spoken of them."""
    states = [container.get("state", {}) for container in pod["status"].get("containerStatuses", [])]
    creating = all(state.get("waiting", {}).get("reason") in _CREATING_REASONS for state in states)
    return pod["status"]["phase"] == "Pending" and "nodeName" in pod["spec"] and creating


# ── the checks of one pod ─────────────────────────────────────────────────────────────────────────────────────


def _overdue(pod: JsonObject, now: datetime) -> Waiting | None:
    deleted = pod["metadata"].get("deletionTimestamp")  # the time when it has to be gone
    if deleted is None or now - datetime.fromisoformat(deleted) <= _OVERDUE:
        return None
    text = f"{pod['metadata']['name']} had to end by {deleted} and has not: is its node ({_node(pod)}) lost?"
    return _obstacle(Reason.POD_TERMINATING, f"{text} {_IF_LOST}")


def _kept_by_a_sidecar(pod: JsonObject, now: datetime) -> Waiting | None:
    status = pod.get("status", {})
    states = {item.get("name", ""): item.get("state", {}) for item in status.get("containerStatuses", [])}
    ended = states.get(names.WORKER_CONTAINER, {}).get("terminated", {}).get("finishedAt")
    others = [name for name, state in states.items() if "running" in state]
    if ended is None or not others or now - datetime.fromisoformat(ended) <= _OVERDUE:
        return None
    text = f"{pod['metadata']['name']}: the worker has ended at {ended}, and the container {others[0]}, which was added"
    return _obstacle(Reason.POD_TERMINATING, f"{text} to it, goes on")


def _not_heard_of(pod: JsonObject, now: datetime) -> Waiting | None:
    # A kubelet gives a reason. Where one is silent, the node controller takes the readiness of its pods away without.
    ready = _condition(pod, "Ready")
    since = ready.get("lastTransitionTime")
    lost = ready.get("status") == "False" and not ready.get("reason")
    if pod.get("status", {}).get("phase") != "Running" or not lost or since is None:
        return None
    if now - datetime.fromisoformat(since) <= _SILENT:
        return None
    text = (
        f"{pod['metadata']['name']} runs, and nothing was heard of its node ({_node(pod)}) since {since}: is it lost?"
    )
    return _obstacle(Reason.POD_TERMINATING, f"{text} {_IF_LOST}")


def _cannot_start(pod: JsonObject, _: datetime) -> Waiting | None:
    for container in pod.get("status", {}).get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        text = f"{pod['metadata']['name']}: {reason}: {waiting.get('message', '')}"
        if reason in _IMAGE_REASONS:
            return _obstacle(Reason.IMAGE_UNAVAILABLE, text)
        if reason in START_REASONS:
            return _obstacle(Reason.POD_PENDING, text)
    return None


def _unschedulable(pod: JsonObject, _: datetime) -> Waiting | None:
    scheduled = _condition(pod, "PodScheduled")
    if scheduled.get("reason") not in _UNSCHEDULED_REASONS:
        return None
    text = f"{pod['metadata']['name']}: {scheduled.get('message', 'cannot be scheduled')}"
    return _obstacle(Reason.POD_UNSCHEDULABLE, text)


def _long_in_starting(pod: JsonObject, now: datetime) -> Waiting | None:
    scheduled = _condition(pod, "PodScheduled")
    since = scheduled.get("lastTransitionTime")
    if pod.get("status", {}).get("phase") != "Pending" or scheduled.get("status") != "True" or since is None:
        return None
    if now - datetime.fromisoformat(since) <= _STARTING:
        return None
    text = (
        f"{pod['metadata']['name']} has been starting on its node ({_node(pod)}) since {since}: an image,"
        " a volume or the network is not ready; the pod's events say which"
    )
    return _obstacle(Reason.POD_PENDING, text)


def _unseen(pod: JsonObject, now: datetime) -> Waiting | None:
    created = pod["metadata"].get("creationTimestamp")
    if created is None or pod.get("status", {}).get("conditions") or "nodeName" in pod.get("spec", {}):
        return None
    if now - datetime.fromisoformat(created) <= _STARTING:
        return None
    text = f"{pod['metadata']['name']} was created at {created}, and no scheduler has looked at it"
    return _obstacle(Reason.POD_UNSCHEDULABLE, text)


# In this order: the first that finds something speaks for the pod.
_CHECKS: Final[tuple[Callable[[JsonObject, datetime], Waiting | None], ...]] = (
    _overdue,
    _kept_by_a_sidecar,
    _not_heard_of,
    _cannot_start,
    _unschedulable,
    _long_in_starting,
    _unseen,
)


def _obstacle(reason: Reason, text: str) -> Waiting:
    return Waiting(reason=reason, message=shorten(text, limit=LONGEST_MESSAGE))


def _condition(pod: JsonObject, kind: str) -> JsonObject:
    conditions = pod.get("status", {}).get("conditions", [])
    found: JsonObject = next((condition for condition in conditions if condition.get("type") == kind), {})
    return found


def _node(pod: JsonObject) -> str:
    return str(pod.get("spec", {}).get("nodeName", "none"))
