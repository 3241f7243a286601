"""The operator is started before the CRD is there, as whoever applies everything at once may do."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest
from ingestion_crds.kube import KubeClient, ingestion_path
from local_cluster import ports
from local_cluster.control_plane import ControlPlane
from support.builders import ingestion_job
from support.crd import install_crd
from support.namespaces import make_namespace
from support.operator_process import operator, write_config

pytestmark = pytest.mark.controlplane

START_SECONDS = 60.0
CRD_SECONDS = 2.0
HEARD_SECONDS = 60.0  # the full list comes after 120


async def test_an_operator_that_is_there_before_the_crd_watches_it_all_the_same(tmp_path: Path) -> None:
    """A watch that is never opened would leave each job to the full list of every two minutes."""
    (port,) = ports.free(count=1)
    with ControlPlane() as plane:
        async with await KubeClient.connect(kubeconfig=str(plane.kubeconfig)) as kube:
            namespace = await make_namespace(kube)
            config, log = write_config(tmp_path, tenants=[namespace]), tmp_path / "operator.log"
            environment = {"INGESTION_HEALTH_PORT": str(port)}
            with operator(kubeconfig=plane.kubeconfig, config=config, log=log, environment=environment):
                await answers(port, "/healthz", 200)
                await asyncio.sleep(CRD_SECONDS)
                assert await probe(port, "/healthz") == 200
                assert await probe(port, "/readyz") == 503
                await asyncio.to_thread(lambda: asyncio.run(install_crd(plane.kubeconfig)))
                await answers(port, "/readyz", 200)
                await kube.request("POST", ingestion_path(namespace), body=ingestion_job(namespace=namespace))
                created = time.monotonic()
                while not (await kube.request("GET", ingestion_path(namespace, "handbook")))["status"].get("attempts"):
                    assert time.monotonic() < created + HEARD_SECONDS, log.read_text()
                    await asyncio.sleep(0.1)


async def answers(port: int, path: str, status: int) -> None:
    """Wait until a probe answers so."""
    deadline = time.monotonic() + START_SECONDS
    while await probe(port, path) != status:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def probe(port: int, path: str) -> int:
    async with httpx.AsyncClient(trust_env=False) as client:
        try:
            return (await client.get(f"http://127.0.0.1:{port}{path}")).status_code
        except httpx.TransportError:
            return 0
