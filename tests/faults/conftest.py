"""The stand that fault tests play on."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.stand import Stand
from ingestion_crds.kube import KubeClient
from local_cluster.control_plane import ControlPlane


@pytest.fixture
def stand(control_plane: ControlPlane, kube: KubeClient, tmp_path: Path) -> Stand:
    """Return a stand on the shared control plane."""
    return Stand(control_plane=control_plane, kube=kube, folder=tmp_path)
