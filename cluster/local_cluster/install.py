"""Put the product into a cluster: build its images, load them, install the chart, mint keys, reach its Services."""

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

from local_cluster import binaries, engine, images, paths, ports
from local_cluster.commands import run
from local_cluster.errors import LocalClusterError
from local_cluster.kind import Kind
from local_cluster.progress import locked, timed

REPOSITORY = paths.CLUSTER_FOLDER.parent
CHART = REPOSITORY / "charts" / "ingestion-operator"
SOURCES = ("crds", "operator", "api", "worker")
"""Folders whose package, `ingestion_` before its name, goes into the images."""
NAMES = ("operator", "api", "worker", "store")
DEFAULT_TAG = "dev"
STORE_CLASS = "ingestion-local"
STORE_FOLDER = "/var/lib/ingestion-store"
USER = 65532
TIMEOUT = "300s"
FORWARD_SECONDS = 20.0


def image_name(name: str, *, tag: str = DEFAULT_TAG) -> str:
    """The full name of one of our images (`operator`, `api`, `worker`, `store`)."""
    return f"localhost/ingestion-{name}:{tag}"


def build_images(*, tag: str = DEFAULT_TAG, names: Sequence[str] = NAMES) -> list[str]:
    """Build our images and return their names; unchanged ones come from the engine's cache.

    Raises LocalClusterError when a build fails.
    """
    base = images.base_image()
    for name in names:
        tagged = image_name(name, tag=tag)
        digest = _digest(name=name, base=base)
        if _built(tagged) == digest:
            continue
        if name == "store":
            _build_store(base=base, tag=tagged)
        else:
            images.build(
                dockerfile=REPOSITORY / "images" / "Dockerfile",
                context=REPOSITORY,
                target=name,
                tag=tagged,
                build_args={"BASE": base},
            )
        _remember(tagged, digest=digest)
    return [image_name(name, tag=tag) for name in names]


def load_images(*, cluster: Kind, names: Sequence[str]) -> list[str]:
    """Load those of the images that the cluster's node has not got yet, and return their names.

    Raises LocalClusterError when an image is missing or the node does not take it.
    """
    record = cluster.folder / "loaded-images.json"
    loaded: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    node = cluster.node_id()
    ids = {name: _image_id(name) for name in names}
    wanted = [name for name in names if loaded.get(name) != ids[name] or loaded.get("node") != node]
    if wanted:
        folder = Path(tempfile.mkdtemp(prefix="images-", dir=paths.cache()))
        try:
            # One archive: the images share most of their layers.
            images.save(tags=wanted, file=folder / "images.tar")
            cluster.load(archives=[folder / "images.tar"])
        finally:
            shutil.rmtree(folder)
        kept = loaded if loaded.get("node") == node else {}
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps({**kept, **{name: ids[name] for name in wanted}, "node": node}, indent=1))
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


def local_values(
    *, image_tag: str | None = DEFAULT_TAG, store_class: str | None = STORE_CLASS
) -> dict[str, dict[str, Any]]:
    """The chart's values that name the images of `build_images` and the volume of `prepare_store_volume`.

    Args:
        image_tag: the images' tag; None: leave them as the chart has them.
        store_class: the StorageClass of the store's claim; None: leave it as the chart has it.
    """
    values: dict[str, dict[str, Any]] = {}
    if image_tag is not None:
        values["images"] = {
            name: {"repository": image_name(name, tag=image_tag).rpartition(":")[0], "tag": image_tag} for name in NAMES
        }
    if store_class is not None:
        values["store"] = {"embedded": {"persistence": {"storageClass": store_class}}}
    return values


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


def helm_install(
    *,
    kubeconfig: Path,
    namespace: str,
    release: str,
    values: Mapping[str, Any],
    image_tag: str | None = DEFAULT_TAG,
    store_class: str | None = STORE_CLASS,
    wait: bool = True,
) -> None:
    """Install the chart, or upgrade it, with its CRD, and wait until everything is ready.

    The namespace is made with the pod-security level `restricted`, which every pod of the chart keeps.

    Args:
        kubeconfig: which cluster.
        namespace: the release's namespace.
        release: the release's name.
        values: as in values.yaml.
        image_tag: take the images that `build_images` made with this tag; None: as the values say.
        store_class: the StorageClass of the store's claim; None: as the values say.
        wait: False returns without waiting.

    Raises LocalClusterError with Helm's message, and what the pods say, when it fails.
    """
    ours = local_values(image_tag=image_tag, store_class=store_class)
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
    with tempfile.TemporaryDirectory() as scratch, timed(f"helm upgrade --install {release} in {namespace}"):
        layers: list[str | Path] = []
        for number, layer in enumerate((ours, values)):
            file = Path(scratch) / f"{number}.json"
            file.write_text(json.dumps(layer))
            layers += ["--values", file]
        try:
            command: list[str | Path] = [binaries.path(name="helm"), "upgrade", "--install", release, CHART]
            command += ["--kubeconfig", kubeconfig, "--namespace", namespace, *layers]
            command += ["--wait", "--wait-for-jobs", "--timeout", TIMEOUT] if wait else []
            run(command)
        except LocalClusterError as error:
            raise LocalClusterError(f"{error}\n{explain(kubeconfig=kubeconfig, namespace=namespace)}") from error


def restart(*, kubeconfig: Path, namespace: str, release: str, components: Sequence[str]) -> None:
    """Restart Deployments (`operator`, `api`, `store`) whose image has new content under the same tag."""
    for component in components:
        name = f"deployment/{release}-{component}"
        kubectl(kubeconfig, "rollout", "restart", name, "--namespace", namespace)
    for component in components:
        name = f"deployment/{release}-{component}"
        kubectl(kubeconfig, "rollout", "status", name, "--namespace", namespace, f"--timeout={TIMEOUT}")


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
    running: list[subprocess.Popen[str]] = []
    said: list[str] = []

    def forward() -> None:
        while not ended.is_set():
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
                running[:] = [child]
                assert child.stdout is not None
                for line in child.stdout:
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
        digest.update(binaries.versions_key().encode())
        files = [REPOSITORY / "images" / "store.Dockerfile"]
    else:
        packages = (REPOSITORY / folder / f"ingestion_{folder}" for folder in SOURCES)
        files = [REPOSITORY / file for file in ("images/Dockerfile", "pyproject.toml", "uv.lock", "README.md")]
        files += [file for package in packages for file in sorted(package.rglob("*")) if _is_source(file)]
    for file in files:
        digest.update(file.relative_to(REPOSITORY).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _is_source(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


def _image_id(name: str) -> str:
    return engine.for_images().run("image", "inspect", "--format", "{{.Id}}", name).strip()


def _record() -> Path:
    return paths.cache() / "images" / "built.json"


def _built(name: str) -> str | None:
    """The digest that an image was built from, or None if it is gone or was made in another way."""
    record: dict[str, dict[str, str]] = json.loads(_record().read_text()) if _record().exists() else {}
    entry = record.get(name)
    if entry is None or not engine.for_images().has_image(name) or entry["id"] != _image_id(name):
        return None
    return entry["digest"]


def _remember(name: str, *, digest: str) -> None:
    with locked(_record().with_suffix(".lock")):
        record = json.loads(_record().read_text()) if _record().exists() else {}
        record[name] = {"digest": digest, "id": _image_id(name)}
        scratch = _record().with_suffix(".part")
        scratch.write_text(json.dumps(record, indent=1))
        scratch.replace(_record())


def _build_store(*, base: str, tag: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # The Go image is for those who can pull it; the program in the cache is made from the same go.sum.
        shutil.copy2(binaries.path(name="versitygw"), folder)
        images.build(
            dockerfile=REPOSITORY / "images" / "store.Dockerfile",
            context=Path(folder),
            tag=tag,
            build_args={"BASE": base, "VERSITYGW": "given"},
        )
