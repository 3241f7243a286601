"""A kind cluster of the tests' own with the chart installed once, and a tenant of its own for each test.

The workers of pytest-xdist share the cluster: the first makes it, the last takes it down. It has the run's process id
in its name; what a run left that was killed is deleted by the next. INGESTION_TEST_CLUSTER names one to use and keep.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ingestion_crds.constants import TERMINAL_PHASES
from ingestion_demo import provider
from ingestion_demo.rest import Rest
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store, StoreConfig
from local_cluster import install
from local_cluster.errors import LocalClusterError
from local_cluster.kind import Kind, remove_left, temporary_name
from local_cluster.progress import locked

SYSTEM, RELEASE = "ingestion-system", "ingestion"
TENANTS = tuple(f"e2e-{number:02}" for number in range(30))
LIAR = "liar"
GIVEN = os.environ.get("INGESTION_TEST_CLUSTER")
RUN = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
CLUSTER = Kind(name=GIVEN or temporary_name(process=RUN))
VALUES = {
    "tenants": [{"namespace": name, "bucket": name, "createNamespace": True} for name in TENANTS],
    "embeddingProviders": [{"name": provider.NAME, "url": provider.URL}],
    "sources": {"allow": [f"{LIAR}.{provider.NAMESPACE}.svc"]},
    "networkPolicy": {
        "workerEgress": [
            {"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": provider.NAMESPACE}}}]}
        ]
    },
}


@dataclass(frozen=True, kw_only=True)
class Installation:
    """The installed product and ways to reach it."""

    kubeconfig: Path
    url: str
    store_url: str
    switch: provider.Switch

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl."""
        return install.kubectl(self.kubeconfig, *arguments, stdin=stdin)


@dataclass(frozen=True, kw_only=True)
class Tenant:
    """A namespace and bucket that nobody else uses meanwhile."""

    installation: Installation
    namespace: str
    rest: Rest
    documents: Path

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.installation.kubectl(*arguments, "--namespace", self.namespace, stdin=stdin)

    def get(self, kind: str, name: str = "", *, selector: str = "") -> Any:
        """Return objects as JSON."""
        more = [name] if name else []
        more += ["--selector", selector] if selector else []
        return json.loads(self.kubectl("get", kind, *more, "--output", "json"))

    def until(self, name: str, wish: Callable[[dict[str, Any]], bool], *, seconds: float = 600) -> dict[str, Any]:
        """Wait for an IngestionJob to be as wished."""
        deadline = time.monotonic() + seconds
        while True:
            job: dict[str, Any] = self.get("ingestionjob", name)
            if wish(job):
                return job
            if time.monotonic() > deadline:
                story = install.explain(kubeconfig=self.installation.kubeconfig, namespace=self.namespace)
                raise AssertionError(f"{json.dumps(job['status'], indent=1)}\n{story}")
            time.sleep(0.3)

    def ended(self, name: str, phase: str, *, generation: int = 0) -> dict[str, Any]:
        """Wait for the end of an attempt, which must be in this phase, and until its pods are removed."""

        def wish(job: dict[str, Any]) -> bool:
            status = job.get("status", {})
            ended = status.get("observedRetryGeneration") == generation and status["phase"] in TERMINAL_PHASES
            return ended and "podsToRemove" not in status

        job = self.until(name, wish)
        assert job["status"]["phase"] == phase, json.dumps(job["status"], indent=1)
        return job

    def upload(
        self, content: str | bytes, *, file: str = "notes.md", content_type: str = "text/markdown", **options: Any
    ) -> tuple[str, str]:
        """Upload a document to a knowledge base of its own; return job id and knowledge base."""
        knowledge_base = str(uuid.uuid4())
        path = self.documents / file
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        form = {"title": file, "options": _options(options)}
        job_id = self.rest.upload(knowledge_base=knowledge_base, file=path, content_type=content_type, options=form)
        return job_id, knowledge_base

    def upload_several(self, contents: dict[str, str], **options: Any) -> tuple[str, str]:
        """Upload documents, by their files' names, in one request; return the batch's id and the knowledge base."""
        knowledge_base = str(uuid.uuid4())
        paths = [self.documents / file for file in contents]
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_text(content)
        form = {"options": _options(options)}
        return self.rest.upload_several(knowledge_base=knowledge_base, files=paths, options=form), knowledge_base

    def apply(self, name: str, *, uri: str, source: dict[str, Any] | None = None, **spec: Any) -> None:
        """Create an IngestionJob with kubectl."""
        body = {
            "apiVersion": "ingestion-operator.io/v1alpha1",
            "kind": "IngestionJob",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "knowledgeBase": str(uuid.uuid4()),
                "document": {"id": str(uuid.uuid4()), "title": name, "source": {"uri": uri, **(source or {})}},
                "segmentBackoffLimit": 0,
                **spec,
            },
        }
        self.kubectl("create", "--filename", "-", stdin=json.dumps(body))

    def patch(self, name: str, spec: dict[str, Any]) -> None:
        """Patch the spec of an IngestionJob with kubectl."""
        self.kubectl("patch", f"ij/{name}", "--type=merge", "--patch", json.dumps({"spec": spec}))

    def store(self, *, bucket: str | None = None) -> Store:
        """Return a store with the tenant's own credentials, of its own bucket or another."""
        data = self.get("secret", "ingestion-store")["data"]
        config = StoreConfig(
            url=f"s3://{bucket or self.namespace}",
            endpoint=self.installation.store_url,
            region="us-east-1",
            access_key_id=base64.b64decode(data["AWS_ACCESS_KEY_ID"]).decode(),
            secret_access_key=base64.b64decode(data["AWS_SECRET_ACCESS_KEY"]).decode(),
        )
        return Store(config=config)

    def wait_for_store(self) -> None:
        """Wait until the store answers: a test that was alone may have replaced its pod, and with it ended the forward.

        Nobody notices that before a connection is tried, which fails then.
        """
        deadline = time.monotonic() + 240
        while True:
            try:
                list(self.store().list(prefix="uploads"))
                return
            except WorkerError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def put(self, name: str, content: bytes) -> str:
        """Put an object into the bucket and return its URI."""
        self.store().put(key=f"given/{name}", data=content)
        return f"s3://{self.namespace}/given/{name}"


def _options(options: dict[str, Any]) -> str:
    """Return the field `options`: unless they say otherwise, the tests' provider embeds, and no segment runs again."""
    embedding = {"provider": provider.NAME, "model": "m", "dimensions": 256}
    return json.dumps({"segmentBackoffLimit": 0, "pipeline": {"embedding": embedding}, **options})


def install_everything() -> None:
    """Cluster, images, chart, servers: everything that a user has after the quick start."""
    if not GIVEN:
        remove_left()
    CLUSTER.up()
    names = install.build_images()
    install.load_images(cluster=CLUSTER, names=names)
    install.prepare_store_volume(cluster=CLUSTER, namespace=SYSTEM, release=RELEASE)
    where = {"kubeconfig": CLUSTER.kubeconfig, "namespace": SYSTEM}
    install.helm_install(**where, release=RELEASE, values=VALUES)
    image = install.image_name("worker")
    provider.deploy(kubeconfig=CLUSTER.kubeconfig, image=image, pattern="REFUSE-[0-9a-f]{32}")
    liar = Path(__file__).with_name("liar.py")
    provider.serve(kubeconfig=CLUSTER.kubeconfig, image=image, name=LIAR, script=liar, env={})


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def cluster(shared: Path) -> Iterator[None]:
    """The cluster with everything in it, made by the first who asks and taken down by the last who ends."""
    outcome = shared / "installed"
    with (shared / "users").open("a") as users:
        with locked(shared / "setup.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            if not outcome.exists():
                try:
                    install_everything()
                except LocalClusterError as error:
                    outcome.write_text(str(error))
                else:
                    outcome.write_text("")
        try:
            if said := outcome.read_text():
                raise LocalClusterError(said)
            yield
        finally:
            with locked(shared / "setup.lock"), contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                outcome.unlink()
                if not GIVEN:
                    CLUSTER.down()


@pytest.fixture(scope="session")
def installation(cluster: None) -> Iterator[Installation]:
    """Ways to reach what is installed."""
    where = {"kubeconfig": CLUSTER.kubeconfig, "namespace": SYSTEM}
    with (
        install.port_forward(**where, service=f"{RELEASE}-api", port=8000) as url,
        install.port_forward(**where, service=f"{RELEASE}-store", port=7070) as store_url,
        provider.switch(kubeconfig=CLUSTER.kubeconfig) as switch,
    ):
        yield Installation(kubeconfig=CLUSTER.kubeconfig, url=url, store_url=store_url, switch=switch)


@pytest.fixture
def make_tenant(installation: Installation, shared: Path, tmp_path: Path) -> Iterator[Callable[[], Tenant]]:
    """Hand out tenants that no other test of this run gets."""
    with contextlib.ExitStack() as ends:

        def make() -> Tenant:
            namespace = next(name for name in TENANTS if _take(shared / name))
            where = {"kubeconfig": installation.kubeconfig, "namespace": SYSTEM}
            key = install.mint_key(**where, tenant=namespace, name="e2e")
            rest = Rest(url=installation.url, key=key)
            ends.callback(rest.close)
            rest.wait_for_key()
            tenant = Tenant(installation=installation, namespace=namespace, rest=rest, documents=tmp_path)
            tenant.wait_for_store()
            return tenant

        yield make


def _take(folder: Path) -> bool:
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


@pytest.fixture
def tenant(make_tenant: Callable[[], Tenant], shared: Path, request: pytest.FixtureRequest) -> Iterator[Tenant]:
    """A tenant; a test marked `alone` has the whole installation to itself."""
    alone = request.node.get_closest_marker("alone") is not None
    with (shared / "tests.lock").open("a") as running:
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield make_tenant()
        if alone:
            wait_for_replaced_pods()


def wait_for_replaced_pods() -> None:
    """Wait until no pod of the installation ends: a forward to one would answer the next test, and break off in it."""
    kubectl = functools.partial(install.kubectl, CLUSTER.kubeconfig, "--namespace", SYSTEM)
    ours = f"app.kubernetes.io/instance={RELEASE}"
    kubectl("rollout", "status", "deployment", "--selector", ours, f"--timeout={install.TIMEOUT}")
    deadline = time.monotonic() + 120
    while any(
        "deletionTimestamp" in pod["metadata"]
        for pod in json.loads(kubectl("get", "pods", "--output", "json"))["items"]
    ):
        if time.monotonic() > deadline:
            raise AssertionError(install.explain(kubeconfig=CLUSTER.kubeconfig, namespace=SYSTEM))
        time.sleep(0.5)
