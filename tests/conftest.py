"""Fixtures that every suite shares: a real API server, a client, a fresh namespace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml
from ingestion_crds.kube import ApiError, KubeClient
from local_cluster.control_plane import ControlPlane
from support.namespaces import make_namespace

CRD = Path(__file__).parent.parent / "crds" / "ingestionjobs.yaml"


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


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A bare control plane with the CRD: etcd, API server, controller manager, scheduler; no nodes."""
    with ControlPlane() as plane:
        asyncio.run(install_crd(plane.kubeconfig))
        yield plane


@pytest_asyncio.fixture
async def kube(control_plane: ControlPlane) -> AsyncIterator[KubeClient]:
    """An administrator's client."""
    async with await KubeClient.connect(kubeconfig=str(control_plane.kubeconfig)) as client:
        yield client


@pytest_asyncio.fixture
async def namespace(kube: KubeClient) -> str:
    """A fresh namespace, which is ready for pods."""
    return await make_namespace(kube)
