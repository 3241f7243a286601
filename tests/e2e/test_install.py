"""What puts the product into a cluster goes on with what a run left that was interrupted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from local_cluster import binaries, install
from local_cluster.commands import run
from local_cluster.errors import LocalClusterError

from .conftest import CLUSTER, RELEASE, SYSTEM, VALUES, Tenant

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]


@pytest.mark.alone
def test_a_helm_run_that_was_killed_does_not_stand_in_the_way_of_the_next(tenant: Tenant, tmp_path: Path) -> None:
    values = tmp_path / "values.json"
    changed = {"operator": {"resources": {"requests": {"cpu": "41m", "memory": "128Mi"}}}}  # so that it has to wait
    values.write_text(json.dumps({**VALUES, **install.local_values(), **changed}))
    command = [str(binaries.path(name="helm")), "upgrade", RELEASE, str(install.CHART), "--values", str(values)]
    command += ["--wait", "--kubeconfig", str(CLUSTER.kubeconfig), "--namespace", SYSTEM]
    pending = (
        "get",
        "secrets",
        "--namespace",
        SYSTEM,
        "--selector",
        f"name={RELEASE},status=pending-upgrade",
        "-oname",
    )
    with subprocess.Popen(command) as helm:
        while not tenant.installation.kubectl(*pending):
            assert helm.poll() is None, "it was not caught at its work"
        helm.kill()
    with pytest.raises(LocalClusterError, match="another operation"):
        run(command)
    install.helm_install(kubeconfig=CLUSTER.kubeconfig, namespace=SYSTEM, release=RELEASE, values=VALUES)
    assert tenant.installation.kubectl(*pending) == ""
    job, _ = tenant.upload("# Title\n\nHarmless.\n")
    tenant.ended(job, "completed")
