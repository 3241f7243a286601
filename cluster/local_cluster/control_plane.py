"""A bare control plane for fast tests and benchmarks: etcd, API server, controllers and scheduler as plain processes.

There is no kubelet, so pods stay Pending unless kwok plays nodes and pods (`kwok=True`; the annotations that steer
a fake pod are listed in cluster/kwok/stages.yaml). Any number of control planes can run at once.
"""

import subprocess
import tempfile
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from local_cluster import binaries, kubeconfig, paths, pki, ports
from local_cluster.client import Client, healthy
from local_cluster.errors import LocalClusterError
from local_cluster.process import Process
from local_cluster.progress import timed

UP_SECONDS = 120.0
POLL_SECONDS = 0.03
PORT_ATTEMPTS = 3

ETCD = "etcd"
APISERVER = "apiserver"
CONTROLLER_MANAGER = "controller-manager"
SCHEDULER = "scheduler"
KWOK = "kwok"
COMPONENTS = (ETCD, APISERVER, CONTROLLER_MANAGER, SCHEDULER, KWOK)
_COMMAND_OF = {
    ETCD: "etcd",
    APISERVER: "kube-apiserver",
    CONTROLLER_MANAGER: "kube-controller-manager",
    SCHEDULER: "kube-scheduler",
    KWOK: "kwok",
}
# Requests per second of the controllers and the scheduler: with Kubernetes' 20 and 30 the Job controller makes about 10
# pods per second.
_QPS = 1000
_BURST = 2000


class ControlPlane:
    """One control plane with a temporary folder, loopback ports and a certificate authority of its own.

    Use it as a context manager, or call `start` and `stop`. Single components are stopped, killed and restarted by
    their name in COMPONENTS; they keep their ports and data.
    """

    def __init__(
        self,
        *,
        kwok: bool = False,
        nodes: int = 3,
        fsync: bool = False,
        extra_flags: Mapping[str, Sequence[str]] | None = None,
        folder: Path | None = None,
    ) -> None:
        """Describe a control plane; nothing runs yet.

        `nodes` is the number of fake nodes when `kwok` is set. `fsync` makes etcd's writes durable, as in a real
        cluster (slower). `extra_flags` maps component names to flags, appended last. `folder` is where the temporary
        folder goes.

        Raises LocalClusterError for flags of an unknown component.
        """
        unknown = set(extra_flags or {}) - set(COMPONENTS)
        if unknown:
            raise LocalClusterError(f"no such component: {', '.join(sorted(unknown))}")
        self._kwok = kwok
        self._nodes = nodes
        self._fsync = fsync
        self._extra = {name: list(flags) for name, flags in (extra_flags or {}).items()}
        self._parent_folder = folder
        self._folder: Path | None = None
        self._remover: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}
        self._processes: dict[str, Process] = {}
        self._client: Client | None = None
        self._authority: pki.Authority | None = None

    @property
    def folder(self) -> Path:
        """The temporary folder with logs, keys and data; gone after `stop`."""
        if self._folder is None:
            raise LocalClusterError("the control plane is not started")
        return self._folder

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig file; it names files of the temporary folder."""
        return self.folder / "kubeconfig"

    @property
    def url(self) -> str:
        """The API server's address."""
        return f"https://127.0.0.1:{self._ports[APISERVER]}"

    @property
    def authority(self) -> Path:
        """The certificate that clients verify the API server with (PEM)."""
        return self.folder / "ca.crt"

    @property
    def client(self) -> Client:
        """The administrator's plain client."""
        if self._client is None:
            raise LocalClusterError("the control plane is not started")
        return self._client

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until it answers and the `default` namespace can run pods.

        Builds the programs first if they are not in the cache. Raises LocalClusterError, with the end of the log,
        when a component does not come up within 120 s; nothing is left running then.
        """
        wanted = [*binaries.CONTROL_PLANE, *(["kwok"] if self._kwok else [])]
        programs = binaries.ensure(names=wanted)
        for attempt in range(1, PORT_ATTEMPTS + 1):
            try:
                with timed("starting a control plane"):
                    self._start(programs=programs)
            except BaseException as error:
                self.stop()
                taken = isinstance(error, LocalClusterError) and "address already in use" in str(error)
                if not taken or attempt == PORT_ATTEMPTS:
                    raise
            else:
                return

    def stop(self) -> None:
        """Stop everything and remove the temporary folder; calling it again does nothing.

        When this process dies without calling it, by a signal say, both happen as well.
        """
        for process in reversed(self._processes.values()):
            process.kill()  # nothing in here is to be kept, and a polite end takes seconds
        self._processes = {}
        self._client = None
        if self._remover is not None:
            self._remover.communicate()  # closes the pipe that it waits on
            self._remover = None
        self._folder = None

    def stop_component(self, name: str) -> None:
        """End one component politely. Raises LocalClusterError if there is none of that name."""
        self._process(name).stop()

    def kill_component(self, name: str) -> None:
        """End one component as a crash would. Raises LocalClusterError if there is none of that name."""
        self._process(name).kill()

    def start_component(self, name: str) -> None:
        """Start a stopped component again on its port and data, and wait until it answers.

        Raises LocalClusterError, with the end of its log, when it does not within 120 s.
        """
        process = self._process(name)
        process.start()
        self._wait(process=process, until=self._readiness(name))

    def pid(self, name: str) -> int | None:
        """The process id of one component, None while it does not run."""
        return self._process(name).pid

    def log(self, name: str) -> Path:
        """The log file of one component."""
        return self._process(name).log

    def add_nodes(self, *, count: int) -> None:
        """Create `count` fake nodes, named from `node-0` on; kwok makes them Ready."""
        for number in range(count):
            self.client.request(method="POST", path="/api/v1/nodes", body=_node(name=f"node-{number}"))

    def administrator(self, *, user: str) -> Path:
        """Write a kubeconfig of one more administrator, whom the API server knows as `user`; returns the file."""
        file = self.folder / f"{user.replace(':', '-')}.kubeconfig"
        if not file.exists():
            if self._authority is None:
                raise LocalClusterError("the control plane is not started")
            certificate, key = self._authority.client(user=user, groups=("system:masters",))
            kubeconfig.write(file=file, url=self.url, authority=self.authority, certificate=certificate, key=key)
        return file

    def _process(self, name: str) -> Process:
        if name not in self._processes:
            raise LocalClusterError(f"no component {name!r}; there are: {', '.join(self._processes) or 'none'}")
        return self._processes[name]

    def _start(self, *, programs: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="control-plane-", dir=self._parent_folder))
        self._remover = _remover(folder=self._folder)
        chosen = ports.free(count=6)
        self._ports = dict(zip((*COMPONENTS, "etcd-peer"), chosen, strict=True))
        self._write_credentials()
        names = [name for name in COMPONENTS if name != KWOK or self._kwok]
        for name in names:
            command = [str(programs / _COMMAND_OF[name]), *self._flags(name), *self._extra.get(name, ())]
            self._processes[name] = Process(name=name, command=command, log=self.folder / f"{name}.log")
        self._processes[ETCD].start()
        self._processes[APISERVER].start()  # it waits for etcd by itself
        self._wait(process=self._processes[APISERVER], until=self._readiness(APISERVER))
        rest = [name for name in names if name not in (ETCD, APISERVER)]
        for name in rest:
            self._processes[name].start()
        if self._kwok:
            self.add_nodes(count=self._nodes)
        for name in rest:
            self._wait(process=self._processes[name], until=self._readiness(name))
        self._wait(process=self._processes[CONTROLLER_MANAGER], until=self._can_run_pods)
        if self._kwok:
            self._wait(process=self._processes[KWOK], until=self._nodes_ready)

    def _write_credentials(self) -> None:
        authority = self._authority = pki.Authority(folder=self.folder)
        authority.server(file="apiserver")
        certificate, key = authority.client(user="admin", groups=("system:masters",))
        users = {CONTROLLER_MANAGER: "system:kube-controller-manager", SCHEDULER: "system:kube-scheduler"}
        for name, user in users.items():
            user_certificate, user_key = authority.client(user=user)
            kubeconfig.write(
                file=self.folder / f"{name}.kubeconfig",
                url=self.url,
                authority=authority.certificate_file,
                certificate=user_certificate,
                key=user_key,
            )
        pki.signing_key(file=self.folder / "service-accounts.key")
        kubeconfig.write(
            file=self.kubeconfig, url=self.url, authority=authority.certificate_file, certificate=certificate, key=key
        )
        self._client = Client(url=self.url, authority=authority.certificate_file, certificate=certificate, key=key)

    def _flags(self, name: str) -> list[str]:
        folder = self.folder
        secure = [
            "--bind-address=127.0.0.1",
            f"--secure-port={self._ports[name]}",
            f"--cert-dir={folder / f'{name}-certificates'}",
        ]
        open_paths = "--authorization-always-allow-paths=/healthz,/readyz,/livez,/metrics"
        if name == ETCD:
            client = f"http://127.0.0.1:{self._ports[ETCD]}"
            peer = f"http://127.0.0.1:{self._ports['etcd-peer']}"
            return [
                "--name=local",
                f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                f"--initial-cluster=local={peer}",
                f"--quota-backend-bytes={8 * 1024**3}",
                "--auto-compaction-mode=periodic",
                "--auto-compaction-retention=5m",
                *([] if self._fsync else ["--unsafe-no-fsync"]),
            ]
        if name == APISERVER:
            return [
                *secure,
                f"--etcd-servers=http://127.0.0.1:{self._ports[ETCD]}",
                f"--tls-cert-file={folder / 'apiserver.crt'}",
                f"--tls-private-key-file={folder / 'apiserver.key'}",
                f"--client-ca-file={folder / 'ca.crt'}",
                f"--service-account-key-file={folder / 'service-accounts.key'}",
                f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
                "--service-cluster-ip-range=10.96.0.0/16",
                "--authorization-mode=Node,RBAC",
                "--allow-privileged=true",
                "--endpoint-reconciler-type=none",  # nothing reaches the loopback address through a Service
            ]
        if name == CONTROLLER_MANAGER:
            return [
                *secure,
                open_paths,
                f"--kube-api-qps={_QPS}",
                f"--kube-api-burst={_BURST}",
                f"--kubeconfig={folder / f'{name}.kubeconfig'}",
                f"--service-account-private-key-file={folder / 'service-accounts.key'}",
                f"--root-ca-file={folder / 'ca.crt'}",
                "--use-service-account-credentials=true",
                "--leader-elect=false",
                "--concurrent-job-syncs=20",
                "--terminated-pod-gc-threshold=200000",
            ]
        if name == SCHEDULER:
            return [*secure, open_paths, "--leader-elect=false", f"--config={self._scheduler_configuration()}"]
        return [
            f"--kubeconfig={self.kubeconfig}",
            f"--config={paths.KWOK_STAGES}",
            "--manage-all-nodes=true",
            "--node-lease-duration-seconds=0",
            "--node-ip=10.0.0.1",
            f"--server-address=127.0.0.1:{self._ports[KWOK]}",
        ]

    def _scheduler_configuration(self) -> Path:
        file, kubeconfig = self.folder / "scheduler.yaml", self.folder / f"{SCHEDULER}.kubeconfig"
        file.write_text(
            "apiVersion: kubescheduler.config.k8s.io/v1\n"
            "kind: KubeSchedulerConfiguration\n"
            "leaderElection: {leaderElect: false}\n"
            f"clientConnection: {{kubeconfig: {kubeconfig}, qps: {_QPS}, burst: {_BURST}}}\n"
        )
        return file

    def _readiness(self, name: str) -> Callable[[], bool]:
        if name == APISERVER:
            return lambda: self.client.answers(path="/readyz")
        if name in (CONTROLLER_MANAGER, SCHEDULER):
            return lambda: healthy(url=f"https://127.0.0.1:{self._ports[name]}/healthz")
        path = "health" if name == ETCD else "healthz"
        return lambda: healthy(url=f"http://127.0.0.1:{self._ports[name]}/{path}")

    def _can_run_pods(self) -> bool:
        return self.client.answers(path="/api/v1/namespaces/default/serviceaccounts/default")

    def _nodes_ready(self) -> bool:
        nodes = self.client.request(method="GET", path="/api/v1/nodes")["items"]
        return sum(_is_ready(node) for node in nodes) >= self._nodes

    def _wait(self, *, process: Process, until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + UP_SECONDS
        while True:
            try:
                if until():
                    return
            except urllib.error.URLError:
                pass  # the API server may be the next to come up
            for one in self._processes.values():
                if one.started:
                    one.check()
            if time.monotonic() > deadline:
                raise LocalClusterError(f"{process.name} did not come up within {UP_SECONDS:.0f} s\n{process.tail()}")
            time.sleep(POLL_SECONDS)


def _remover(*, folder: Path) -> subprocess.Popen[bytes]:
    """Start a shell that removes `folder` once this process closes the pipe between them, or dies of whatever cause.

    It tries until the components, which the kernel kills at the same moment, write nothing more.
    """
    script = 'cat; until rm -rf "$0" 2>/dev/null; do sleep 0.1; done'
    return subprocess.Popen(
        ["sh", "-c", script, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # what is sent to this process's group is not meant for it
    )


def _is_ready(node: dict[str, object]) -> bool:
    status = node.get("status")
    conditions = status.get("conditions", []) if isinstance(status, dict) else []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _node(*, name: str) -> dict[str, object]:
    room = {"cpu": "10000", "memory": "100Ti", "ephemeral-storage": "100Ti", "pods": "100000"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
        },
        "status": {"allocatable": room, "capacity": room},
    }
