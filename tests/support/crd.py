"""The CRD on a fresh control plane."""

from __future__ import annotations

import asyncio
from pathlib import Path

import yaml
from ingestion_crds.kube import ApiError, KubeClient

CRD = Path(__file__).parent.parent.parent / "crds" / "ingestionjobs.yaml"


async def install_crd(kubeconfig: Path) -> None:
    """Install the CRD and wait until the API server serves it."""
    async with await KubeClient.connect(kubeconfig=str(kubeconfig)) as client:
        body = yaml.safe_load(CRD.read_text())
        await client.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body=body)
        for _ in range(200):
            try:
                await client.request("GET", "/apis/ingestion-operator.io/v1alpha1/ingestionjobs")
                return
            except ApiError:
                await asyncio.sleep(0.05)
        raise AssertionError("the API server does not serve the CRD")
