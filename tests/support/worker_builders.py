"""Small builders: documents, attempts and the surroundings of a stage."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ingestion_crds.constants import API_VERSION
from ingestion_crds.job import version_id_of
from ingestion_worker.attempt import parse_attempt
from ingestion_worker.context import Context
from ingestion_worker.embedding import BuiltinEmbedder, Embedder, EmbeddingSpec
from ingestion_worker.source import AllowList, FetchLimits
from ingestion_worker.store import Store

KB = "2b1d0000-0000-4000-8000-000000000001"
DOCUMENT = "8d0a0000-0000-4000-8000-000000000002"
DOCUMENTS = [f"8d0a0000-0000-4000-8000-{number:012}" for number in range(100)]
JOB = "5c0e0000-0000-4000-8000-000000000003"
BUILTIN = EmbeddingSpec(provider="builtin", model="wordllama-l2-256", dimensions=256)
DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_EMBEDDER = BuiltinEmbedder(spec=BUILTIN)


def pdf(*, pages: list[str], password: str | None = None) -> bytes:
    """Return a PDF with one text on each page."""
    from reportlab.lib.pdfencrypt import StandardEncryption
    from reportlab.pdfgen import canvas

    buffer = io.BytesIO()
    encrypt = StandardEncryption(password, ownerPassword="owner") if password else None
    paper = canvas.Canvas(buffer, invariant=True, encrypt=encrypt)
    for text in pages:
        for number, line in enumerate(text.split("\n")):
            paper.drawString(40, 800 - 14 * number, line)
        paper.showPage()
    paper.save()
    return buffer.getvalue()


def docx(*, paragraphs: list[str] | None = None, body: str | None = None, main: str = "word/document.xml") -> bytes:
    """Return a DOCX; `body` is the raw XML of its body instead of paragraphs."""
    inner = (
        body if body is not None else "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs or [])
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(main, f'<w:document xmlns:w="{_W}"><w:body>{inner}</w:body></w:document>')
    return buffer.getvalue()


def sentences(*, count: int, tag: str = "") -> str:
    """Return text of numbered sentences, each its own line."""
    return "\n".join(f"Sentence {number}{tag} tells of the harbour and of the lighthouse." for number in range(count))


def attempt_document(**changes: Any) -> dict[str, Any]:
    """Return the JSON of an attempt; `changes` replace fields, nested ones as in `document__source__uri`."""
    document: dict[str, Any] = {
        "apiVersion": API_VERSION,
        "kind": "Attempt",
        "job": {"namespace": "team-a", "name": "handbook", "uid": JOB, "jobID": JOB},
        "generation": 0,
        "stage": "prepare_document",
        "knowledgeBase": KB,
        "document": {"id": DOCUMENT, "title": "Handbook", "source": {"uri": "s3://team-a/uploads/handbook.pdf"}},
        "mode": "Auto",
        "segmentation": {
            "pagesPerSegment": 2,
            "charactersPerSegment": 2000,
            "singlePassMaxPages": 3,
            "singlePassMaxCharacters": 3000,
        },
        "pipeline": {
            "chunkSize": 300,
            "chunkOverlap": 60,
            "embedding": {"provider": "builtin", "model": "wordllama-l2-256", "dimensions": 256},
        },
    }
    for path, value in changes.items():
        target = document
        *parents, last = path.split("__")
        for name in parents:
            target = target[name]
        if value is None:
            target.pop(last, None)
        else:
            target[last] = value
    if "version" not in changes:
        document["version"] = {"id": version_id_of(document["job"]["uid"])}
    return document


def context(*, store: Store, scratch: Path, document: dict[str, Any], **more: Any) -> Context:
    """Return the surroundings of a stage, with a fresh scratch folder."""
    scratch.mkdir(parents=True, exist_ok=True)
    more.setdefault("make_embedder", lambda: _EMBEDDER)
    return Context(attempt=parse_attempt(document=document), store=store, scratch=scratch, **more)


class Worker:
    """Runs stages against one store, as the operator would."""

    def __init__(self, *, store: Store, folder: Path) -> None:
        self.store = store
        self._folder = folder
        self._runs = 0
        self.more: dict[str, Any] = {}

    def upload(self, *, data: bytes, name: str = "handbook.pdf") -> str:
        """Put a source into the bucket and return its URI."""
        self.store.put(key=f"uploads/{name}", data=data)
        return f"s3://{self.store.bucket}/uploads/{name}"

    def context(self, **changes: Any) -> Context:
        """Return a fresh context for an attempt."""
        self._runs += 1
        scratch = self._folder / f"run-{self._runs}"
        return context(store=self.store, scratch=scratch, document=attempt_document(**changes), **self.more)

    def prepare(self, **changes: Any) -> dict[str, Any]:
        """Run prepare_document."""
        from ingestion_worker.prepare import prepare_document

        return prepare_document(context=self.context(**changes))

    def segment(self, *, prepared: dict[str, Any], segment: int, **changes: Any) -> dict[str, Any]:
        """Run process_segment for one segment of what was prepared."""
        from ingestion_worker.segment import process_segment

        changes = {**_later("process_segments", prepared), "segments": str(segment), **changes}
        return process_segment(context=self.context(**changes), segment=segment)

    def publish(self, *, prepared: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """Run publish_version for what was prepared."""
        from ingestion_worker.publish import publish_version

        return publish_version(context=self.context(**{**_later("publish_version", prepared), **changes}))

    def ingest(self, **changes: Any) -> dict[str, Any]:
        """Run all stages."""
        prepared = self.prepare(**changes)
        if prepared["mode"] == "Segmented":
            for segment in range(prepared["segments"]):
                self.segment(prepared=prepared, segment=segment, **changes)
            return self.publish(prepared=prepared, **changes)
        return prepared


def _later(stage: str, prepared: dict[str, Any]) -> dict[str, Any]:
    version = {key: prepared["version"][key] for key in ("id", "number", "planHash")}
    return {"stage": stage, "version": version, "totalSegments": prepared["segments"]}


def container_env(*, folder: Path, document: dict[str, Any], store_url: str, **more: str) -> dict[str, str]:
    """Write an attempt's file and return the environment of its container."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = json.dumps(document).encode()
    path = folder / "attempt.json"
    path.write_bytes(raw)
    return {
        "INGESTION_ATTEMPT_FILE": str(path),
        "INGESTION_JOB_UID": document["job"]["uid"],
        "INGESTION_GENERATION": str(document["generation"]),
        "INGESTION_STAGE": document["stage"],
        "INGESTION_MAP_DIGEST": hashlib.sha256(raw).hexdigest()[:32],
        "INGESTION_STORE_URL": store_url,
        "INGESTION_TERMINATION_LOG": str(folder / "termination-log"),
        **more,
    }


Handler = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def http_server(*, handle: Handler) -> Iterator[str]:
    """Run a real HTTP server; `handle` answers each GET, POST, PATCH and DELETE. Yields its base URL."""

    class Requests(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            handle(self)

        def do_POST(self) -> None:
            handle(self)

        def do_PATCH(self) -> None:
            handle(self)

        def do_DELETE(self) -> None:
            handle(self)

        def log_message(self, *_: Any) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: Any) -> None:
            pass

    server = Quiet(("127.0.0.1", 0), Requests)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(request: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    """Send a whole answer."""
    request.send_response(status)
    request.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


LOOPBACK = AllowList(text="127.0.0.0/8")
SMALL = FetchLimits(max_bytes=2**20, connect_seconds=30.0, read_seconds=30.0, total_seconds=60.0)
IMPATIENT = FetchLimits(max_bytes=2**20, connect_seconds=1.0, read_seconds=0.4, total_seconds=1.5)


class CountingEmbedder:
    """The built-in embedder, counting the texts it was given."""

    def __init__(self) -> None:
        self.texts = 0

    def embed(self, texts: Any) -> Any:
        """Embed and count."""
        self.texts += len(texts)
        return _EMBEDDER.embed(texts)

    def close(self) -> None:
        """Nothing to close."""


def builtin() -> Embedder:
    """Return the shared built-in embedder."""
    return _EMBEDDER
