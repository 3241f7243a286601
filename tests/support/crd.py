"""The CRDs on a fresh control plane."""

from __future__ import annotations

import asyncio
from pathlib import Path

import yaml
from ingestion_crds.constants import BATCH_PLURAL, PLURAL
from ingestion_crds.kube import ApiError, KubeClient, batch_path, ingestion_path

CRDS = Path(__file__).parent.parent.parent / "crds"


async def install_crd(kubeconfig: Path) -> None:
    """Install the CRDs and wait until the API server serves them."""
    async with await KubeClient.connect(kubeconfig=str(kubeconfig)) as client:
        # The batches first: whoever waits for the jobs alone finds both.
        for plural, path in ((BATCH_PLURAL, batch_path()), (PLURAL, ingestion_path())):
            body = yaml.safe_load((CRDS / f"{plural}.yaml").read_text())
            await client.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body=body)
            await _served(client, path)


async def _served(client: KubeClient, path: str) -> None:
    for _ in range(200):
        try:
            await client.request("GET", path)
            return
        except ApiError:
            await asyncio.sleep(0.05)
    raise AssertionError(f"the API server does not serve {path}")
