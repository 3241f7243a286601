"""Build the programs a cluster is made of from pinned Go modules, once, into the cache.

There is no download of finished binaries: the module proxy is often reachable where release pages and registries
are not, and the committed go.sum files pin every byte that goes in.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from local_cluster import host, paths, versions
from local_cluster.commands import run
from local_cluster.errors import LocalClusterError
from local_cluster.go import go, run_go
from local_cluster.progress import locked, timed


@dataclass(frozen=True, kw_only=True)
class Binary:
    """One program: the folder under cluster/go whose go.mod pins it, its Go package, and linker flags.

    `patched` is a Go module whose sources are changed first, by the folder's *.patch.
    """

    module: str
    package: str
    linker: str = ""
    patched: str = ""


def _kubernetes(command: str) -> Binary:
    version = "k8s.io/component-base/version"
    major, minor, _ = versions.KUBERNETES.removeprefix("v").split(".")
    linker = (
        f"-X {version}.gitVersion={versions.KUBERNETES} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    )
    return Binary(module="kubernetes", package=f"k8s.io/kubernetes/cmd/{command}", linker=linker)


def _helm(*, module: str, version: str) -> Binary:
    root = f"helm.sh/helm/{version.partition('.')[0]}"
    return Binary(module=module, package=f"{root}/cmd/helm", linker=f"-X {root}/internal/version.version={version}")


CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
"""What a bare control plane needs."""

NODE = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
    "kubeadm",
    "etcd",
    "coredns",
    "pause",
)
"""What a node image needs."""

BINARIES = {
    **{name: _kubernetes(name) for name in NODE if name.startswith("kube")},
    "etcd": Binary(module="etcd", package="go.etcd.io/etcd/server/v3"),
    "coredns": Binary(module="coredns", package="localcluster/coredns"),
    "pause": Binary(module="pause", package="localcluster/pause"),
    "helm": _helm(module="helm", version=versions.HELM),
    "helm-v3": _helm(module="helm-v3", version=versions.HELM_3),
    "kwok": Binary(
        module="kwok",
        package="sigs.k8s.io/kwok/cmd/kwok",
        linker=f"-X sigs.k8s.io/kwok/pkg/consts.Version={versions.KWOK.removeprefix('v')}",
    ),
    "kind": Binary(module="kind", package="sigs.k8s.io/kind"),
    "versitygw": Binary(
        module="versitygw",
        package="github.com/versity/versitygw/cmd/versitygw",
        linker=f"-X main.Version={versions.VERSITYGW}",
        patched="github.com/versity/versitygw",
    ),
    "kubeconform": Binary(
        module="kubeconform",
        package="github.com/yannh/kubeconform/cmd/kubeconform",
        linker=f"-X main.version={versions.KUBECONFORM}",
    ),
}


def ensure(*, names: Iterable[str]) -> Path:
    """Build those of `names` that are not in the cache yet and return the folder that holds them all.

    Raises LocalClusterError for an unknown name or a build that fails.
    """
    wanted = list(dict.fromkeys(names))
    unknown = [name for name in wanted if name not in BINARIES]
    if unknown:
        raise LocalClusterError(f"unknown: {', '.join(unknown)}; there are: {', '.join(sorted(BINARIES))}")
    folder = paths.cache() / "bin" / versions_key()
    missing = [name for name in wanted if not (folder / name).exists()]
    if not missing:
        return folder
    go()  # before two ask for it
    beside = ThreadPoolExecutor(max_workers=1)
    try:
        for module in list(dict.fromkeys(BINARIES[name].module for name in missing))[1:]:
            beside.submit(_download, module=module)
        for name in missing:
            with locked(folder / f".{name}.lock"):
                if not (folder / name).exists():
                    _build(name=name, folder=folder)
    finally:
        beside.shutdown(cancel_futures=True)
    return folder


def path(*, name: str) -> Path:
    """The path of one program, built if it is not in the cache yet; errors as for `ensure`."""
    return ensure(names=[name]) / name


def versions_key() -> str:
    """The cache folder's name: the Kubernetes version and a digest of all that goes into the builds."""
    digest = hashlib.sha256(repr(sorted(BINARIES.items())).encode())
    for file in sorted(paths.GO_MODULES.glob("*/*")):
        digest.update(file.relative_to(paths.GO_MODULES).as_posix().encode() + file.read_bytes())
    return f"{versions.KUBERNETES}-{digest.hexdigest()[:12]}"


def _build(*, name: str, folder: Path) -> None:
    binary = BINARIES[name]
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
        built = Path(scratch) / name
        # What the linker would leave out is not made in the first place, for an eighth of the time.
        flags = ["-trimpath", "-gcflags=all=-dwarf=false", f"-ldflags=-s -w {binary.linker}".rstrip()]
        with timed(f"building {name}"):
            if binary.patched:
                flags.append(f"-modfile={_patch(binary=binary, folder=Path(scratch))}")
            run_go("build", *flags, "-o", str(built), binary.package, module=binary.module)
        built.replace(folder / name)


def _patch(*, binary: Binary, folder: Path) -> Path:
    """Copy the sources of `binary.patched` into `folder`, patch them, and return a go.mod that takes them from there.

    As images/store.Dockerfile does.
    """
    host.require(programs=["git"])
    there, sources, module = paths.GO_MODULES / binary.module, folder / "sources", folder / "go.mod"
    found = json.loads(run_go("mod", "download", "-json", binary.patched, module=binary.module))["Dir"]
    run(["cp", "-r", found, sources])
    run(["chmod", "-R", "u+w", sources])  # Go's own copy is read-only
    for patch in sorted(there.glob("*.patch")):
        # Outside of any repository: in one, git would change the files that it has there.
        run(["git", "apply", patch], cwd=sources, env={"GIT_CEILING_DIRECTORIES": str(folder)})
    for file in ("go.mod", "go.sum"):
        shutil.copyfile(there / file, folder / file)
    run_go("mod", "edit", f"-replace={binary.patched}={sources}", str(module), module=binary.module)
    return module


def _download(*, module: str) -> None:
    """Fetch what a module is made from while another one is being built; what fails here fails there, and is told."""
    with suppress(LocalClusterError):
        run_go("mod", "download", module=module)
