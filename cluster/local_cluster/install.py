"""Put the product into a cluster: build its images, load them, install the chart, mint keys, reach its Services."""

import functools
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from local_cluster import binaries, engine, images, paths, ports, process
from local_cluster.commands import run
from local_cluster.errors import LocalClusterError
from local_cluster.kind import Kind
from local_cluster.progress import locked, say, timed

REPOSITORY = paths.CLUSTER_FOLDER.parent
CHART = REPOSITORY / "charts" / "ingestion-operator"
SOURCES = ("crds", "operator", "api", "worker")
"""Folders whose package, `ingestion_` before its name, goes into the images."""
NAMES = ("operator", "api", "worker", "store")
STORE_CLASS = "ingestion-local"
STORE_FOLDER = "/var/lib/ingestion-store"
USER = 65532
TIMEOUT = "300s"
FORWARD_SECONDS = 20.0


@functools.cache
def image_name(name: str) -> str:
    """The full name of one of our images (`operator`, `api`, `worker`, `store`).

    Its tag is a digest of all that the image is made from. So another content is another image, to the engine, to the
    node and to Helm, and two checkouts do not meet.

    Raises LocalClusterError where no base image can be had.
    """
    digest = _digest(name=name, base=images.base_image())
    return f"localhost/ingestion-{name}:dev-{digest[:12]}"


def build_images() -> list[str]:
    """Build those of our images that the engine has not got yet, and return the names of all.

    Raises LocalClusterError when a build fails.
    """
    for name in NAMES:
        tag = image_name(name)
        if engine.for_images().has_image(tag):
            continue
        if name == "store":
            _build_store(base=images.base_image(), tag=tag)
        else:
            images.build(
                dockerfile=REPOSITORY / "images" / "Dockerfile",
                context=REPOSITORY,
                target=name,
                tag=tag,
                build_args={"BASE": images.base_image()},
                from_environment=["PIP_INDEX_URL"],
            )
    return [image_name(name) for name in NAMES]


def load_images(*, cluster: Kind, names: Sequence[str]) -> list[str]:
    """Load those of the images that the cluster's node has not got yet, and return their names.

    Raises LocalClusterError when an image is missing or the node does not take it.
    """
    there = cluster.exec("ctr", "--namespace", "k8s.io", "images", "list", "--quiet").split()
    wanted = [name for name in names if name not in there]
    if wanted:
        with tempfile.TemporaryDirectory(prefix="images-", dir=paths.cache()) as folder:
            # One archive: the images share most of their layers.
            archive = Path(folder) / "images.tar"
            images.save(tags=wanted, file=archive)
            cluster.load(archives=[archive])
    return wanted


def prepare_store_volume(*, cluster: Kind, namespace: str, release: str) -> None:
    """Make a volume on the cluster's node that the store's user may write, whatever the default StorageClass does.

    kind's own provisioner hands out folders that belong to root and ignore fsGroup. A `local` volume with the right
    owner lets the store keep to the pod-security level `restricted`. Does nothing where it exists, and keeps what is
    in the folder.
    """
    folder, name = f"{STORE_FOLDER}/{namespace}-{release}", f"{namespace}-{release}-store"
    bound = _field(cluster, "persistentvolume", name, "{.spec.claimRef.uid}")
    claim = _field(cluster, "persistentvolumeclaim", f"{release}-store", "{.metadata.uid}", namespace=namespace)
    if bound and bound != claim:
        # The claim is gone whose UID the volume names: no other claim would ever get it.
        kubectl(cluster.kubeconfig, "delete", "persistentvolume", name)
    cluster.exec("mkdir", "-p", folder)
    cluster.exec("chown", f"{USER}:{USER}", folder)
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "20Gi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": STORE_CLASS,
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": folder},
            "claimRef": {"namespace": namespace, "name": f"{release}-store"},
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}]}
                    ]
                }
            },
        },
    }
    kubectl(cluster.kubeconfig, "apply", "--filename", "-", stdin=json.dumps(volume))


def local_values() -> dict[str, dict[str, Any]]:
    """The chart's values that name the images of `build_images` and the volume of `prepare_store_volume`."""
    parts = {name: image_name(name).rpartition(":") for name in NAMES}
    return {
        "images": {name: {"repository": repository, "tag": tag} for name, (repository, _, tag) in parts.items()},
        "store": {"embedded": {"persistence": {"storageClass": STORE_CLASS}}},
    }


def prepare(*, cluster: Kind, namespace: str, release: str) -> dict[str, dict[str, Any]]:
    """Put images and the store's volume into a kind cluster, and return the chart's values that name them.

    Args:
        cluster: one that is up.
        namespace: where the chart will be installed.
        release: the release's name.

    Raises LocalClusterError when a build fails or the node does not take an image.
    """
    load_images(cluster=cluster, names=build_images())
    prepare_store_volume(cluster=cluster, namespace=namespace, release=release)
    return local_values()


def helm_install(*, kubeconfig: Path, namespace: str, release: str, values: Mapping[str, Any]) -> None:
    """Install the chart, or upgrade it, with its CRD, and wait until everything is ready.

    The namespace is made with the pod-security level `restricted`, which every pod of the chart keeps. What a run that
    was interrupted left half done is gone on with.

    Args:
        kubeconfig: which cluster.
        namespace: the release's namespace.
        release: the release's name.
        values: as in values.yaml, besides those of `local_values`.

    Raises LocalClusterError with Helm's message, and what the pods say, when it fails.
    """
    kubectl(kubeconfig, "apply", "--server-side", "--force-conflicts", "--filename", CHART / "crds")
    kubectl(
        kubeconfig,
        *("apply", "--server-side", "--force-conflicts", "--filename", "-"),
        stdin=json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": namespace, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
            }
        ),
    )
    with (
        locked(paths.cache() / "helm.lock"),
        tempfile.TemporaryDirectory() as scratch,
        timed(f"helm upgrade --install {release} in {namespace}"),
    ):
        _forget_interrupted(kubeconfig=kubeconfig, namespace=namespace, release=release)
        layers: list[str | Path] = []
        for number, layer in enumerate((local_values(), values)):
            file = Path(scratch) / f"{number}.json"
            file.write_text(json.dumps(layer))
            layers += ["--values", file]
        try:
            command: list[str | Path] = [binaries.path(name="helm"), "upgrade", "--install", release, CHART]
            command += ["--kubeconfig", kubeconfig, "--namespace", namespace, *layers]
            command += ["--server-side=true", "--force-conflicts"]  # what somebody scaled by hand is put right
            run([*command, "--wait", "--wait-for-jobs", "--timeout", TIMEOUT])
        except LocalClusterError as error:
            raise LocalClusterError(f"{error}\n{explain(kubeconfig=kubeconfig, namespace=namespace)}") from error


def _forget_interrupted(*, kubeconfig: Path, namespace: str, release: str) -> None:
    """Delete the record of a Helm run that was killed: Helm would refuse every other one for its sake.

    What that run made stays, and is the release's: the next one takes it over.
    """
    selector = f"owner=helm,name={release},status in (pending-install,pending-upgrade,pending-rollback)"
    found = kubectl(kubeconfig, "get", "secrets", "--namespace", namespace, "--selector", selector, "--output", "name")
    for name in found.split():
        say(f"a Helm run was interrupted: its record {name} is deleted")
        kubectl(kubeconfig, "delete", name, "--namespace", namespace)


def mint_key(*, kubeconfig: Path, namespace: str, tenant: str, name: str) -> str:
    """Mint an API key for the namespace `tenant` and return it.

    Args:
        kubeconfig: which cluster.
        namespace: the release's namespace.
        tenant: the namespace that the key is good for.
        name: what the key is for, as `ingestion-keys list` shows it.

    Raises LocalClusterError when it cannot be minted.
    """
    program = Path(sys.executable).with_name("ingestion-keys")
    where: list[str | Path] = ["--secret-namespace", namespace, "--kubeconfig", kubeconfig]
    return run([program, "mint", "--namespace", tenant, "--name", name, *where]).strip()


@contextmanager
def port_forward(*, kubeconfig: Path, namespace: str, service: str, port: int, local_port: int = 0) -> Iterator[str]:
    """Forward a free local port (or `local_port`) to a Service while the block runs; yields `http://127.0.0.1:PORT`.

    A forward ends with the pod behind it; it is taken up again with the same local port.

    Raises LocalClusterError when it does not come up.
    """
    chosen = local_port or ports.free(count=1)[0]
    command = [
        *(str(binaries.path(name="kubectl")), "--kubeconfig", str(kubeconfig), "--namespace", namespace),
        *("port-forward", f"service/{service}", f"{chosen}:{port}"),
    ]
    ended, ready = threading.Event(), threading.Event()
    running: list[subprocess.Popen[bytes]] = []
    said: list[str] = []

    def forward() -> None:
        while not ended.is_set():
            with process.spawn(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
                running[:] = [child]
                assert child.stdout is not None
                for line in map(bytes.decode, child.stdout):
                    said[:] = [*said[-10:], line]
                    if line.startswith("Forwarding from"):
                        ready.set()
            ended.wait(0.5)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        if not ready.wait(FORWARD_SECONDS):
            raise LocalClusterError(f"port-forward to {namespace}/{service} did not come up\n{''.join(said)}")
        yield f"http://127.0.0.1:{chosen}"
    finally:
        ended.set()
        for child in running:
            child.terminate()
        thread.join(timeout=10)


def explain(*, kubeconfig: Path, namespace: str) -> str:
    """What the pods of a namespace are, say and went through, for an error message; never raises."""
    parts = []
    commands: list[list[str]] = [
        ["get", "pods,jobs,pvc", "--output", "wide"],
        ["get", "events", "--sort-by=.lastTimestamp"],
    ]
    try:
        pods = kubectl(kubeconfig, "get", "pods", "--namespace", namespace, "--output", "name").split()
    except LocalClusterError:
        pods = []
    commands += [["logs", pod, "--all-containers", "--tail=30", "--prefix"] for pod in pods]
    for command in commands:
        try:
            text = kubectl(kubeconfig, *command, "--namespace", namespace)
        except LocalClusterError as error:
            text = str(error)
        parts.append(f"--- kubectl --namespace {namespace} {' '.join(command)}\n{text.rstrip()}")
    return "\n".join(parts)[-12_000:]


def kubectl(kubeconfig: Path, *arguments: str | Path, stdin: str | None = None) -> str:
    """Call kubectl and return its output; raises LocalClusterError as `commands.run` does."""
    return run([binaries.path(name="kubectl"), "--kubeconfig", kubeconfig, *arguments], stdin=stdin)


def _field(cluster: Kind, kind: str, name: str, path: str, *, namespace: str = "default") -> str:
    """Read a field of an object; empty when the object or the field is not there."""
    which = ("get", kind, name, "--namespace", namespace, "--ignore-not-found", "--output", f"jsonpath={path}")
    return kubectl(cluster.kubeconfig, *which)


def _digest(*, name: str, base: str) -> str:
    """A digest of all that an image is made from: asking the engine's cache takes it seconds for each image."""
    digest = hashlib.sha256(f"{name} {base} {engine.for_images().name}".encode())
    if name == "store":
        digest.update(repr(binaries.BINARIES["versitygw"]).encode())
        files = [REPOSITORY / "images" / "store.Dockerfile"]
        for folder in ("cluster/go/versitygw", "images/versitygw"):
            files += sorted((REPOSITORY / folder).iterdir())
    else:
        packages = (REPOSITORY / folder / f"ingestion_{folder}" for folder in SOURCES)
        files = [
            REPOSITORY / file for file in ("images/Dockerfile", "pyproject.toml", "uv.lock", "README.md", "LICENSE")
        ]
        files += [file for package in packages for file in sorted(package.rglob("*")) if _is_source(file)]
    for file in files:
        digest.update(file.relative_to(REPOSITORY).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _is_source(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


def _build_store(*, base: str, tag: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # The Go image is for those who can pull it; the program in the cache is made from the same go.sum.
        shutil.copy2(binaries.path(name="versitygw"), folder)
        shutil.copytree(REPOSITORY / "images" / "versitygw", Path(folder) / "images" / "versitygw")
        images.build(
            dockerfile=REPOSITORY / "images" / "store.Dockerfile",
            context=Path(folder),
            tag=tag,
            build_args={"BASE": base, "VERSITYGW": "given"},
        )
