"""Another operator holds an IngestionJob by a finalizer of its own."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from ingestion_crds import JsonObject
from ingestion_crds.kube import MERGE_PATCH, KubeClient, ingestion_path
from local_cluster.control_plane import ControlPlane
from support.builders import ingestion_job
from support.operator_process import operator, write_config

pytestmark = pytest.mark.controlplane

# What every operator that is made with kopf adds, unless it names one itself.
KOPFS = "kopf.zalando.org/KopfFinalizerMarker"
HEARD_SECONDS = 60.0
QUIET_SECONDS = 3.0


def is_stalled(job: JsonObject) -> bool:
    """Whether the operator has looked at it, and has nothing more to do."""
    return any(item["type"] == "Stalled" and item["status"] == "True" for item in job["status"]["conditions"])


async def test_the_finalizer_of_another_kopf_operator_stays(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    """Invariant 8: it would be put back, and taken off again, for ever."""
    config, log = write_config(tmp_path, tenants=[]), tmp_path / "operator.log"
    path, body = ingestion_path(namespace, "handbook"), ingestion_job(namespace=namespace)
    body["metadata"]["finalizers"] = [KOPFS]
    await kube.request("POST", ingestion_path(namespace), body=body)
    try:
        with operator(kubeconfig=control_plane.kubeconfig, config=config, log=log):
            created = time.monotonic()
            while not is_stalled(found := await kube.request("GET", path)):
                assert time.monotonic() < created + HEARD_SECONDS, log.read_text()
                await asyncio.sleep(0.1)
            await asyncio.sleep(QUIET_SECONDS)
            assert (await kube.request("GET", path))["metadata"] == found["metadata"]
            assert found["metadata"]["finalizers"] == [KOPFS]
    finally:
        await kube.request("PATCH", path, body={"metadata": {"finalizers": None}}, content_type=MERGE_PATCH)
        await kube.request("DELETE", path)
