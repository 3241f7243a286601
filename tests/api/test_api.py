"""What clients see, over HTTP, with a real API server behind."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ingestion_api import keys
from ingestion_crds.constants import MAX_DOCUMENTS
from ingestion_crds.kube import MERGE_PATCH, batch_path, core_path, ingestion_path
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store, StoreConfig
from support.builders import DOCUMENT, KNOWLEDGE_BASE, ingestion_job
from support.worker_builders import KB, Worker

from .conftest import Api, mint

pytestmark = pytest.mark.controlplane

UNKNOWN = "99999999-9999-4999-8999-999999999999"


async def test_a_retry_is_recorded_and_shown_at_once(api: Api) -> None:
    """Invariant 4: a GET after the 202 never shows the state before it."""
    job_id = await api.failed()
    answer = await api.retry(job_id)
    assert (answer.status_code, answer.json()) == (202, {"job_id": job_id})
    assert (await api.get(job_id)).json()["status"] == "queued"
    live = await api.live()
    assert live["spec"]["retryGeneration"] == 1
    assert '"trigger": "REST"' in live["metadata"]["annotations"]["ingestion-operator.io/retry-origin"]
    again = await api.retry(job_id)  # recorded, not taken up: this retry
    assert again.status_code == 202
    assert (await api.live())["spec"]["retryGeneration"] == 1


async def test_fifty_retries_at_once_make_one_generation(api: Api) -> None:
    """Invariant 4."""
    job_id = await api.failed()
    answers = await asyncio.gather(
        *(api.retry(job_id, **({"idempotency-key": f"k{number}"} if number % 2 else {})) for number in range(50))
    )
    assert {answer.status_code for answer in answers} == {202}
    assert (await api.live())["spec"]["retryGeneration"] == 1


@pytest.mark.parametrize("phase", ["processing", "completed", "queued"])
async def test_a_job_that_did_not_fail_is_not_retried(api: Api, phase: str) -> None:
    job_id = await api.failed(phase=phase)
    answer = await api.retry(job_id)
    assert answer.status_code == 400
    assert answer.json()["error"] == "not_retryable"
    assert phase in answer.json()["message"]
    assert (await api.live())["spec"]["retryGeneration"] == 0


async def test_an_idempotency_key_is_good_for_one_retry(api: Api) -> None:
    job_id = await api.failed()
    assert (await api.retry(job_id, **{"idempotency-key": "once"})).status_code == 202
    await api.set_status(phase="partial_failure", observedRetryGeneration=1)
    assert (await api.retry(job_id, **{"idempotency-key": "once"})).status_code == 202
    assert (await api.live())["spec"]["retryGeneration"] == 1
    assert (await api.retry(job_id, **{"idempotency-key": "twice"})).status_code == 202
    assert (await api.live())["spec"]["retryGeneration"] == 2
    bad = await api.retry(job_id, **{"idempotency-key": "x" * 300})
    assert bad.status_code == 400
    assert "Idempotency-Key" in bad.json()["message"]


@pytest.mark.parametrize(("mode", "kept"), [(None, False), ("Segmented", True)])
async def test_a_retry_that_prepares_anew_shows_a_reset(api: Api, mode: str | None, kept: bool) -> None:
    """A single pass fails before its mode is known."""
    version = {"id": UNKNOWN, "number": 1, "state": "failed"}
    segments = {"total": 4, "completed": "0-2", "completedCount": 3} if kept else {}
    status = {"mode": mode, "version": version, "segments": segments, "progressPercent": 70 * kept}
    job_id = await api.failed(phase="failed", startTime="2026-01-01T00:00:00Z", **status)
    shown = (await api.get(job_id)).json()
    assert (shown["version"]["state"], shown["started_at"]) == ("failed", "2026-01-01T00:00:00Z")
    await api.retry(job_id)
    shown = (await api.get(job_id)).json()
    assert (shown["status"], shown["version"]["state"]) == ("queued", "pending")
    assert (shown["processed_segments"], shown["progress_pct"]) == ((3, 70.0) if kept else (0, 0.0))
    page = await api.client.get(f"/v1/knowledge-base/ingestion-jobs/{job_id}/documents")
    (document,) = page.json()["items"]
    assert document["processed_segments"] == shown["processed_segments"]
    for each in (shown, document):
        assert (each["started_at"] is not None) == kept


async def test_another_tenants_job_is_not_there(api: Api, capsys: Any) -> None:
    """Invariant 9."""
    job_id = await api.failed()
    other = await asyncio.to_thread(
        mint, kubeconfig=api.kubeconfig, system=api.system, namespace="somebody-else", capsys=capsys
    )
    # An unknown key makes the Secret be read anew, but strangers must not make that more than once a second.
    for _ in range(50):
        probe = await api.client.get(f"/v1/knowledge-base/ingestion-jobs/{UNKNOWN}", headers={"x-api-key": other})
        if probe.status_code == 404:
            break
        await asyncio.sleep(0.1)
    for method, path in (("GET", ""), ("POST", "/retry")):
        answer = await api.client.request(
            method, f"/v1/knowledge-base/ingestion-jobs/{job_id}{path}", headers={"x-api-key": other}
        )
        assert answer.status_code == 404, path
    listed = await api.client.get(
        f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs", headers={"x-api-key": other}
    )
    assert listed.json()["items"] == []
    assert (await api.live())["spec"]["retryGeneration"] == 0


@pytest.mark.parametrize("key", ["", "ik_abcd_x", "nonsense", "ik_abcdefghij_" + "A" * 43])
async def test_a_wrong_key_is_refused(api: Api, key: str) -> None:
    answer = await api.client.get(f"/v1/knowledge-base/ingestion-jobs/{UNKNOWN}", headers={"x-api-key": key})
    assert answer.status_code == 401
    assert answer.json()["error"] == "unauthorized"
    assert "x-api-key" in answer.headers["www-authenticate"]


async def test_a_revoked_key_stops_within_seconds(api: Api) -> None:
    assert (await api.get(UNKNOWN)).status_code == 404
    where = ["--secret-namespace", api.system, "--kubeconfig", str(api.kubeconfig)]
    assert await asyncio.to_thread(lambda: keys.run(arguments=["revoke", api.key.split("_")[1], *where])) == 0
    for _ in range(100):
        if (await api.get(UNKNOWN)).status_code == 401:
            return
        await asyncio.sleep(0.1)
    pytest.fail("the revoked key still works after 10 s")


async def test_an_unknown_or_malformed_job(api: Api) -> None:
    assert (await api.get(UNKNOWN)).status_code == 404
    assert (await api.retry(UNKNOWN)).status_code == 404
    malformed = await api.retry("handbook")
    assert malformed.status_code == 422
    assert malformed.json()["detail"][0]["loc"] == ["path", "job_id"]


async def test_a_slash_too_many_is_another_path(api: Api) -> None:
    """And nobody is sent elsewhere for it: the API does not know its own address."""
    path = f"/v1/knowledge-base/ingestion-jobs/{UNKNOWN}"
    for method, odd in (("GET", f"{path}/"), ("POST", f"{path}/retry/"), ("POST", "/v1/knowledge-base/search/")):
        answer = await api.client.request(method, odd, headers={"host": "elsewhere.example"})
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


async def test_lists_are_newest_first_filtered_and_paged(api: Api) -> None:
    ids = [await api.failed(f"job-{number}") for number in range(3)]
    await asyncio.sleep(1)  # times of creation are whole seconds
    ids += [await api.failed(f"job-{number}") for number in range(3, 5)]
    created = {
        job_id: (await api.live(f"job-{number}"))["metadata"]["creationTimestamp"] for number, job_id in enumerate(ids)
    }
    await api.set_status("job-0", phase="completed")
    path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs"
    found: list[str] = []
    cursor = None
    while True:
        page = (await api.client.get(path, params={"limit": 2, **({"cursor": cursor} if cursor else {})})).json()
        found += [item["id"] for item in page["items"]]
        cursor = page["next_cursor"]
        assert page["has_more"] == (cursor is not None)
        if cursor is None:
            break
    assert set(found[:2]) == set(ids[3:])
    assert found == sorted(ids, key=lambda job_id: (created[job_id], job_id), reverse=True)
    for _ in range(100):
        completed = (await api.client.get(path, params={"status": "completed"})).json()["items"]
        if completed:
            break
        await asyncio.sleep(0.05)
    assert [item["id"] for item in completed] == [ids[0]]
    assert (await api.client.get(path, params={"status": "done"})).status_code == 400
    for odd in ("zzz", _encoded(f'[1{"0" * 400}, "a"]'), _encoded("[" * 3000)):
        assert (await api.client.get(path, params={"cursor": odd})).status_code == 400
    assert (await api.client.get(path, params={"limit": 0})).status_code == 422


def _encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


async def upload(api: Api, content: bytes = b"# Title\n\nText.\n", **fields: str) -> httpx.Response:
    return await api.client.post(
        f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingest",
        data=fields,
        files={"file": ("notes.md", content, "text/markdown")},
    )


async def test_an_upload_is_stored_and_its_job_made(api: Api) -> None:
    content = b"# Title\n\nText.\n" * 1000
    options = '{"segmentBackoffLimit": 0, "pipeline": {"chunkSize": 500}, "ttlSecondsAfterFinished": 60, "mode": null}'
    answer = await upload(api, content, title="Notes", document_id=DOCUMENT, options=options)
    assert answer.status_code == 202, answer.text
    assert answer.json()["items"] == [
        {
            "manifest_index": 0,
            "result": "queued",
            "document_id": DOCUMENT,
            "duplicate_of_document_id": None,
            "duplicate_of_version_id": None,
            "duplicate_of_document_title": None,
        }
    ]
    job_id = answer.json()["ingestion_job_id"]
    job = await api.live(job_id)  # its id is its name
    source = job["spec"]["document"]["source"]
    assert source["sha256"] == hashlib.sha256(content).hexdigest()
    assert source["contentType"] == "text/markdown"
    assert job["spec"]["document"]["title"] == "Notes"
    assert job["spec"]["pipeline"]["chunkSize"] == 500
    assert job["spec"]["ttlSecondsAfterFinished"] == 60
    assert job["spec"]["mode"] == "Auto"
    key = source["uri"].removeprefix(f"s3://{api.namespace}/")
    assert (api.store / key).read_bytes() == content
    assert f"ingestion_api_upload_bytes_total {float(len(content))}" in (await api.client.get("/metrics")).text
    assert [item["id"] for item in await listed(api)] == [job_id], "a list shows a job that was just made"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"document_id": "x"}, "document_id"),
        ({"options": "{"}, "options"),
        ({"options": '{"template": {"image": "evil"}}'}, "options.template"),
        ({"options": '{"pipeline": {"chunksize": 500}}'}, "options.pipeline.chunksize"),
        ({"options": '{"pipeline": {"embedding": {"dimension": 512}}}'}, "options.pipeline.embedding.dimension"),
        ({"options": '{"parallelism": true}'}, "options.parallelism"),
        ({"options": '{"segmentBackoffLimit": 21}'}, "options.segmentBackoffLimit"),
        ({"options": '{"segment_backoff_limit": 0}'}, "options.segment_backoff_limit"),
        ({"mode": "Fast"}, "mode"),
        ({"colour": "red"}, "colour"),
        (
            {"options": '{"pipeline": {"chunkSize": 100, "chunkOverlap": 200}}'},
            "options.pipeline: chunkOverlap (200) must",
        ),
        ({"options": '{"pipeline": {"chunkSize": 100}}'}, "chunkOverlap (100) must be less than chunkSize (100)"),
    ],
)
async def test_a_wrong_form_is_refused_and_leaves_nothing(api: Api, fields: dict[str, str], words: str) -> None:
    answer = await upload(api, **fields)
    assert answer.status_code == 400
    assert words in answer.json()["message"]
    assert not [path for path in api.store.rglob("*") if path.is_file()]
    assert (await api.kube.request("GET", ingestion_path(api.namespace)))["items"] == []


async def upload_several(api: Api, *names: str, headers: dict[str, str] | None = None, **fields: str) -> httpx.Response:
    files = [("file", (name, f"# {name}\n".encode(), "text/markdown")) for name in names]
    path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingest"
    return await api.client.post(path, data=fields, files=files, headers=headers)


async def listed(api: Api, **query: str) -> list[dict[str, Any]]:
    path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs"
    items: list[dict[str, Any]] = (await api.client.get(path, params=query)).json()["items"]
    return items


async def test_several_documents_are_one_job_whose_progress_counts_them(api: Api) -> None:
    manifest = json.dumps([{"title": "One", "document_id": DOCUMENT}, {}, {}])
    key = {"idempotency-key": "monday"}
    answer = await upload_several(api, "a.md", "b.md", "c.md", manifest=manifest, headers=key)
    assert answer.status_code == 202, answer.text
    batch_id = answer.json()["ingestion_job_id"]
    items = answer.json()["items"]
    assert [item["manifest_index"] for item in items] == [0, 1, 2]
    assert items[0]["document_id"] == DOCUMENT
    again = await upload_several(api, "a.md", "b.md", "c.md", manifest=manifest, headers=key)
    assert (again.status_code, again.json()) == (202, answer.json())
    assert len([path for path in api.store.rglob("*") if path.is_file()]) == 3
    live = await api.kube.request("GET", batch_path(api.namespace, batch_id))
    assert [document["title"] for document in live["spec"]["documents"]] == ["One", "b.md", "c.md"]
    shown = (await api.get(batch_id)).json()
    assert (shown["job_type"], shown["status"], shown["total_documents"], shown["queued"]) == ("batch", "queued", 3, 3)
    # The operator's part: a job for each document, of which one fails.
    owner = {
        "apiVersion": live["apiVersion"],
        "kind": "IngestionBatch",
        "name": batch_id,
        "uid": live["metadata"]["uid"],
    }
    child = ingestion_job(name=f"{batch_id}-1", namespace=api.namespace)
    child["metadata"]["labels"] = {"ingestion-operator.io/batch-index": "1"}
    child["metadata"]["ownerReferences"] = [{**owner, "controller": True, "blockOwnerDeletion": True}]
    child = await api.kube.request("POST", ingestion_path(api.namespace), body=child)
    status = {
        "phase": "partial_failure",
        "observedRetryGeneration": 0,
        "documents": {"total": 3, "completedCount": 2, "failedCount": 1, "completed": "0,2", "failed": "1"},
        "failures": [{"index": 1, "job": f"{batch_id}-1", "code": "DocumentEmpty", "message": "no text"}],
        "failureSummary": {"DocumentEmpty": 1},
    }
    path = batch_path(api.namespace, batch_id, "status")
    await api.kube.request("PATCH", path, body={"status": status}, content_type=MERGE_PATCH)
    shown = (await api.get(batch_id)).json()
    assert (shown["status"], shown["completed"], shown["failed"]) == ("partial_failure", 2, 1)
    assert shown["document_failures"] == [
        {
            "manifest_index": 1,
            "document_id": items[1]["document_id"],
            "title": "b.md",
            "code": "DocumentEmpty",
            "message": "no text",
        }
    ]
    await api.known(child["metadata"]["uid"])  # by its own id, and not in the list
    documents = f"/v1/knowledge-base/ingestion-jobs/{batch_id}/documents"
    page = (await api.client.get(documents, params={"limit": 2})).json()
    assert [(item["manifest_index"], item["status"]) for item in page["items"]] == [(0, "completed"), (1, "queued")]
    assert page["items"][1]["ingestion_job_id"] == child["metadata"]["uid"]
    assert page["has_more"]
    page = (await api.client.get(documents, params={"cursor": page["next_cursor"]})).json()
    assert [item["document_id"] for item in page["items"]] == [items[2]["document_id"]]
    assert (page["has_more"], page["next_cursor"]) == (False, None)
    assert (await api.client.get(documents, params={"cursor": "9" * 6})).json()["items"] == []
    assert (await api.client.get(documents, params={"cursor": "-1"})).status_code == 400
    assert (await api.client.get(documents, params={"limit": 201})).status_code == 422
    own = f"/v1/knowledge-base/ingestion-jobs/{child['metadata']['uid']}/documents"
    items = (await api.client.get(own)).json()["items"]
    assert [(item["manifest_index"], item["status"]) for item in items] == [(1, "queued")]
    (entry,) = await listed(api)
    assert (entry["id"], entry["job_type"], entry["total_documents"], entry["processed_count"]) == (
        batch_id, "batch", 3, 2,
    )  # fmt: skip
    assert [item["id"] for item in await listed(api, status="partial_failure")] == [batch_id]
    assert await listed(api, status="completed") == []


async def test_a_batch_is_retried_as_a_job_is(api: Api, capsys: Any) -> None:
    """Invariants 4 and 9: with the same codes, and no other tenant's."""
    batch_id = (await upload_several(api, "a.md", "b.md")).json()["ingestion_job_id"]
    path = batch_path(api.namespace, batch_id)

    async def becomes(**status: Any) -> None:
        await api.kube.request("PATCH", f"{path}/status", body={"status": status}, content_type=MERGE_PATCH)

    async def generation() -> int:
        return int((await api.kube.request("GET", path))["spec"].get("retryGeneration", 0))

    for phase in ("queued", "processing", "completed"):
        await becomes(phase=phase, observedRetryGeneration=0)
        refused = await api.retry(batch_id)
        assert (refused.status_code, refused.json()["error"]) == (400, "not_retryable")
        assert phase in refused.json()["message"]
    await becomes(phase="failed")
    other = await asyncio.to_thread(
        mint, kubeconfig=api.kubeconfig, system=api.system, namespace="somebody-else", capsys=capsys
    )
    unknown = f"/v1/knowledge-base/ingestion-jobs/{UNKNOWN}"
    for _ in range(50):
        if (await api.client.get(unknown, headers={"x-api-key": other})).status_code == 404:
            break
        await asyncio.sleep(0.1)
    mine = f"/v1/knowledge-base/ingestion-jobs/{batch_id}"
    for method, where in (("GET", mine), ("GET", f"{mine}/documents"), ("POST", f"{mine}/retry")):
        answer = await api.client.request(method, where, headers={"x-api-key": other})
        absent = await api.client.request(method, where.replace(batch_id, UNKNOWN), headers={"x-api-key": other})
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")
        assert answer.text.replace(batch_id, UNKNOWN) == absent.text, "nothing tells that it is there"
    assert await generation() == 0
    keys_ = [{"idempotency-key": f"k{number}"} if number % 2 else {} for number in range(20)]
    answers = await asyncio.gather(*(api.retry(batch_id, **each) for each in keys_))
    assert {(answer.status_code, answer.json()["job_id"]) for answer in answers} == {(202, batch_id)}
    assert await generation() == 1
    assert (await api.get(batch_id)).json()["status"] == "queued"
    live = await api.kube.request("GET", path)
    assert '"trigger": "REST"' in live["metadata"]["annotations"]["ingestion-operator.io/retry-origin"]
    await becomes(phase="failed", observedRetryGeneration=1)
    assert (await api.retry(batch_id, **{"idempotency-key": "k1"})).status_code == 202
    assert await generation() == 1
    assert (await api.retry(batch_id)).status_code == 202
    assert await generation() == 2


async def test_a_thousand_documents_in_one_request(api: Api) -> None:
    answer = await upload_several(api, *[f"chapter-{number}.md" for number in range(MAX_DOCUMENTS)])
    assert answer.status_code == 202, answer.text
    assert len(answer.json()["items"]) == MAX_DOCUMENTS
    shown = (await api.get(answer.json()["ingestion_job_id"])).json()
    assert shown["total_documents"] == MAX_DOCUMENTS
    one_more = await upload_several(api, *["a.md"] * (MAX_DOCUMENTS + 1))
    assert (one_more.status_code, one_more.json()["error"]) == (400, "bad_request")
    assert len([path for path in api.store.rglob("*") if path.is_file()]) == MAX_DOCUMENTS


async def test_a_quota_of_batches_is_met_before_one_is_made(api: Api) -> None:
    """By a dry run, as quotas count in one too."""
    none = {"count/ingestionbatches.ingestion-operator.io": "0"}
    quotas = core_path("resourcequotas", api.namespace)
    await api.kube.request("POST", quotas, body={"metadata": {"name": "none"}, "spec": {"hard": none}})
    status = {"status": {"hard": none, "used": none}}  # its controller takes minutes to find a new kind
    await api.kube.request("PATCH", f"{quotas}/none/status", body=status, content_type=MERGE_PATCH)
    path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingest"
    files = [("file", (f"{number}.md", b"x" * 1000)) for number in range(5)]

    async def sent() -> float:
        (line,) = re.findall(r"^ingestion_api_upload_bytes_total (.+)$", (await api.client.get("/metrics")).text, re.M)
        return float(line)

    status, before = 202, 0.0
    while status == 202:  # until the API server has taken notice of the quota
        before = await sent()
        answer = await api.client.post(path, files=files)
        status = answer.status_code
    assert (status, answer.headers["retry-after"]) == (429, "60")
    assert await sent() == before + 1000


async def test_what_is_wrong_with_an_upload_is_said_although_its_file_cannot_be_removed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise WorkerError("StoreUnavailable", "the store does not answer")

    monkeypatch.setattr(Store, "delete", away)
    assert (await upload(api, colour="red")).status_code == 400
    answer = await upload_several(api, "a.md", "b.md", title="one for both")
    assert "title: the form has several files" in answer.json()["message"]


async def test_an_upload_that_its_client_gives_up_is_no_error_of_ours(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    url = httpx.URL(api.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingest"
    head = f"POST {path} HTTP/1.1\r\nhost: api\r\nx-api-key: {api.key}\r\ncontent-length: 5000\r\n"
    part = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nabc'
    writer.write(f"{head}content-type: multipart/form-data; boundary=b\r\n\r\n{part}".encode())
    await writer.drain()
    await asyncio.sleep(0.5)
    writer.close()
    for _ in range(100):
        metrics = (await api.client.get("/metrics")).text
        if 'operation="bulkIngest"' in metrics:
            break
        await asyncio.sleep(0.05)
    assert 'ingestion_api_requests_total{code="400",operation="bulkIngest"} 1.0' in metrics
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
    assert not [item for item in api.store.rglob("*") if item.is_file()]


async def test_a_form_without_a_file(api: Api) -> None:
    path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingest"
    assert "multipart/form-data" in (await api.client.post(path, json={})).json()["message"]
    nothing = await api.client.post(path, files={"title": (None, "x")})
    assert nothing.status_code == 400
    assert "the form has none" in nothing.json()["message"]


async def test_an_upload_over_the_limit(api: Api) -> None:
    announced = await upload(api, b"x" * 3_000_000)
    assert announced.status_code == 413

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        for _ in range(30):
            yield b"x" * 50_000
        yield b"\r\n--b--\r\n"

    unannounced = await api.client.post(
        f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingest",
        content=body(),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert unannounced.status_code == 413
    assert not [path for path in api.store.rglob("*") if path.is_file()]


async def test_limits_on_what_a_stranger_sends(api: Api) -> None:
    search = "/v1/knowledge-base/search"
    assert (await api.client.post(search, content=b"x" * 70_000)).status_code == 413
    many = await api.client.post(search, json={"query": "q", "kb_ids": [str(uuid.uuid4()) for _ in range(50)]})
    assert many.status_code == 422
    assert (await api.client.post(search, json={"query": "q" * 9000, "kb_ids": [UNKNOWN]})).status_code == 422
    unsupported = await api.client.post(search, json={"query": "q", "kb_ids": [UNKNOWN], "rerank": True})
    assert unsupported.status_code == 400
    assert "rerank" in unsupported.json()["message"]


async def test_a_head_without_an_end_is_cut_off(api: Api) -> None:
    url = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(b"GET /healthz HTTP/1.1\r\nhost: api\r\nx-long: ")
    for _ in range(5):
        writer.write(b"a" * 4096)
    await writer.drain()
    try:
        answer = await reader.read()  # until the API hangs up
    except ConnectionResetError:
        answer = b"HTTP/1.1 400 "  # it hung up while bytes were on their way, which takes the answer along
    assert answer.startswith(b"HTTP/1.1 400 ")
    writer.close()


async def test_one_connection_takes_more_than_a_head_of_requests(api: Api) -> None:
    """The bound is on each head, and bodies do not count."""
    body = b"a" * 8192
    head = b"POST /nowhere HTTP/1.1\r\nhost: api\r\ncontent-length: 8192\r\n\r\n"
    url = httpx.URL(api.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    for _ in range(5):
        writer.write(head + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 ")
        _, _, after = answer.partition(b"content-length: ")
        await reader.readexactly(int(after[: after.index(b"\r\n")]))
    writer.close()


@pytest.mark.parametrize(
    ("given", "kept"), [("text/markdown", "text/markdown"), ("application/octet-stream", None), ("", None)]
)
async def test_the_type_of_a_file_counts_unless_it_says_nothing(api: Api, given: str, kept: str | None) -> None:
    path = f"/v1/knowledge-base/knowledge-bases/{KNOWLEDGE_BASE}/ingest"
    answer = await api.client.post(path, files={"file": ("notes.md", b"# Title", given)})
    job = await api.live(answer.json()["ingestion_job_id"])
    assert job["spec"]["document"]["source"].get("contentType") == kept


async def test_alpha_changes_nothing(api: Api, tmp_path: Path) -> None:
    worker = Worker(store=Store(config=StoreConfig(url=f"file://{api.store}")), folder=tmp_path / "scratch")
    text = "The lighthouse.\n\nA harbour without lights.\n\nSoup of lentils.\n\n" * 20
    worker.ingest(document__source__uri=worker.upload(data=text.encode(), name="a.txt"))
    body = {"query": "lighthouse harbour", "kb_ids": [KB], "limit": 5}
    answers = [
        await api.client.post("/v1/knowledge-base/search", json={**body, **more})
        for more in ({}, {"alpha": 0.1}, {"alpha": 0.5}, {"alpha": 1.0})
    ]
    found = [answer.json() for answer in answers]
    assert found == [found[0]] * 4
    assert len(found[0]["results"]) == 5


async def test_a_search_of_an_empty_knowledge_base(api: Api) -> None:
    answer = await api.client.post("/v1/knowledge-base/search", json={"query": "what?", "kb_ids": [UNKNOWN]})
    assert answer.json() == {
        "results": [],
        "total_results": 0,
        "grouped_results": None,
        "ranking_mode": "global_score",
    }


async def test_metrics_and_probes(api: Api) -> None:
    assert (await api.client.get("/healthz")).status_code == 200
    assert "ingestion_api_requests_total" in (await api.client.get("/metrics")).text
