"""Fixtures that every suite shares: a real API server, a client, a fresh namespace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from ingestion_crds.kube import KubeClient
from local_cluster.control_plane import APISERVER, CONTROLLER_MANAGER, ControlPlane
from support.crd import install_crd
from support.namespaces import make_namespace


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A bare control plane with the CRD: etcd, API server, controller manager, scheduler; no nodes."""
    with ControlPlane() as plane:
        asyncio.run(install_crd(plane.kubeconfig))
        yield plane


@pytest.fixture(scope="module")
def control_plane_before_1_36() -> Iterator[ControlPlane]:
    """One whose suspended Jobs keep their startTime, as in Kubernetes 1.33 to 1.35 (KEP-5440)."""
    flag = ["--feature-gates=MutableSchedulingDirectivesForSuspendedJobs=false"]
    with ControlPlane(extra_flags={APISERVER: flag, CONTROLLER_MANAGER: flag}) as plane:
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
