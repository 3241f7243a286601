"""Several documents in one request, and batches shown as ingestion jobs: over a server that plays the cluster's."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from fastapi import Request
from ingestion_api.auth import Principal
from ingestion_api.documents import document_views
from ingestion_api.idempotency import key_digest
from ingestion_api.job_index import JobIndex
from ingestion_api.jobs import JobUnknownError, Making
from ingestion_api.metrics import Metrics
from ingestion_api.problems import ProblemError
from ingestion_api.routes import ingest
from ingestion_api.routes.ingest import TOTAL_FACTOR, bulk_ingest
from ingestion_api.services import Services
from ingestion_api.upload import MAX_FIELD_BYTES, MAX_MANIFEST_BYTES, MAX_PARTS, MultipartReader
from ingestion_api.views import IngestResponse, NarrowBatch, ShownBatch, progress, summary
from ingestion_crds import JsonObject
from ingestion_crds.batch import IngestionBatch
from ingestion_crds.constants import BATCH_KIND, KIND
from ingestion_crds.kube import KubeClient
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store
from support.builders import DOCUMENT, KNOWLEDGE_BASE
from support.worker_builders import KB, answer

from .test_answers import CALLER, OTHER, bucket, field, services, stored
from .test_answers import request as request_of

MOMENT = "2026-01-01T00:00:00Z"


def part(name: str, content: bytes = b"abc", *, of: str = "file") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{of}"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


def manifest(*entries: Any) -> bytes:
    return field("manifest", json.dumps(entries))


def request(parts: Services, body: bytes, **headers: str) -> Request:
    made = request_of(parts, body=body)
    made.scope["headers"] += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(made.scope, made.receive)


async def overtaken(late: Request, early: Request) -> IngestResponse:
    """Send a request, and another one of its key while it is read; both get the same answer, which is returned."""
    reads, goes_on = asyncio.Event(), asyncio.Event()

    async def receive() -> Any:
        reads.set()
        await goes_on.wait()
        return await late.receive()

    waiting = asyncio.create_task(bulk_ingest(Request(late.scope, receive), uuid.UUID(KB), CALLER))
    await reads.wait()
    first = await bulk_ingest(early, uuid.UUID(KB), CALLER)
    goes_on.set()
    assert await waiting == first
    return first


class Cluster:
    """Keeps what is created, by kind and name, and gives it back.

    Args:
        lost: what a first POST is answered with although it is carried out; 0 for no answer.
        after: what a GET is answered with once something is there.
        room: what a dry run is answered with.
    """

    def __init__(self, *, lost: int | None = None, after: int = 200, room: int = 201) -> None:
        self.objects: dict[tuple[str, str], JsonObject] = {}
        self.lost, self.after, self.room = lost, after, room
        self.asked: Counter[str] = Counter()

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        plural = "ingestionbatches" if "/ingestionbatches" in request.path else "ingestionjobs"
        self.asked[f"{request.command} {plural}"] += 1
        if request.command == "GET":
            found = self.objects.get((plural, request.path.rsplit("/", 1)[-1]))
            status = self.after if found else 404
            told = {"kind": "Status", "reason": "NotFound"} if status == 404 else found
            answer(request, status, json.dumps(told).encode())
            return
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        if request.path.endswith("dryRun=All"):
            answer(request, self.room, json.dumps({"kind": "Status", "message": "exceeded quota: batches"}).encode())
            return
        place = (plural, body["metadata"]["name"])
        if place in self.objects:
            answer(request, 409, json.dumps({"kind": "Status", "reason": "AlreadyExists"}).encode())
            return
        known = {"uid": str(uuid.uuid4()), "creationTimestamp": MOMENT, "resourceVersion": "1", "namespace": "team-a"}
        body["metadata"] |= known
        self.objects[place] = body
        status, self.lost = (201 if self.lost is None else self.lost), None
        if status == 0:
            request.close_connection = True
        else:
            answer(request, status, json.dumps(body).encode())

    @property
    def only(self) -> JsonObject:
        (made,) = self.objects.values()
        return made


# ── intake ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("late", [False, True], ids=["before the files", "after them"])
async def test_several_files_become_one_batch_as_the_manifest_says(tmp_path: Path, late: bool) -> None:
    told = manifest({"title": "Handbook", "document_id": OTHER}, {"document_id": DOCUMENT}, {"title": None})
    files = [part("a.md", b"one"), part("b.md", b"two"), part("c.md", b"three")]
    options = field("options", '{"segmentBackoffLimit": 0}')
    body = form(*files, told, options) if late else form(told, options, *files)
    cluster = Cluster()
    async with services(tmp_path, cluster) as parts:
        taken = await bulk_ingest(request(parts, body), uuid.UUID(KB), CALLER)
    made = cluster.only
    spec = made["spec"]
    assert (made["kind"], made["metadata"]["name"]) == (BATCH_KIND, str(taken.ingestion_job_id))
    assert (spec["knowledgeBase"], spec["segmentBackoffLimit"]) == (KB, 0)
    assert [document["title"] for document in spec["documents"]] == ["Handbook", "b.md", "c.md"]
    ids = [document["id"] for document in spec["documents"]]
    assert ids[:2] == [OTHER, DOCUMENT]
    assert [(item.manifest_index, item.result, str(item.document_id)) for item in taken.items] == [
        (0, "queued", ids[0]),
        (1, "queued", ids[1]),
        (2, "queued", ids[2]),
    ]
    for document, content in zip(spec["documents"], (b"one", b"two", b"three"), strict=True):
        key = document["source"]["uri"].removeprefix("s3://team-a/")
        assert (tmp_path / "team-a" / key).read_bytes() == content
    assert IngestionBatch.model_validate(made).job_id == str(taken.ingestion_job_id)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (form(field("title", "x"), part("a"), part("b")), "title: the form has several files"),
        (form(part("a"), part("b"), field("document_id", OTHER)), "document_id: the form has several files"),
        (form(manifest({}), part("a"), part("b")), "manifest: it has 1 entries, and the form more files"),
        (form(part("a"), manifest({}, {})), "manifest: it has 2 entries, and the form 1 files"),
        (form(manifest({}), field("title", "x"), part("a")), "the form has a manifest; say it there"),
        (form(part("a"), manifest({"titel": "x"})), "manifest.0.titel"),
        (form(part("a"), manifest({str(number): 0 for number in range(30_000)})), "^manifest: wrong in 30000 places$"),
        (form(part("a"), manifest(*[{"titel": "x"}] * 1_000)), "^manifest.0.titel: Extra inputs are not permitted; "),
        (form(part("a"), manifest({"document_id": "x"})), "manifest.0.document_id"),
        (form(part("a"), manifest({"title": "x" * 513})), "manifest.0.title"),
        (form(part("a"), part("b"), manifest({"document_id": OTHER}, {"document_id": OTHER.upper()})), "twice"),
        (form(part("a"), field("manifest", "{")), "manifest"),
        (form(part("a"), field("manifest", "[" * 100_000)), "manifest"),
        (form(part("a"), field("manifest", "x" * (MAX_MANIFEST_BYTES + 1))), f"more than {MAX_MANIFEST_BYTES} bytes"),
        (form(part("a"), field("manifests", "x" * (MAX_FIELD_BYTES + 1))), f"more than {MAX_FIELD_BYTES} bytes"),
        (form(*[part("x" * 200 + str(number), b"") for number in range(900)]), "places of all files have more than"),
        (form(part("", b"")), "file: the form has none"),
        (form(part("a"), *[part("", b"") for _ in range(MAX_PARTS)]), f"at most {MAX_PARTS} parts are read"),
        (form(*[part("a", b"") for _ in range(6)]), "at most 5 documents are taken in one request"),
    ],
)
async def test_what_is_wrong_with_several_files_is_said_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, told: str
) -> None:
    if "at most 5" in told:
        monkeypatch.setattr(ingest, "MAX_DOCUMENTS", 5)
    cluster = Cluster()
    async with services(tmp_path, cluster) as parts:
        with pytest.raises(ProblemError, match=told) as refused:
            await bulk_ingest(request(parts, body), uuid.UUID(KB), CALLER)
    assert (refused.value.status, cluster.objects, bucket(tmp_path)) == (400, {}, [])


async def test_a_field_that_has_a_file_name_is_a_field(tmp_path: Path) -> None:
    """As each Blob of JavaScript has, and what curl reads from a file."""
    own = [part("blob", b"Notes", of="title"), part("blob", OTHER.encode(), of="document_id")]
    told = part("blob", b'[{"title": "One"}, {}]', of="manifest")
    both = [part("blob", b"SinglePass", of="mode"), part("options.json", b'{"segmentBackoffLimit": 0}', of="options")]
    made = []
    for body in (form(*own, *both, part("a.md")), form(part("a.md"), part("b.md"), told, *both)):
        cluster = Cluster()
        async with services(tmp_path, cluster) as parts:
            await bulk_ingest(request(parts, body), uuid.UUID(KB), CALLER)
        made.append(cluster.only["spec"])
    assert [(spec["mode"], spec["segmentBackoffLimit"]) for spec in made] == [("SinglePass", 0)] * 2
    job, several = made
    assert (job["document"]["title"], job["document"]["id"]) == ("Notes", OTHER)
    assert [document["title"] for document in several["documents"]] == ["One", "b.md"]
    assert len(bucket(tmp_path)) == 3


@pytest.mark.parametrize(("named", "content"), [("a.md", b""), ("", b"abc")], ids=["no bytes", "no name"])
async def test_a_file_input_in_which_nothing_was_chosen_is_no_file(tmp_path: Path, named: str, content: bytes) -> None:
    """Browsers send it without name and bytes; what has one of them is a file."""
    empty, cluster = part("", b""), Cluster()
    async with services(tmp_path, cluster) as parts:
        body = form(field("title", "Notes"), empty, part(named, content), empty)
        taken = await bulk_ingest(request(parts, body), uuid.UUID(KB), CALLER)
    assert (cluster.only["kind"], len(taken.items), len(bucket(tmp_path))) == (KIND, 1, 1)


async def test_all_files_of_a_request_have_a_bound_too(tmp_path: Path) -> None:
    cluster = Cluster()
    async with services(tmp_path, cluster) as parts:
        object.__setattr__(parts.config, "max_source_bytes", 10)
        most = form(*[part(f"{number}.md", b"x" * 10) for number in range(TOTAL_FACTOR)])
        await bulk_ingest(request(parts, most), uuid.UUID(KB), CALLER)
        assert len(cluster.only["spec"]["documents"]) == TOTAL_FACTOR
        kept = bucket(tmp_path)
        more = form(*[part(f"{number}.md", b"x" * 9) for number in range(TOTAL_FACTOR + 1)])
        with pytest.raises(ProblemError, match="at most 40 bytes are taken in one request") as refused:
            await bulk_ingest(request(parts, more), uuid.UUID(KB), CALLER)
        assert refused.value.status == 413
        with pytest.raises(ProblemError, match="more than 10 bytes"):
            await bulk_ingest(request(parts, form(part("a"), part("b", b"x" * 11))), uuid.UUID(KB), CALLER)
        announced = request(parts, most, content_length=str(2**30))
        with pytest.raises(ProblemError, match="at most 40 bytes") as refused:
            await bulk_ingest(announced, uuid.UUID(KB), CALLER)
        assert refused.value.status == 413
    assert bucket(tmp_path) == kept


async def test_a_manifest_is_read_once_however_many_files_come_after_it(tmp_path: Path) -> None:
    """Parsed for each file it would take minutes of processor time, at which a stranger could keep the API."""
    entries = [{"title": "t" * 100} for _ in range(500)]
    body = form(manifest(*entries), *[part("a", b"") for _ in entries])
    calls = 0
    read = ingest.read_form

    def counted(fields: dict[str, str]) -> Any:
        nonlocal calls
        calls += 1
        return read(fields)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest, "read_form", counted)
        cluster = Cluster()
        async with services(tmp_path, cluster) as parts:
            taken = await bulk_ingest(request(parts, body), uuid.UUID(KB), CALLER)
    assert len(taken.items) == 500
    assert calls <= 2


# As many events to the byte as a form can have.
EMPTY = b"\r\n--b\r\nContent-Disposition:;filename=\r\n" + b"a:\r\n" * 7 + b"\r\n"


def reader_of(body: bytes) -> MultipartReader:
    return MultipartReader(request=request_of(cast(Services, None), body=body), stall_seconds=60.0)


async def test_a_block_is_taken_apart_no_further_than_to_the_first_part_too_many() -> None:
    reader = reader_of(EMPTY * 4 * MAX_PARTS)
    with pytest.raises(ProblemError, match=f"at most {MAX_PARTS} parts are read"):
        await reader.next_file()
    assert len(reader._events) < 20 * MAX_PARTS


async def test_eight_times_the_parts_take_about_eight_times_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestion_api.upload.MAX_PARTS", 10_000)

    async def seconds(parts: int) -> float:
        reader = reader_of(EMPTY * parts + b"\r\n--b--\r\n")
        began = time.thread_time()
        assert await reader.next_file() is None
        return time.thread_time() - began

    few = min([await seconds(1_000) for _ in range(3)])
    assert await seconds(8_000) < 16 * few


async def test_others_have_their_turn_between_the_parts_of_a_block() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    waiting = asyncio.create_task(others())
    assert await reader_of(EMPTY * 100 + b"\r\n--b--\r\n").next_file() is None
    waiting.cancel()
    assert turns >= 100


async def test_a_store_that_fails_is_not_asked_to_delete_a_thousand_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would be tried for half a minute, while the client waits to be told what is wrong with its form."""
    asked = 0

    def away(*_: Any, **__: Any) -> None:
        nonlocal asked
        asked += 1
        raise WorkerError("StoreUnavailable", "the store does not answer")

    monkeypatch.setattr(Store, "delete", away)
    body = form(*[part("a", b"") for _ in range(60)], field("colour", "red"))
    async with services(tmp_path, Cluster()) as parts:
        with pytest.raises(ProblemError, match="colour"):
            await bulk_ingest(request(parts, body), uuid.UUID(KB), CALLER)
    assert 0 < asked < 20


async def test_a_file_that_cannot_be_deleted_keeps_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delete = Store.delete

    def but_one(store: Store, *, key: str) -> None:
        if key.endswith("first.md"):
            raise WorkerError("StoreUnavailable", "the store does not answer")
        delete(store, key=key)

    monkeypatch.setattr(Store, "delete", but_one)
    body = form(part("first.md"), *[part("a.md") for _ in range(40)], field("colour", "red"))
    async with services(tmp_path, Cluster()) as parts:
        with pytest.raises(ProblemError, match="colour"):
            await bulk_ingest(request(parts, body), uuid.UUID(KB), CALLER)
    (left,) = bucket(tmp_path)
    assert left.endswith("first.md")


async def test_files_are_deleted_to_the_last_although_a_shutdown_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delete, begun, goes_on, deleted = Store.delete, threading.Event(), threading.Event(), []

    def slow(store: Store, *, key: str) -> None:
        begun.set()
        goes_on.wait(30)
        delete(store, key=key)
        deleted.append(key)

    monkeypatch.setattr(Store, "delete", slow)
    body = form(*[part("a.md") for _ in range(40)], field("colour", "red"))
    async with services(tmp_path, Cluster()) as parts:
        taking = asyncio.create_task(bulk_ingest(request(parts, body), uuid.UUID(KB), CALLER))
        assert await asyncio.to_thread(begun.wait, 30)
        taking.cancel()
        await asyncio.wait([taking])
        goes_on.set()
        await until(lambda: len(deleted) == 40)
    assert bucket(tmp_path) == []


@pytest.mark.parametrize("lost", [0, 500, 504])
async def test_a_batch_is_made_once_however_often_it_has_to_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.setattr("ingestion_api.jobs._PAUSES_SECONDS", (0.0, 0.01, 0.01))
    cluster = Cluster(lost=lost)
    async with services(tmp_path, cluster) as parts:
        taken = await bulk_ingest(request(parts, form(part("a"), part("b"))), uuid.UUID(KB), CALLER)
    assert cluster.only["metadata"]["name"] == str(taken.ingestion_job_id)
    assert len(bucket(tmp_path)) == 2


async def test_a_quota_that_is_used_up_is_met_before_the_second_file_is_read(tmp_path: Path) -> None:
    cluster = Cluster(room=403)
    async with services(tmp_path, cluster, stall_seconds=2) as parts:
        begun = request_of(parts, body=part("a") + part("b").removesuffix(b"\r\n"), ends=False)
        with pytest.raises(ProblemError, match="quota of ingestion jobs is used up") as refused:
            await bulk_ingest(begun, uuid.UUID(KB), CALLER)
        assert refused.value.status == 429
        assert bucket(tmp_path) == []
        await bulk_ingest(request(parts, form(part("a"))), uuid.UUID(KB), CALLER)  # no batch
    assert cluster.only["kind"] == "IngestionJob"


@pytest.mark.parametrize("room", [400, 422, 500])
async def test_what_a_dry_run_is_refused_for_otherwise_is_left_to_be_told_in_earnest(tmp_path: Path, room: int) -> None:
    """A webhook may not take part in one."""
    cluster = Cluster(room=room)
    async with services(tmp_path, cluster) as parts:
        await bulk_ingest(request(parts, form(part("a"), part("b"))), uuid.UUID(KB), CALLER)
    assert cluster.only["kind"] == "IngestionBatch"


# ── Idempotency-Key ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("files", [1, 3])
async def test_a_request_that_is_sent_again_with_its_key_makes_nothing_new(tmp_path: Path, files: int) -> None:
    body = form(*[part(f"{number}.md") for number in range(files)])
    cluster = Cluster()
    async with services(tmp_path, cluster) as parts:
        first, again = [
            await bulk_ingest(request(parts, body, idempotency_key="monday"), uuid.UUID(KB), CALLER) for _ in range(2)
        ]
        assert again == first
        assert len(cluster.objects) == 1
        assert len(bucket(tmp_path)) == files
        for others in (
            bulk_ingest(request(parts, body, idempotency_key="tuesday"), uuid.UUID(KB), CALLER),
            bulk_ingest(request(parts, body, idempotency_key="monday"), uuid.UUID(OTHER), CALLER),
            bulk_ingest(request(parts, body), uuid.UUID(KB), CALLER),
        ):
            assert (await others).ingestion_job_id != first.ingestion_job_id
    assert len(cluster.objects) == 4


async def test_requests_with_one_key_at_the_same_time_make_one_batch_and_leave_no_file(tmp_path: Path) -> None:
    cluster = Cluster()
    async with services(tmp_path, cluster, uploads=8) as parts:
        body = form(part("a"), part("b"))
        requests = [request(parts, body, idempotency_key="monday") for _ in range(6)]
        taken = await asyncio.gather(*(bulk_ingest(each, uuid.UUID(KB), CALLER) for each in requests))
    assert all(each == taken[0] for each in taken)
    documents = cluster.only["spec"]["documents"]
    kept = {document["source"]["uri"].removeprefix("s3://team-a/") for document in documents}
    assert set(bucket(tmp_path)) == kept
    assert [str(item.document_id) for item in taken[0].items] == [document["id"] for document in documents]


async def test_a_quota_that_a_batch_has_used_up_is_no_reason_to_refuse_it_its_key(tmp_path: Path) -> None:
    class Full(Cluster):
        """Has room for one batch."""

        def __call__(self, request: BaseHTTPRequestHandler) -> None:
            self.room = 403 if self.objects else 201
            super().__call__(request)

    cluster = Full()
    async with services(tmp_path, cluster) as parts:
        body = form(part("a"), part("b"))
        late, early, another = (request(parts, body, idempotency_key=key) for key in ("monday", "monday", "tuesday"))
        first = await overtaken(late, early)
        with pytest.raises(ProblemError, match="quota of ingestion jobs is used up"):
            await bulk_ingest(another, uuid.UUID(KB), CALLER)
    assert cluster.only["metadata"]["name"] == str(first.ingestion_job_id)
    assert len(bucket(tmp_path)) == 2


@pytest.mark.parametrize(("slow", "quick"), [(3, 1), (1, 3)], ids=["a batch and a job", "a job and a batch"])
async def test_a_job_and_a_batch_with_one_key_at_the_same_time_are_one(tmp_path: Path, slow: int, quick: int) -> None:
    """They may have one name in the cluster, where neither keeps the other away."""
    cluster = Cluster()
    async with services(tmp_path, cluster) as parts:
        late, early = (request(parts, form(*[part("a")] * files), idempotency_key="monday") for files in (slow, quick))
        first = await overtaken(late, early)
    assert cluster.only["metadata"]["name"] == str(first.ingestion_job_id)
    assert len(bucket(tmp_path)) == len(first.items) == quick


@pytest.mark.parametrize("files", [1, 2])
async def test_a_quota_that_another_request_with_the_key_uses_up_at_the_same_moment_refuses_neither(
    tmp_path: Path, files: int
) -> None:
    class Crossed(Cluster):
        """Takes another request's the moment before, and has no room then. A quota comes before the name."""

        def __call__(self, request: BaseHTTPRequestHandler) -> None:
            if request.command == "POST" and "dryRun" not in request.path:
                name = made_by("monday")
                made = stored(name) if files == 1 else batch(name)
                self.objects["ingestionjobs" if files == 1 else "ingestionbatches", name] = made
                request.rfile.read(int(request.headers["Content-Length"]))
                answer(request, 403, json.dumps({"kind": "Status", "message": "exceeded quota: jobs"}).encode())
                return
            super().__call__(request)

    cluster = Crossed()
    async with services(tmp_path, cluster) as parts:
        late = request(parts, form(*[part("a")] * files), idempotency_key="monday")
        taken = await bulk_ingest(late, uuid.UUID(KB), CALLER)
    spec = cluster.only["spec"]
    documents = spec["documents"] if files > 1 else [spec["document"]]
    assert [str(item.document_id) for item in taken.items] == [document["id"] for document in documents]
    assert bucket(tmp_path) == []


def made_by(key: str) -> str:
    return Making.of(namespace="team-a", knowledge_base=KB, key=key_digest(key)).name


async def test_a_batch_keeps_its_files_although_a_job_of_its_name_is_made_at_the_same_moment(tmp_path: Path) -> None:
    class Crossed(Cluster):
        def __call__(self, request: BaseHTTPRequestHandler) -> None:
            if request.command == "POST" and "dryRun" not in request.path:
                self.objects["ingestionjobs", made_by("monday")] = stored(made_by("monday"))
            super().__call__(request)

    cluster = Crossed()
    async with services(tmp_path, cluster) as parts:
        both = request(parts, form(part("a"), part("b")), idempotency_key="monday")
        taken = await bulk_ingest(both, uuid.UUID(KB), CALLER)
    documents = cluster.objects["ingestionbatches", made_by("monday")]["spec"]["documents"]
    assert [str(item.document_id) for item in taken.items] == [document["id"] for document in documents]
    assert len(bucket(tmp_path)) == 2


async def test_what_is_made_is_answered_although_the_api_server_answers_nothing_more(tmp_path: Path) -> None:
    async with services(tmp_path, Cluster(after=500)) as parts:
        both = request(parts, form(part("a"), part("b")), idempotency_key="monday")
        assert len((await bulk_ingest(both, uuid.UUID(KB), CALLER)).items) == 2
    assert len(bucket(tmp_path)) == 2


@pytest.mark.parametrize("after", [500, 404], ids=["no answer", "gone again"])
async def test_files_stay_while_it_is_unknown_which_request_was_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr("ingestion_api.jobs._PAUSES_SECONDS", (0.0, 0.01, 0.01))
    async with services(tmp_path, Cluster(lost=0, after=after)) as parts:
        both = request(parts, form(part("a"), part("b")), idempotency_key="monday")
        with pytest.raises(JobUnknownError):
            await bulk_ingest(both, uuid.UUID(KB), CALLER)
    assert len(bucket(tmp_path)) == 2


@pytest.mark.parametrize("plural", ["ingestionjobs", "ingestionbatches"])
async def test_a_key_whose_job_is_being_deleted_is_to_be_sent_again(tmp_path: Path, plural: str) -> None:
    """The answer would name what is gone a moment later."""
    name, cluster = made_by("monday"), Cluster()
    body = stored(name) if plural == "ingestionjobs" else batch(name)
    body["metadata"]["deletionTimestamp"] = MOMENT
    cluster.objects[plural, name] = body
    async with services(tmp_path, cluster) as parts:
        with pytest.raises(ProblemError, match="is being deleted; try again") as refused:
            await bulk_ingest(request(parts, form(part("a")), idempotency_key="monday"), uuid.UUID(KB), CALLER)
    assert (refused.value.status, refused.value.error) == (503, "unavailable")
    assert bucket(tmp_path) == []


async def test_a_key_that_is_none_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    cluster = Cluster()
    async with services(tmp_path, cluster) as parts:
        with pytest.raises(ProblemError, match="Idempotency-Key"):
            await bulk_ingest(request(parts, form(part("a")), idempotency_key="x" * 256), uuid.UUID(KB), CALLER)
    assert not cluster.asked


# ── a batch as an ingestion job ───────────────────────────────────────────────────────────────────────────────


def batch(name: str = "handbooks", *, generation: int = 0, **status: Any) -> JsonObject:
    body = stored(name)
    body["kind"] = BATCH_KIND
    spec = body["spec"]
    one = spec.pop("document")
    spec["documents"] = [{**one, "id": str(uuid.UUID(int=number + 1)), "title": f"T{number}"} for number in range(4)]
    spec["retryGeneration"] = generation
    body["status"] = status
    return body


FAILED = {
    "phase": "partial_failure",
    "observedRetryGeneration": 0,
    "progressPercent": 50,
    "startTime": MOMENT,
    "completionTime": "2026-01-01T01:00:00Z",
    "documents": {"total": 4, "completedCount": 2, "failedCount": 1, "partialFailureCount": 1, "completed": "0,2"},
    "failures": [
        {"index": 1, "job": "handbooks-x-1", "code": "EmbeddingRejected", "message": "refused"},
        {"index": 3, "job": "handbooks-x-3", "code": "DocumentEmpty"},
    ],
    "failureSummary": {"EmbeddingRejected": 1, "DocumentEmpty": 1},
    "conditions": [{"type": "Stalled", "status": "True", "reason": "BrandNew", "message": "2 of 4 documents failed"}],
}


def test_a_batch_is_shown_with_its_documents_by_phase() -> None:
    shown = progress(ShownBatch.model_validate(batch(**FAILED)))
    assert (shown.job_type, shown.status, shown.total_documents, shown.progress_pct) == (
        "batch", "partial_failure", 4, 50.0,
    )  # fmt: skip
    counts = (shown.completed, shown.failed, shown.partial_failure, shown.processing, shown.queued)
    assert counts == (2, 1, 1, 0, 0)
    assert shown.failure_summary == {"EmbeddingRejected": 1, "DocumentEmpty": 1}
    assert [(item.manifest_index, item.title, item.code, item.message) for item in shown.document_failures] == [
        (1, "T1", "EmbeddingRejected", "refused"),
        (3, "T3", "DocumentEmpty", ""),
    ]
    assert shown.document_failures[0].document_id == uuid.UUID(int=2)
    assert shown.error_message == "2 of 4 documents failed"
    assert (shown.segment_count, shown.document_id, shown.version) == (None, None, None)


def test_a_retry_that_waits_shows_what_failed_as_queued() -> None:
    shown = progress(ShownBatch.model_validate(batch(generation=1, **FAILED)))
    counts = (shown.completed, shown.failed, shown.partial_failure, shown.processing, shown.queued)
    assert (shown.status, *counts) == ("queued", 2, 0, 0, 0, 2)
    assert (shown.document_failures, shown.failure_summary, shown.completed_at) == ([], {}, None)
    listed = summary(NarrowBatch.model_validate(batch(generation=1, **FAILED)))
    assert (listed.status, listed.error_message, listed.completed_at) == ("queued", None, None)


def test_a_status_of_another_batch_breaks_nothing() -> None:
    body = batch(**FAILED)
    del body["spec"]["documents"][1:]
    shown = progress(ShownBatch.model_validate(body))
    assert (shown.total_documents, shown.queued, shown.document_failures) == (1, 0, [])
    assert document_views(ShownBatch.model_validate(body), entries={}, places=range(1))[0].status == "completed"


def test_a_batch_that_nobody_has_looked_at_is_queued() -> None:
    shown = progress(ShownBatch.model_validate(batch()))
    assert (shown.status, shown.total_documents, shown.queued, shown.completed) == ("queued", 4, 4, 0)


def index() -> JobIndex:
    return JobIndex(kube=cast(KubeClient, None), metrics=Metrics())


def child(name: str, *, of: str = BATCH_KIND, controller: bool = True, place: str = "0", **metadata: Any) -> JsonObject:
    owner = {"apiVersion": "ingestion-operator.io/v1alpha1", "kind": of, "name": "handbooks", "uid": OTHER}
    labels = {"ingestion-operator.io/batch-index": place, "another": "1"}
    return stored(name, ownerReferences=[{**owner, "controller": controller}], labels=labels, **metadata)


def test_a_list_has_a_batch_in_the_place_of_its_jobs() -> None:
    """As clients sent one request; each of its jobs is still found by its own id."""
    known = index()
    bodies = [batch(**FAILED), child("handbooks-x-0"), child("by-hand", controller=False), child("z", of="Other")]
    for body in bodies:
        known.put(body)
    which = {"namespace": "team-a", "knowledge_base": KNOWLEDGE_BASE, "phase": None, "limit": 9, "before": None}
    listed, _ = known.page(**which)
    assert {job.name for job in listed} == {"handbooks", "by-hand", "z"}
    (entry,) = [json.loads(job.entry) for job in listed if job.name == "handbooks"]
    assert (entry["job_type"], entry["total_documents"], entry["processed_count"]) == ("batch", 4, 2)
    uid = bodies[1]["metadata"]["uid"]
    assert known.named(namespace="team-a", job_id=uid) == ("IngestionJob", "handbooks-x-0")
    assert known.named(namespace="team-b", job_id=uid) is None


def test_documents_of_a_batch_are_known_by_their_places_and_forgotten_with_their_jobs() -> None:
    known, which = index(), {"namespace": "team-a", "batch": OTHER}
    bodies = [child(f"handbooks-x-{place}", place=place) for place in ("0", "3", "x", "", "-1", "99999")]
    bodies.append(child("of-another-tenant", place="1", namespace="team-b"))
    for body in bodies:
        known.put(body)
    assert list(known.documents(**which)) == [0, 3]
    new = child("handbooks-x-3-again", place="3")  # made by hand, say: the newest counts
    known.put(new)
    for body in (bodies[0], bodies[1]):
        known._delete(body["metadata"]["uid"])
    (entry,) = known.documents(**which).values()
    assert json.loads(entry)["ingestion_job_id"] == new["metadata"]["uid"]
    known._delete(new["metadata"]["uid"])
    assert known.documents(**which) == {}
    assert known._of_batches.keys() == {("team-b", OTHER)}


def test_jobs_of_a_batch_share_one_copy_of_its_uid() -> None:
    known = index()
    for place in ("0", "1"):
        known.put(orjson.loads(orjson.dumps(child(f"handbooks-x-{place}", place=place))))
    first, second = (job.batch for job in known._jobs.values())
    assert first is not None
    assert second is not None
    assert first[0] is second[0]


@pytest.mark.parametrize(
    ("generation", "passed_on", "shown"),
    [
        (0, 0, ["completed", "partial_failure", "completed", "failed"]),
        (1, 0, ["completed", "queued", "completed", "queued"]),
        (1, 1, ["completed", "partial_failure", "completed", "failed"]),
    ],
    ids=["at rest", "a retry that waits", "a retry that is passed on"],
)
def test_each_document_is_shown_as_far_as_its_job_is(generation: int, passed_on: int, shown: list[str]) -> None:
    """One whose job is gone by what is recorded of it."""
    status = {**FAILED, "observedRetryGeneration": passed_on, "passedOnGeneration": passed_on}
    status["documents"] = {**FAILED["documents"], "failed": "1,3"}
    whole = IngestionBatch.model_validate(batch(generation=generation, **status))
    job = child("handbooks-x-1", place="1")
    job["status"] = {
        "phase": "partial_failure",
        "observedRetryGeneration": 0,
        "stage": "process_segments",
        "version": {"id": OTHER, "state": "failed"},
        "segments": {"total": 9, "completedCount": 7},
        "conditions": [{"type": "Stalled", "status": "True", "reason": "SegmentsFailed", "message": "2 of 9 failed"}],
    }
    known = index()
    known.put(job)
    entries = known.documents(namespace="team-a", batch=OTHER)
    items = document_views(whole, entries=entries, places=range(4))
    assert [item.status for item in items] == shown
    assert [item.manifest_index for item in items] == [0, 1, 2, 3]
    assert [item.ingestion_job_id is None for item in items] == [True, False, True, True]
    one = items[1]
    assert (one.segment_count, one.processed_segments, str(one.version_id)) == (9, 7, OTHER)
    assert one.error_message == ("2 of 9 failed" if shown[1] != "queued" else None)
    assert [str(item.document_id) for item in items[2:]] == [str(uuid.UUID(int=number)) for number in (3, 4)]


@pytest.mark.parametrize(
    ("segments", "kept"), [(None, False), ({"total": 9, "completedCount": 7}, True)], ids=["none yet", "some"]
)
def test_a_document_that_starts_over_has_not_begun_while_the_batch_s_retry_waits(
    segments: dict[str, int] | None, kept: bool
) -> None:
    job, known = child("handbooks-x-1", place="1"), index()
    job["status"] = {"phase": "failed", "observedRetryGeneration": 0, "startTime": MOMENT, "segments": segments}
    known.put(job)
    entries = known.documents(namespace="team-a", batch=OTHER)
    for generation, begun in ((0, True), (1, kept)):
        whole = IngestionBatch.model_validate(batch(generation=generation, **FAILED))
        (item,) = document_views(whole, entries=entries, places=[1])
        assert (item.started_at is not None) == begun


async def test_what_a_list_of_one_kind_does_not_have_stays_if_it_is_of_the_other(tmp_path: Path) -> None:
    """And lists are answered once both kinds are listed: before that, half would be missing in silence."""
    job, other = stored("job"), batch()
    lists = {"ingestionjobs": [job], "ingestionbatches": [other]}
    held = {"ingestionbatches"}

    def server(request: BaseHTTPRequestHandler) -> None:
        plural = "ingestionbatches" if "/ingestionbatches" in request.path else "ingestionjobs"
        if "watch=true" in request.path:
            answer(request, 200, b"", Content_Type="application/json")
        elif plural in held:
            answer(request, 500, b"{}")
        else:
            answer(request, 200, json.dumps({"metadata": {"resourceVersion": "9"}, "items": lists[plural]}).encode())

    async with services(tmp_path, server) as parts:
        known = parts.index
        following = asyncio.create_task(known.run())
        await until(
            lambda: known.failing and known.named(namespace="team-a", job_id=job["metadata"]["uid"]) is not None
        )
        assert not known.synced
        held.clear()
        await until(lambda: known.synced and not known.failing)
        for body in (job, other):
            assert known.named(namespace="team-a", job_id=body["metadata"]["uid"]) is not None
        lists["ingestionbatches"].clear()
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        assert known.ended


async def until(wish: Any) -> None:
    deadline = time.monotonic() + 20
    while not wish():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


class Kept:
    """One batch at an API server, which takes patches."""

    def __init__(self, body: JsonObject) -> None:
        self.body = body
        self.patches: list[tuple[str, JsonObject]] = []

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        if "/ingestionbatches/" not in request.path:
            answer(request, 404, b'{"kind": "Status", "reason": "NotFound"}')
            return
        if request.command == "PATCH":
            patch = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
            self.patches.append((request.path, patch))
            self.body["spec"] |= patch.get("spec", {})
            self.body["metadata"] |= {"annotations": patch["metadata"]["annotations"]}
        answer(request, 200, json.dumps(self.body).encode())


async def test_a_batch_is_retried_by_the_rules_of_a_job(tmp_path: Path) -> None:
    cluster = Kept(batch(str(uuid.UUID(int=7)), **FAILED))
    async with services(tmp_path, cluster) as parts:
        parts.index.synced = True
        for _ in range(2):
            found = await parts.jobs.find(namespace="team-a", wanted=uuid.UUID(int=7))
            await parts.retries.accept(caller=CALLER, job=found, key=key_digest("monday"))
        await parts.retries.accept(caller=CALLER, job=found, key=None)
        ((path, patch),) = cluster.patches
        assert path.endswith(f"/ingestionbatches/{uuid.UUID(int=7)}")
        assert patch["spec"] == {"retryGeneration": 1}, "nothing that the CRD of batches does not know"
        assert patch["metadata"]["resourceVersion"] == "1"
        cluster.body["status"] = {**FAILED, "phase": "processing", "observedRetryGeneration": 1}
        again = await parts.jobs.again(found)
        with pytest.raises(ProblemError, match="is processing; only a failed") as refused:
            await parts.retries.accept(caller=CALLER, job=again, key=None)
        assert (refused.value.status, refused.value.error) == (400, "not_retryable")
        with pytest.raises(ProblemError) as refused:
            await parts.jobs.find(namespace="team-a", wanted=uuid.UUID(int=8))
        assert (refused.value.status, refused.value.error) == (404, "not_found")


async def test_a_stranger_makes_no_batch(tmp_path: Path) -> None:
    cluster, stranger = Cluster(), Principal(key_id="k", namespace="team-z")
    async with services(tmp_path, cluster) as parts:
        with pytest.raises(ProblemError) as refused:
            await bulk_ingest(request(parts, form(part("a"), part("b"))), uuid.UUID(KB), stranger)
    assert (refused.value.status, refused.value.error, cluster.objects) == (400, "not_a_tenant", {})
