"""What Helm does with the chart before a real API server: the claims of the pages on installing and keeping it."""

from __future__ import annotations

import json
import re
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
HELMS = ("helm", "helm-v3")


class Release:
    """The chart in the cluster, and the Helm that `program` names."""

    def __init__(self, *, kubeconfig: Path, folder: Path, program: str) -> None:
        self._kubeconfig = kubeconfig
        self._folder = folder
        self.program = program

    def helm(self, *arguments: str) -> str:
        """Run Helm."""
        where = ("--kubeconfig", str(self._kubeconfig), "--namespace", NAMESPACE)
        return run([binaries.path(name=self.program), *arguments, *where])

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


@pytest.fixture(scope="module")
def cluster() -> Iterator[ControlPlane]:
    """One of these tests' own: the chart is for a whole cluster."""
    with ControlPlane() as plane:
        yield plane


@pytest.fixture(params=HELMS)
def release(request: pytest.FixtureRequest, cluster: ControlPlane, tmp_path: Path) -> Iterator[Release]:
    """An installation by Helm 4, and one by Helm 3."""
    made = Release(kubeconfig=cluster.kubeconfig, folder=tmp_path, program=request.param)
    made.kubectl("apply", "--server-side", "--force-conflicts", "--filename", str(install.CHART / "crds"))
    made.upgrade(VALUES)
    yield made
    made.helm("uninstall", "ingestion", "--ignore-not-found")
    made.an_hour_passes()


def test_the_way_back_from_an_upgrade_that_failed(release: Release) -> None:
    [first] = release.jobs()
    with pytest.raises(LocalClusterError, match="Not A Name"):
        release.upgrade(REFUSED)
    assert len(release.jobs()) == 2
    if release.program == "helm-v3":
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


def test_what_others_change_stays_or_is_put_right(release: Release) -> None:
    """API keys and a restart stay; of what the chart says itself, Helm 4 asks first, but for a scale to nothing."""
    release.kubectl("patch", "secret", "ingestion-api-keys", "--patch", '{"data": {"key": "eA=="}}')
    release.kubectl("rollout", "restart", "deployment/ingestion-operator")
    release.kubectl("scale", "deployment/ingestion-operator", "--replicas=0")
    release.upgrade(VALUES)
    replicas = ("get", "deployment", "ingestion-operator", "--output", "jsonpath={.spec.replicas}")
    assert release.kubectl(*replicas) == "2"

    release.kubectl("scale", "deployment/ingestion-operator", "--replicas=3")
    forced = []
    if release.program == "helm":
        with pytest.raises(LocalClusterError, match="conflict with"):
            release.upgrade(VALUES)
        forced = ["--force-conflicts"]
    release.upgrade(VALUES, *forced)
    assert release.kubectl(*replicas) == "2"
    assert "restartedAt" in release.kubectl("get", "deployment", "ingestion-operator", "--output", "yaml")
    keys = release.kubectl("get", "secret", "ingestion-api-keys", "--output", "jsonpath={.data}")
    assert json.loads(keys) == {"key": "eA=="}


def test_the_demo_puts_right_what_others_change(
    cluster: ControlPlane, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever Helm has installed the chart; that nothing becomes ready here comes after it."""
    monkeypatch.setattr(install, "local_values", dict)
    monkeypatch.setattr(install, "TIMEOUT", "1s")
    release.kubectl("scale", "deployment/ingestion-operator", "--replicas=3")
    with pytest.raises(LocalClusterError, match="ingestion-operator not ready"):
        install.helm_install(kubeconfig=cluster.kubeconfig, namespace=NAMESPACE, release="ingestion", values=VALUES)
    replicas = ("get", "deployment", "ingestion-operator", "--output", "jsonpath={.spec.replicas}")
    assert release.kubectl(*replicas) == "2"


def test_one_helm_goes_on_with_what_the_other_has_installed(release: Release) -> None:
    account = release.account()
    for release.program in (*HELMS, *reversed(HELMS)):
        release.upgrade(VALUES)
        release.helm("rollback", "ingestion")
    assert release.account() == account
    release.helm("uninstall", "ingestion")
    assert release.jobs() == set()


def test_who_installs_again_keeps_the_crds_that_are_there(release: Release) -> None:
    """With Helm 4 unless it is told to leave them: it applies them with an installation."""
    crd = "customresourcedefinitions/ingestionjobs.ingestion-operator.io"
    names = ("get", crd, "--output", "jsonpath={.spec.names.shortNames}")
    release.helm("uninstall", "ingestion")
    newer = '[{"op": "add", "path": "/spec/names/shortNames/-", "value": "newer"}]'
    release.kubectl("patch", crd, "--type=json", "--patch", newer)
    skipped = []
    if release.program == "helm":
        with pytest.raises(LocalClusterError, match="failed to install CRD"):
            release.upgrade(VALUES)
        skipped = ["--skip-crds"]
    release.upgrade(VALUES, *skipped)
    assert json.loads(release.kubectl(*names)) == ["ij", "newer"]


def test_a_claim_without_a_storage_class_takes_one_that_is_named_later(release: Release) -> None:
    """docs/install.md; another one only when it is made anew."""

    def named(storage_class: str) -> str:
        release.upgrade({**VALUES, "store": {"embedded": {"persistence": {"storageClass": storage_class}}}})
        return release.kubectl("get", "pvc", "ingestion-store", "--output", "jsonpath={.spec.storageClassName}")

    assert named("first") == "first"
    with pytest.raises(LocalClusterError, match="immutable"):
        named("second")
    release.kubectl("delete", "pvc", "ingestion-store")
    assert named("second") == "second"
    release.kubectl("delete", "pvc", "ingestion-store")


def test_the_uninstall_page_names_all_that_is_left_in_namespaces_that_stay(release: Release) -> None:
    release.helm("uninstall", "ingestion")
    release.an_hour_passes()
    page = (install.REPOSITORY / "docs" / "uninstall.md").read_text()
    for command in re.findall(r"^    kubectl (.* delete --ignore-not-found .*)$", page, re.MULTILINE):
        release.kubectl(*command.split())
    kinds = "secrets,configmaps,serviceaccounts,persistentvolumeclaims,services,deployments,jobs,pods"
    made = ("--all-namespaces", "--selector", "app.kubernetes.io/name=ingestion-operator", "--output", "name")
    assert release.kubectl("get", kinds, *made) == ""
