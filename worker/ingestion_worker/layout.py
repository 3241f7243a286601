"""Where everything lies in a tenant's bucket, in one place (docs/store-layout.md says why).

All ids were checked when the attempt was read, so no part of a key can leave its folder.

The arguments are the same everywhere: UUIDs of knowledge base and document, and of the version; `prefix` is what
`version_prefix` returns; `plan_hash` is the plan's own; segments are counted from 0, versions and entries from 1.
"""

from __future__ import annotations

import re
import uuid
from typing import Final

from ingestion_crds.indexset import IndexSet

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_OUTPUT: Final = re.compile(r".*/segments/[^/]+/([0-9]{6,9})/([0-9]{7,9})\.parquet")
_BLANK_PAGES: Final = re.compile(r".*/segments/[^/]+/([0-9]{6,9})/([0-9]{7,9})_([0-9_-]+)\.not-read")
_ATTACHMENTS: Final = re.compile(r".*/segments/[^/]+/(attachments|[0-9]{6,9})/([0-9]{7,9})\.not-read")
MAX_FILE_NAME: Final = 100
TRIALS: Final = "trials"
"""The prefix of what is written to try the store, and deleted again."""


def upload_key(*, document_id: str, upload_id: str, file_name: str) -> str:
    """Return the key of an uploaded file."""
    return f"uploads/{document_id}/{upload_id}/{safe_file_name(name=file_name)}"


def trial_key() -> str:
    """Return a key that nobody has."""
    return f"{TRIALS}/{uuid.uuid4()}"


def safe_file_name(*, name: str) -> str:
    """Return a name of ASCII letters, digits, dots and dashes that keeps its extension; never empty, `.` or `..`."""
    stem, dot, extension = _UNSAFE.sub("_", re.split(r"[/\\]", name)[-1]).rpartition(".")
    if not dot or not extension or len(extension) > 10:
        stem, dot, extension = f"{stem}{dot}{extension}", "", ""
    room = MAX_FILE_NAME - len(dot + extension)
    return f"{stem.strip('._')[:room] or 'document'}{dot}{extension}"


def history_root(*, knowledge_base: str) -> str:
    """Return the prefix under which the histories of all documents of a knowledge base lie."""
    return f"kb/{knowledge_base}/history"


def history_prefix(*, knowledge_base: str, document_id: str) -> str:
    """Return the prefix of one document's history."""
    return f"{history_root(knowledge_base=knowledge_base)}/{document_id}"


def history_key(*, knowledge_base: str, document_id: str, sequence: int) -> str:
    """Return the key of one entry of a document's history; the highest is the truth."""
    return f"{history_prefix(knowledge_base=knowledge_base, document_id=document_id)}/{sequence:012d}.json"


def numbers_prefix(*, knowledge_base: str, document_id: str) -> str:
    """Return the prefix under which the document's version numbers were given out."""
    return f"kb/{knowledge_base}/numbers/{document_id}"


def number_key(*, knowledge_base: str, document_id: str, number: int) -> str:
    """Return the key whose creation gives a version number to one job."""
    return f"{numbers_prefix(knowledge_base=knowledge_base, document_id=document_id)}/{number:012d}.json"


def claim_key(*, knowledge_base: str, document_id: str, job_uid: str) -> str:
    """Return the key that says which number a job's version has."""
    return f"kb/{knowledge_base}/claims/{document_id}/{job_uid}.json"


def version_prefix(*, knowledge_base: str, document_id: str, version_id: str) -> str:
    """Return the prefix of everything of one version."""
    return f"kb/{knowledge_base}/versions/{document_id}/{version_id}"


def source_key(*, prefix: str, sha256: str, suffix: str) -> str:
    """Return the key of a version's canonical source, named by its content."""
    return f"{prefix}/sources/{sha256}.{suffix}"


def plan_key(*, prefix: str, plan_hash: str) -> str:
    """Return the key of a plan, named by its content."""
    return f"{prefix}/plans/{plan_hash}.json"


def segments_prefix(*, prefix: str, plan_hash: str) -> str:
    """Return the prefix of all outputs under one plan."""
    return f"{prefix}/segments/{plan_hash}"


def segment_prefix(*, prefix: str, plan_hash: str, segment: int) -> str:
    """Return the folder that holds the one output of a segment."""
    return f"{segments_prefix(prefix=prefix, plan_hash=plan_hash)}/{segment:06d}"


def segment_key(*, prefix: str, plan_hash: str, segment: int, chunks: int) -> str:
    """Return the key of a segment's output; its name carries the number of chunks, so that a listing can count them."""
    return f"{segment_prefix(prefix=prefix, plan_hash=plan_hash, segment=segment)}/{chunks:07d}.parquet"


def parse_segment_key(*, key: str) -> tuple[int, int]:
    """Return (segment, chunks) of an output's key.

    Raises:
        ValueError: it is none, as `segment_key` makes them.
    """
    found = _OUTPUT.fullmatch(key)
    if found is None:
        raise ValueError(key)
    return int(found[1]), int(found[2])


def blank_pages_key(*, prefix: str, plan_hash: str, segment: int, count: int, pages: IndexSet) -> str:
    """Return the key that says which pages of a segment have no text: how many, and some of them, as `1-3_7`."""
    folder = segment_prefix(prefix=prefix, plan_hash=plan_hash, segment=segment)
    return f"{folder}/{count:07d}_{str(pages).replace(',', '_')}.not-read"


def parse_blank_pages_key(*, key: str) -> tuple[int, int, IndexSet]:
    """Return (segment, how many pages, some of them) of such a key.

    Raises:
        ValueError: it is none, as `blank_pages_key` makes them.
    """
    found = _BLANK_PAGES.fullmatch(key)
    if found is None:
        raise ValueError(key)
    return int(found[1]), int(found[2]), IndexSet.parse(found[3].replace("_", ","))


def attachments_key(*, prefix: str, plan_hash: str, segment: int | None, count: int) -> str:
    """Return the key that says how many files are attached to the pages of a segment; of None, to the document."""
    folder = "attachments" if segment is None else f"{segment:06d}"
    return f"{segments_prefix(prefix=prefix, plan_hash=plan_hash)}/{folder}/{count:07d}.not-read"


def parse_attachments_key(*, key: str) -> tuple[str, int]:
    """Return (folder, how many files) of such a key.

    Raises:
        ValueError: it is none, as `attachments_key` makes them.
    """
    found = _ATTACHMENTS.fullmatch(key)
    if found is None:
        raise ValueError(key)
    return found[1], int(found[2])
