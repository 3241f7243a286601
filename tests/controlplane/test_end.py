"""The operator is told to stop, as at every rolling update: it ends in time, and has nothing to complain of."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import pytest
from ingestion_crds.kube import KubeClient, ingestion_path
from local_cluster.control_plane import ControlPlane
from support.builders import ingestion_job
from support.operator_process import operator, write_config

pytestmark = pytest.mark.controlplane

ENDS = 6
SECONDS = 0.5
END_SECONDS = 15
DELETE_SECONDS = 300.0


async def test_a_stop_while_jobs_come_is_no_error(
    control_plane: ControlPlane, kube: KubeClient, namespace: str, tmp_path: Path
) -> None:
    """kopf leaves watches half closed when it is stopped as it takes up a new object."""
    config, log = write_config(tmp_path, tenants=[]), tmp_path / "operator.log"
    numbers = count()
    watched = asyncio.Event()

    async def create() -> None:
        while True:
            await watched.wait()  # how many there are at the end must not depend on how long a start takes
            body = ingestion_job(name=f"job-{next(numbers)}", namespace=namespace)
            await kube.request("POST", ingestion_path(namespace), body=body)
            await asyncio.sleep(0.01)

    creating = [asyncio.create_task(create()) for _ in range(4)]
    for ended in range(ENDS):
        with operator(kubeconfig=control_plane.kubeconfig, config=config, log=log) as process:
            while log.read_text().count('"started"') <= ended:
                assert process.poll() is None
                await asyncio.sleep(0.02)
            # kopf, which asks for resources first, logs requests that a stop cuts off then.
            seen = ingestion_job(name=f"seen-{ended}", namespace=namespace)
            await kube.request("POST", ingestion_path(namespace), body=seen)
            while "status" not in await kube.request("GET", ingestion_path(namespace, f"seen-{ended}")):
                assert process.poll() is None
                await asyncio.sleep(0.02)
            watched.set()
            await asyncio.sleep(SECONDS)
            process.terminate()
            assert await asyncio.to_thread(process.wait, END_SECONDS) == 0
            watched.clear()
    assert not any(task.done() for task in creating)
    for task in creating:
        task.cancel()
    await asyncio.gather(*creating, return_exceptions=True)
    # Other tests share the cluster, and their operators would look at all of these.
    await kube.request("DELETE", ingestion_path(namespace), timeout=DELETE_SECONDS)
    assert '"error"' not in log.read_text()
