"""What the REST API says of a job while it still lists the jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from faults.proxy import hang
from faults.rig import api_of, running
from ingestion_crds.kube import KubeClient
from local_cluster.control_plane import ControlPlane

pytestmark = pytest.mark.controlplane


async def test_a_job_that_is_listed_during_the_look_up_is_not_denied(
    control_plane: ControlPlane, kube: KubeClient, tmp_path: Path
) -> None:
    """Its name is not its id, so only the list says where it is: not known yet is 503, never 404."""
    list_goes_on, read_goes_on = asyncio.Event(), asyncio.Event()
    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as run:
        path = f"/v1/knowledge-base/ingestion-jobs/{(await run.create(suspend=True))['metadata']['uid']}"
        async with api_of(run) as api:
            api.proxy.add(lambda call: str(call) == "list ingestionjobs", hang(list_goes_on))
            read = api.proxy.add(lambda call: str(call) == "get ingestionjobs", hang(read_goes_on))

            async def status(path: str) -> int:
                try:
                    return (await api.client.get(path)).status_code
                except httpx.TransportError:
                    return 0

            async def is_200(path: str) -> bool:
                return await status(path) == 200

            await run.come_true(lambda: is_200("/healthz"))
            asked = asyncio.create_task(status(path))
            await run.wait(lambda: read.injected == 1)
            list_goes_on.set()
            await run.come_true(lambda: is_200("/readyz"))
            read_goes_on.set()
            assert await asked == 503
            assert await status(path) == 200
