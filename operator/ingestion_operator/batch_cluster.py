"""The requests that the work on batches makes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Reason
from ingestion_crds.follow import pages
from ingestion_crds.kube import (
    JSON_PATCH,
    MERGE_PATCH,
    TABLE,
    ApiError,
    KubeClient,
    batch_path,
    find,
    ingestion_path,
    no_answer,
)

from ingestion_operator.cluster import KubeCluster

PAGE: Final = 20
"""Batches in one answer at most: each may have half a megabyte."""


class BatchCluster:
    """What the work on batches asks of an API server; the rules are those of `KubeCluster`.

    Args:
        client: the connection.
    """

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._cluster = KubeCluster(client)

    async def find_batch(self, *, namespace: str, name: str) -> JsonObject | None:
        """Return an IngestionBatch, or None when there is none."""
        return await find(self._client, batch_path(namespace, name))

    async def list_batches(self) -> AsyncIterator[JsonObject]:
        """Yield all IngestionBatches, read page by page; none where their CRD is not there."""
        try:
            async for items, _ in pages(self._client, batch_path(), most=PAGE):
                for item in items:
                    yield item
        except ApiError as error:
            if not error.not_found:
                raise

    async def patch_status(self, *, namespace: str, name: str, resource_version: str, status: JsonObject) -> JsonObject:
        """Merge into a batch's status (RFC 7396), and return the batch as it is then.

        Raises:
            ApiError: `conflict` when the batch has changed, `not_found` when it is gone.
        """
        body = {"metadata": {"resourceVersion": resource_version}, "status": status}
        return await self._client.request(
            "PATCH", batch_path(namespace, name, "status"), body=body, content_type=MERGE_PATCH
        )

    async def patch_batch(self, *, namespace: str, name: str, operations: tuple[JsonObject, ...]) -> None:
        """Apply a JSON patch (RFC 6902) to all of a batch but its status.

        Raises:
            ApiError: with status 422 when a `test` among the operations fails, or the result is not valid.
        """
        await self._client.request("PATCH", batch_path(namespace, name), body=list(operations), content_type=JSON_PATCH)

    async def delete_batch(self, *, namespace: str, name: str, uid: str) -> None:
        """Delete a batch, and its jobs after it; that it is gone already is no error.

        Raises:
            ApiError: `conflict` when there is one of that name with another UID.
        """
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self._client.request("DELETE", batch_path(namespace, name), body=body)
        except ApiError as error:
            if not error.not_found:
                raise

    async def list_jobs(self, *, namespace: str, batch_uid: str, fields: str = "") -> JsonObject:
        """Return the IngestionJobs that carry a batch's UID, as a table.

        Args:
            namespace: the batch's.
            batch_uid: its UID.
            fields: a field selector; empty for all.
        """
        # Without the objects, whose managedFields alone are many times as long as a row.
        query: dict[str, Any] = {
            "labelSelector": f"{names.LABEL_BATCH_UID}={batch_uid}",
            "includeObject": "None",
            **({"fieldSelector": fields} if fields else {}),
        }
        answer = await self._client.request("GET", ingestion_path(namespace), query=query, accept=TABLE)
        if answer.get("kind") != "Table":
            raise no_answer("not a table of IngestionJobs")
        return answer

    async def find_job(self, *, namespace: str, name: str) -> JsonObject | None:
        """Return an IngestionJob, or None when there is none."""
        return await find(self._client, ingestion_path(namespace, name))

    async def create_job(self, *, body: JsonObject) -> None:
        """Create an IngestionJob.

        Raises:
            ApiError: `already_exists` when there is one of that name.
        """
        await self._client.request("POST", ingestion_path(body["metadata"]["namespace"]), body=body)

    async def patch_job(self, *, namespace: str, name: str, body: JsonObject) -> None:
        """Merge into an IngestionJob (RFC 7396).

        Raises:
            ApiError: `not_found` when there is none; with status 422 when the change is not admitted.
        """
        await self._client.request("PATCH", ingestion_path(namespace, name), body=body, content_type=MERGE_PATCH)

    async def create_event(self, *, batch: JsonObject, reason: Reason, message: str, warning: bool, now: str) -> None:
        """Create an Event about a batch; the arguments are those of `KubeCluster.create_event`."""
        await self._cluster.create_event(
            job=batch, reason=reason, message=message, warning=warning, now=now, kind=names.BATCH_KIND
        )
