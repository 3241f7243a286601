"""An IngestionJob that the API server keeps, and that parsers do not take."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from faults.proxy import Proxy, refuse
from ingestion_crds.constants import API_VERSION
from ingestion_crds.kube import KubeClient, ingestion_path
from local_cluster.control_plane import ControlPlane
from support.builders import ingestion_job
from support.operator_process import operator, write_config

pytestmark = pytest.mark.controlplane


async def create_odd(proxy: Proxy, namespace: str, name: str) -> None:
    """Create an IngestionJob whose managed fields are nested nearly as deeply as the API server allows."""
    fields = b'{"f:a":' * 9_900 + b"{}" + b"}" * 9_900
    entry = b'"manager":"m","operation":"Update","apiVersion":"%s","fieldsType":"FieldsV1","fieldsV1":%s'
    entry %= (API_VERSION.encode(), fields)
    body = json.dumps(ingestion_job(name=name, namespace=namespace)).encode()
    body = body.replace(b'"metadata": {', b'"metadata": {"managedFields": [{%s}], ' % entry)
    async with httpx.AsyncClient(trust_env=False) as client:
        headers = {"content-type": "application/json"}
        made = await client.post(proxy.url + ingestion_path(namespace), content=body, headers=headers)
        kept = await client.get(proxy.url + ingestion_path(namespace, name))
    assert (made.status_code, fields in kept.content) == (201, True)


async def begun(kube: KubeClient, namespace: str, name: str) -> None:
    async with asyncio.timeout(60):
        while not (await kube.request("GET", ingestion_path(namespace, name))).get("status", {}).get("attempts"):
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_job_that_parsers_do_not_take_is_run_as_all_others_are(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path, streamed: bool
) -> None:
    """One that ended the operator would end it again at each start, for all tenants."""
    config, log = write_config(tmp_path, tenants=[namespace]), tmp_path / "operator.log"
    async with Proxy(kubeconfig=control_plane.kubeconfig, folder=tmp_path, namespace=namespace) as proxy:
        if not streamed:  # as by Kubernetes 1.33
            proxy.add(lambda call: str(call) == "watch ingestionjobs", refuse(422))
        await create_odd(proxy, namespace, "listed")
        with operator(kubeconfig=proxy.kubeconfig, config=config, log=log) as process:
            await begun(kube, namespace, "listed")
            assert proxy.seen["list ingestionjobs"] == (0 if streamed else 1)
            await create_odd(proxy, namespace, "watched")
            await kube.request("POST", ingestion_path(namespace), body=ingestion_job(name="after", namespace=namespace))
            for name in ("watched", "after"):
                await begun(kube, namespace, name)
            assert process.poll() is None, log.read_text()
