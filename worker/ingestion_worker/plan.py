"""The plan of a version: everything that decides the bytes of its outputs, and a hash over it.

A plan is written once, under its own hash; every segment reads the plan that its attempt names, and refuses to work
when its own pipeline is another than the plan's. So one version never mixes two pipelines.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from ingestion_worker import layout
from ingestion_worker.attempt import Attempt
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import ObjectMissingError, Store

FORMAT: Final = 2
# Raise it with every change to parsing, chunking, embedding or output that changes bytes.
PIPELINE_VERSION: Final = 7
# Libraries whose versions can change the bytes of an output.
_LIBRARIES: Final = (
    "charset-normalizer",
    "lxml",
    "numpy",
    "pyarrow",
    "pypdfium2",
    "safetensors",
    "selectolax",
    "semantic-text-splitter",
    "tokenizers",
    "wordllama",
)
_HASH_DIGITS: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One segment's range: pages [start, end), or bytes [start, end) of the canonical text.

    Args:
        start, end: the range.
        character: of a text, the number of its first character.
        digest: of a text, the hash of what the segment reads: its range, and before it what it overlaps.
    """

    start: int
    end: int
    character: int = 0
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the segments of a version work by.

    Args:
        name: the document's file name, for messages.
        unit: `pages` of a PDF or `bytes` of a canonical text.
        source_sha256: of the source as it was read.
        canonical_key: where the canonical copy lies, and its SHA-256.
        cuts: one for each segment.
        pipeline: the fingerprint.
        mode: `Segmented` or `SinglePass`.
    """

    name: str
    unit: str
    source_sha256: str
    canonical_key: str
    canonical_sha256: str
    cuts: tuple[Cut, ...]
    pipeline: dict[str, Any]
    mode: str

    def encode(self) -> bytes:
        """Return the plan as canonical JSON."""
        body = {"format": FORMAT, **asdict(self)}
        body["cuts"] = [[cut.start, cut.end, cut.character, cut.digest] for cut in self.cuts]
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def hash_of(*, data: bytes) -> str:
    """Return the hash of an encoded plan, or of a segment's text: short, as each segment reads those of all."""
    return hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]


def fingerprint(*, attempt: Attempt) -> dict[str, Any]:
    """Return what this worker's pipeline is made of: settings of the job, code version, library versions.

    The embedding endpoint's URL is not in it: the provider and model say which vectors are wanted.
    """
    return {
        "version": PIPELINE_VERSION,
        "chunkSize": attempt.chunk_size,
        "chunkOverlap": attempt.chunk_overlap,
        "embedding": asdict(attempt.embedding),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def write_plan(*, store: Store, prefix: str, plan: Plan) -> str:
    """Write a plan under its hash and return the hash; writing it again changes nothing.

    Args:
        store: the tenant's store.
        prefix: the version's.
        plan: what to write.

    Raises:
        WorkerError: StoreUnavailable, StoreForbidden.
    """
    data = plan.encode()
    digest = hash_of(data=data)
    store.put(key=layout.plan_key(prefix=prefix, plan_hash=digest), data=data)
    return digest


def read_plan(*, store: Store, prefix: str, plan_hash: str) -> Plan:
    """Read the plan that an attempt names.

    Args:
        store: the tenant's store.
        prefix: the version's.
        plan_hash: the plan's.

    Raises:
        WorkerError: SegmentsMissing when it is not there or not whole; PipelineChanged when it has another format; a
            Store… code.
    """
    key = layout.plan_key(prefix=prefix, plan_hash=plan_hash)
    try:
        data = store.get(key=key)
    except ObjectMissingError as error:
        raise WorkerError("SegmentsMissing", f"the plan {key} is not in the store") from error
    if hash_of(data=data) != plan_hash:
        raise WorkerError("SegmentsMissing", f"the plan {key} was changed after it was written")
    body: dict[str, Any] = json.loads(data)
    if body.pop("format") != FORMAT:
        raise WorkerError("PipelineChanged", f"the plan {key} has a format that this worker does not know")
    cuts = tuple(
        Cut(start=start, end=end, character=character, digest=digest)
        for start, end, character, digest in body.pop("cuts")
    )
    return Plan(cuts=cuts, **body)


def check_pipeline(*, plan: Plan, attempt: Attempt) -> None:
    """Refuse to go on when this worker's pipeline is another than the plan's.

    Raises:
        WorkerError: PipelineChanged, naming what differs.
    """
    mine = fingerprint(attempt=attempt)
    if mine == plan.pipeline:
        return
    before, now = _flat(plan.pipeline), _flat(mine)
    changes = [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    raise WorkerError("PipelineChanged", f"the version was begun with another pipeline ({'; '.join(changes)})")


def _flat(value: dict[str, Any], path: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            result.update(_flat(item, f"{path}{name}."))
        else:
            result[f"{path}{name}"] = item
    return result
