"""Namespaces of the tests' own."""

from __future__ import annotations

import asyncio
import uuid

from ingestion_crds.constants import WORKER_SERVICE_ACCOUNT
from ingestion_crds.kube import ApiError, KubeClient, core_path


async def make_namespace(kube: KubeClient, *, prefix: str = "t") -> str:
    """Make a fresh namespace, which is ready for pods, and return its name."""
    name = f"{prefix}-{uuid.uuid4().hex[:10]}"
    await kube.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
    for account in ("default", WORKER_SERVICE_ACCOUNT):
        path = f"/api/v1/namespaces/{name}/serviceaccounts"
        try:
            await kube.request("POST", path, body={"metadata": {"name": account}})
        except ApiError as error:
            if not error.already_exists:
                raise
    return name


async def forbid_all(kube: KubeClient, *, namespace: str, of: str) -> str:
    """Forbid all objects of a kind by a quota, which counts once its controller has seen it; return its path."""
    path = core_path("resourcequotas", namespace)
    await kube.request("POST", path, body={"metadata": {"name": "none"}, "spec": {"hard": {of: "0"}}})
    while "used" not in (await kube.request("GET", f"{path}/none"))["status"]:
        await asyncio.sleep(0.05)
    return f"{path}/none"
