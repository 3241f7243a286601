"""A client that outlasts an API server that is away for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ingestion_crds import JsonObject
from ingestion_crds.kube import REQUEST_TIMEOUT_SECONDS, ApiError, KubeClient

_PATIENCE_SECONDS = 120.0
_AGAIN_SECONDS = 0.1


class PatientClient(KubeClient):
    """Tries each request again until the API server has answered it; what was carried out unanswered counts as done."""

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = REQUEST_TIMEOUT_SECONDS,
    ) -> JsonObject:
        """Send a request as `KubeClient.request`, but raise nothing that an absent API server or etcd causes."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        unanswered = False
        while True:
            try:
                return await super().request(
                    method, path, query=query, body=body, content_type=content_type, timeout=timeout
                )
            except ApiError as error:
                if unanswered and method == "POST" and error.already_exists:
                    return await self.request("GET", f"{path}/{body['metadata']['name']}")
                if unanswered and method == "DELETE" and error.not_found:
                    return {}
                away = error.status in (0, 429) or error.status >= 500
                if not away or time.monotonic() > deadline:
                    raise
                unanswered = True
            await asyncio.sleep(_AGAIN_SECONDS)
