"""A batch from its upload to the end of its retry, by REST alone: API and operator as processes, a real API server."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from faults.batches import CODE, documents_script, index_of
from faults.rig import Api, api_of, running
from ingestion_crds.constants import TERMINAL_PHASES
from ingestion_crds.kube import KubeClient, batch_path
from local_cluster.control_plane import ControlPlane
from support.builders import KNOWLEDGE_BASE

pytestmark = pytest.mark.controlplane

PREFIX = "/v1/knowledge-base"


async def get(api: Api, path: str) -> dict[str, Any]:
    answer = await api.client.get(PREFIX + path)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def ended(api: Api, job_id: str) -> dict[str, Any]:
    """Wait until a job has ended; what is shown meanwhile has to add up."""
    deadline = time.monotonic() + 60
    while (shown := await get(api, f"/ingestion-jobs/{job_id}"))["status"] not in TERMINAL_PHASES:
        phases = ("completed", "failed", "partial_failure", "processing", "queued")
        assert sum(shown[phase] for phase in phases) == shown["total_documents"] == 4, shown
        assert time.monotonic() < deadline, shown
        await asyncio.sleep(0.1)
    return shown


async def test_by_rest_alone_a_batch_is_made_followed_and_retried(
    control_plane: ControlPlane, kube: KubeClient, tmp_path: Path
) -> None:
    """Invariants 2 and 4: of four documents the one that failed runs again, once, however often it is asked for."""
    async with running(control_plane=control_plane, kube=kube, folder=tmp_path) as run, api_of(run) as api:
        run.kubelet.script = documents_script(bad={2})
        await run.come_true(lambda: api.answers("/readyz", 200))
        files = [("file", (f"{name}.md", name.encode(), "text/markdown")) for name in "abcd"]
        taken = await api.client.post(f"{PREFIX}/knowledge-bases/{KNOWLEDGE_BASE}/ingest", files=files)
        assert taken.status_code == 202, taken.text
        batch_id, items = taken.json()["ingestion_job_id"], taken.json()["items"]
        shown = await ended(api, batch_id)
        assert (shown["status"], shown["completed"], shown["failed"]) == ("partial_failure", 3, 1)
        (failed,) = shown["document_failures"]
        assert (failed["manifest_index"], failed["document_id"], failed["title"], failed["code"]) == (
            2, items[2]["document_id"], "c.md", CODE,
        )  # fmt: skip

        async def documents() -> list[str]:
            page = await get(api, f"/ingestion-jobs/{batch_id}/documents")
            assert [item["document_id"] for item in page["items"]] == [item["document_id"] for item in items]
            assert None not in [item["ingestion_job_id"] for item in page["items"]]
            return [item["status"] for item in page["items"]]

        async def documents_are(*wanted: str) -> bool:
            return await documents() == list(wanted)

        await run.come_true(lambda: documents_are("completed", "completed", "failed", "completed"))
        answers = await asyncio.gather(*(api.retry(batch_id, key=f"k{number % 3}") for number in range(9)))
        assert {answer.status_code for answer in answers} == {202}
        shown = await ended(api, batch_id)
        assert (shown["status"], shown["completed"], shown["document_failures"]) == ("completed", 4, [])
        assert (shown["retry_generation"], shown["progress_pct"], shown["error_message"]) == (1, 100.0, None)
        await run.come_true(lambda: documents_are(*["completed"] * 4))
        runs = sorted((index_of(pod), pod.generation) for pod in run.kubelet.runs)
        assert runs == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]
        refused = await api.retry(batch_id)
        assert (refused.status_code, refused.json()["error"]) == (400, "not_retryable")
        listed = (await get(api, f"/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs"))["items"]
        assert [(item["id"], item["status"], item["processed_count"]) for item in listed] == [
            (batch_id, "completed", 4)
        ]
        await kube.request("DELETE", batch_path(run.namespace, batch_id), body={"propagationPolicy": "Background"})
        await run.come_true(lambda: api.answers(f"{PREFIX}/ingestion-jobs/{batch_id}", 404))
        assert (await api.retry(batch_id)).status_code == 404
