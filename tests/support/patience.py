"""What outlasts an API server that is away for a while: a client, and what goes round again by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ingestion_crds import JsonObject
from ingestion_crds.kube import ApiError, KubeClient

_PATIENCE_SECONDS = 120.0
_AGAIN_SECONDS = 0.1


def is_away(error: ApiError) -> bool:
    """Return whether nobody said no: API server or etcd are away, or have too much to do."""
    return error.status in (0, 429) or error.status >= 500


@contextmanager
def unless_away() -> Iterator[None]:
    """Leave the block at an error that an absent API server or etcd causes: what it does is done again anyway."""
    try:
        yield
    except ApiError as error:
        if not is_away(error):
            raise


class PatientClient(KubeClient):
    """Tries each request again until the API server has answered it; what was carried out unanswered counts as done."""

    async def request(self, method: str, path: str, **rest: Any) -> JsonObject:
        """Send a request as `KubeClient.request`, but raise nothing that an absent API server or etcd causes."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        unanswered = False
        while True:
            try:
                return await super().request(method, path, **rest)
            except ApiError as error:
                if unanswered and method == "POST" and error.already_exists:
                    return await self.request("GET", f"{path}/{rest['body']['metadata']['name']}")
                if unanswered and method == "DELETE" and error.not_found:
                    return {}
                if not is_away(error) or time.monotonic() > deadline:
                    raise
                unanswered = True
            await asyncio.sleep(_AGAIN_SECONDS)
