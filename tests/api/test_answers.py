"""What the API answers with, and how it takes an upload: over a server that plays the cluster's API server."""

from __future__ import annotations

import asyncio
import datetime
import gc
import json
import threading
import time
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, cast

import httpx
import orjson
import pytest
from fastapi import Body, FastAPI, Request
from ingestion_api.app import connect, create_app
from ingestion_api.auth import KeyEntry, Principal, encode_entry, hash_key, new_key
from ingestion_api.documents import document_view
from ingestion_api.idempotency import key_digest
from ingestion_api.job_index import JobIndex
from ingestion_api.jobs import JobUnknownError
from ingestion_api.metrics import Metrics
from ingestion_api.middleware import MAX_QUERY_BYTES, Limits
from ingestion_api.options import Options
from ingestion_api.problems import RETRY_AFTER_SECONDS, ProblemError, busy, from_api_error, install, unavailable
from ingestion_api.routes.ingest import bulk_ingest
from ingestion_api.routes.jobs import get_ingestion_job_progress, retry_ingestion_job
from ingestion_api.routes.search import SearchRequest, SearchResponse, search_knowledge_base
from ingestion_api.services import Services
from ingestion_api.stores import TenantStores
from ingestion_api.upload import MAX_FIELD_BYTES, MAX_FIELDS
from ingestion_api.views import NarrowBatch, NarrowJob, ShownBatch, ShownJob, page_json, progress, summary
from ingestion_crds import JsonObject
from ingestion_crds.config import Config
from ingestion_crds.constants import STORE_ACCESS_KEY, STORE_SECRET_KEY, STORE_SESSION_TOKEN
from ingestion_crds.errors import Code
from ingestion_crds.job import IngestionJob, NotRead
from ingestion_crds.kube import ApiError, KubeClient
from ingestion_worker.embedding import EmbeddingSpec
from ingestion_worker.outcome import WorkerError
from ingestion_worker.search import Hit
from ingestion_worker.store import Store, StoreConfig, Upload
from local_cluster import ports
from support.builders import DOCUMENT, KNOWLEDGE_BASE, ingestion_job
from support.kubeconfig import kubeconfig
from support.worker_builders import BUILTIN, KB, Worker, answer, http_server

from .conftest import serve
from .test_protocol import answer_of, client

CALLER = Principal(key_id="k", namespace="team-a")
OTHER = "2b1d0000-0000-4000-8000-000000000009"
HEAD = b'--b\r\nContent-Disposition: form-data; name="mode"\r\n\r\nSegmented\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nabc'
END = b"\r\n--b--\r\n"


def stored(name: str = "handbook", **metadata: Any) -> JsonObject:
    body = ingestion_job(name=name)
    known = {"uid": str(uuid.uuid4()), "creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1"}
    body["metadata"] |= {**known, **metadata}
    return body


def test_progress_says_what_failed_and_why() -> None:
    body = stored(uid="11111111-1111-4111-8111-111111111111")
    failure = {"segment": 3, "stage": "process_segments", "code": "PageUnreadable", "retryable": False}
    body["status"] = {
        "phase": "partial_failure",
        "observedRetryGeneration": 0,
        "failures": [{**failure, "message": "page 4", "exitCode": 74, "attempt": 0}],
        "failureSummary": {"PageUnreadable": 1},
        "conditions": [{"type": "Stalled", "status": "True", "reason": "SegmentsFailed", "message": "1 of 9 failed"}],
    }
    shown = progress(IngestionJob.model_validate(body))
    assert shown.failure_summary == {"PageUnreadable": 1}
    assert [(item.segment, item.code, item.message, item.exit_code) for item in shown.failures] == [
        (3, "PageUnreadable", "page 4", 74)
    ]
    assert shown.error_message == "1 of 9 failed"


def test_what_was_run_and_what_failed_is_told_after_a_retry() -> None:
    """`failures` are of the attempt that counts; those before it are not to be lost to who has no kubectl."""
    body = stored(uid="11111111-1111-4111-8111-111111111111")
    began, ended, again = (f"2026-01-01T0{hour}:00:00Z" for hour in (1, 2, 3))
    codes = {"EmbeddingRejected": 2}
    body["spec"]["retryGeneration"] = 2
    body["status"] = {
        "phase": "failed",
        "observedRetryGeneration": 1,
        "failureSummary": codes,
        "attempts": [
            {
                **{"generation": 0, "trigger": "Initial", "segments": 6, "completed": 4, "failed": 2, "codes": codes},
                **{"reason": "SegmentsFailed", "startTime": began, "completionTime": ended},
            },
            {"generation": 1, "trigger": "REST", "requestedBy": "key:abcd", "segments": 2, "startTime": again},
        ],
    }
    shown = progress(ShownJob.model_validate(body))
    assert shown.failure_summary == {}, "a retry waits"
    assert str(shown.document_id) == DOCUMENT
    first, second = (json.loads(attempt.model_dump_json()) for attempt in shown.attempts)
    assert first == {
        **{"generation": 0, "trigger": "Initial", "requested_by": None, "segments": 6, "completed": 4, "failed": 2},
        **{"failure_summary": codes, "reason": "SegmentsFailed", "started_at": began, "completed_at": ended},
    }
    assert (second["requested_by"], second["reason"], second["completed_at"]) == ("key:abcd", None, None)


@pytest.mark.parametrize("not_read", [{"pageCount": 4, "pages": "2-4,6"}, {"attachments": 2}, None])
def test_what_of_a_document_is_not_read_is_told(not_read: JsonObject | None) -> None:
    body = stored(uid="11111111-1111-4111-8111-111111111111")
    body["status"] = {"phase": "completed", "observedRetryGeneration": 0}
    if not_read:
        body["status"]["notRead"] = not_read
    shown = progress(ShownJob.model_validate(body)).not_read
    found = NotRead.model_validate(not_read or {})
    assert (shown.model_dump() if shown else None) == (found.model_dump() if not_read else None)
    for job in (IngestionJob.model_validate(body), NarrowJob.model_validate(body)):
        assert document_view(job).pages_not_read == found.page_count


@pytest.mark.parametrize(("phase", "told"), [("queued", "no such provider"), ("failed", None)])
def test_what_a_retry_waits_for_is_told_once_the_operator_has_looked_at_it(phase: str, told: str | None) -> None:
    """Until then it is the complaint of the attempt before."""
    body = stored(uid="11111111-1111-4111-8111-111111111111")
    body["spec"]["retryGeneration"] = 1
    stalled = {"type": "Stalled", "status": "True", "reason": "UnknownProvider", "message": "no such provider"}
    body["status"] = {"phase": phase, "observedRetryGeneration": 0, "conditions": [stalled]}
    for shown in (progress(IngestionJob.model_validate(body)), summary(NarrowJob.model_validate(body))):
        assert (shown.status, shown.error_message) == ("queued", told)


@pytest.mark.parametrize(
    ("phase", "status", "told"),
    [("queued", "False", "spec.suspend is true"), ("queued", "True", None), ("completed", "False", None)],
)
def test_what_a_job_is_held_by_is_told_while_it_is_open(phase: str, status: str, told: str | None) -> None:
    body = stored(uid="11111111-1111-4111-8111-111111111111")
    held = {"type": "Reconciling", "status": status, "reason": "Suspended", "message": "spec.suspend is true"}
    stalled = {"type": "Stalled", "status": "False", "reason": "Suspended", "message": ""}
    body["status"] = {"phase": phase, "observedRetryGeneration": 0, "conditions": [stalled, held]}
    for shown in (progress(IngestionJob.model_validate(body)), summary(NarrowJob.model_validate(body))):
        assert (shown.status, shown.error_message) == (phase, told)


def test_how_many_segments_there_are_is_not_told_before_it_is_known() -> None:
    body = stored(uid="11111111-1111-4111-8111-111111111111")
    body["status"] = {"phase": "processing", "observedRetryGeneration": 0, "segments": {"total": 0}}
    assert progress(IngestionJob.model_validate(body)).segment_count is None


def retryable(generation: int = 0, **metadata: Any) -> JsonObject:
    """A failed job, with a generation that the operator has yet to take up where it is above 0."""
    body = stored(uid="11111111-1111-4111-8111-111111111111", **metadata)
    body["spec"]["retryGeneration"] = generation
    body["status"] = {"phase": "failed", "observedRetryGeneration": 0}
    return body


class RetriedJob:
    """One job at an API server: what is read, and how a PATCH is answered, one after the other."""

    def __init__(self, *patches: tuple[int, JsonObject], read: JsonObject) -> None:
        self.patches, self.read = list(patches), read
        self.sent: list[JsonObject] = []

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        if request.command == "GET":
            answer(request, 200, json.dumps(self.read).encode())
            return
        self.sent.append(json.loads(request.rfile.read(int(request.headers["Content-Length"]))))
        status, body = self.patches.pop(0)
        answer(request, status, json.dumps(body).encode())


async def test_a_key_is_kept_by_a_retry_that_others_asked_for_although_it_begins_meanwhile(tmp_path: Path) -> None:
    begun = retryable(1, resourceVersion="2")
    begun["status"] = {"phase": "processing", "observedRetryGeneration": 1}
    conflict = {"kind": "Status", "reason": "Conflict", "message": "it has changed"}
    cluster = RetriedJob((409, conflict), (200, begun), read=begun)
    async with services(tmp_path, cluster) as parts:
        waiting = IngestionJob.model_validate(retryable(1))
        await parts.retries.accept(caller=CALLER, job=waiting, key=key_digest("monday"))
    (kept,) = json.loads(cluster.sent[-1]["metadata"]["annotations"]["ingestion-operator.io/idempotency-keys"])
    assert kept["generation"] == 1
    assert "spec" not in cluster.sent[-1]


async def test_the_last_20_keys_are_kept(tmp_path: Path) -> None:
    """The oldest is forgotten: a repeat of the newest would be a second retry."""
    digests = [key_digest(f"retry-{number}") for number in range(21)]
    job, annotation = retryable(), "ingestion-operator.io/idempotency-keys"
    entries = [{"key": digest, "generation": number} for number, digest in enumerate(digests[:20])]
    job["metadata"]["annotations"] = {annotation: json.dumps(entries)}
    cluster = RetriedJob((200, job), read=job)
    async with services(tmp_path, cluster) as parts:
        await parts.retries.accept(caller=CALLER, job=IngestionJob.model_validate(job), key=digests[20])
    kept = json.loads(cluster.sent[-1]["metadata"]["annotations"][annotation])
    assert [entry["key"] for entry in kept] == digests[1:]


async def test_a_retry_that_the_cluster_fails_with_ends_soon_and_with_what_failed(tmp_path: Path) -> None:
    """A webhook that is away takes its whole timeout each time."""
    failed = {"kind": "Status", "reason": "InternalError", "message": 'failed calling webhook "x"'}
    cluster = RetriedJob(*[(500, failed)] * 8, read=retryable())
    async with services(tmp_path, cluster) as parts:
        with pytest.raises(ApiError, match="failed calling webhook"):
            await parts.retries.accept(caller=CALLER, job=IngestionJob.model_validate(retryable()), key=None)
    assert len(cluster.sent) == 3


async def test_a_retry_whose_answer_is_lost_is_found_again(tmp_path: Path) -> None:
    cluster = RetriedJob((500, {"kind": "Status"}), read=retryable(1, resourceVersion="2"))
    async with services(tmp_path, cluster) as parts:
        await parts.retries.accept(caller=CALLER, job=IngestionJob.model_validate(retryable()), key=None)
    assert len(cluster.sent) == 1


@pytest.mark.parametrize("key", [None, "monday"])
@pytest.mark.parametrize("generation", [0, 1], ids=["at rest", "with a retry that waits"])
async def test_a_job_that_is_being_deleted_is_not_retried(tmp_path: Path, generation: int, key: str | None) -> None:
    cluster = RetriedJob(read={})
    async with services(tmp_path, cluster) as parts:
        job = IngestionJob.model_validate(retryable(generation, deletionTimestamp="2026-01-01T00:00:00Z"))
        with pytest.raises(ProblemError, match="is being deleted") as refused:
            await parts.retries.accept(caller=CALLER, job=job, key=key_digest(key))
    assert (refused.value.status, refused.value.error, cluster.sent) == (400, "not_retryable", [])


DENIALS = [
    'admission webhook "policy.example.com" denied the request: no retries on Mondays',
    "ValidatingAdmissionPolicy 'mondays' with binding 'all' denied request: no retries on Mondays",
]


@pytest.mark.parametrize("message", DENIALS)
@pytest.mark.parametrize(
    ("status", "reason"),
    [*((status, "Forbidden") for status in (400, 403, 404, 422)), (409, "AlreadyExists"), (409, "Conflict")],
)
async def test_what_a_policy_denies_is_told_in_its_words(
    tmp_path: Path, status: int, reason: str, message: str
) -> None:
    """With 403, as some do, which is the status of a lack of access too, or with others of their choice."""
    denied = {"kind": "Status", "reason": reason, "message": message}
    async with services(tmp_path, RetriedJob((status, denied), (status, denied), read={})) as parts:
        with pytest.raises(ProblemError, match="no retries on Mondays") as refused:
            await parts.retries.accept(caller=CALLER, job=IngestionJob.model_validate(retryable()), key=None)
        assert (refused.value.error, refused.value.retry_after) == ("not_retryable", None)
        with pytest.raises(ProblemError, match="no retries on Mondays") as refused:
            await bulk_ingest(request(parts, body=HEAD + FILE + END), uuid.UUID(KB), CALLER)
        assert (refused.value.error, refused.value.retry_after) == ("invalid_job", None)
    assert bucket(tmp_path) == []


async def test_who_meets_a_quota_that_is_used_up_is_not_asked_to_send_the_files_again_at_once(tmp_path: Path) -> None:
    quota = 'ingestionjobs "x" is forbidden: exceeded quota: jobs, requested: 1, used: 5, limited: 5'
    full = {"kind": "Status", "reason": "Forbidden", "message": quota}
    async with services(tmp_path, RetriedJob((403, full), read={})) as parts:
        with pytest.raises(ProblemError, match="quota of ingestion jobs is used up") as refused:
            await bulk_ingest(request(parts, body=HEAD + FILE + END), uuid.UUID(KB), CALLER)
    assert (refused.value.status, refused.value.response().headers["retry-after"]) == (429, "60")
    assert bucket(tmp_path) == []


@pytest.mark.parametrize(
    ("namespace", "status", "error"), [("team-z", 400, "not_a_tenant"), ("team-a", 503, "unavailable")]
)
async def test_a_job_whose_namespace_is_no_tenant_any_more_is_not_retried(
    tmp_path: Path, namespace: str, status: int, error: str
) -> None:
    """The API may write in tenants' namespaces alone. Where it may not in one of those, that is no client's fault."""
    job = retryable(namespace=namespace)
    forbidden = {"kind": "Status", "reason": "Forbidden", "message": 'ingestionjobs "handbook" is forbidden'}
    async with services(tmp_path, RetriedJob((403, forbidden), read=job)) as parts:
        parts.index.put(job)
        stranger = Principal(key_id="k", namespace=namespace)
        with pytest.raises((ProblemError, ApiError)) as refused:
            await retry_ingestion_job(request(parts), uuid.UUID(job["metadata"]["uid"]), stranger)
    problem = refused.value if isinstance(refused.value, ProblemError) else from_api_error(refused.value)
    assert (problem.status, problem.error, problem.retry_after) == (status, error, None)


@pytest.mark.parametrize("phase", ["failed", "brand_new"])
async def test_a_job_of_a_newer_operator_is_shown_and_retried(tmp_path: Path, phase: str) -> None:
    """Whatever is a choice in it may be one that this release has none of."""
    moment = "2026-01-01T00:00:00Z"
    conditions = [
        {"type": "BrandNew", "status": "True", "reason": "Published"},
        {"type": "Stalled", "status": "True", "reason": "BrandNew", "message": "look", "lastTransitionTime": moment},
    ]
    attempt = {"generation": 0, "trigger": "BrandNew", "reason": "BrandNew", "startTime": moment}
    ran = [{"stage": "brand_new", "name": f"job-{number}", "mapDigest": "d"} for number in range(4)]
    body = stored(str(uuid.UUID(int=1)))
    body["spec"] |= {"mode": "BrandNew", "template": {"tolerations": [{"operator": "BrandNew"}]}}
    body["status"] = {
        **{"phase": phase, "stage": "brand_new", "mode": "BrandNew", "observedRetryGeneration": 0},
        "version": {"id": str(uuid.UUID(int=2)), "state": "brand_new"},
        "failures": [{"stage": "brand_new", "code": "BrandNew", "retryable": True, "attempt": 0}],
        "attempts": [{**attempt, "jobs": ran}],
        "conditions": conditions,
    }
    commands: list[str] = []

    def server(request: BaseHTTPRequestHandler) -> None:
        commands.append(request.command)
        request.rfile.read(int(request.headers.get("Content-Length", 0)))
        answer(request, 200, json.dumps(body).encode())

    async with services(tmp_path, server) as parts:
        parts.index.synced = True
        job = await parts.jobs.find(namespace="team-a", wanted=uuid.UUID(int=1))
        shown = progress(job)
        assert (shown.status, shown.stage, shown.error_message) == (phase, "brand_new", "look")
        assert [(attempt.trigger, attempt.reason) for attempt in shown.attempts] == [("BrandNew", "BrandNew")]
        assert [(failure.stage, failure.code) for failure in shown.failures] == [("brand_new", "BrandNew")]
        assert shown.version is not None
        assert shown.version.state == "brand_new"
        assert document_view(job).status == phase
        which = {"namespace": "team-a", "knowledge_base": KNOWLEDGE_BASE, "phase": None, "limit": 9, "before": None}
        assert [json.loads(listed.entry)["status"] for listed in parts.index.page(**which)[0]] == [phase]
        if phase == "failed":
            await parts.retries.accept(caller=CALLER, job=job, key=None)
        else:
            with pytest.raises(ProblemError, match="the job is brand_new; only a failed") as refused:
                await parts.retries.accept(caller=CALLER, job=job, key=None)
            assert refused.value.error == "not_retryable"
    assert commands == ["GET", "PATCH"][: 1 + (phase == "failed")]


def test_a_batch_of_a_newer_operator_is_shown() -> None:
    body = stored(str(uuid.UUID(int=1)))
    document = body["spec"].pop("document")
    body["spec"] |= {"documents": [document], "mode": "BrandNew"}
    body["status"] = {"phase": "brand_new", "observedRetryGeneration": 0}
    assert progress(ShownBatch.model_validate(body)).status == "brand_new"
    assert summary(NarrowBatch.model_validate(body)).status == "brand_new"


async def test_what_cannot_be_read_of_a_job_is_said(tmp_path: Path) -> None:
    body = {**stored(str(uuid.UUID(int=1))), "status": {"phase": "failed", "version": {"id": ["brand", "new"]}}}
    async with services(tmp_path, lambda request: answer(request, 200, json.dumps(body).encode())) as parts:
        with pytest.raises(ProblemError, match=r"upgrade, .*; status\.version\.id: ") as unread:
            await get_ingestion_job_progress(request(parts), uuid.UUID(int=1), CALLER)
    assert (unread.value.status, unread.value.error) == (500, "unreadable_job")


@pytest.mark.parametrize("doubt", ["a list fails", "a read of the keys failed"])
async def test_a_replica_is_ready_while_it_can_read_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doubt: str
) -> None:
    """Lists that fail make none unready; and while nothing fails, the probe asks for nothing."""
    clock, status, reads = SimpleNamespace(now=1000.0), {"secrets": 500, "ingestionjobs": 500}, 0
    monkeypatch.setattr("ingestion_api.auth.time", SimpleNamespace(monotonic=lambda: clock.now))
    empty = json.dumps({"metadata": {"resourceVersion": "1"}, "items": []}).encode()

    def server(request: BaseHTTPRequestHandler) -> None:
        nonlocal reads
        secret = "/secrets/" in request.path
        reads += secret
        body = b"{}" if secret else b"" if "watch=true" in request.path else empty
        answer(request, status["secrets" if secret else "ingestionjobs"], body, Content_Type="application/json")

    async with services(tmp_path, server) as parts:
        app = create_app(parts.options, parts.config)
        app.state.services = parts
        parts.index.synced = True
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as http:

            async def ready() -> bool:
                clock.now += 31
                return (await http.get("/readyz")).status_code == 200

            assert await ready()
            assert reads == 0
            if doubt == "a list fails":
                following = asyncio.create_task(parts.index.run())
                while not parts.index.failing:
                    await asyncio.sleep(0.01)
            else:
                with pytest.raises(ProblemError):
                    await parts.keys.authenticate("none")
            assert not await ready()
            status["secrets"] = 200
            assert await ready()
            assert parts.index.failing == (doubt == "a list fails")
            if parts.index.failing:
                status["ingestionjobs"] = 200
                while parts.index.failing:
                    await asyncio.sleep(0.01)
                following.cancel()
            reads = 0
            assert await ready()
            assert reads == 0


@pytest.mark.parametrize("foreign", [str(uuid.UUID(int=1)), "none"], ids=["another job's", "no id"])
async def test_a_job_has_its_own_id_whatever_its_status_says(tmp_path: Path, foreign: str) -> None:
    """As the status does that a backup tool has brought back, until the operator has looked at it."""
    jobs = {"first": stored("first", uid=str(uuid.UUID(int=1))), "second": stored("second", uid=str(uuid.UUID(int=2)))}
    jobs["second"]["status"] = {"phase": "failed", "observedRetryGeneration": 0, "jobID": foreign}

    def server(request: BaseHTTPRequestHandler) -> None:
        job = jobs.get(request.path.rsplit("/", 1)[-1])
        missing = {"kind": "Status", "reason": "NotFound"}
        answer(request, 404 if job is None else 200, json.dumps(job or missing).encode())

    async with services(tmp_path, server) as parts:
        for job in jobs.values():
            parts.index.put(job)
        for number, name in ((1, "first"), (2, "second")):
            found = await parts.jobs.find(namespace="team-a", wanted=uuid.UUID(int=number))
            assert (found.metadata.name, progress(found).id) == (name, uuid.UUID(int=number))
        listed, _ = parts.index.page(
            namespace="team-a", knowledge_base=KNOWLEDGE_BASE, phase=None, limit=9, before=None
        )
    ids = {str(json.loads(job.entry)["id"]) for job in listed}
    assert ids == {str(uuid.UUID(int=1)), str(uuid.UUID(int=2))}


@pytest.mark.parametrize("problem", [busy("too many"), unavailable("away")])
def test_a_client_that_is_to_try_again_is_told_when(problem: ProblemError) -> None:
    assert int(problem.response().headers["retry-after"]) > 0


def test_jobs_are_listed_newest_first() -> None:
    index = JobIndex(kube=cast(KubeClient, None), metrics=Metrics())
    for day in (2, 1, 3):
        index.put(stored(f"job-{day}", creationTimestamp=f"2026-01-0{day}T00:00:00Z"))
    which = {"namespace": "team-a", "knowledge_base": KNOWLEDGE_BASE, "phase": None, "limit": 2}
    first, place = index.page(**which, before=None)
    second, end = index.page(**which, before=place)
    assert [job.name for job in [*first, *second]] == ["job-3", "job-2", "job-1"]
    assert (len(first), end) == (2, None)


def test_a_job_that_is_kept_takes_little_memory() -> None:
    """Jobs may be kept for ever, and each replica of the API keeps all: its memory must not be what forbids it."""
    count, moment = 2_000, "2026-01-01T00:00:00Z"

    def body() -> bytes:
        job = stored(str(uuid.uuid4()))
        conditions = [
            {"type": kind, "status": "False", "reason": "Published", "message": "", "lastTransitionTime": moment}
            for kind in ("Ready", "Reconciling", "Stalled", "Failed", "Suspended")
        ]
        times = {"startTime": moment, "completionTime": moment}
        job["status"] = {"jobID": job["metadata"]["name"], "phase": "completed", "conditions": conditions, **times}
        return orjson.dumps(job)

    bodies = [body() for _ in range(count)]
    index = JobIndex(kube=cast(KubeClient, None), metrics=Metrics())
    index.put(orjson.loads(body()))  # what the first one brings along is kept once
    tracemalloc.start()
    try:
        for each in bodies:
            index.put(orjson.loads(each))
        which = {"namespace": "team-a", "knowledge_base": KNOWLEDGE_BASE, "phase": None, "before": None}
        listed, _ = index.page(**which, limit=count)
        page_json((job.entry for job in listed), next_cursor=None)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listed) == count
    assert kept / count < 2048


class ApiServer:
    """Takes jobs, or answers something else.

    Args:
        post: its answers to one POST after another, the last one to all that follow; 0 for one that is carried out and
            not answered, 403 for what a quota says that is used up, 409 for one whose count others change at the same
            time.
        get: its answer to each GET.
    """

    def __init__(self, *post: int, get: int = 200) -> None:
        self.post, self.get = list(post) or [201], get
        self.made: list[JsonObject] = []

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        if request.command == "GET":
            told = {"kind": "Status", "reason": "NotFound"} if self.get == 404 else stored()
            answer(request, self.get, json.dumps(told).encode())
            return
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        status = self.post.pop(0) if len(self.post) > 1 else self.post[0]
        if status in (0, 201) and body in self.made:
            answer(request, 409, json.dumps({"kind": "Status", "reason": "AlreadyExists"}).encode())
            return
        if status in (0, 201):
            self.made.append(body)
        if status == 0:
            request.close_connection = True
        else:
            told = {403: {"message": "exceeded quota: jobs"}, 409: {"reason": "Conflict"}}.get(status)
            answer(request, status, json.dumps({"kind": "Status", **told} if told else stored()).encode())


def configuration(folder: Path) -> JsonObject:
    """Of one tenant, whose bucket is a folder."""
    return {
        "workerImage": "worker:test",
        "store": {"endpoint": f"file://{folder}"},
        "tenants": [{"namespace": "team-a", "bucket": "team-a"}],
    }


@asynccontextmanager
async def services(
    folder: Path, server: Callable[[BaseHTTPRequestHandler], None], **options: Any
) -> AsyncIterator[Services]:
    """The API's parts, over buckets that are folders."""
    config = Config.model_validate(configuration(folder))
    with http_server(handle=server) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(folder, url)) as kube:
            chosen = Options(namespace="system", **options)
            yield connect(kube=kube, config=config, options=chosen, metrics=Metrics())


def request(parts: Services, *, body: bytes = b"", ends: bool = True) -> Request:
    """A request to an app of these parts; one that does not end sends nothing more."""
    app = FastAPI()
    app.state.services = parts
    messages = [{"type": "http.request", "body": body, "more_body": not ends}]

    async def receive() -> dict[str, Any]:
        if not messages:
            await asyncio.sleep(3600)
        return messages.pop(0)

    headers = [(b"content-type", b"multipart/form-data; boundary=b")]
    return Request({"type": "http", "method": "POST", "headers": headers, "app": app, "state": {}}, receive)


def bucket(folder: Path) -> list[str]:
    store = Store(config=StoreConfig(url=f"file://{folder}/team-a"))
    return [entry.key for entry in store.list(prefix="uploads")]


def field(name: str, value: str) -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


@pytest.mark.parametrize("before", [0, 1, 3], ids=["after the file", "around it", "before it"])
async def test_an_upload_becomes_a_job_as_its_fields_say(tmp_path: Path, before: int) -> None:
    """Wherever they are: many clients send the file first, or parts in an order of their own."""
    given = [field("document_id", OTHER), field("mode", "Segmented"), field("title", "Notes")]
    body = b"".join([*given[:before], FILE, b"\r\n", *given[before:], b"--b--\r\n"])
    server = ApiServer()
    async with services(tmp_path, server) as parts:
        taken = await bulk_ingest(request(parts, body=body), uuid.UUID(KB), CALLER)
    (made,), (key,) = server.made, bucket(tmp_path)
    spec, document = made["spec"], made["spec"]["document"]
    assert (spec["mode"], document["title"], document["id"]) == ("Segmented", "Notes", OTHER)
    assert [str(item.document_id) for item in taken.items] == [OTHER]
    assert document["source"]["uri"] == f"s3://team-a/{key}"
    assert (key.split("/")[1] == OTHER) == bool(before)


@pytest.mark.parametrize(
    ("late", "told"),
    [
        (field("mode", "Fast"), "mode"),
        (field("title", "Notes"), "title: given twice"),
        (b"".join(field(f"x{number}", "") for number in range(MAX_FIELDS)), f"at most {MAX_FIELDS} fields"),
        (field("options", "x" * (MAX_FIELD_BYTES + 1)), f"options: more than {MAX_FIELD_BYTES} bytes"),
        (FILE + b"\r\n", "title: the form has several files"),
    ],
    ids=["wrong", "twice", "too many", "too long", "another file"],
)
async def test_what_comes_after_the_file_is_bounded_as_what_comes_before_it(
    tmp_path: Path, late: bytes, told: str
) -> None:
    server = ApiServer()
    async with services(tmp_path, server) as parts:
        body = field("title", "Notes") + FILE + b"\r\n" + late + b"--b--\r\n"
        with pytest.raises(ProblemError, match=told) as refused:
            await bulk_ingest(request(parts, body=body), uuid.UUID(KB), CALLER)
    assert (refused.value.status, server.made, bucket(tmp_path)) == (400, [], [])


EXTENDED = b"filename*=utf-8''%C3%9Cbersicht%20a%3Bb.md"


@pytest.mark.parametrize(
    ("named", "title"),
    [
        (b'filename="=?utf-8?B?w5xiZXJzaWNodCBhO2IubWQ=?="; ' + EXTENDED, "Übersicht a;b.md"),
        (EXTENDED + b'; filename="?bersicht"', "Übersicht a;b.md"),
        (EXTENDED, "Übersicht a;b.md"),
        (b"filename=a.md; filename*=UTF-8'en'a.md", "a.md"),
        ('filename="Übersicht.md"'.encode(), "Übersicht.md"),
        (b'filename="; ' + EXTENDED + b'"', "; " + EXTENDED.decode()),
        (b'filename="; ' + EXTENDED, '"; ' + EXTENDED.decode()),
        (b"filename=a.md; filename*=iso-8859-1''%DC.md", "a.md"),
    ],
    ids=[".NET", "the other way round", "alone", "of ASCII", "a browser", "within the name", "not closed", "not UTF-8"],
)
async def test_a_file_is_called_as_its_client_says(tmp_path: Path, named: bytes, title: str) -> None:
    server = ApiServer()
    part = b"--b\r\nContent-Disposition: form-data; name=file; " + named + b"\r\n\r\nabc"
    async with services(tmp_path, server) as parts:
        await bulk_ingest(request(parts, body=part + END), uuid.UUID(KB), CALLER)
    (made,), (key,) = server.made, bucket(tmp_path)
    assert made["spec"]["document"]["title"] == title
    assert key.endswith(".md")


@pytest.mark.parametrize(
    ("post", "get", "left"),
    [
        *(([500], 500, 1), ([500], 404, 1), ([0, 500], 404, 1), ([422], 200, 0), ([500, 422], 404, 0)),
        *(([500, 422], 500, 1), ([409], 404, 0), ([409, 500], 404, 1), ([500, 409], 404, 1), ([500, 403], 404, 1)),
        *(([409, 403], 404, 0), ([429], 404, 0), ([500, 429], 404, 1), ([429, 500], 404, 1)),
    ],
    ids=[
        *("may exist", "may come yet", "was not answered", "is refused", "is refused later"),
        *("is refused, or is there", "has no place in a quota", "has none, or may come yet"),
        *("has none, or has come meanwhile", "has none, or has it itself", "has none any more"),
        *("was never begun", "may come yet, and is not begun again", "is begun later, and may come yet"),
    ],
)
async def test_an_uploaded_file_stays_as_long_as_its_job_may_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, post: list[int], get: int, left: int
) -> None:
    """Nothing is lost, and of what is refused nothing is left."""
    monkeypatch.setattr("ingestion_api.jobs._PAUSES_SECONDS", (0.0, 0.01, 0.01))
    async with services(tmp_path, ApiServer(*post, get=get)) as parts:
        with pytest.raises(ProblemError) as refused:
            await bulk_ingest(request(parts, body=HEAD + FILE + END), uuid.UUID(KB), CALLER)
    assert isinstance(refused.value, JobUnknownError) == bool(left)
    assert refused.value.status != 500
    if left:
        assert "retry-after" not in refused.value.response().headers, "a repeat makes another document"
    assert len(bucket(tmp_path)) == left


async def test_a_404_of_a_proxy_does_not_say_that_a_job_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file stays, and no client takes it for deleted."""
    monkeypatch.setattr("ingestion_api.jobs._PAUSES_SECONDS", (0.0,))
    quota = json.dumps({"kind": "Status", "reason": "Conflict"}).encode()

    def server(request: BaseHTTPRequestHandler) -> None:
        request.rfile.read(int(request.headers.get("Content-Length", 0)))
        posted = request.command == "POST"
        answer(request, 409 if posted else 404, quota if posted else b"<html>404 Not Found</html>")

    async with services(tmp_path, server) as parts:
        with pytest.raises(JobUnknownError):
            await bulk_ingest(request(parts, body=HEAD + FILE + END), uuid.UUID(KB), CALLER)
        assert len(bucket(tmp_path)) == 1
        parts.index.synced, job = True, IngestionJob.model_validate(retryable())
        for asked in (
            parts.jobs.find(namespace="team-a", wanted=uuid.UUID(int=1)),
            parts.jobs.again(job),
            parts.retries.accept(caller=CALLER, job=job, key=None),
        ):
            with pytest.raises(ApiError) as unknown:
                await asked
            assert from_api_error(unknown.value).status == 503


@pytest.mark.parametrize(
    ("post", "get"),
    [([0, 201], 500), ([500, 201], 500), ([429, 201], 500), ([409, 201], 500), ([0, 403], 200), ([0, 500], 200)],
    ids=["was made", "is made now", "too much to do", "a quota that changes", "has used up the quota", "is there"],
)
async def test_a_job_is_made_once_however_often_it_has_to_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, post: list[int], get: int
) -> None:
    monkeypatch.setattr("ingestion_api.jobs._PAUSES_SECONDS", (0.0, 0.01, 0.01))
    server = ApiServer(*post, get=get)
    async with services(tmp_path, server) as parts:
        taken = await bulk_ingest(request(parts, body=HEAD + FILE + END), uuid.UUID(KB), CALLER)
    assert [job["metadata"]["name"] for job in server.made] == [str(taken.ingestion_job_id)]
    assert len(bucket(tmp_path)) == 1


async def test_an_upload_that_stalls_is_given_up(tmp_path: Path) -> None:
    """And its place is another's."""
    async with services(tmp_path, ApiServer(), stall_seconds=0.2, uploads=1) as parts:
        for _ in range(2):
            with pytest.raises(ProblemError) as refused:
                await bulk_ingest(request(parts, body=FILE, ends=False), uuid.UUID(KB), CALLER)
            assert refused.value.status == 408
    assert bucket(tmp_path) == []


async def test_an_upload_that_trickles_is_given_up(tmp_path: Path) -> None:
    """A byte now and then would keep its place for ever."""

    async def trickle() -> dict[str, Any]:
        await asyncio.sleep(0.06)
        return {"type": "http.request", "body": pieces.pop(0) if pieces else b"x", "more_body": True}

    async with services(tmp_path, ApiServer(), stall_seconds=1.0) as parts:
        pieces = [HEAD + FILE, *[b"x" * 64 * 1024] * 20]  # longer than that, but not slower
        with pytest.raises(ProblemError, match="less than 65536 bytes arrived in") as refused:
            await asyncio.wait_for(bulk_ingest(Request(request(parts).scope, trickle), uuid.UUID(KB), CALLER), 30)
        assert refused.value.status == 408
        assert pieces == []
    assert bucket(tmp_path) == []


async def test_who_is_no_tenant_has_no_bucket(tmp_path: Path) -> None:
    """As one that was taken out of the chart's values, and whose keys are still there."""
    cluster, stranger = ApiServer(), Principal(key_id="k", namespace="team-z")
    async with services(tmp_path, cluster) as parts, AsyncExitStack() as stack:
        hits = parts.searches.best(namespace="team-z", knowledge_bases=[KB], query="q", limit=1)
        for asked in (
            bulk_ingest(request(parts, body=HEAD + FILE + END), uuid.UUID(KB), stranger),
            stack.enter_async_context(hits),
        ):
            with pytest.raises(ProblemError, match="team-z has no store") as refused:
                await asked
            assert (refused.value.status, refused.value.error) == (400, "not_a_tenant")
    assert cluster.made == []
    assert not (tmp_path / "team-z").exists()


class SlowApiServer(ApiServer):
    """Knows a key, and answers no POST before the end."""

    def __init__(self) -> None:
        super().__init__()
        key_id, self.key = new_key()
        created = datetime.datetime.now(tz=datetime.UTC)
        entry = KeyEntry(hash=hash_key(self.key), namespace="team-a", name="", created=created)
        self.secret = {"data": {key_id: encode_entry(entry)}}
        self.asked, self.ended = threading.Event(), threading.Event()

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        if "/secrets/" in request.path:
            answer(request, 200, json.dumps(self.secret).encode())
        elif request.command == "POST":
            self.asked.set()
            self.ended.wait(30)
        else:
            super().__call__(request)


@pytest.mark.parametrize(
    ("sent", "error", "left"),
    [(FILE, "unavailable", 0), (FILE + b"\r\n--b\r\n", "unavailable", 0), (FILE + END, "unknown", 1)],
    ids=["the file is under way", "the file is there", "the job may be made"],
)
async def test_a_client_that_a_shutdown_cuts_off_is_told_so(tmp_path: Path, sent: bytes, error: str, left: int) -> None:
    """And its file stays only if there may be a job for it."""
    cluster = SlowApiServer()
    config = Config.model_validate(configuration(tmp_path))
    (port,) = ports.free(count=1)
    with http_server(handle=cluster) as url:
        options = Options(namespace="system", kubeconfig=kubeconfig(tmp_path, url), shutdown_seconds=1)
        server = serve(create_app(options, config), options, port)
        next(server)
        async with client(port) as (reader, writer):
            writer.write(
                f"POST /v1/knowledge-base/knowledge-bases/{KB}/ingest HTTP/1.1\r\nx-api-key: {cluster.key}\r\n"
                "content-type: multipart/form-data; boundary=b\r\ntransfer-encoding: chunked\r\n"
                "expect: 100-continue\r\n\r\n".encode()
            )
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"%x\r\n%s\r\n" % (len(sent), sent))
            if left:
                assert await asyncio.to_thread(cluster.asked.wait, 30)
            else:
                await asyncio.sleep(0.2)
            ending = asyncio.create_task(asyncio.to_thread(next, server, None))
            status, body = await answer_of(reader)
            assert (status, json.loads(body)["error"]) == (503, error)
            assert await reader.read() == b""
            cluster.ended.set()
            await ending
    assert len(bucket(tmp_path)) == left


async def test_a_tenant_whose_secret_cannot_be_read_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the others, and not its own requests one after the other."""
    seconds = 3.0
    monkeypatch.setattr("ingestion_api.stores.READ_SECONDS", seconds)
    goes_on, asked = threading.Event(), []

    def secrets(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        if "/team-a/" in request.path:
            goes_on.wait(30)
        answer(request, 200, json.dumps({"data": dict.fromkeys((STORE_ACCESS_KEY, STORE_SECRET_KEY), "YQ==")}).encode())

    chosen = {**configuration(tmp_path), "store": {"endpoint": "http://127.0.0.1:9"}}
    chosen["tenants"] = [{"namespace": name, "bucket": name} for name in ("team-a", "team-b")]
    config = Config.model_validate(chosen)
    with http_server(handle=secrets) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            options = Options(namespace="system", search_seconds=0.2)
            parts = connect(kube=kube, config=config, options=options, metrics=Metrics())
            begun = time.monotonic()
            several = [asyncio.create_task(parts.stores.of(namespace="team-a")) for _ in range(4)]
            with pytest.raises(ProblemError) as late:
                async with parts.searches.best(namespace="team-a", knowledge_bases=[KB], query="q", limit=1):
                    pass
            assert late.value.status == 503
            assert await parts.stores.of(namespace="team-b") is await parts.stores.of(namespace="team-b")
            assert not any(task.done() for task in several), "and before that of team-a is given up"
            for failed in await asyncio.gather(*several, return_exceptions=True):
                assert isinstance(failed, ApiError)
            assert time.monotonic() - begun < 2 * seconds
            goes_on.set()
            await parts.stores.of(namespace="team-a")
            assert len(asked) == 3
            parts.searches.close()


@pytest.mark.parametrize(
    ("data", "lacks"),
    [
        ({STORE_ACCESS_KEY: "/w==", STORE_SECRET_KEY: "YQ=="}, STORE_ACCESS_KEY),
        ({STORE_ACCESS_KEY: "YQ=="}, STORE_SECRET_KEY),
        ({STORE_ACCESS_KEY: "YQ==", STORE_SECRET_KEY: "YQ==", STORE_SESSION_TOKEN: "/w=="}, STORE_SESSION_TOKEN),
        (None, f"{STORE_ACCESS_KEY} and {STORE_SECRET_KEY}"),
        ({STORE_ACCESS_KEY: "", STORE_SECRET_KEY: "YQ=="}, STORE_ACCESS_KEY),
        ({STORE_ACCESS_KEY: "YQ==", STORE_SECRET_KEY: "Cg=="}, STORE_SECRET_KEY),
    ],
    ids=["one is no text", "one is missing", "the token is no text", "it is empty", "one is", "one is a line break"],
)
async def test_a_tenant_whose_secret_has_no_credentials_is_told_what_it_lacks(
    tmp_path: Path, data: JsonObject | None, lacks: str
) -> None:
    def secret(request: BaseHTTPRequestHandler) -> None:
        answer(request, 200, json.dumps({"data": data}).encode())

    config = Config.model_validate({**configuration(tmp_path), "store": {"endpoint": "http://127.0.0.1:9"}})
    with http_server(handle=secret) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            parts = connect(kube=kube, config=config, options=Options(namespace="system"), metrics=Metrics())
            with pytest.raises(ProblemError) as refused:
                await parts.stores.of(namespace="team-a")
            parts.searches.close()
    (tenant,) = config.tenants
    assert refused.value.status == 503
    assert f"the Secret team-a/{tenant.store_secret} lacks {lacks}, or" in refused.value.message
    assert refused.value.retry_after is None


async def test_the_keys_of_a_tenant_are_read_anew_with_the_token_of_those_that_hold_for_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion_api.stores.FRESH_SECONDS", 0.0)
    opened: list[StoreConfig] = []
    monkeypatch.setattr("ingestion_api.stores.Store", lambda *, config: opened.append(config))
    tokens: list[JsonObject] = [{}, {STORE_SESSION_TOKEN: "b25l"}, {STORE_SESSION_TOKEN: "dHdv"}]

    def secret(request: BaseHTTPRequestHandler) -> None:
        data = dict.fromkeys((STORE_ACCESS_KEY, STORE_SECRET_KEY), "YQ==") | tokens[len(opened)]
        answer(request, 200, json.dumps({"data": data}).encode())

    config = Config.model_validate({**configuration(tmp_path), "store": {"endpoint": "http://127.0.0.1:9"}})
    with http_server(handle=secret) as url:
        async with await KubeClient.connect(kubeconfig=kubeconfig(tmp_path, url)) as kube:
            stores = TenantStores(kube=kube, config=config)
            for _ in tokens:
                await stores.of(namespace="team-a")
    assert [config.session_token for config in opened] == ["", "one", "two"]


@pytest.mark.parametrize(
    ("code", "status", "after"),
    [
        *((code, 503, None) for code in ("EmbeddingUnauthorized", "EmbeddingInvalid", "StoreForbidden")),
        *((code, 503, None) for code in ("DocumentUnreadable", "PipelineChanged")),
        *((code, 503, RETRY_AFTER_SECONDS) for code in ("StoreUnavailable", "EmbeddingUnavailable")),
        *(("EmbeddingRateLimited", 503, RETRY_AFTER_SECONDS), ("EmbeddingRejected", 400, None)),
        ("DocumentTooLarge", 413, None),
    ],
)
async def test_a_search_is_to_be_tried_again_unless_somebody_has_to_mend_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: Code, status: int, after: int | None
) -> None:
    def search_text(**_: Any) -> list[Hit]:
        raise WorkerError(code, "why")

    monkeypatch.setattr("ingestion_worker.search.search_text", search_text)
    async with services(tmp_path, ApiServer()) as parts, AsyncExitStack() as stack:
        hits = parts.searches.best(namespace="team-a", knowledge_bases=[KB], query="q", limit=1)
        with pytest.raises(ProblemError, match="why") as refused:
            await stack.enter_async_context(hits)
    assert (refused.value.status, refused.value.retry_after) == (status, after)


async def test_an_upload_that_the_store_refuses_is_to_be_tried_again_with_the_keys_of_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unlike a search it cannot try them itself: its bytes are gone."""

    async def put_upload(**_: Any) -> Upload:
        raise WorkerError("StoreForbidden", "why")

    monkeypatch.setattr("ingestion_api.routes.ingest.put_upload", put_upload)
    async with services(tmp_path, ApiServer()) as parts:
        before = await parts.stores.of(namespace="team-a")
        with pytest.raises(ProblemError, match="why") as refused:
            await bulk_ingest(request(parts, body=FILE + END), uuid.UUID(KB), CALLER)
        assert await parts.stores.of(namespace="team-a") is not before
    assert (refused.value.status, refused.value.retry_after) == (503, RETRY_AFTER_SECONDS)


async def test_a_search_of_several_knowledge_bases_returns_the_best_of_all(tmp_path: Path) -> None:
    worker = Worker(store=Store(config=StoreConfig(url=f"file://{tmp_path}/team-a")), folder=tmp_path)
    texts = {KB: ["A lighthouse by the sea.", "Tax forms."], OTHER: ["The lighthouse keeper.", "Soup of the day."]}
    number = 0
    for knowledge_base, found in texts.items():
        for text in found:
            number += 1
            uri = worker.upload(data=text.encode(), name="a.txt")
            which = {"document__id": str(uuid.UUID(int=number)), "job__uid": f"job-{number}"}
            worker.ingest(document__source__uri=uri, knowledgeBase=knowledge_base, **which)
    async with services(tmp_path, ApiServer()) as parts:
        asked = {"query": "lighthouse", "kb_ids": list(texts)}

        async def search(**more: Any) -> SearchResponse:
            async with AsyncExitStack() as stack:
                answer = await search_knowledge_base(request(parts), SearchRequest(**asked, **more), CALLER, stack)
            return SearchResponse.model_validate_json(bytes(answer.body))

        every = await search(limit=10)
        scores = [result.score for result in every.results]
        assert len(scores) == 4
        assert scores == sorted(scores, reverse=True)
        best = await search(limit=2)
        assert {result.content for result in best.results} == {"A lighthouse by the sea.", "The lighthouse keeper."}
        for more in ({"rerank": True}, {"prefer_draft": True}, {"version_overrides": {OTHER: OTHER}}):
            with pytest.raises(ProblemError) as refused:
                await search(**more)
            assert (refused.value.status, next(iter(more)) in refused.value.message) == (400, True)


async def test_results_of_several_embeddings_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = EmbeddingSpec(provider="local", model="m", dimensions=2)
    found = {KB: [(BUILTIN, 0.3), (other, 0.9), (other, 0.8)], OTHER: [(other, 0.7), (BUILTIN, 0.2)]}

    def search_text(*, knowledge_base: str, **_: Any) -> list[Hit]:
        place = {"chunk_id": "", "chunk_index": 0, "document_id": KB, "version_id": "", "title": "", "page": None}
        scores = found[knowledge_base]
        return [Hit(**place, start=0, end=1, content="", embedding=spec, score=score) for spec, score in scores]

    monkeypatch.setattr("ingestion_worker.search.search_text", search_text)
    answers = []
    async with services(tmp_path, ApiServer()) as parts:
        for bases, limit in (([KB, OTHER], 4), ([KB, OTHER], 1)):
            async with AsyncExitStack() as stack:
                asked = SearchRequest(query="q", kb_ids=[uuid.UUID(base) for base in bases], limit=limit)
                answer = await search_knowledge_base(request(parts), asked, CALLER, stack)
                answers.append(SearchResponse.model_validate_json(bytes(answer.body)))
    several, one = answers
    assert [result.score for result in several.results] == [0.9, 0.3, 0.8, 0.2]
    assert several.ranking_mode == "grouped_unranked"
    generous, builtin = several.grouped_results or []
    assert (generous.embedding_model, generous.embedding_dimensions) == ("m", 2)
    assert (list(map(str, generous.kb_ids)), [result.score for result in generous.results]) == ([KB], [0.9, 0.8])
    assert (list(map(str, builtin.kb_ids)), [result.score for result in builtin.results]) == ([KB, OTHER], [0.3, 0.2])
    assert (one.ranking_mode, one.grouped_results, one.total_results) == ("global_score", None, 1)


async def test_of_a_body_that_is_wrong_in_thousands_of_places_the_first_are_told() -> None:
    """All of them would be megabytes, and keep every other request waiting."""
    app = FastAPI()
    install(app)

    @app.post("/numbers")
    async def numbers(_: Annotated[list[int], Body()]) -> None: ...

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as asking:
        refused = await asking.post("/numbers", json=["x"] * 8_000)
    assert (refused.status_code, len(refused.json()["detail"])) == (422, 20)
    overrides = {str(number): number for number in range(8_000)}
    assert len(SearchRequest(query="q", kb_ids=[KB], version_overrides=overrides).version_overrides or {}) == 8_000


async def test_a_search_of_many_knowledge_bases_takes_hardly_more_memory_than_one_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the best of all are kept meanwhile."""
    number, size = 0, 100_000

    def search_text(*, limit: int, **_: Any) -> list[Hit]:
        nonlocal number
        number += 1
        place = {"chunk_id": "", "chunk_index": 0, "document_id": KB, "version_id": "", "title": "", "page": None}
        score = 1 / number
        return [Hit(**place, start=0, end=1, content="x" * size, embedding=BUILTIN, score=score) for _ in range(limit)]

    monkeypatch.setattr("ingestion_worker.search.search_text", search_text)
    async with services(tmp_path, ApiServer()) as parts:
        which = {"namespace": "team-a", "query": "q", "limit": 20}
        tracemalloc.start()
        try:
            async with parts.searches.best(**which, knowledge_bases=map(str, range(16))) as hits:
                _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert {base for base, _ in hits} == {"0"}
        assert most < 4 * 20 * size


@pytest.mark.parametrize(
    ("query", "stalls", "status", "errors"),
    [
        (b"q" * (MAX_QUERY_BYTES + 1), False, 414, ["query_too_long"]),
        (b"", True, 408, ["timeout"]),
        (b"", False, 200, []),
    ],
)
async def test_limits_on_what_a_stranger_sends(
    monkeypatch: pytest.MonkeyPatch, query: bytes, stalls: bool, status: int, errors: list[str]
) -> None:
    monkeypatch.setattr("ingestion_api.middleware.BODY_SECONDS", 0.1)
    sent: list[dict[str, Any]] = []

    async def app(_: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        if stalls:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": [], "query_string": query, "state": {}}
    await Limits(app, upload_suffix="/ingest")(scope, receive, send)
    assert sent[0]["status"] == status
    assert [json.loads(message["body"])["error"] for message in sent[1:]] == errors
