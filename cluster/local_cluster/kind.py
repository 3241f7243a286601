"""A kind cluster of one node, with docker or podman, and with or without a registry."""

import contextlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from local_cluster import binaries, engine, host, leftovers, node_image, paths, versions
from local_cluster.commands import run, succeeds
from local_cluster.engine import Engine
from local_cluster.errors import LocalClusterError
from local_cluster.progress import locked, say, timed

DEFAULT_NAME = "ingestion"
NAME = re.compile("[a-z0-9][a-z0-9.-]*")
"""What kind and container engines take. For kind, no name at all is the name of its default cluster."""
TEMPORARY = f"{DEFAULT_NAME}-of-process-"
READY_SECONDS = 120
QPS = {"kube-api-qps": "1000", "kube-api-burst": "2000"}
MOUNTED = "{{.Id}}{{range .Mounts}} {{.Destination}}{{end}}"
MARKS = "/made-from/"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """The kind cluster `name`; containers, network and files carry the name, so several can exist at once.

    `given` is the kubeconfig of a kind cluster that somebody else made: it is used, never created or deleted.

    Raises LocalClusterError for a name that no cluster can have.
    """

    name: str = DEFAULT_NAME
    given: Path | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise LocalClusterError(
                f"a cluster cannot be called {self.name!r}: names have small letters, digits, `-` and `.`, and do not "
                "begin with `-` or `.`"
            )

    @property
    def folder(self) -> Path:
        """Its files: kubeconfig, kind's configuration, the engine's name, the node's mark."""
        return paths.cache() / ("clusters" if self.given is None else "given") / self.name

    @property
    def kubeconfig(self) -> Path:
        """Its own kubeconfig file, or the given one; ~/.kube/config is never touched."""
        return self.given or self.folder / "kubeconfig"

    def up(self) -> Path:
        """Create the cluster, or start it again, and return its kubeconfig when the node is Ready.

        Raises LocalClusterError that says what the machine lacks or what failed.
        """
        if self.given is not None:
            if not self.answers():
                raise LocalClusterError(f"the API server that {self.given} names does not answer")
            return self.given
        with locked(_lock()):
            if self.exists():
                self._start_again(chosen=self._engine())
            else:
                self._delete()  # what a run left that was interrupted
                self._create(chosen=engine.for_kind())
        return self.kubeconfig

    def down(self) -> None:
        """Delete the cluster and everything it left on the machine; does nothing if there is none.

        Raises LocalClusterError for a cluster that is not ours.
        """
        if self.given is not None:
            raise LocalClusterError(f"the cluster that {self.given} names is not ours to delete")
        with locked(_lock()):
            self._delete()

    def exists(self) -> bool:
        """Whether the cluster has been created and not been deleted (its node may be stopped).

        Raises LocalClusterError when the engine does not answer: that is no sign that it is gone.
        """
        if not self.kubeconfig.exists():
            return False
        chosen = self._engine()
        nodes = self._nodes(chosen)
        return bool(nodes) and (self.given is not None or self._are_ours(chosen, nodes))

    def answers(self) -> bool:
        """Whether its API server is ready."""
        return self.kubeconfig.exists() and succeeds(
            [binaries.path(name="kubectl"), "--kubeconfig", self.kubeconfig, "get", "--raw", "/readyz"], timeout=10
        )

    def load(self, *, archives: Sequence[Path]) -> None:
        """Load image archives (of `docker save` or `podman save`) into the node; raises LocalClusterError."""
        self._require()
        for archive in archives:
            if not archive.is_file():
                raise LocalClusterError(f"{archive} does not exist")
            with timed(f"loading {archive.name} into {self.name}"):
                self._kind(self._engine(), "load", "image-archive", str(archive), "--name", self.name)

    def status(self) -> str:
        """Nodes and pods, for people; raises LocalClusterError if there is no such cluster."""
        self._require()
        return run(
            [binaries.path(name="kubectl"), "--kubeconfig", self.kubeconfig, "get", "nodes,pods", "-A", "-o", "wide"]
        )

    def logs(self, *, folder: Path | None = None) -> Path:
        """Write the logs of node and pods to `folder` (default: beside the kubeconfig) and return it."""
        self._require()
        place = folder or self.folder / "logs"
        self._kind(self._engine(), "export", "logs", str(place), "--name", self.name)
        return place

    def exec(self, *command: str) -> str:
        """Run a command on the node and return its output; raises LocalClusterError."""
        self._require()
        return self._engine().run("exec", self._node, *command)

    def node_id(self) -> str:
        """The id of the node's container: another one after `down` and `up`."""
        self._require()
        return self._engine().run("container", "inspect", "--format", "{{.Id}}", self._node).strip()

    def _delete(self) -> None:
        if self._engine_file.exists():
            chosen = self._engine()
            nodes = self._nodes(chosen)
            if nodes and not self._are_ours(chosen, nodes):
                say(f"left: {chosen.name} holds a kind cluster {self.name}, which was not made from {paths.cache()}")
            else:
                self._delete_from(chosen)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _delete_from(self, chosen: Engine) -> None:
        with timed(f"deleting the kind cluster {self.name}"):
            delete = ("delete", "cluster", "--name", self.name, "--kubeconfig", str(self.kubeconfig))
            try:
                self._kind(chosen, *delete)
            except LocalClusterError:
                leftovers.thaw()  # what is frozen in the node does not die, nor does the node
                self._kind(chosen, *delete)
            if chosen.succeeds("network", "inspect", self._network, timeout=60):
                chosen.run("network", "rm", self._network, timeout=60)
            leftovers.remove(engine=chosen, container=self._node)
        self._engine_file.unlink()

    @property
    def _engine_file(self) -> Path:
        """Names the engine that may hold something of ours: there from before kind begins until all is deleted."""
        return self.folder / "engine"

    @property
    def _mark_file(self) -> Path:
        """Names the place in the node by which it is known as ours."""
        return self.folder / "mark"

    @property
    def _node(self) -> str:
        return f"{self.name}-control-plane"

    @property
    def _network(self) -> str:
        return f"kind-{self.name}"

    def _require(self) -> None:
        if not self.exists():
            raise LocalClusterError(f"there is no kind cluster {self.name}; create it with `up --name {self.name}`")

    def _engine(self) -> Engine:
        if self.given is not None:
            holder = engine.holding(container=self._node)
            if holder is None:
                raise LocalClusterError(f"no container engine of this machine holds {self._node}")
            return holder
        file = self._engine_file
        name = file.read_text().strip() if file.exists() else engine.for_kind().name
        return engine.docker() if name == "docker" else engine.podman()

    def _nodes(self, chosen: Engine) -> list[str]:
        """Ids of the containers that `kind delete` would remove, whoever made them."""
        label = f"label=io.x-k8s.kind.cluster={self.name}"
        return chosen.run("ps", "--all", "--quiet", "--filter", label, timeout=60).split()

    def _are_ours(self, chosen: Engine, nodes: Sequence[str]) -> bool:
        """Whether this folder's cluster has these nodes: once it is deleted by hand, its name is anybody's.

        A cluster that an earlier checkout has made has no mark, neither here nor there.
        """
        mark = self._mark_file.read_text() if self._mark_file.exists() else None
        mounted = chosen.run("container", "inspect", "--format", MOUNTED, *nodes, timeout=60)
        marks = [[place for place in line.split() if place.startswith(MARKS)] for line in mounted.splitlines()]
        return all(found == ([] if mark is None else [mark]) for found in marks)

    def _create(self, *, chosen: Engine) -> None:
        if chosen.name == "podman":
            Path("/lib/modules").mkdir(parents=True, exist_ok=True)  # kind mounts it into the node
        binaries.ensure(names=["kind", "kubectl"])
        image = image_for(chosen=chosen)
        if self._nodes(chosen):
            raise LocalClusterError(
                f"{chosen.name} holds a kind cluster {self.name} already, which was not made from {paths.cache()}: set "
                f"CLUSTER_NAME to another name, or delete that one with `kind delete cluster --name {self.name}`"
            )
        self.folder.mkdir(parents=True)
        mark = f"{MARKS}{secrets.token_hex(8)}"
        self._mark_file.write_text(mark)
        config = self.folder / "kind.yaml"
        content = configuration(own_image=image != versions.KIND_NODE_IMAGE, mark=mark)
        config.write_text(json.dumps(content, indent=1) + "\n")
        kind = ["create", "cluster", "--name", self.name, "--image", image, "--config", str(config)]
        with timed(f"creating the kind cluster {self.name} with {chosen.name} and {image}"):
            self._engine_file.write_text(chosen.name)
            try:
                self._kind(chosen, *kind, "--kubeconfig", str(self.kubeconfig), "--wait", f"{READY_SECONDS}s")
            except LocalClusterError:
                with contextlib.suppress(LocalClusterError):  # the engine may have ended too
                    if not self._nodes(chosen):
                        say("kind deleted the node again; to keep it for a look, run kind by hand with --retain")
                        self._delete_from(chosen)  # its network
                raise
        self._wait_for_default_service_account()

    def _start_again(self, *, chosen: Engine) -> None:
        if self.answers():
            say(f"the kind cluster {self.name} is up")
            return
        with timed(f"starting the node of the kind cluster {self.name}"):
            chosen.run("start", self._node, timeout=60)
            deadline = time.monotonic() + READY_SECONDS
            while not self.answers():
                if time.monotonic() > deadline:
                    raise LocalClusterError(f"{self._node} does not answer; look at `logs`, or `down` and `up` again")
                time.sleep(1)
            kubectl = (binaries.path(name="kubectl"), "--kubeconfig", self.kubeconfig)
            run([*kubectl, "wait", "--for=condition=Ready", "node", "--all", f"--timeout={READY_SECONDS}s"])

    def _wait_for_default_service_account(self) -> None:
        run(
            [
                *(binaries.path(name="kubectl"), "--kubeconfig", self.kubeconfig, "--namespace", "default"),
                *("wait", "--for=create", "serviceaccount/default", f"--timeout={READY_SECONDS}s"),
            ]
        )

    def _kind(self, chosen: Engine, *arguments: str) -> str:
        env = {
            **chosen.env,
            "KIND_EXPERIMENTAL_PROVIDER": chosen.name,
            f"KIND_EXPERIMENTAL_{chosen.name.upper()}_NETWORK": self._network,
            "KUBECONFIG": str(self.kubeconfig),
        }
        return run([binaries.path(name="kind"), *arguments], env=env)


def temporary_name(*, process: int) -> str:
    """The name of a cluster that is needed as long as a process runs: people call theirs otherwise."""
    return f"{TEMPORARY}{process}"


def remove_left() -> None:
    """Delete the clusters with a `temporary_name` whose processes are gone."""
    for folder in (paths.cache() / "clusters").glob(f"{TEMPORARY}*"):
        process = folder.name.removeprefix(TEMPORARY)
        if process.isdigit() and not Path("/proc", process).exists():
            Kind(name=folder.name).down()


def _lock() -> Path:
    """The lock of all that creates and deletes clusters: they share the engine's networks and firewall chains."""
    return paths.cache() / "clusters.lock"


def image_for(*, chosen: Engine) -> str:
    """The name of the node image that the engine holds then: the official one where it can be pulled, else our own.

    Our own is built if it is not in the cache, which takes minutes. Raises LocalClusterError.
    """
    official = versions.KIND_NODE_IMAGE
    if engine.can_pull(engine=chosen, image=official):
        return official
    own = f"localhost/ingestion-node:{versions.KUBERNETES}-{node_image.key()}"
    if not chosen.has_image(own):
        if os.geteuid() != 0 and not node_image.in_cache().exists():
            engine.pull(engine=chosen, image=official)
            return official
        file = node_image.root_filesystem()
        with timed(f"importing {own}"):
            chosen.import_filesystem(file=file, name=own, changes=node_image.IMPORT_CHANGES)
    return own


def configuration(*, own_image: bool, mark: str) -> dict[str, object]:
    """kind's configuration of the cluster, for our own node image or the official one, with `mark` in the node."""
    manager = {"enable-hostpath-provisioner": "true", "concurrent-job-syncs": "20", **QPS}
    patches: list[dict[str, object]] = [
        {
            "kind": "ClusterConfiguration",
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            # A merge patch replaces the list, so kind's own flag stands here too.
            "controllerManager": {"extraArgs": _arguments(manager)},
            "scheduler": {"extraArgs": _arguments(QPS)},
        }
    ]
    if not host.only_unified_cgroups():
        kubelet = {"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1"}
        patches.append({**kubelet, "failCgroupV1": False})
    networking: dict[str, object] = {}
    if own_image:  # it has no kindnet, and its kube-proxy has iptables but no nft
        networking = {"disableDefaultCNI": True, "kubeProxyMode": "iptables"}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "networking": networking,
        "kubeadmConfigPatches": [json.dumps(patch) for patch in patches],
        # kind gives containers no labels of others. What is mounted there it mounts into each node anyway.
        "nodes": [
            {
                "role": "control-plane",
                "extraMounts": [{"hostPath": "/lib/modules", "containerPath": mark, "readOnly": True}],
            }
        ],
    }


def wanted_name() -> str:
    """CLUSTER_NAME; where that is unset or empty the one of our clusters that KUBECONFIG names, else the default.

    With CLUSTER=kind it is the default whatever KUBECONFIG says.
    """
    files = [] if os.environ.get("CLUSTER") == "kind" else _named_files()
    used = _name_of_ours(files[0]) if len(files) == 1 else None
    return os.environ.get("CLUSTER_NAME") or used or DEFAULT_NAME


def wanted_elsewhere() -> Path | None:
    """The kubeconfig of an existing cluster the caller chose by CLUSTER=current or KUBECONFIG, None for kind.

    CLUSTER=kind means kind whatever KUBECONFIG says, and so does a KUBECONFIG that one of our clusters wrote.

    Raises LocalClusterError for another CLUSTER, and for a KUBECONFIG of several files.
    """
    chosen, named = os.environ.get("CLUSTER", ""), _named_files()
    if chosen not in ("", "current", "kind"):
        raise LocalClusterError(f"CLUSTER={chosen} is neither `current` nor `kind`")
    if chosen == "kind":
        return None
    files = named or [Path.home() / ".kube" / "config"]
    if len(files) > 1:
        raise LocalClusterError(
            f"KUBECONFIG={os.pathsep.join(map(str, files))} names several files: name one of them, or set CLUSTER=kind "
            "for a cluster of its own"
        )
    file = files[0]
    if chosen == "current":
        return file
    return file if named and _name_of_ours(file) is None else None


def target(*, name: str = DEFAULT_NAME) -> Kind:
    """The kind cluster to put our images and charts into: the one that the caller chose, else ours called `name`.

    Raises LocalClusterError when the chosen cluster cannot be given images that are built here: they are loaded into
    the containers of kind's nodes, and there is no registry that another cluster could pull them from.
    """
    file = wanted_elsewhere()
    if file is None:
        return Kind(name=name)
    ours = _name_of_ours(file)
    if ours is not None:
        return Kind(name=ours)
    kubectl = (binaries.path(name="kubectl"), "--kubeconfig", file)
    context = run([*kubectl, "config", "current-context"]).strip()
    nodes = run([*kubectl, "get", "nodes", "--output", "name"], timeout=60).split()
    named = context.removeprefix("kind-")
    if named == context or nodes != [f"node/{named}-control-plane"]:
        raise LocalClusterError(
            f"{file} (context {context}) names no kind cluster of one node on this machine, so images that are built "
            "here cannot be loaded into it. Push them to a registry that it pulls from and install the chart "
            "(docs/install.md), or set CLUSTER=kind for a cluster of its own."
        )
    return Kind(name=named, given=file)


def _named_files() -> list[Path]:
    return [Path(name) for name in os.environ.get("KUBECONFIG", "").split(os.pathsep) if name]


def _name_of_ours(kubeconfig: Path) -> str | None:
    """The name of the cluster of ours that wrote the file, None where it is another's."""
    folder = kubeconfig.resolve().parent
    return folder.name if folder.parent == paths.cache() / "clusters" else None


def _arguments(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]
