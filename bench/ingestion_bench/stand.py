"""Where a case runs: a control plane, a namespace that is a tenant, and the product's processes."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import yaml
from ingestion_api.auth import KeyEntry, encode_entry, hash_key, new_key
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.config import Config, Store, Tenant
from ingestion_crds.kube import ApiError, KubeClient, batch_path, core_path, ingestion_path
from local_cluster import ports
from local_cluster.control_plane import ControlPlane
from local_cluster.process import Process

NAMESPACE: Final = "bench"
OPERATOR_USER: Final = "bench:operator"
API_USER: Final = "bench:api"
PATIENCE_SECONDS: Final = 3600.0
_CRDS: Final = Path(__file__).parents[2] / "crds"


@dataclass(frozen=True, kw_only=True)
class Plane:
    """How a case's control plane differs from the usual one.

    Args:
        nodes: fake nodes, which run pods for no time at all; 0 for none, so that pods stay Pending.
        flags: further flags of its components, by their names.
        files: files that the flags name as {folder}/NAME, with their content.
    """

    nodes: int = 3
    flags: Mapping[str, Sequence[str]] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


class Stand:
    """What a case has at hand.

    Args:
        control_plane: etcd, API server, controllers, scheduler, and fake nodes.
        kube: an administrator's client, the one that the product uses too.
        folder: for logs and other files of this case.
        namespace: of the tenant.
    """

    def __init__(
        self, *, control_plane: ControlPlane, kube: KubeClient, folder: Path, namespace: str = NAMESPACE
    ) -> None:
        self.control_plane = control_plane
        self.kube = kube
        self.folder = folder
        self.namespace = namespace
        self.config = Config(
            worker_image="worker:bench",
            store=Store(endpoint="http://store.invalid:7070"),
            tenants=[Tenant(namespace=namespace, bucket=namespace)],
        )

    @asynccontextmanager
    async def operator(self, *, port: int | None = None) -> AsyncIterator[Process]:
        """Run the operator as a process of its own; the block begins when it is ready.

        Args:
            port: where it serves its probes and metrics; any free port when None.
        """
        port = port or ports.free(count=1)[0]
        environment = {"INGESTION_HEALTH_PORT": str(port)}
        async with self.process("ingestion_operator.main", user=OPERATOR_USER, environment=environment) as process:
            await answering(process, f"http://127.0.0.1:{port}/readyz")
            yield process

    @asynccontextmanager
    async def api(self) -> AsyncIterator[httpx.AsyncClient]:
        """Run the REST API as a process of its own, and return a client of it with a key of the namespace."""
        key_id, key = new_key()
        entry = KeyEntry(hash=hash_key(key), namespace=self.namespace, name="bench", created=datetime.now(UTC))
        secret = {"metadata": {"name": names.API_KEYS_SECRET}, "data": {key_id: encode_entry(entry)}}
        await self.kube.request("POST", core_path("secrets", self.namespace), body=secret)
        async with self.api_process("ingestion_api.main", key=key) as client:
            yield client
        await self.kube.request("DELETE", core_path("secrets", self.namespace, names.API_KEYS_SECRET))

    @asynccontextmanager
    async def api_process(
        self, module: str, *, key: str, environment: Mapping[str, str] | None = None
    ) -> AsyncIterator[httpx.AsyncClient]:
        """Run the REST API, or what is made of it, and return a client of it with a key that exists.

        Args:
            module: what `python -m` runs.
            key: the client's.
            environment: further variables of the process.
        """
        port = ports.free(count=1)[0]
        url = f"http://127.0.0.1:{port}"
        options = {
            "POD_NAMESPACE": self.namespace,
            "INGESTION_API_HOST": "127.0.0.1",
            "INGESTION_API_PORT": str(port),
            **(environment or {}),
        }
        async with self.process(module, user=API_USER, environment=options) as process:
            await answering(process, f"{url}/readyz")
            async with httpx.AsyncClient(
                base_url=f"{url}/v1/knowledge-base",
                headers={"x-api-key": key},
                timeout=PATIENCE_SECONDS,
                trust_env=False,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            ) as client:
                yield client

    @asynccontextmanager
    async def process(self, module: str, *, user: str, environment: Mapping[str, str]) -> AsyncIterator[Process]:
        """Run a Python module that is a client of the API server.

        Args:
            module: what `python -m` runs.
            user: who it is to the API server, with all rights.
            environment: variables besides KUBECONFIG and INGESTION_CONFIG.
        """
        config = self.folder / "config.yaml"
        config.write_text(yaml.safe_dump(self.config.model_dump(mode="json", by_alias=True, exclude_none=True)))
        process = Process(
            name=module,
            command=[sys.executable, "-m", module],
            log=self.folder / f"{module}.log",
            environment={
                "KUBECONFIG": str(self.control_plane.administrator(user=user)),
                "INGESTION_CONFIG": str(config),
                **environment,
            },
        )
        process.start()
        try:
            yield process
            process.check()
        finally:
            await asyncio.to_thread(process.stop)

    async def get(self, name: str) -> JsonObject:
        """Return an IngestionJob of the namespace."""
        return await self.kube.request("GET", ingestion_path(self.namespace, name))

    async def quiet(self) -> None:
        """Wait until no pod and no Job is left in the namespace, so that one run does not weigh on the next."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        paths = (core_path("pods", self.namespace), f"/apis/batch/v1/namespaces/{self.namespace}/jobs")
        for path in paths:
            while (await self.kube.request("GET", path, query={"limit": 1}))["items"]:
                assert time.monotonic() < deadline, f"{path} is not empty after {PATIENCE_SECONDS:.0f} s"
                await asyncio.sleep(0.1)


async def answering(process: Process, url: str) -> None:
    """Wait until a process answers 200 at a URL."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            process.check()
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, process.tail()
            await asyncio.sleep(0.02)


@asynccontextmanager
async def standing(plane: Plane, *, folder: Path) -> AsyncIterator[Stand]:
    """Start a control plane with the CRDs and the tenant's namespace, and stop it at the end."""
    for name, content in plane.files.items():
        (folder / name).write_text(content)
    flags = {component: [flag.format(folder=folder) for flag in given] for component, given in plane.flags.items()}
    control_plane = ControlPlane(kwok=plane.nodes > 0, nodes=plane.nodes, extra_flags=flags)
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(control_plane.start)
        stack.callback(control_plane.stop)
        kube = await stack.enter_async_context(await KubeClient.connect(kubeconfig=str(control_plane.kubeconfig)))
        await _install(kube)
        yield Stand(control_plane=control_plane, kube=kube, folder=folder)


async def _install(kube: KubeClient) -> None:
    for file in _CRDS.glob("*.yaml"):
        crd = yaml.safe_load(file.read_text())
        await kube.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", body=crd)
    await kube.request("POST", "/api/v1/namespaces", body={"metadata": {"name": NAMESPACE}})
    for account in ("default", names.WORKER_SERVICE_ACCOUNT):
        body = {"metadata": {"name": account}}
        try:
            await kube.request("POST", f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", body=body)
        except ApiError as error:
            if not error.already_exists:
                raise
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            await kube.request("GET", batch_path())
            await kube.request("GET", ingestion_path())
        except ApiError:
            assert time.monotonic() < deadline, "the API server does not serve the CRDs"
            await asyncio.sleep(0.05)
        else:
            return


def fresh_name(prefix: str) -> str:
    """Return a name that is not used yet."""
    return f"{prefix}-{secrets.token_hex(4)}"
