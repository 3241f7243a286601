"""The attempt's file: read once, checked against the environment, then trusted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from ingestion_crds.constants import (
    API_VERSION,
    ATTEMPT_FILE,
    COMMANDS,
    ENV_ATTEMPT_FILE,
    ENV_COMPLETION_INDEX,
    ENV_GENERATION,
    ENV_JOB_UID,
    ENV_MAP_DIGEST,
    ENV_STAGE,
    MAX_SEGMENTS,
    Mode,
    Stage,
)
from ingestion_crds.digest import map_digest
from ingestion_crds.indexset import IndexSet

from ingestion_worker.outcome import WorkerError

_STAGES: Final = {command: stage for stage, command in COMMANDS.items()}
# Ids become part of object keys: nothing that could leave its folder.
ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# As Kubernetes writes times.
TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")
MAX_ATTEMPT_BYTES: Final = 4 * 2**20
_Choice = TypeVar("_Choice", Stage, Mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpec:
    """Which embedder made (or makes) the vectors; two vectors compare only under equal specs."""

    provider: str
    model: str
    dimensions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the document is: `s3://BUCKET/KEY` or http(s), with what is known of it."""

    uri: str
    content_type: str | None
    sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """Sizes that decide between one pass and segments (pages and characters)."""

    pages_per_segment: int
    characters_per_segment: int
    single_pass_max_pages: int
    single_pass_max_characters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRef:
    """The version that `prepare_document` claimed."""

    id: str
    number: int
    plan_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one retry generation asks of one stage."""

    job_uid: str
    job: str
    """Namespace and name, as logs write them."""
    created: str
    """When the job was made; empty if the file does not say it."""
    generation: int
    stage: Stage
    knowledge_base: str
    document_id: str
    title: str
    source: Source
    mode: Mode
    segmentation: Segmentation
    chunk_size: int
    chunk_overlap: int
    embedding: EmbeddingSpec
    version_id: str
    """The id of the version; all that the file of `prepare_document` says of it."""
    version: VersionRef | None
    total_segments: int | None
    segments: str | None

    def require_version(self) -> VersionRef:
        """Return the version.

        Raises:
            WorkerError: InvalidAttempt if the file has none.
        """
        if self.version is None:
            raise WorkerError("InvalidAttempt", f"the attempt for {self.stage.value} names no version")
        return self.version

    def require_total_segments(self) -> int:
        """Return the number of segments of the document.

        Raises:
            WorkerError: InvalidAttempt if the file does not say it.
        """
        if self.total_segments is None:
            raise WorkerError("InvalidAttempt", f"the attempt for {self.stage.value} has no totalSegments")
        return self.total_segments


def read_attempt(*, command: str, env: Mapping[str, str]) -> Attempt:
    """Read the attempt's file and check it against the environment.

    Args:
        command: the container's argument, one of `COMMANDS`.
        env: the container's environment.

    Raises:
        WorkerError: AttemptMismatch if the file is not the one that the environment names (a kubelet can serve the file
            of a deleted object with the same name); InvalidAttempt if it is not understood.
    """
    stage = _STAGES.get(command)
    if stage is None:
        raise WorkerError("InvalidAttempt", f"unknown command {command!r}; known: {', '.join(_STAGES)}")
    path = Path(env.get(ENV_ATTEMPT_FILE, ATTEMPT_FILE))
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_ATTEMPT_BYTES + 1)
    except OSError as error:
        raise WorkerError("AttemptMismatch", f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_ATTEMPT_BYTES:
        raise WorkerError("InvalidAttempt", f"{path} is over {MAX_ATTEMPT_BYTES} bytes")
    _check_digest(raw=raw, env=env)
    try:
        document = json.loads(raw)
    except ValueError as error:
        raise WorkerError("InvalidAttempt", f"{path} is not JSON: {error}") from error
    attempt = parse_attempt(document=document)
    expected = {
        ENV_JOB_UID: attempt.job_uid,
        ENV_GENERATION: str(attempt.generation),
        ENV_STAGE: attempt.stage.value,
    }
    for name, value in expected.items():
        if env.get(name) != value:
            raise WorkerError("AttemptMismatch", f"{name} is {env.get(name)!r}, but the attempt's file says {value!r}")
    if attempt.stage is not stage:
        raise WorkerError("AttemptMismatch", f"the command is {command}, but the file is for {attempt.stage.value}")
    return attempt


def _check_digest(*, raw: bytes, env: Mapping[str, str]) -> None:
    digest = map_digest(raw)
    if env.get(ENV_MAP_DIGEST) != digest:
        raise WorkerError(
            "AttemptMismatch", f"{ENV_MAP_DIGEST} is {env.get(ENV_MAP_DIGEST)!r}, but the file's digest is {digest!r}"
        )


def segment_index(*, attempt: Attempt, env: Mapping[str, str]) -> int:
    """Return the segment this container works on: member JOB_COMPLETION_INDEX of the attempt's index set.

    Raises:
        WorkerError: InvalidAttempt when the index or the set is missing or out of range.
    """
    text = env.get(ENV_COMPLETION_INDEX, "")
    if not (text.isascii() and text.isdigit()):
        raise WorkerError("InvalidAttempt", f"{ENV_COMPLETION_INDEX} is {text!r}, not a number")
    if not attempt.segments:
        raise WorkerError("InvalidAttempt", "the attempt for process_segments has no segments")
    try:
        segments = IndexSet.parse(attempt.segments)
        segment = segments.member(int(text))
    except (ValueError, IndexError) as error:
        raise WorkerError("InvalidAttempt", f"no member {text} in segments {attempt.segments[:100]!r}") from error
    if not 0 <= segment < attempt.require_total_segments():
        raise WorkerError("InvalidAttempt", f"segment {segment} is outside 0…{attempt.total_segments}")
    return segment


def parse_attempt(*, document: object) -> Attempt:
    """Turn the file's JSON into an Attempt.

    Raises:
        WorkerError: InvalidAttempt naming the field that is missing or wrong.
    """
    root = _Reader(document, "attempt")
    if root.text("apiVersion") != API_VERSION or root.text("kind") != "Attempt":
        raise WorkerError("InvalidAttempt", f"the attempt is not an {API_VERSION} Attempt")
    job, doc, pipeline = root.child("job"), root.child("document"), root.child("pipeline")
    source, sizes, embedding = doc.child("source"), root.child("segmentation"), pipeline.child("embedding")
    sha256 = source.optional_text("sha256")
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise WorkerError("InvalidAttempt", "document.source.sha256 is not 64 hex digits")
    created = job.optional_text("created") or ""
    if created and not TIME.fullmatch(created):
        raise WorkerError("InvalidAttempt", "attempt.job.created is no time such as 2026-01-31T12:00:00Z")
    stage = _choice(Stage, root.text("stage"), "stage")
    ref = root.child("version")
    version_id = ref.id("id")
    version = None
    if stage is not Stage.PREPARE:
        version = VersionRef(id=version_id, number=ref.number("number", low=1), plan_hash=ref.id("planHash"))
    chunk_size = pipeline.number("chunkSize", low=1, high=1_000_000)
    return Attempt(
        job_uid=job.id("uid"),
        job=f"{job.text('namespace')}/{job.text('name')}",
        created=created,
        generation=root.number("generation", low=0),
        stage=stage,
        knowledge_base=root.id("knowledgeBase"),
        document_id=doc.id("id"),
        title=doc.optional_text("title") or "",
        source=Source(
            uri=source.text("uri"),
            content_type=source.optional_text("contentType"),
            sha256=sha256.lower() if sha256 else None,
        ),
        mode=_choice(Mode, root.text("mode"), "mode"),
        segmentation=Segmentation(
            pages_per_segment=sizes.number("pagesPerSegment", low=1),
            characters_per_segment=sizes.number("charactersPerSegment", low=1),
            single_pass_max_pages=sizes.number("singlePassMaxPages", low=0),
            single_pass_max_characters=sizes.number("singlePassMaxCharacters", low=0),
        ),
        chunk_size=chunk_size,
        chunk_overlap=pipeline.number("chunkOverlap", low=0, high=chunk_size - 1),
        embedding=EmbeddingSpec(
            provider=embedding.text("provider"),
            model=embedding.text("model"),
            dimensions=embedding.number("dimensions", low=1, high=65_536),
        ),
        version_id=version_id,
        version=version,
        total_segments=root.number("totalSegments", low=1, high=MAX_SEGMENTS) if root.has("totalSegments") else None,
        segments=root.optional_text("segments"),
    )


def _choice(kind: type[_Choice], value: str, name: str) -> _Choice:
    try:
        return kind(value)
    except ValueError as error:
        raise WorkerError("InvalidAttempt", f"{name} {value!r} is not known to this worker") from error


class _Reader:
    """Reads fields of one JSON object and names the one that is wrong.

    By hand: to import pydantic and the models of `ingestion_crds.job` would double the time in which a worker starts.
    """

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise WorkerError("InvalidAttempt", f"{path} is missing or not an object")
        self._value: dict[str, Any] = value
        self._path = path

    def has(self, name: str) -> bool:
        return self._value.get(name) is not None

    def child(self, name: str) -> _Reader:
        return _Reader(self._value.get(name), f"{self._path}.{name}")

    def text(self, name: str) -> str:
        value = self._value.get(name)
        if not isinstance(value, str) or not value:
            raise WorkerError("InvalidAttempt", f"{self._path}.{name} is missing or not a string")
        return value

    def optional_text(self, name: str) -> str | None:
        return self.text(name) if self._value.get(name) else None

    def id(self, name: str) -> str:
        value = self.text(name)
        if not ID.fullmatch(value) or ".." in value:
            raise WorkerError("InvalidAttempt", f"{self._path}.{name} is not an id")
        return value

    def number(self, name: str, *, low: int, high: int = 2**53) -> int:
        value = self._value.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise WorkerError("InvalidAttempt", f"{self._path}.{name} is not a whole number in {low}…{high}")
        return value
