"""An upload whose job, or batch, the API server makes without saying so: neither it nor its files are lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from faults.proxy import Act, Answer, Call, Forward, deny, lose_answer
from faults.rig import api_of, running
from ingestion_crds.kube import KubeClient, batch_path, ingestion_path
from local_cluster.control_plane import ControlPlane
from support.builders import KNOWLEDGE_BASE

pytestmark = pytest.mark.controlplane


def late() -> Act:
    """Answer with an error, and carry the request out afterwards, before it is sent again."""
    tasks: list[asyncio.Task[Answer]] = []

    async def act(call: Call, forward: Forward) -> Answer:
        async def carry_out() -> Answer:
            await asyncio.sleep(0.1)
            return await forward()

        tasks.append(asyncio.ensure_future(carry_out()))
        return Answer(status=504, body=b"")

    return act


@pytest.mark.parametrize(
    "act", [lose_answer, deny(504), late()], ids=["answer lost", "504 although it is made", "504, then it is made"]
)
async def test_an_upload_is_answered_once_its_job_is_made(
    control_plane: ControlPlane, kube: KubeClient, tmp_path: Path, act: Act
) -> None:
    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as run, api_of(run) as api:
        await run.come_true(lambda: api.answers("/readyz", 200))
        api.proxy.add(lambda call: str(call) == "create ingestionjobs", act)
        path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingest"
        taken = await api.client.post(path, files={"file": ("a.md", b"text", "text/markdown")})
        assert taken.status_code == 202, taken.text
        assert api.proxy.seen["create ingestionjobs"] == 2
        (job,) = (await kube.request("GET", ingestion_path(run.namespace)))["items"]
        assert job["metadata"]["name"] == taken.json()["ingestion_job_id"]
        source = job["spec"]["document"]["source"]["uri"].removeprefix("s3://")
        assert (run.folder / "store" / source).read_bytes() == b"text"


@pytest.mark.parametrize(
    "act", [lose_answer, deny(504), late()], ids=["answer lost", "504 although it is made", "504, then it is made"]
)
async def test_several_files_are_answered_once_their_batch_is_made(
    control_plane: ControlPlane, kube: KubeClient, tmp_path: Path, act: Act
) -> None:
    """And one that is sent again by its client is that batch, with a key."""
    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as run, api_of(run) as api:
        await run.come_true(lambda: api.answers("/readyz", 200))
        api.proxy.add(lambda call: str(call) == "create ingestionbatches", act)
        path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingest"
        files = [("file", (name, name.encode(), "text/markdown")) for name in ("a.md", "b.md")]
        answers = [await api.client.post(path, files=files, headers={"idempotency-key": "monday"}) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202], answers[0].text
        assert answers[0].json() == answers[1].json()
        assert api.proxy.seen["create ingestionbatches"] == 2
        (batch,) = (await kube.request("GET", batch_path(run.namespace)))["items"]
        assert batch["metadata"]["name"] == answers[0].json()["ingestion_job_id"]
        sources = [document["source"]["uri"].removeprefix("s3://") for document in batch["spec"]["documents"]]
        assert [(run.folder / "store" / source).read_bytes() for source in sources] == [b"a.md", b"b.md"]
        uploads = run.folder / "store" / sources[0].partition("/")[0] / "uploads"
        assert len([path for path in uploads.rglob("*") if path.is_file()]) == 2
