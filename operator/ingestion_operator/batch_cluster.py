"""The requests that the work on batches makes, but for those about the batch itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.follow import pages
from ingestion_crds.kube import (
    MERGE_PATCH,
    TABLE,
    ApiError,
    KubeClient,
    batch_path,
    find,
    ingestion_path,
    no_answer,
)

from ingestion_operator.custom_resources import CustomResources
from ingestion_operator.event_recorder import EventRecorder

PAGE: Final = 20
"""Batches in one answer at most: each may have half a megabyte."""


class BatchCluster:
    """What the work on batches asks of an API server; the rules are those of `KubeCluster`.

    Args:
        client: the connection.
    """

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self.batches = CustomResources(client, path=batch_path)
        self.events = EventRecorder(client, kind=names.BATCH_KIND)

    async def list_batches(self) -> AsyncIterator[JsonObject]:
        """Yield all IngestionBatches, read page by page; none where their CRD is not there."""
        try:
            async for items, _ in pages(self._client, batch_path(), most=PAGE):
                for item in items:
                    yield item
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
            ApiError: `missing` when there is none; with status 422 when the change is not admitted.
        """
        await self._client.request("PATCH", ingestion_path(namespace, name), body=body, content_type=MERGE_PATCH)
