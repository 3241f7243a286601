"""What Helm does on the way back from an upgrade, before a real API server: the claims of docs/upgrade.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_cluster import binaries, install
from local_cluster.commands import run
from local_cluster.control_plane import ControlPlane
from local_cluster.errors import LocalClusterError

pytestmark = pytest.mark.controlplane

VALUES: dict[str, Any] = {"tenants": [{"namespace": "team-a", "bucket": "team-a", "createNamespace": True}]}
REFUSED = {**VALUES, "api": {"ingress": {"enabled": True, "host": "x.example", "tlsSecret": "Not A Name"}}}
"""By the API server alone, once all else is applied."""
NAMESPACE = "ingestion-system"


class Release:
    """The chart, installed in a cluster of its own."""

    def __init__(self, *, kubeconfig: Path, folder: Path) -> None:
        self._kubeconfig = kubeconfig
        self._folder = folder

    def helm(self, *arguments: str) -> str:
        """Run Helm."""
        where = ("--kubeconfig", str(self._kubeconfig), "--namespace", NAMESPACE)
        return run([binaries.path(name="helm"), *arguments, *where])

    def upgrade(self, values: dict[str, Any], *arguments: str) -> str:
        """Upgrade, or install."""
        file = self._folder / "values.json"
        file.write_text(json.dumps(values))
        chart = ("ingestion", str(install.CHART), "--create-namespace", "--values", str(file))
        return self.helm("upgrade", "--install", *chart, *arguments)

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl."""
        return install.kubectl(self._kubeconfig, "--namespace", NAMESPACE, *arguments)

    def account(self) -> str:
        """Return what the store is told of the tenant."""
        return self.kubectl("get", "secret", "ingestion-store-accounts", "--output", "jsonpath={.data.team-a}")

    def jobs(self) -> set[str]:
        """Return the names of the set-up Jobs."""
        return set(self.kubectl("get", "jobs", "--output", "name").split())

    def an_hour_passes(self) -> None:
        """Have the set-up Jobs go that are done."""
        self.kubectl("delete", "jobs", "--all")


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    with ControlPlane() as plane:
        made = Release(kubeconfig=plane.kubeconfig, folder=tmp_path)
        made.upgrade(VALUES)
        yield made


def test_the_way_back_from_an_upgrade_that_failed(release: Release) -> None:
    [first] = release.jobs()
    with pytest.raises(LocalClusterError, match="Not A Name"):
        release.upgrade(REFUSED)
    assert len(release.jobs()) == 2
    with pytest.raises(LocalClusterError, match="no Job with the name"):
        release.helm("rollback", "ingestion")
    release.helm("rollback", "ingestion", "1")
    assert first in release.jobs()

    release.an_hour_passes()
    with pytest.raises(LocalClusterError, match="Not A Name"):
        release.upgrade(REFUSED)
    release.helm("rollback", "ingestion")
    assert release.jobs() == {first}
    with pytest.raises(LocalClusterError, match="Not A Name"):
        release.upgrade(REFUSED)
    release.upgrade(VALUES)
    assert first not in release.jobs()


def test_a_rollback_brings_old_credentials_back(release: Release) -> None:
    leaked = release.account()
    release.kubectl("patch", "secret", "ingestion-store-accounts", "--patch", '{"data": {"team-a": null}}')
    release.upgrade(VALUES)
    anew = release.account()
    assert anew != leaked
    release.upgrade(VALUES)
    assert release.account() == anew
    release.helm("rollback", "ingestion", "1")
    assert release.account() == leaked


def test_a_null_over_a_value_that_was_given_before(release: Release) -> None:
    replicas = ("get", "deployment", "ingestion-api", "--output", "jsonpath={.spec.replicas}")
    release.upgrade(VALUES, "--set", "api.replicas=3")
    assert release.kubectl(*replicas) == "3"
    release.upgrade({}, "--reset-then-reuse-values", "--set", "api.replicas=null")
    assert release.kubectl(*replicas) == "2"
    release.upgrade(VALUES, "--set", "api.replicas=null")
    assert release.kubectl(*replicas) == "1"
