"""The three stages together: what a document becomes, and that a rerun changes nothing."""

from __future__ import annotations

import io
import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ingestion_crds.constants import MAX_PAGES_LENGTH
from ingestion_crds.errors import ERROR_CODES
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import INT32_MAX
from ingestion_worker import layout
from ingestion_worker.embedding import Embedder, EmbeddingSpec, make_embedder
from ingestion_worker.history import read_state
from ingestion_worker.not_read import NotRead
from ingestion_worker.outcome import WorkerError
from ingestion_worker.output import HIT_COLUMNS
from ingestion_worker.pages import reading_bytes
from ingestion_worker.plan import hash_of
from ingestion_worker.search import SegmentCache, live_versions, search_text
from ingestion_worker.store import Store
from support.worker_builders import (
    BUILTIN,
    DOCUMENTS,
    DOCX_TYPE,
    KB,
    CountingEmbedder,
    Worker,
    answer,
    builtin,
    docx,
    http_server,
    pdf,
    sentences,
)


def snapshot(store: Store) -> dict[str, bytes]:
    return {entry.key: store.get(key=entry.key) for entry in store.list(prefix="kb")}


def outputs(store: Store) -> dict[str, bytes]:
    return {key: data for key, data in snapshot(store).items() if key.endswith(".parquet")}


def find(store: Store, text: str, limit: int = 3) -> list[Any]:
    return search_text(
        store=store, knowledge_base=KB, text=text, limit=limit, embedder_for=lambda _: builtin(), cache=SegmentCache()
    )


def test_a_small_document_is_published_in_one_pass(any_store: Store, worker_on: Any) -> None:
    worker = worker_on(any_store)
    uri = worker.upload(data=pdf(pages=["The harbour lies in fog.", "Recipes for lentil soup."]))
    message = worker.prepare(document__source__uri=uri)
    assert message["mode"] == "SinglePass"
    assert message["segments"] == 1
    assert message["version"]["state"] == "active"
    assert message["version"]["number"] == 1
    hit = find(any_store, "how do I cook soup")[0]
    assert "lentil" in hit.content
    assert (hit.title, hit.version_id) == ("Handbook", message["version"]["id"])


def test_a_segmented_pdf_is_found_with_its_pages(any_store: Store, worker_on: Any) -> None:
    worker = worker_on(any_store)
    pages = [f"Chapter {number}.\n{sentences(count=8, tag=f' of chapter {number}')}" for number in range(7)]
    pages[4] = "The zebra eats purple lentil soup."
    uri = worker.upload(data=pdf(pages=pages))
    prepared = worker.prepare(document__source__uri=uri)
    assert prepared["mode"] == "Segmented"
    assert prepared["segments"] == 4
    assert "state" not in prepared["version"]
    assert live_versions(store=any_store, knowledge_base=KB) == []
    counts = [worker.segment(prepared=prepared, segment=index)["chunks"] for index in range(4)]
    published = worker.publish(prepared=prepared)
    assert published["version"] == {**prepared["version"], "state": "active"}
    assert published["chunks"] == sum(counts)
    hit = find(any_store, "zebra purple lentil soup")[0]
    assert "zebra" in hit.content
    assert hit.page == 4
    rows = [row for data in outputs(any_store).values() for row in pq.read_table(io.BytesIO(data)).to_pylist()]
    [row] = [row for row in rows if row["chunk_id"] == hit.chunk_id]
    assert (row["segment"], row["page"], row["page_end"]) == (2, 4, 5)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.docx", docx(paragraphs=["The zebra eats soup."])),
        ("a.html", b"<html><body><h1>Soup</h1><p>The zebra eats <b>soup</b>.</p><script>bad()</script></body></html>"),
        ("a.md", b"# Soup\n\nThe zebra eats soup.\n"),
        ("a.txt", "The zebra eats soup. Überall.".encode()),
        ("latin.txt", "Die Zebrastute frißt Suppe, größtenteils überall. The zebra eats soup.".encode("latin-1")),
        ("utf16.txt", "The zebra eats soup.".encode("utf-16")),
        ("nameless", b"The zebra eats soup."),
        ("nameless-html", b"<!DOCTYPE html><p>The zebra eats soup."),
        ("nameless-pdf", pdf(pages=["The zebra eats soup."])),
        ("nameless-docx", docx(paragraphs=["The zebra eats soup."])),
    ],
)
def test_every_type_is_read(worker: Worker, name: str, data: bytes) -> None:
    worker.prepare(document__source__uri=worker.upload(data=data, name=name))
    content = find(worker.store, "zebra soup")[0].content
    assert "The zebra eats soup." in content
    assert "bad()" not in content


def test_the_content_type_beats_the_name(worker: Worker) -> None:
    uri = worker.upload(data=docx(paragraphs=["The zebra."]), name="a.pdf")
    source = {"uri": uri, "contentType": f"{DOCX_TYPE}; x=y"}
    assert worker.prepare(document__source=source)["chunks"] == 1


@pytest.mark.parametrize("mode", ["Segmented", "SinglePass"])
def test_the_mode_can_be_forced(worker: Worker, mode: str) -> None:
    long, short = sentences(count=200).encode(), b"The zebra."
    data = short if mode == "Segmented" else long
    uri = worker.upload(data=data, name="a.txt")
    message = worker.ingest(document__source__uri=uri, mode=mode)
    assert message["version"]["state"] == "active"
    if mode == "SinglePass":
        assert message["segments"] == 1
        assert message["mode"] == "SinglePass"
    assert find(worker.store, "zebra" if mode == "Segmented" else "lighthouse")


def test_smaller_segments_help_what_one_pod_does_only_with_the_mode(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion_worker.output.MAX_VECTOR_BYTES", 5_000)
    smaller = {"document__source__uri": worker.upload(data=pdf(pages=[sentences(count=10)] * 3))}
    smaller["segmentation__pagesPerSegment"] = 1
    with pytest.raises(WorkerError, match=r"DocumentTooComplex: .*smaller segments"):
        worker.ingest(**smaller)
    assert worker.ingest(**smaller, mode="Segmented")["version"]["state"] == "active"
    assert "smaller segments (and `mode: Segmented`" in ERROR_CODES["DocumentTooComplex"].remedy


def test_a_rerun_of_everything_writes_the_same_bytes(worker: Worker) -> None:
    uri = worker.upload(data=pdf(pages=[sentences(count=10, tag=f"/{page}") for page in range(5)]))
    worker.ingest(document__source__uri=uri)
    before = snapshot(worker.store)
    worker.ingest(document__source__uri=uri)
    worker.ingest(document__source__uri=uri, generation=1)
    assert snapshot(worker.store) == before


def test_a_segment_run_again_from_nothing_is_byte_identical(worker: Worker) -> None:
    uri = worker.upload(data=sentences(count=150).encode(), name="a.txt")
    worker.ingest(document__source__uri=uri)
    before = outputs(worker.store)
    assert len(before) > 3
    for key in before:
        worker.store.delete(key=key)
    worker.more["make_embedder"] = builtin
    prepared_again = worker.prepare(document__source__uri=uri)
    for segment in reversed(range(prepared_again["segments"])):
        worker.segment(prepared=prepared_again, segment=segment)
    assert outputs(worker.store) == before


def test_a_segment_whose_output_is_there_does_nothing(worker: Worker) -> None:
    counting = CountingEmbedder()
    worker.more["make_embedder"] = lambda: counting
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    prepared = worker.prepare(document__source__uri=uri)
    first = worker.segment(prepared=prepared, segment=1)
    texts = counting.texts
    assert texts > 0
    assert worker.segment(prepared=prepared, segment=1) == first
    assert counting.texts == texts


def test_an_output_that_comes_while_a_segment_is_embedded_is_left_alone(worker: Worker) -> None:
    """Another attempt's, which can be live by then; and an endpoint need not give the same vectors twice."""
    spec = {"provider": "local", "model": "m", "dimensions": 2}
    changes = {"pipeline__embedding": spec}
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    prepared = worker.prepare(document__source__uri=uri, **changes)
    requests: list[int] = []
    theirs: dict[str, bytes] = {}

    def endpoint(request: BaseHTTPRequestHandler) -> None:
        count = len(json.loads(request.rfile.read(int(request.headers["Content-Length"])))["input"])
        requests.append(count)
        vector = [float(len(requests)), 1.0]
        if len(requests) == 1:
            worker.segment(prepared=prepared, segment=1, generation=1, **changes)
            theirs.update(outputs(worker.store))
        answer(request, 200, json.dumps({"data": [{"embedding": vector}] * count}).encode())

    with http_server(handle=endpoint) as url:
        worker.more["make_embedder"] = lambda: make_embedder(spec=EmbeddingSpec(**spec), url=url)
        late = worker.segment(prepared=prepared, segment=1, **changes)
    first, _, _, rest = requests  # each asks for the first text alone, and in between are theirs
    assert len(theirs) == 1
    assert outputs(worker.store) == theirs
    assert late == {"segment": 1, "chunks": first + rest}


def test_a_segment_of_too_many_vectors_is_refused_before_it_is_embedded(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingestion_worker.output.MAX_VECTOR_BYTES", 256 * 4)
    counting = CountingEmbedder()
    worker.more["make_embedder"] = lambda: counting
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    prepared = worker.prepare(document__source__uri=uri)
    for run in (
        lambda: worker.segment(prepared=prepared, segment=1),
        lambda: worker.prepare(document__source__uri=uri, mode="SinglePass"),
    ):
        with pytest.raises(WorkerError, match=r"DocumentTooComplex: .* smaller segments or larger chunks"):
            run()
    assert counting.texts == 0
    assert outputs(worker.store) == {}


def test_no_output_is_written_that_a_search_would_not_read(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestion_worker.output.MAX_OUTPUT_BYTES", 1000)
    uri = worker.upload(data=sentences(count=20).encode(), name="a.txt")
    with pytest.raises(WorkerError, match=r"DocumentTooComplex: .* at most 1000 are written"):
        worker.prepare(document__source__uri=uri)
    assert outputs(worker.store) == {}


def test_no_output_is_written_that_takes_more_to_read_than_a_search_would(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    prepared = worker.prepare(document__source__uri=uri, pipeline__chunkOverlap=299)
    worker.segment(prepared=prepared, segment=0, pipeline__chunkOverlap=299)
    (written,) = outputs(worker.store)
    # As a search counts it: the texts without the vectors, which have their own bound.
    data = worker.store.get(key=written)
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    texts = reading_bytes(data=memoryview(data), metadata=metadata, columns=HIT_COLUMNS)
    monkeypatch.setattr("ingestion_worker.output.MAX_READING_BYTES", texts)
    worker.store.delete(key=written)
    worker.segment(prepared=prepared, segment=0, pipeline__chunkOverlap=299)
    worker.store.delete(key=written)
    monkeypatch.setattr("ingestion_worker.output.MAX_READING_BYTES", texts - 1)
    with pytest.raises(
        WorkerError, match=rf"DocumentTooComplex: .* takes {texts} bytes to read; at most {texts - 1} are"
    ):
        worker.segment(prepared=prepared, segment=0, pipeline__chunkOverlap=299)
    assert outputs(worker.store) == {}


def test_pages_without_text_are_named_in_the_log(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    def named() -> list[tuple[str, str, str]]:
        lines = [line for line in caplog.records if line.message == "pages without text"]
        caplog.clear()
        return [(line.levelname, line.document, line.pages) for line in lines]

    uri = worker.upload(data=pdf(pages=["One.", "", "", " ", "Five.", "", "Seven.", "Eight."]))
    worker.prepare(document__source__uri=uri, mode="SinglePass")
    assert named() == [("WARNING", "handbook.pdf", "2-4,6")]
    changes = {"document__source__uri": uri, "job__uid": "other"}
    prepared = worker.prepare(**changes)
    for segment in range(prepared["segments"]):
        worker.segment(prepared=prepared, segment=segment, **changes)
    assert [pages for _, _, pages in named()] == ["2", "3-4", "6"]


BLANKS = ["One.", "", "", " ", "Five.", "", "Seven.", "Eight."]
NOT_READ = {"pageCount": 4, "pages": "2-4,6", "attachments": 0}


def test_who_publishes_says_which_pages_have_no_text_whoever_found_them(any_store: Store, worker_on: Any) -> None:
    """Segments of an earlier attempt are not run again, and an answer that was lost is given again."""
    worker = worker_on(any_store)
    uri = worker.upload(data=pdf(pages=BLANKS))
    for _ in range(2):
        said = worker.prepare(document__source__uri=uri, mode="SinglePass")
        assert said["notRead"] == NOT_READ
    changes = {"document__source__uri": uri, "job__uid": "other"}
    prepared = worker.prepare(**changes)
    for generation, segment in enumerate(range(prepared["segments"])):
        again = {**changes, "generation": generation}
        assert "notRead" not in worker.segment(prepared=prepared, segment=segment, **again)
    for generation in (4, 4, 5):
        assert worker.publish(prepared=prepared, generation=generation, **changes)["notRead"] == NOT_READ
    assert find(worker.store, "Five")


def test_of_more_that_is_not_read_than_a_status_can_hold_the_most_is_said() -> None:
    not_read = NotRead()
    for segment in range(3):
        record = {"prefix": "p", "plan_hash": "h", "segment": segment, "count": 999_999_999}
        not_read.take(key=layout.attachments_key(**record))
        not_read.take(key=layout.blank_pages_key(**record, pages=IndexSet.of([segment + 1])))
    said = {"pageCount": INT32_MAX, "pages": "1-3", "attachments": INT32_MAX}
    assert not_read.message() == {"notRead": said}


def test_a_single_pass_that_another_pod_overtook_tells_what_is_live(worker: Worker) -> None:
    """The source has changed between the two."""
    uri = worker.upload(data=pdf(pages=BLANKS))
    faster: list[dict[str, Any]] = []

    def overtaken() -> Embedder:
        worker.more["make_embedder"] = builtin
        worker.upload(data=pdf(pages=["One.", "", "Three."]))
        faster.append(worker.prepare(document__source__uri=uri, mode="SinglePass"))
        return builtin()

    worker.more["make_embedder"] = overtaken
    late = worker.prepare(document__source__uri=uri, mode="SinglePass")
    assert [late] == faster
    assert late["notRead"] == {"pageCount": 1, "pages": "2", "attachments": 0}


def test_which_pages_have_no_text_is_recorded_before_the_output(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that is killed in between is run again, and one that finds the output ends at once."""
    uri = worker.upload(data=pdf(pages=BLANKS))
    put = Store.put

    def killed(store: Store, *, key: str, data: bytes) -> None:
        if key.endswith(".parquet"):
            raise KeyboardInterrupt
        put(store, key=key, data=data)

    monkeypatch.setattr(Store, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        worker.prepare(document__source__uri=uri, mode="SinglePass")
    monkeypatch.setattr(Store, "put", put)
    (record,) = [key for key in snapshot(worker.store) if key.endswith(".not-read")]
    assert worker.prepare(document__source__uri=uri, mode="SinglePass")["notRead"] == NOT_READ
    assert worker.store.get(key=record) == b"2-4,6"


def test_outputs_without_records_are_published(worker: Worker) -> None:
    """As an earlier release wrote them; and names that are none of ours say nothing."""
    uri = worker.upload(data=pdf(pages=BLANKS))
    prepared = worker.prepare(document__source__uri=uri)
    for segment in range(prepared["segments"]):
        worker.segment(prepared=prepared, segment=segment)
    for record in [key for key in snapshot(worker.store) if key.endswith(".not-read")]:
        worker.store.delete(key=record)
        worker.store.put(key=f"{record.rpartition('/')[0]}/0000001_9-1.not-read", data=b"")
        worker.store.put(key=f"{record.rpartition('/')[0]}/notes.not-read", data=b"")
    assert worker.publish(prepared=prepared).keys() == {"version", "chunks"}


def test_of_many_pages_without_text_as_many_are_named_as_have_room(worker: Worker) -> None:
    """In the name of a file, and in a termination message; they are counted in any case."""
    uri = worker.upload(data=pdf(pages=["", "Text."] * 300))
    said = worker.prepare(document__source__uri=uri, mode="SinglePass")["notRead"]
    assert said["pageCount"] == 300
    assert said["pages"] == ",".join(str(page) for page in range(1, 128, 2))
    (record,) = [key for key in snapshot(worker.store) if key.endswith(".not-read")]
    assert len(record.rpartition("/")[2]) <= 255
    assert len(IndexSet.parse(worker.store.get(key=record).decode())) == 300
    changes = {"document__source__uri": uri, "job__uid": "other", "segmentation__pagesPerSegment": 50}
    prepared = worker.prepare(**changes, mode="Segmented")
    for segment in range(prepared["segments"]):
        worker.segment(prepared=prepared, segment=segment, **changes)
    said = worker.publish(prepared=prepared, **changes)["notRead"]
    assert said["pageCount"] == 300
    assert MAX_PAGES_LENGTH - 4 < len(said["pages"]) <= MAX_PAGES_LENGTH
    assert said["pages"] == str(IndexSet.of(range(1, 600, 2)).beginning(MAX_PAGES_LENGTH))


def test_a_blank_segment_is_an_empty_output(worker: Worker) -> None:
    uri = worker.upload(data=pdf(pages=["One.", "Two.", "", "", "Five."]))
    changes = {"document__source__uri": uri, "pipeline__chunkOverlap": 0}
    prepared = worker.prepare(**changes)
    assert worker.segment(prepared=prepared, segment=1, **changes) == {"segment": 1, "chunks": 0}
    for segment in (0, 2):
        worker.segment(prepared=prepared, segment=segment, **changes)
    assert worker.publish(prepared=prepared, **changes)["chunks"] == 2
    assert find(worker.store, "Five")[0].page == 5


def test_a_version_is_not_published_while_an_output_is_missing(worker: Worker) -> None:
    uri = worker.upload(data=pdf(pages=["One.", "Two.", "Three.", "Four.", "Five."]))
    prepared = worker.prepare(document__source__uri=uri)
    worker.segment(prepared=prepared, segment=1)
    with pytest.raises(WorkerError) as caught:
        worker.publish(prepared=prepared)
    assert caught.value.code == "SegmentsMissing"
    assert "0,2" in caught.value.message
    assert live_versions(store=worker.store, knowledge_base=KB) == []


def test_another_pipeline_is_refused(worker: Worker) -> None:
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    prepared = worker.prepare(document__source__uri=uri)
    with pytest.raises(WorkerError) as caught:
        worker.segment(prepared=prepared, segment=0, pipeline__chunkSize=301)
    assert caught.value.code == "PipelineChanged"
    assert "chunkSize: 300 -> 301" in caught.value.message
    assert outputs(worker.store) == {}


def test_a_new_job_makes_the_next_version_and_the_old_one_answers_until_then(worker: Worker) -> None:
    first = worker.ingest(document__source__uri=worker.upload(data=b"The old zebra.", name="a.txt"))
    uri = worker.upload(data=sentences(count=100, tag=" zebra").encode(), name="b.txt")
    second = {"document__source__uri": uri, "job__uid": "another-job"}
    prepared = worker.prepare(**second)
    assert prepared["version"]["number"] == 2
    for segment in range(prepared["segments"]):
        worker.segment(prepared=prepared, segment=segment, **second)
        assert {hit.version_id for hit in find(worker.store, "zebra")} == {first["version"]["id"]}
    worker.publish(prepared=prepared, **second)
    assert {hit.version_id for hit in find(worker.store, "zebra")} == {prepared["version"]["id"]}


def test_an_older_version_does_not_replace_a_newer_one(worker: Worker) -> None:
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    old = worker.prepare(document__source__uri=uri)
    for segment in range(old["segments"]):
        worker.segment(prepared=old, segment=segment)
    newer = worker.ingest(document__source__uri=uri, job__uid="newer")
    with pytest.raises(WorkerError) as caught:
        worker.publish(prepared=old)
    assert caught.value.code == "VersionSuperseded"
    assert [live.version_id for live in live_versions(store=worker.store, knowledge_base=KB)] == [
        newer["version"]["id"]
    ]


def test_a_job_that_waited_does_not_replace_what_a_later_one_has_published(worker: Worker) -> None:
    """Its pod begins last, and takes the higher number: an upload that was corrected since was live again."""
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    early = {"document__source__uri": uri, "job__uid": "early", "job__created": "2026-01-01T10:00:00Z"}
    late = {"document__source__uri": uri, "job__uid": "late", "job__created": "2026-01-01T10:00:01Z"}
    corrected, waited = worker.prepare(**late), worker.prepare(**early)
    assert (corrected["version"]["number"], waited["version"]["number"]) == (1, 2)
    for segment in range(corrected["segments"]):
        worker.segment(prepared=corrected, segment=segment, **late)
    done = worker.segment(prepared=waited, segment=0, **early)
    worker.publish(prepared=corrected, **late)
    before = {entry.key for entry in worker.store.list(prefix="kb")}
    worker.more["make_embedder"] = pytest.fail
    for run in (
        lambda: worker.prepare(**early),
        lambda: worker.segment(prepared=waited, segment=1, **early),
        lambda: worker.publish(prepared=waited, **early),
        lambda: worker.publish(prepared=waited, generation=1, **early),
    ):
        with pytest.raises(WorkerError, match="VersionSuperseded: version 1 is live, whose job was made at"):
            run()
    assert worker.segment(prepared=waited, segment=0, **early) == done
    assert {entry.key for entry in worker.store.list(prefix="kb")} == before


@pytest.mark.parametrize("name", ["notes.txt", "copy.parquet", "000001/0000009.parquet"])
def test_what_lies_beside_an_output_is_not_taken_for_it(worker: Worker, name: str) -> None:
    """Somebody's own, or what a backup tool leaves: the segment is written, and found again."""
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    prepared = worker.prepare(document__source__uri=uri)
    version = prepared["version"]
    prefix = worker.context().version_prefix(version_id=version["id"])
    folder = layout.segment_prefix(prefix=prefix, plan_hash=version["planHash"], segment=0)
    worker.store.put(key=f"{folder}/{name}", data=b"x")
    chunks = [worker.segment(prepared=prepared, segment=index)["chunks"] for index in range(prepared["segments"])]
    worker.more["make_embedder"] = pytest.fail
    assert worker.segment(prepared=prepared, segment=0)["chunks"] == chunks[0]
    assert worker.publish(prepared=prepared)["chunks"] == sum(chunks)
    worker.store.get(key=layout.segment_key(prefix=prefix, plan_hash=version["planHash"], segment=0, chunks=chunks[0]))


def test_what_is_superseded_already_is_not_embedded(worker: Worker) -> None:
    """Only publishing said so, when all vectors were paid for."""
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    old = worker.prepare(document__source__uri=uri)
    done = worker.segment(prepared=old, segment=0)
    short = worker.upload(data=b"The zebra.", name="b.txt")
    single = {"document__source__uri": short, "job__uid": "single"}
    with pytest.raises(WorkerError, match="SourceNotFound"):
        worker.prepare(**{**single, "document__source__uri": f"{short}.gone"})
    worker.ingest(document__source__uri=uri, job__uid="newer")
    before = {entry.key for entry in worker.store.list(prefix="kb")}
    worker.more["make_embedder"] = pytest.fail
    for run in (
        lambda: worker.segment(prepared=old, segment=1),
        lambda: worker.prepare(document__source__uri=uri),
        lambda: worker.prepare(document__source__uri=uri, generation=1),
        lambda: worker.prepare(**single, generation=1),
        lambda: worker.publish(prepared=old, generation=1),
    ):
        with pytest.raises(WorkerError) as caught:
            run()
        assert (caught.value.code, caught.value.exit_code) == ("VersionSuperseded", 78)
    assert {entry.key for entry in worker.store.list(prefix="kb")} == before
    assert worker.segment(prepared=old, segment=0) == done
    assert worker.prepare(document__source__uri=uri, job__uid="newer", generation=1)["version"]["number"] == 3


def test_a_version_that_is_live_is_not_superseded_by_itself(worker: Worker) -> None:
    """A job that is back from a backup goes on with its version under another UID, and may have published it since."""
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    prepared = worker.prepare(document__source__uri=uri)
    done = [worker.segment(prepared=prepared, segment=segment) for segment in range(prepared["segments"])]
    published = worker.publish(prepared=prepared)
    before = snapshot(worker.store)
    restored = {"job__uid": "restored", "generation": 1}
    assert worker.publish(prepared=prepared, **restored) == published
    assert snapshot(worker.store) == before
    for key in outputs(worker.store):
        worker.store.delete(key=key)
    assert [worker.segment(prepared=prepared, segment=item["segment"], **restored) for item in done] == done
    assert snapshot(worker.store) == before


def test_a_late_publish_of_an_earlier_attempt_changes_nothing(worker: Worker) -> None:
    uri = worker.upload(data=sentences(count=100).encode(), name="a.txt")
    prepared = worker.prepare(document__source__uri=uri)
    for segment in range(1, prepared["segments"]):
        worker.segment(prepared=prepared, segment=segment)
    with pytest.raises(WorkerError, match="SegmentsMissing"):
        worker.publish(prepared=prepared, generation=1)
    worker.segment(prepared=prepared, segment=0)
    with pytest.raises(WorkerError) as caught:
        worker.publish(prepared=prepared, generation=0)
    assert caught.value.code == "Fenced"
    assert live_versions(store=worker.store, knowledge_base=KB) == []
    assert worker.publish(prepared=prepared, generation=1)["version"]["state"] == "active"


def test_a_late_single_pass_of_an_earlier_attempt_changes_nothing(worker: Worker) -> None:
    data = b"The zebra."
    uri = worker.upload(data=data, name="a.txt")
    with pytest.raises(WorkerError, match="DocumentUnreadable"):
        worker.prepare(document__source={"uri": uri, "contentType": "application/pdf"}, generation=2)
    with pytest.raises(WorkerError, match="Fenced"):
        worker.prepare(document__source__uri=uri, generation=1)
    assert live_versions(store=worker.store, knowledge_base=KB) == []


def test_the_history_keeps_only_fences_that_still_matter(worker: Worker) -> None:
    uri = worker.upload(data=b"The zebra.", name="a.txt")
    for number in range(3):
        worker.prepare(document__source__uri=uri, job__uid=f"job-{number}", generation=3)
    state = read_state(store=worker.store, knowledge_base=KB, document_id="8d0a0000-0000-4000-8000-000000000002")
    assert state.fences == {"job-2": 3}
    assert state.live is not None
    assert state.live.number == 3


def test_a_segment_with_an_unreadable_page_names_it(worker: Worker) -> None:
    data = pdf(pages=[f"Page {number}." for number in range(1, 6)])
    broken = break_page(data, page=4)
    prepared = worker.prepare(document__source__uri=worker.upload(data=broken))
    with pytest.raises(WorkerError) as caught:
        worker.segment(prepared=prepared, segment=1)
    assert caught.value.code == "PageUnreadable"
    assert "page 4 of handbook.pdf" in caught.value.message
    # The next segment, which overlaps with that page, does not fail for it.
    assert worker.segment(prepared=prepared, segment=2)["chunks"] == 1


def break_page(data: bytes, *, page: int) -> bytes:
    """Make one page's object something that is no page, without moving a byte."""
    position = -1
    for _ in range(page):
        position = data.index(b"/Type /Page\n", position + 1)
    return data[:position] + b"/Type /Nope\n" + data[position + len(b"/Type /Page\n") :]


def test_no_more_segments_than_the_cap(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingestion_worker.prepare.MAX_SEGMENTS", 2)
    uri = worker.upload(data=sentences(count=200).encode(), name="a.txt")
    with pytest.raises(WorkerError, match="DocumentTooLarge"):
        worker.prepare(document__source__uri=uri)


def test_search_uses_only_versions_of_the_same_embedding(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(2):
        changes = {"document__id": DOCUMENTS[number], "job__uid": f"job-{number}"}
        worker.ingest(document__source__uri=worker.upload(data=b"The zebra.", name="a.txt"), **changes)
    hits = search_text(store=worker.store, knowledge_base=KB, text="zebra", limit=3, embedder_for=lambda _: None)
    assert hits == []
    (line,) = [line for line in caplog.records if "left out of a search" in line.message]
    assert (line.provider, line.model, line.documents) == (BUILTIN.provider, BUILTIN.model, 2)
    assert live_versions(store=worker.store, knowledge_base=KB)[0].embedding == BUILTIN


def test_search_is_exact_over_segments_documents_and_a_tiny_cache(worker: Worker) -> None:
    for number in range(4):
        text = sentences(count=60, tag=f" document {number}") + f"\nA rare walrus number {number} sings."
        uri = worker.upload(data=text.encode(), name=f"{number}.txt")
        worker.ingest(document__source__uri=uri, document__id=DOCUMENTS[number], job__uid=f"job-{number}")
    cache = SegmentCache(max_bytes=1)
    hits = search_text(
        store=worker.store,
        knowledge_base=KB,
        text="a walrus sings",
        limit=4,
        embedder_for=lambda _: builtin(),
        cache=cache,
    )
    assert {hit.document_id for hit in hits} == set(DOCUMENTS[:4])
    assert all("walrus" in hit.content for hit in hits)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_the_layout_is_as_documented(worker: Worker) -> None:
    uri = worker.upload(data=pdf(pages=["One."] * 5))
    worker.ingest(document__source__uri=uri, generation=1)
    kinds = {entry.key.split("/")[2] for entry in worker.store.list(prefix=f"kb/{KB}")}
    assert kinds == {"history", "numbers", "claims", "versions"}
    page = (Path(__file__).parents[2] / "docs" / "store-layout.md").read_text()
    for kind in kinds:
        assert f"/{kind}/" in page
    assert layout.safe_file_name(name="../../etc/päss wd.PDF") == "p_ss_wd.PDF"


@pytest.mark.parametrize(
    ("name", "data", "other"),
    [
        ("a.pdf", pdf(pages=[sentences(count=5)] * 5), pdf(pages=[sentences(count=5, tag=" of another")] * 5)),
        ("a.txt", sentences(count=100).encode(), sentences(count=100).replace("harbour", "brewery").encode()),
        ("a.txt", sentences(count=100).encode(), bytes(len(sentences(count=100)))),
    ],
)
def test_a_copy_or_a_plan_that_somebody_changed_is_not_read(
    worker: Worker, name: str, data: bytes, other: bytes
) -> None:
    """Both are named by their content, and whoever has the bucket's credentials can write to it."""
    prepared = worker.prepare(document__source__uri=worker.upload(data=data, name=name))
    (copy,) = [entry.key for entry in worker.store.list(prefix="kb") if "/sources/" in entry.key]
    (plan,) = [entry.key for entry in worker.store.list(prefix="kb") if "/plans/" in entry.key]
    changes = {
        copy: other,
        plan: worker.store.get(key=plan).replace(b"Segmented", b"Segmente1"),
    }
    for key, changed in changes.items():
        good = worker.store.get(key=key)
        assert changed != good
        worker.store.put(key=key, data=changed)
        with pytest.raises(WorkerError, match="SegmentsMissing"):
            worker.segment(prepared=prepared, segment=0)
        worker.store.put(key=key, data=good)
    worker.segment(prepared=prepared, segment=0)


def test_a_text_that_was_changed_only_where_a_segment_overlaps_it_is_not_read(worker: Worker) -> None:
    data = sentences(count=100).encode()
    prepared = worker.prepare(document__source__uri=worker.upload(data=data, name="a.txt"))
    (copy,) = [entry.key for entry in worker.store.list(prefix="kb") if "/sources/" in entry.key]
    cut = data.index(b"\n", 1900) + 1
    worker.store.put(key=copy, data=data[: cut - 3] + b"X" + data[cut - 2 :])
    for segment in range(2):
        with pytest.raises(WorkerError, match=r"SegmentsMissing: the text .* was changed after it was written"):
            worker.segment(prepared=prepared, segment=segment)
    worker.segment(prepared=prepared, segment=2)


def test_a_plan_of_another_format_is_refused(worker: Worker) -> None:
    prepared = worker.prepare(document__source__uri=worker.upload(data=sentences(count=100).encode(), name="a.txt"))
    (key,) = [entry.key for entry in worker.store.list(prefix="kb") if "/plans/" in entry.key]
    plan = json.loads(worker.store.get(key=key))
    before = {**plan, "format": 1, "cuts": [cut[:3] for cut in plan["cuts"]]}
    data = json.dumps(before).encode()
    digest = hash_of(data=data)
    worker.store.put(key=key.replace(prepared["version"]["planHash"], digest), data=data)
    prepared["version"]["planHash"] = digest
    with pytest.raises(WorkerError, match=r"PipelineChanged: the plan .* has a format that this worker does not know"):
        worker.segment(prepared=prepared, segment=0)


@pytest.mark.parametrize(("pages", "mode"), [(3, "SinglePass"), (4, "Segmented")])
def test_a_single_pass_takes_at_most_so_many_pages(worker: Worker, pages: int, mode: str) -> None:
    uri = worker.upload(data=pdf(pages=["One."] * pages))
    assert worker.prepare(document__source__uri=uri)["mode"] == mode
