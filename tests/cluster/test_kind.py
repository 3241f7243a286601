"""A kind cluster of its own comes, survives a stopped node, takes images, goes, and leaves nothing on the machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_cluster import archive, binaries, engine, install, leftovers
from local_cluster.errors import LocalClusterError
from local_cluster.kind import Kind, remove_left, target, temporary_name

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

IMAGE = "localhost/tiny:test"


@pytest.fixture
def cluster() -> Iterator[Kind]:
    """A cluster that is not there yet, and is not there afterwards, whatever the test does."""
    remove_left()  # by runs that were killed
    described = Kind(name=temporary_name(process=os.getpid()))
    try:
        yield described
    finally:
        described.down()


def test_a_kind_cluster_comes_and_goes_without_a_trace(
    cluster: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_it = engine.for_kind()
    before = leftovers.inventory(engine=runs_it)

    kubeconfig = cluster.up()
    node = cluster.node_id()
    assert any(cluster.name in line for line in leftovers.inventory(engine=runs_it) - before)
    assert " Ready " in install.kubectl(kubeconfig, "get", "nodes", "--no-headers")
    assert cluster.up() == kubeconfig
    assert cluster.node_id() == node

    kubeconfig.unlink()  # as a run leaves it that was interrupted: kind writes it last
    assert cluster.up() == kubeconfig
    assert cluster.node_id() != node
    node = cluster.node_id()

    every = ("deployments", "--all", "--all-namespaces", "--timeout=120s")
    install.kubectl(kubeconfig, "wait", "--for=condition=Available", *every)
    runs_it.run("stop", f"{cluster.name}-control-plane")  # as the machine's restart does
    assert not cluster.answers()
    cluster.up()
    assert cluster.node_id() == node
    assert " Ready " in install.kubectl(kubeconfig, "get", "nodes", "--no-headers")

    given = Path(shutil.copy(kubeconfig, tmp_path / "somebody's"))
    monkeypatch.setenv("CLUSTER", "current")
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    assert target(name="another") == cluster
    monkeypatch.setenv("KUBECONFIG", str(given))
    current = target(name="another")
    assert current == Kind(name=cluster.name, given=given)
    assert current.up() == given
    file = tmp_path / "tiny.tar"
    archive.write(file=file, name=IMAGE, entrypoint="/pause", files={"/pause": binaries.path(name="pause")})
    current.load(archives=[file])
    assert IMAGE in cluster.exec("ctr", "--namespace", "k8s.io", "images", "list", "--quiet").split()
    with pytest.raises(LocalClusterError, match="is not ours to delete"):
        current.down()

    # cgroups of version 1: what runc had frozen when the node was stopped does not die
    frozen = list(leftovers.CGROUPS.glob(f"freezer/**/libpod-{cluster.node_id()}/*/**/cri-containerd-*/freezer.state"))
    assert frozen or runs_it.name != "podman" or not (leftovers.CGROUPS / "freezer").is_dir()
    for state in frozen:
        state.write_text("FROZEN")
    cluster.down()
    after = leftovers.inventory(engine=runs_it)
    print("\n".join(sorted(after - before)))
    assert leftovers.left(before=before, after=after, of=cluster.name) == set()
    assert not cluster.folder.exists()
    cluster.down()


def test_another_content_is_another_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BASE_IMAGE", "localhost/some-python:1")
    name = install.image_name.__wrapped__
    before = {image: name(image) for image in install.NAMES}
    copied = shutil.copytree(install.REPOSITORY, tmp_path / "copy", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    monkeypatch.setattr(install, "REPOSITORY", copied)
    assert {image: name(image) for image in install.NAMES} == before
    with (copied / "worker" / "ingestion_worker" / "main.py").open("a") as file:
        file.write("# changed\n")
    changed = {image for image in install.NAMES if name(image) != before[image]}
    assert changed == {"operator", "api", "worker"}
    monkeypatch.setenv("BASE_IMAGE", "localhost/some-python:2")
    assert name("store") != before["store"]
