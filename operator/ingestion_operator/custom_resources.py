"""The custom resources themselves: what is written to IngestionJobs and IngestionBatches alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds.kube import JSON_PATCH, MERGE_PATCH, ApiError, KubeClient, find

from ingestion_operator import metrics
from ingestion_operator.actions import AnswerAnnotation

TRIES_OF_WEBHOOKS: Final = 4
"""A webhook that has failed may answer in a moment: nobody is told of fewer failures."""


class ConflictError(Exception):
    """Something changed under the plan: read and plan anew."""


class CustomResources:
    """The IngestionJobs, or the IngestionBatches, of an API server.

    Every method raises `ApiError` when the API server refuses a request, fails, or cannot be reached.

    Args:
        client: the connection.
        path: of them: `ingestion_path` or `batch_path`.
    """

    def __init__(self, client: KubeClient, *, path: Callable[..., str]) -> None:
        self._client = client
        self._path = path

    async def find(self, *, namespace: str, name: str) -> JsonObject | None:
        """Return a resource, or None when there is none."""
        return await find(self._client, self._path(namespace, name))

    async def write_status(self, raw: JsonObject, patch: JsonObject) -> JsonObject:
        """Merge into the status (RFC 7396), and return the resource as it is then.

        Only the resourceVersion protects another one of that name: a wrong uid in a status patch is ignored.

        Args:
            raw: the resource that the patch was made for.
            patch: of its status: null takes a field away.

        Raises:
            ConflictError: when the resource has changed, or is gone.
        """
        metadata = raw["metadata"]
        path = self._path(metadata["namespace"], metadata["name"], "status")
        body = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": patch}
        try:
            written = await self._client.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        except ApiError as error:
            raise_conflict(error)
            raise
        metrics.STATUS_WRITES.inc()
        return written

    async def answer(self, action: AnswerAnnotation, raw: JsonObject) -> JsonObject:
        """Apply a JSON patch (RFC 6902) to all but the status, and return the resource as it is then.

        Args:
            action: the patch.
            raw: the resource that it was made for.

        Raises:
            ConflictError: when the resource has changed, or is gone.
        """
        namespace, name = raw["metadata"]["namespace"], raw["metadata"]["name"]
        # Texts are not to be tested: the API server compares their bytes, and JSON has two ways to write "é".
        resource_version = raw["metadata"]["resourceVersion"]
        unchanged = {"op": "test", "path": "/metadata/resourceVersion", "value": resource_version}
        operations = [unchanged, *action.operations]
        try:
            return await self._client.request(
                "PATCH", self._path(namespace, name), body=operations, content_type=JSON_PATCH
            )
        except ApiError as error:
            raise_conflict(error)
            # A failed `test` is 422 Invalid, as what is not valid is.
            if error.refused:
                live = await self.find(namespace=namespace, name=name)
                if live is None or live["metadata"]["resourceVersion"] != resource_version:
                    raise ConflictError(str(error)) from error
            raise

    async def delete(self, *, namespace: str, name: str, uid: str) -> None:
        """Delete a resource, and what it owns after it; that it is gone already is no error.

        Raises:
            ApiError: `conflict` when there is one of that name with another UID.
        """
        await delete(self._client, self._path(namespace, name), uid)


def raise_conflict(error: ApiError) -> None:
    """Raise ConflictError if the API server has refused a write because the object has changed, or is gone."""
    if error.conflict or error.missing:
        raise ConflictError(str(error)) from error


async def delete(client: KubeClient, path: str, uid: str | None) -> None:
    """Delete with Background propagation (the default orphans a Job's pods); gone already is well.

    Args:
        client: the connection.
        path: of one object.
        uid: the object's; None for whichever has the name.
    """
    body: JsonObject = {"propagationPolicy": "Background"}
    if uid is not None:
        body["preconditions"] = {"uid": uid}
    try:
        await client.request("DELETE", path, body=body)
    except ApiError as error:
        if not error.missing:
            raise
