"""Secrets as text: the credentials of the tenants' stores, the providers' keys, and the hashes of the API's own."""

from __future__ import annotations

import base64
from typing import Final

from ingestion_crds.kube import REQUEST_TIMEOUT_SECONDS, KubeClient, core_path, find

# What a client's request waits for.
READ_SECONDS: Final = 5.0


async def read_secret(
    kube: KubeClient, *, namespace: str, name: str, timeout: float = REQUEST_TIMEOUT_SECONDS
) -> dict[str, str | None] | None:
    """Return what a Secret holds, by key; None when there is no such Secret.

    A value that is no text is None: `kubectl create secret --from-file` takes any file.

    Args:
        kube: the cluster.
        namespace, name: the Secret's.
        timeout: seconds for the whole request.

    Raises:
        ApiError: the API server does not answer, or refuses.
    """
    secret = await find(kube, core_path("secrets", namespace, name), timeout=timeout)
    if secret is None:
        return None
    return {key: _text(encoded) for key, encoded in (secret.get("data") or {}).items()}


def _text(encoded: str) -> str | None:
    try:
        return base64.b64decode(encoded, validate=True).decode()
    except ValueError:  # of base64, or of UTF-8
        return None
