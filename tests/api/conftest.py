"""The API as a process on loopback, against a real API server and a store in a folder."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest_asyncio
import uvicorn
import yaml
from fastapi import FastAPI
from ingestion_api import keys
from ingestion_api.app import create_app
from ingestion_api.main import server_options
from ingestion_api.options import Options
from ingestion_crds import JsonObject
from ingestion_crds.config import Config
from ingestion_crds.kube import MERGE_PATCH, KubeClient, core_path, ingestion_path
from local_cluster import ports
from local_cluster.control_plane import ControlPlane
from support.builders import ingestion_job


@dataclass(kw_only=True)
class Api:
    """A running API, one tenant's key, and the cluster behind it."""

    url: str
    key: str
    kube: KubeClient
    namespace: str
    system: str
    kubeconfig: Path
    store: Path
    client: httpx.AsyncClient

    async def create(self, name: str = "handbook", **spec: Any) -> str:
        """Make a job as kubectl does; return its id in the API."""
        body = ingestion_job(name=name, namespace=self.namespace, **spec)
        made = await self.kube.request("POST", ingestion_path(self.namespace), body=body)
        return str(made["metadata"]["uid"])

    async def set_status(self, name: str = "handbook", **status: Any) -> None:
        """Write status as the operator does."""
        path = ingestion_path(self.namespace, name, "status")
        await self.kube.request("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)

    async def failed(self, name: str = "handbook", **status: Any) -> str:
        """Make a job that has failed in part."""
        job_id = await self.create(name)
        known = {"phase": "partial_failure", "observedRetryGeneration": 0, "jobID": job_id, "mode": "Segmented"}
        await self.set_status(name, **{**known, **status})
        await self.known(job_id)
        return job_id

    async def known(self, job_id: str) -> None:
        """Wait until the API's watch has brought the job."""
        deadline = time.monotonic() + 10
        while (await self.get(job_id)).status_code == 404:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    async def live(self, name: str = "handbook") -> JsonObject:
        """Return the resource."""
        return await self.kube.request("GET", ingestion_path(self.namespace, name))

    async def get(self, job_id: str) -> httpx.Response:
        """GET a job's progress."""
        return await self.client.get(f"/v1/knowledge-base/ingestion-jobs/{job_id}")

    async def retry(self, job_id: str, **headers: str) -> httpx.Response:
        """POST a retry."""
        return await self.client.post(f"/v1/knowledge-base/ingestion-jobs/{job_id}/retry", headers=headers)


def mint(*, kubeconfig: Path, system: str, namespace: str, capsys: Any) -> str:
    """Mint a key with the command that people use."""
    arguments = ["mint", "--namespace", namespace, "--secret-namespace", system, "--kubeconfig", str(kubeconfig)]
    assert keys.run(arguments=arguments) == 0
    return str(capsys.readouterr().out.strip())


def serve(app: FastAPI, options: Options, port: int) -> Iterator[None]:
    """Run an app in a thread until resumed."""
    options = replace(options, host="127.0.0.1", port=port)
    server = uvicorn.Server(uvicorn.Config(app, **server_options(options)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    yield
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest_asyncio.fixture
async def api(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path, capsys: Any
) -> AsyncIterator[Api]:
    system = f"{namespace}-system"
    await kube.request("POST", "/api/v1/namespaces", body={"metadata": {"name": system}})
    await kube.request("POST", core_path("secrets", system), body={"metadata": {"name": "ingestion-api-keys"}})
    store = tmp_path / "store"
    (store / namespace).mkdir(parents=True)
    config = {
        "workerImage": "worker:test",
        "store": {"endpoint": f"file://{store}"},
        "tenants": [{"namespace": namespace, "bucket": namespace}],
        "maxSourceBytes": 1_000_000,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))  # of further replicas
    key = await asyncio.to_thread(
        mint, kubeconfig=control_plane.kubeconfig, system=system, namespace=namespace, capsys=capsys
    )
    (port,) = ports.free(count=1)
    options = Options(namespace=system, kubeconfig=str(control_plane.kubeconfig), stall_seconds=2)
    server = serve(create_app(options, Config.model_validate(config)), options, port)
    next(server)
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, headers={"x-api-key": key}, timeout=30, trust_env=False) as client:
        deadline = time.monotonic() + 30
        while True:
            try:
                if (await client.get("/readyz")).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, "the API does not become ready"
            await asyncio.sleep(0.05)
        yield Api(
            url=url,
            key=key,
            kube=kube,
            namespace=namespace,
            system=system,
            kubeconfig=control_plane.kubeconfig,
            store=store / namespace,
            client=client,
        )
    next(server, None)
