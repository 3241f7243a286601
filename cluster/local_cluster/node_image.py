"""kind's node image without a registry: Debian, kind's own base files, and our binaries.

The steps follow kind's images/base/Dockerfile and `kind build node-image`. Differences: containerd and runc are
Debian's, the network plugin is ptp with one fixed range (so one node), and nothing asks for a capability or a limit
that a machine may lack.
"""

import hashlib
import inspect
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local_cluster import archive, binaries, debian, host, paths, versions
from local_cluster.commands import run
from local_cluster.errors import LocalClusterError
from local_cluster.go import run_go
from local_cluster.progress import locked, timed

PACKAGES = (
    "systemd",
    "dbus",
    "conntrack",
    "iptables",
    "nftables",
    "iproute2",
    "ethtool",
    "mount",
    "kmod",
    "ca-certificates",
    "jq",
    "procps",
    "containerd",
    "runc",
    "containernetworking-plugins",
)
NETWORK_PLUGINS = ("host-local", "loopback", "ptp", "portmap")
REGISTRY = "registry.k8s.io"
IMPORT_CHANGES = (
    'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]',
    "ENV container=podman",
    "STOPSIGNAL SIGRTMIN+3",
)
SOCKET_SECONDS = 30.0


def in_cache() -> Path:
    """Where in the cache the node's root filesystem is, or will be, as a tar."""
    return paths.cache() / "images" / f"node-{key()}.tar"


def root_filesystem() -> Path:
    """The node's root filesystem as a tar in the cache, built (about a minute, as root) if it is not there.

    Raises LocalClusterError when a step fails.
    """
    made = in_cache()
    if not made.exists():
        with locked(made.with_name("node.lock")):
            if not made.exists():
                _build(file=made)
    return made


def key() -> str:
    """A digest of all that goes into the node image, Debian's packages aside."""
    digest = hashlib.sha256(binaries.versions_key().encode())
    for file in sorted(paths.NODE_IMAGE_FOLDER.iterdir()):
        digest.update(file.name.encode() + file.read_bytes())
    for module in (inspect.getmodule(key), archive, debian, versions):
        assert module is not None
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:12]


def _build(*, file: Path) -> None:
    host.require_root(what="building the node image")
    programs = binaries.ensure(names=binaries.NODE)
    base_files = _kind_base_files()
    with debian.building(folder=file.parent, prefix="node-image-") as root:
        with timed("node image: Debian with containerd"):
            debian.bootstrap(folder=root, release=versions.NODE_DEBIAN, packages=PACKAGES)
        with timed("node image: configuration and programs"):
            _add_kind_files(root=root, base_files=base_files)
            _quieten_systemd(root=root)
            _configure_containerd(root=root)
            _add_network_plugins(root=root)
            _add_programs(root=root, programs=programs)
        with timed("node image: images of the control plane"):
            images = root.with_name("images")
            images.mkdir()
            _write_component_images(folder=images, programs=programs, root=root)
            _preload(root=root, images=images)
        with timed("node image: packing"):
            debian.pack(folder=root, file=file)


def _kind_base_files() -> Path:
    run_go("mod", "download", "sigs.k8s.io/kind", module="kind")
    folder = run_go("list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kind", module="kind").strip()
    return Path(folder) / "images" / "base" / "files"


def _add_kind_files(*, root: Path, base_files: Path) -> None:
    for part in ("etc", "kind", "usr"):
        run(["cp", "--recursive", "--no-preserve=mode,ownership", base_files / part, f"{root}/"])
    for folder in ("usr/local/bin", "kind/bin"):
        for file in (root / folder).iterdir():
            file.chmod(0o755)
    (root / "kind" / "version").write_text(versions.KUBERNETES)
    for folder in ("kind/manifests", "etc/kubernetes/manifests", "opt/cni/bin", "etc/cni/net.d"):
        (root / folder).mkdir(parents=True, exist_ok=True)


def _quieten_systemd(*, root: Path) -> None:
    """Leave only what a node needs; the list is that of kind's Dockerfile."""
    units = root / "lib" / "systemd" / "system"
    patterns = (
        (units, "sysinit.target.wants/systemd-tmpfiles-setup.service"),
        (units, "multi-user.target.wants/*"),
        (units, "local-fs.target.wants/*"),
        (units, "basic.target.wants/*"),
        (units, "sockets.target.wants/*udev*"),
        (units, "sockets.target.wants/*initctl*"),
        (root / "etc" / "systemd" / "system", "*.wants/*"),
    )
    for folder, pattern in patterns:
        for link in folder.glob(pattern):
            link.unlink()
    with (root / "etc" / "systemd" / "journald.conf").open("a") as journald:
        journald.write("ReadKMsg=no\n")
    _link(root / "sbin" / "init", "/usr/lib/systemd/systemd")
    run(["chroot", root, "systemctl", "--quiet", "enable", "kubelet", "containerd", "undo-mount-hacks"])
    run(["chroot", root, "systemctl", "--quiet", "mask", "systemd-binfmt.service"])


def _configure_containerd(*, root: Path) -> None:
    _link(root / "usr" / "local" / "bin" / "containerd", "/usr/bin/containerd")
    # Without CAP_SYS_RESOURCE the unit could neither lower its OOM score nor raise its limits.
    unit = root / "etc" / "systemd" / "system" / "containerd.service"
    unit.write_text(re.sub(r"(?m)^(OOMScoreAdjust=|Limit).*\n", "", unit.read_text()))
    config = root / "etc" / "containerd" / "config.toml"
    text = config.read_text().replace("restrict_oom_score_adj = false", "restrict_oom_score_adj = true")
    pause = f'sandbox_image = "{REGISTRY}/{versions.KUBEADM_PAUSE_IMAGE}"'
    config.write_text(re.sub(r"sandbox_image = .*", pause, text))
    hook = '.hooks.createContainer += [{"path":"/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)'
    spec = run(["chroot", root, "ctr", "oci", "spec"])
    (root / "etc" / "containerd" / "cri-base.json").write_text(run(["chroot", root, "jq", hook], stdin=spec))


def _add_network_plugins(*, root: Path) -> None:
    for plugin in NETWORK_PLUGINS:
        shutil.move(root / "usr" / "lib" / "cni" / plugin, root / "opt" / "cni" / "bin" / plugin)
    shutil.rmtree(root / "usr" / "lib" / "cni")
    shutil.copy(paths.NODE_IMAGE_FOLDER / "10-ptp.conflist", root / "etc" / "cni" / "net.d")


def _add_programs(*, root: Path, programs: Path) -> None:
    for name in ("kubelet", "kubectl", "kubeadm"):
        shutil.copy(programs / name, root / "usr" / "bin" / name)


def _write_component_images(*, folder: Path, programs: Path, root: Path) -> None:
    kubernetes = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
    tags = {name: f"{name}:{versions.KUBERNETES}" for name in kubernetes}
    tags |= {
        "etcd": versions.KUBEADM_ETCD_IMAGE,
        "pause": versions.KUBEADM_PAUSE_IMAGE,
        "coredns": versions.KUBEADM_COREDNS_IMAGE,
    }
    for name, tag in tags.items():
        entrypoint = f"/usr/local/bin/{name}"
        files = {entrypoint: programs / name}
        if name == "kube-proxy":
            files |= _iptables(root=root)
        archive.write(
            file=folder / f"{name}.tar",
            name=f"{REGISTRY}/{tag}",
            entrypoint=entrypoint,
            files=files,
            folders=("/tmp",),  # noqa: S108 - the host-path provisioner and etcd's snapshots want one
        )


def _iptables(*, root: Path) -> dict[str, Path]:
    """iptables by the names that kube-proxy calls, and all that it loads.

    Not nft: when a Service lost its last endpoint, kube-proxy with Debian 12's nft 1.0.6 left out every other Service.
    """
    program = "/usr/sbin/xtables-legacy-multi"
    names = [f"/usr/sbin/{name}{what}" for name in ("iptables", "ip6tables") for what in ("", "-save", "-restore")]
    plugins = [f"/{file.relative_to(root)}" for file in sorted(root.glob("usr/lib/*/xtables/*.so"))]
    libraries = set(re.findall(r"/\S+(?= \(0x)", run(["chroot", root, "ldd", program, *plugins])))
    return {name: root / program.lstrip("/") for name in names} | {
        path: root / path.lstrip("/") for path in [*plugins, *sorted(libraries)]
    }


def _preload(*, root: Path, images: Path) -> None:
    """Put the image archives into the node's own containerd: blobs only, unpacked at first use."""
    target = root / "run" / "preload"
    target.mkdir(parents=True)
    shutil.copy(paths.NODE_IMAGE_FOLDER / "preload.toml", target)
    socket = "/run/preload/socket"
    # Of /dev it has what debootstrap made: a mount of the machine's own could be emptied with the folder.
    with _proc(root=root), (images / "containerd.log").open("wb") as log:
        containerd = subprocess.Popen(
            ["chroot", root, "containerd", "--config", "/run/preload/preload.toml"], stdout=log, stderr=log
        )
        try:
            deadline = time.monotonic() + SOCKET_SECONDS
            while not (root / socket.lstrip("/")).exists():
                if containerd.poll() is not None or time.monotonic() > deadline:
                    raise LocalClusterError(f"containerd did not start\n{(images / 'containerd.log').read_text()}")
                time.sleep(0.1)
            for file in sorted(images.glob("*.tar")):
                shutil.copy(file, target / "image.tar")
                ctr = ("chroot", root, "ctr", "--address", socket, "--namespace", "k8s.io")
                run([*ctr, "images", "import", "--no-unpack", "/run/preload/image.tar"])
        finally:
            containerd.terminate()
            containerd.wait()
    shutil.rmtree(target)


@contextmanager
def _proc(*, root: Path) -> Iterator[None]:
    run(["mount", "-t", "proc", "proc", root / "proc"])
    try:
        yield
    finally:
        run(["umount", root / "proc"])


def _link(link: Path, target: str) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)
