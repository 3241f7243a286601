"""What the REST API says of jobs while it still lists them, and of itself when it no longer follows them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from faults.proxy import Answer, Call, Forward, hang
from faults.rig import api_of, running
from ingestion_crds.kube import KubeClient
from local_cluster.control_plane import ControlPlane
from support.builders import KNOWLEDGE_BASE

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

            await run.come_true(lambda: api.answers("/healthz", 200))
            asked = asyncio.create_task(api.status(path))
            await run.wait(lambda: read.injected == 1)
            list_goes_on.set()
            await run.come_true(lambda: api.answers("/readyz", 200))
            read_goes_on.set()
            assert await asked == 503
            assert await api.status(path) == 200


async def test_no_list_is_shown_before_all_jobs_are_known(
    control_plane: ControlPlane, kube: KubeClient, tmp_path: Path
) -> None:
    """A page with some of them, and no next one, would say that there are no others."""
    list_goes_on = asyncio.Event()
    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as run:
        await run.create(suspend=True)
        async with api_of(run) as api:
            api.proxy.add(lambda call: str(call) == "list ingestionjobs", hang(list_goes_on))
            path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs"
            await run.come_true(lambda: api.answers("/healthz", 200))
            assert await api.status(path) == 503
            list_goes_on.set()
            await run.come_true(lambda: api.answers("/readyz", 200))
            assert len((await api.client.get(path)).json()["items"]) == 1


async def test_an_api_that_no_longer_follows_the_jobs_asks_to_be_started_anew(
    control_plane: ControlPlane, kube: KubeClient, tmp_path: Path
) -> None:
    async def nonsense(call: Call, forward: Forward) -> Answer:
        return Answer(status=200, body=json.dumps({"metadata": {}, "items": [{}]}).encode())

    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as run, api_of(run) as api:
        api.proxy.add(lambda call: str(call) == "list ingestionjobs", nonsense)
        await run.come_true(lambda: api.answers("/healthz", 503))
        assert await api.status("/readyz") == 503
        assert "the jobs are no longer followed" in api.process.log.read_text()
        assert "KeyError" in api.process.log.read_text()
