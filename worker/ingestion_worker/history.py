"""A document's history: the append-only log that decides which version is live.

Each entry is an object `…/000000000007.json` written with create-only, and holds the whole state after it: the live
version and the fences. The highest entry is the truth. A writer reads the highest entry n, decides by what it says, and
creates n+1; if another was faster the creation fails, and it reads and decides again. So a decision and its effect are
one atomic step: no check can go stale between the two, whatever crashes or stalls, and entries are never deleted.

A fence {job uid: generation} says which attempt of a job may still publish. An attempt after the first one raises it
before it does anything; from then on no pod of an earlier attempt can publish.
"""

from __future__ import annotations

import datetime
import json
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, TypeVar, get_type_hints

from ingestion_crds.constants import MAX_TITLE_LENGTH

from ingestion_worker import layout
from ingestion_worker.attempt import ID, TIME, EmbeddingSpec
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import ObjectMissingError, Store

FORMAT: Final = 1
# Every lost race means that another writer got through, so this is far beyond any real number of writers.
MAX_TRIES: Final = 1000
_Kind = TypeVar("_Kind")

# An entry has under 1 KB, and some 60 bytes for each unfinished job of its document.
MAX_ENTRY_BYTES: Final = 2**20
# But for the title, no text that we write in one is longer.
_MAX_FIELD: Final = 256
_MAX_NUMBER: Final = 2**31 - 1
_MAX_DIMENSIONS: Final = 65_536
_IN_KEYS: Final = ("version_id", "plan_hash")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveVersion:
    """The version of a document that readers see."""

    document_id: str
    version_id: str
    number: int
    job_uid: str
    generation: int
    plan_hash: str
    segments: int
    chunks: int
    title: str
    mode: str
    embedding: EmbeddingSpec
    published_at: str


_TYPES: Final[dict[type, dict[str, Any]]] = {kind: get_type_hints(kind) for kind in (EmbeddingSpec, LiveVersion)}


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What one entry says: the live version, and the generation up to which each unfinished job is fenced."""

    sequence: int = 0
    live: LiveVersion | None = None
    # When the job of the live version was made, as Kubernetes writes times; empty where nobody said.
    created: str = ""
    fences: dict[str, int] = field(default_factory=dict)
    # The version number of each fenced job: a fence of a version that can no longer publish is dropped.
    numbers: dict[str, int] = field(default_factory=dict)


def encode_state(*, state: State) -> bytes:
    """Return an entry's bytes. The nonce makes each writer's entry differ (a store's ETag is the content's hash)."""
    body = {
        "format": FORMAT,
        "live": asdict(state.live) if state.live else None,
        "created": state.created or None,
        "fences": state.fences,
        "numbers": state.numbers,
        "nonce": uuid.uuid4().hex,
    }
    return json.dumps(body, sort_keys=True).encode()


def decode_state(*, data: bytes, sequence: int) -> State:
    """Read an entry.

    Raises:
        WorkerError: PipelineChanged when a later release wrote it in a format this one does not know;
            DocumentUnreadable when it is none of ours, or something in it is longer than anything of ours.
    """
    try:
        body: dict[str, Any] = json.loads(data)
        if body.get("format") != FORMAT:
            raise WorkerError(
                "PipelineChanged", f"the document's history has format {body.get('format')}, not {FORMAT}"
            )
        live = body["live"]
        if live:
            spec = _checked(EmbeddingSpec, live.pop("embedding"))
            live = _checked(LiveVersion, live, embedding=spec)
        created = body.get("created") or ""
        if created and not TIME.fullmatch(created):
            raise ValueError("created is no time")
        return State(
            sequence=sequence,
            live=live or None,
            created=created,
            fences=dict(body["fences"]),
            numbers=dict(body["numbers"]),
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise WorkerError(
            "DocumentUnreadable", f"an entry of the document's history is none of ours: {error}"
        ) from error


def _checked(kind: type[_Kind], values: dict[str, Any], **known: EmbeddingSpec) -> _Kind:
    """Return a dataclass of `values`, once they are such as we write, and of what is `known`."""
    for name, value in values.items():
        most = MAX_TITLE_LENGTH if name == "title" else _MAX_FIELD
        if type(value) is not _TYPES[kind].get(name) or len(str(value)) > most:
            raise ValueError(f"{name} is no text or number of at most {most} characters")
        highest = _MAX_DIMENSIONS if name == "dimensions" else _MAX_NUMBER
        if isinstance(value, int) and not 0 <= value <= highest:
            raise ValueError(f"{name} is {value}, not within 0 to {highest}")
        if name in _IN_KEYS and not ID.fullmatch(value):
            raise ValueError(f"{name} cannot be part of a key")
        str(value).encode()  # half a character is a text to JSON, and nothing that could be answered with
    return kind(**values, **known)


def sequence_of(*, key: str) -> int:
    """Return the number that an entry's key ends with; 0 for anything else that lies there."""
    name = key.rpartition("/")[2].removesuffix(".json")
    return int(name) if name.isascii() and name.isdigit() else 0


def read_state(*, store: Store, knowledge_base: str, document_id: str) -> State:
    """Return the newest entry of a document's history; an empty state if there is none.

    Args:
        store: the tenant's store.
        knowledge_base: its UUID.
        document_id: the document's UUID.

    Raises:
        WorkerError: StoreUnavailable, also for an entry that is listed but not there; StoreForbidden; or as
            `decode_state`.
    """
    prefix = layout.history_prefix(knowledge_base=knowledge_base, document_id=document_id)
    newest = max((sequence_of(key=entry.key) for entry in store.list(prefix=prefix)), default=0)
    if newest == 0:
        return State()
    key = layout.history_key(knowledge_base=knowledge_base, document_id=document_id, sequence=newest)
    try:
        return decode_state(data=store.get(key=key), sequence=newest)
    except ObjectMissingError as error:
        raise WorkerError("StoreUnavailable", f"{key} was listed but cannot be read") from error


def raise_fence(
    *,
    store: Store,
    knowledge_base: str,
    document_id: str,
    job_uid: str,
    version_id: str,
    number: int,
    generation: int,
    created: str = "",
) -> State:
    """Shut out every earlier attempt of this job, durably, before this attempt does anything.

    Generation 0 has no earlier attempt and writes nothing.

    Args:
        store: the tenant's store.
        knowledge_base: its UUID.
        document_id: the document's UUID.
        job_uid: the IngestionJob's.
        version_id: of the version that the job makes.
        number: of that version.
        generation: this attempt's.
        created: when the job was made, if that is known.

    Returns:
        the state that this leaves: its live version may be the one that the job makes.

    Raises:
        WorkerError: VersionSuperseded when a newer version is live, or one of a job that was made later; Fenced when a
            later attempt has already shut this one out; else as `read_state`.
    """

    def decide(state: State) -> State | None:
        _check_superseded(state=state, version_id=version_id, number=number, created=created)
        fence = state.fences.get(job_uid, 0)
        if fence > generation:
            raise _fenced(job_uid=job_uid, generation=generation, fence=fence)
        if fence == generation or (state.live is not None and state.live.version_id == version_id):
            return None
        return replace(state, fences={**state.fences, job_uid: generation}, numbers={**state.numbers, job_uid: number})

    return _advance(store=store, knowledge_base=knowledge_base, document_id=document_id, decide=decide)


def check_superseded(
    *, store: Store, knowledge_base: str, document_id: str, version_id: str, number: int, created: str = ""
) -> None:
    """Refuse early what `publish` would refuse in the end.

    Args:
        store: the tenant's store.
        knowledge_base: its UUID.
        document_id: the document's UUID.
        version_id: of the version that is to be published.
        number: of that version.
        created: when its job was made, if that is known.

    Raises:
        WorkerError: VersionSuperseded when a newer version is live, or one of a job that was made later; else as
            `read_state`.
    """
    state = read_state(store=store, knowledge_base=knowledge_base, document_id=document_id)
    _check_superseded(state=state, version_id=version_id, number=number, created=created)


def publish(*, store: Store, knowledge_base: str, version: LiveVersion, created: str = "") -> LiveVersion:
    """Make a version live, atomically, and return what is live then: `version`, or this job's own earlier publish.

    Args:
        store: the tenant's store.
        knowledge_base: its UUID.
        version: what is to be live; its time is set here.
        created: when its job was made, if that is known.

    Raises:
        WorkerError: VersionSuperseded when a newer version is live, or one of a job that was made later; Fenced when a
            later attempt of the job exists; else as `read_state`.
    """

    def decide(state: State) -> State | None:
        live = state.live
        if live is not None and live.version_id == version.version_id:
            return None
        _check_superseded(state=state, version_id=version.version_id, number=version.number, created=created)
        fence = state.fences.get(version.job_uid, 0)
        if fence > version.generation:
            raise _fenced(job_uid=version.job_uid, generation=version.generation, fence=fence)
        kept = {uid: number for uid, number in state.numbers.items() if number >= version.number}
        moment = datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="milliseconds")
        return State(
            sequence=state.sequence,
            live=replace(version, published_at=moment),
            created=created,
            fences={uid: state.fences[uid] for uid in kept},
            numbers=kept,
        )

    state = _advance(store=store, knowledge_base=knowledge_base, document_id=version.document_id, decide=decide)
    assert state.live is not None  # decide() leaves one
    return state.live


def _check_superseded(*, state: State, version_id: str, number: int, created: str) -> None:
    # Numbers only grow: what is superseded once stays so, and needs no fence. Which job it is does not matter: one that
    # is back from a backup has another UID, and its former self may have published the version since.
    live = state.live
    if live is None or live.version_id == version_id:
        return
    if live.number >= number:
        raise WorkerError("VersionSuperseded", f"version {live.number} is live, so version {number} is not published")
    # A job can wait for long before it takes its number. Times of this form are in order as texts.
    if created and state.created > created:
        raise WorkerError(
            "VersionSuperseded",
            f"version {live.number} is live, whose job was made at {state.created}: this one was made at {created}",
        )


def _fenced(*, job_uid: str, generation: int, fence: int) -> WorkerError:
    return WorkerError("Fenced", f"attempt {generation} of job {job_uid} is late: attempt {fence} has begun")


def _advance(*, store: Store, knowledge_base: str, document_id: str, decide: Callable[[State], State | None]) -> State:
    """Append what `decide` makes of the newest state; None from it means that the state is good as it is."""
    for attempt in range(MAX_TRIES):
        state = read_state(store=store, knowledge_base=knowledge_base, document_id=document_id)
        wanted = decide(state)
        if wanted is None:
            return state
        after = replace(wanted, sequence=state.sequence + 1)
        key = layout.history_key(knowledge_base=knowledge_base, document_id=document_id, sequence=after.sequence)
        if store.create(key=key, data=encode_state(state=after)):
            return after
        time.sleep(random.uniform(0, min(0.5, 0.005 * (attempt + 1))))  # noqa: S311 - spreads writers, no secret
    raise WorkerError("StoreUnavailable", f"lost {MAX_TRIES} races for the history of document {document_id}")
