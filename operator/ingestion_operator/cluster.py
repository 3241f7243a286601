"""The requests that the reconcile loop makes, but for those about the IngestionJob itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any, Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.follow import PAGE, pages
from ingestion_crds.job import ChildUid
from ingestion_crds.kube import MERGE_PATCH, KubeClient, child_path, core_path, find, ingestion_path

from ingestion_operator.custom_resources import CustomResources, delete
from ingestion_operator.event_recorder import EventRecorder
from ingestion_operator.obstacles import LONGEST_MESSAGE

# A page of 500 has some 3.5 MB. What is not among so many is said to be unknown.
_MOST_PODS: Final = 2_000
# Of the pods that wait: the first that has a reason speaks for all, and each is 7 KB. A Job of one index has no more.
_SOME_PODS: Final = 5
_CONTROLLER_UID: Final = names.LABEL_CONTROLLER_UID
# Anybody may write an Event, and fill it: no UID of the API server's is longer. What goes beyond the other two is not
# read, or not kept, to the harm of that namespace alone.
_UID_LENGTH: Final = 36
_MOST_EVENTS: Final = 50_000
_MOST_JOBS: Final = 5_000


class KubeCluster:
    """What the reconcile loop asks of an API server.

    Every method raises `ApiError` when the API server refuses a request, fails, or cannot be reached. What the error
    says in ordinary cases stands beside the method. Objects are passed and returned as their JSON.

    Lists and gets name no resourceVersion, so that none is answered with what was once: gets come from etcd, lists
    from a cache that etcd has confirmed (KEP-2340).

    Args:
        client: the connection.
    """

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self.ingestion_jobs = CustomResources(client, path=ingestion_path)
        self.events = EventRecorder(client, kind=names.KIND)

    async def list_ingestion_jobs(self) -> AsyncIterator[JsonObject]:
        """Yield all IngestionJobs, read page by page."""
        async for items, _ in pages(self._client, ingestion_path()):
            for item in items:
                yield item

    async def list_children(self, *, namespace: str, job_uid: str) -> AsyncIterator[JsonObject]:
        """Yield all Jobs that carry an IngestionJob's UID, read page by page."""
        query = {"labelSelector": f"{names.LABEL_JOB_UID}={job_uid}"}
        async for items, _ in pages(self._client, child_path(namespace), query=query):
            for item in items:
                yield item

    async def get_child(self, *, namespace: str, name: str) -> JsonObject:
        """Return a Job.

        Raises:
            ApiError: `missing` when there is none.
        """
        return await self._client.request("GET", child_path(namespace, name))

    async def find_child(self, *, namespace: str, name: str) -> JsonObject | None:
        """Return a Job, or None when there is none."""
        return await find(self._client, child_path(namespace, name))

    async def create_child(self, *, body: JsonObject) -> JsonObject:
        """Create a Job, and return it as it is stored.

        Raises:
            ApiError: `already_exists` when there is one of that name.
        """
        return await self._client.request("POST", child_path(body["metadata"]["namespace"]), body=body)

    async def patch_child(
        self, *, namespace: str, name: str, uid: ChildUid, spec: JsonObject, annotations: JsonObject
    ) -> JsonObject:
        """Merge into the spec and the annotations of a Job (RFC 7396), and return the Job as it is then.

        Raises:
            ApiError: `missing` when there is none; with status 422 when there is one of that name with another UID,
                or the change is not valid.
        """
        body = {"metadata": {"uid": uid, "annotations": annotations}, "spec": spec}
        return await self._client.request("PATCH", child_path(namespace, name), body=body, content_type=MERGE_PATCH)

    async def clear_start_time(self, *, namespace: str, name: str, resource_version: str) -> JsonObject:
        """Take status.startTime off a suspended Job, and return the Job as it is then.

        Args:
            namespace: the Job's.
            name: the Job's.
            resource_version: of the Job as it was read: it may have ended, or been resumed, since.

        Raises:
            ApiError: `conflict` when the Job has changed, `missing` when it is gone; with status 422 when it is not
                suspended.
        """
        body = {"metadata": {"resourceVersion": resource_version}, "status": {"startTime": None}}
        return await self._client.request(
            "PATCH", f"{child_path(namespace, name)}/status", body=body, content_type=MERGE_PATCH
        )

    async def delete_child(self, *, namespace: str, name: str, uid: ChildUid) -> None:
        """Delete a Job, and its pods after it; that it is gone already is no error.

        Raises:
            ApiError: `conflict` when there is one of that name with another UID.
        """
        await delete(self._client, child_path(namespace, name), uid)

    async def get_config_map(self, *, namespace: str, name: str) -> JsonObject:
        """Return a ConfigMap.

        Raises:
            ApiError: `missing` when there is none.
        """
        return await self._client.request("GET", core_path("configmaps", namespace, name))

    async def find_config_map(self, *, namespace: str, name: str) -> JsonObject | None:
        """Return a ConfigMap, or None when there is none."""
        return await find(self._client, core_path("configmaps", namespace, name))

    async def create_config_map(self, *, body: JsonObject) -> JsonObject:
        """Create a ConfigMap, and return it as it is stored.

        Raises:
            ApiError: `already_exists` when there is one of that name.
        """
        return await self._client.request("POST", core_path("configmaps", body["metadata"]["namespace"]), body=body)

    async def delete_config_map(self, *, namespace: str, name: str, uid: str | None = None) -> None:
        """Delete a ConfigMap, whatever its UID if none is given; that it is gone already is no error.

        Raises:
            ApiError: `conflict` when there is one of that name with another UID.
        """
        await delete(self._client, core_path("configmaps", namespace, name), uid)

    async def list_pods(
        self, *, namespace: str, child_uid: ChildUid, failed_only: bool, take: Callable[[list[JsonObject]], None]
    ) -> bool:
        """Hand out a Job's pods page by page, so that not all are in memory at once: of segments many may have failed.

        Args:
            namespace: the Job's.
            child_uid: the Job's.
            failed_only: only pods that have failed; else all, of a Job of one index, which are few.
            take: is given each page.

        Returns:
            Whether there are more than the some 2,000 that are read at most.
        """
        query = {"labelSelector": f"{_CONTROLLER_UID}={child_uid}"}
        if failed_only:
            query["fieldSelector"] = "status.phase=Failed"
        most, taken = PAGE if failed_only else _SOME_PODS, 0
        async for pods, metadata in pages(self._client, core_path("pods", namespace), query=query, most=most):
            take(pods)
            taken += len(pods)
            if taken >= _MOST_PODS and metadata.get("continue"):
                return True
        return False

    async def list_unstarted_pods(self, *, namespace: str, child_uid: ChildUid) -> list[JsonObject]:
        """Return some of a Job's pods that are Pending."""
        return await self._some_pods(namespace, child_uid, "status.phase=Pending")

    async def list_unfinished_pods(self, *, namespace: str, child_uid: ChildUid) -> list[JsonObject]:
        """Return some of a Job's pods that have not ended, whether they have started or not."""
        return await self._some_pods(namespace, child_uid, "status.phase!=Succeeded,status.phase!=Failed")

    async def _some_pods(self, namespace: str, child_uid: ChildUid, fields: str) -> list[JsonObject]:
        query = {"labelSelector": f"{_CONTROLLER_UID}={child_uid}", "fieldSelector": fields}
        pods, _ = await anext(pages(self._client, core_path("pods", namespace), query=query, most=_SOME_PODS))
        return pods

    async def list_creation_failures(self, *, namespace: str, since: datetime) -> dict[ChildUid, str]:
        """Return what the newest Event of each Job says of pods that could not be created.

        Args:
            namespace: the Jobs'.
            since: Events that are older count for nothing.

        Returns:
            Messages by the UID of their Job.
        """
        query = {"fieldSelector": "involvedObject.kind=Job,reason=FailedCreate"}
        newest: dict[ChildUid, tuple[str, str]] = {}
        read = 0
        async for events, _ in pages(self._client, core_path("events", namespace), query=query):
            for event in events:
                told = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
                uid, message = event["involvedObject"].get("uid", ""), event.get("message", "")
                if not 0 < len(uid) <= _UID_LENGTH or not _is_since(told, since):
                    continue  # few of an Event's fields are asked for
                if uid in newest or len(newest) < _MOST_JOBS:  # of a message no more is kept than is ever said
                    newest[uid] = max(newest.get(uid, ("", "")), (told, message[:LONGEST_MESSAGE]))
            read += len(events)
            if read >= _MOST_EVENTS:
                break
        return {uid: message for uid, (_, message) in newest.items()}

    async def remove_pods(
        self, *, namespace: str, child_uid: ChildUid, keep: tuple[int, ...], following: str = "", parts: int = 1
    ) -> str:
        """Delete a page of a Job's pods, but none of the Job indexes to keep.

        Not all at once: Kubernetes deletes them one after the other, and answers with the pods themselves. Some may
        stay for a while, or for good: pods that still end, and those that a finalizer holds.

        Args:
            namespace: the Job's.
            child_uid: the Job's.
            keep: indexes whose pods stay.
            following: what the page before has returned.
            parts: so many times fewer pods make a page.

        Returns:
            What the next page is asked for with; empty after the last.

        Raises:
            ApiError: `expired` when the page before was too long ago, `too_large` when the page is to be a smaller one.
        """
        selector = f"{_CONTROLLER_UID}={child_uid}"
        if keep:
            selector += f",{names.LABEL_COMPLETION_INDEX} notin ({','.join(map(str, keep))})"
        query = {"labelSelector": selector, "limit": max(1, PAGE // parts)}
        query |= {"continue": following} if following else {}
        body = {"propagationPolicy": "Background"}
        answer = await self._client.request("DELETE", core_path("pods", namespace), query=query, body=body)
        return str(answer.get("metadata", {}).get("continue", ""))


def _is_since(told: str, since: datetime) -> bool:
    """Return whether a time is not before another one; False for the years 0 and 10000, which Kubernetes has."""
    try:
        return datetime.fromisoformat(told) >= since
    except ValueError:
        return False


def merge_diff(before: Any, after: Any) -> Any:
    """Return the merge patch that turns one JSON value into another; {} when they are equal.

    Source: RFC 7396.
    """
    if not isinstance(before, dict) or not isinstance(after, dict):
        return after
    patch: JsonObject = {key: None for key in before if key not in after}
    for key, value in after.items():
        if key not in before:
            patch[key] = value
        elif before[key] != value:
            patch[key] = merge_diff(before[key], value)
    return patch
