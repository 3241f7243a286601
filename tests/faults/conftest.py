"""The stand that fault tests play on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.stand import Stand
from ingestion_crds.kube import KubeClient
from local_cluster.control_plane import ControlPlane
from support.s3_server import S3Server, serving


@pytest.fixture
def stand(control_plane: ControlPlane, kube: KubeClient, tmp_path: Path) -> Stand:
    """Return a stand on the shared control plane."""
    return Stand(control_plane=control_plane, kube=kube, folder=tmp_path)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, for buckets of the tests' own."""
    with serving(tmp_path_factory.mktemp("s3")) as server:
        yield server
