"""What of a document is in no chunk: pages without text, and files that are attached to it.

It is recorded beside the outputs, before the first one that it is about: where that is there, so is this, whichever pod
or attempt wrote it. The names of the records say it, so that the listing that a publish needs anyway tells it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from ingestion_crds.constants import MAX_PAGES_LENGTH
from ingestion_crds.indexset import IndexSet

from ingestion_worker import layout
from ingestion_worker.store import Store

# A name has 255 bytes on the disk of the embedded store. All pages of a segment of 32 have room.
_NAMED: Final = 200
# A status takes no larger number.
_MOST: Final = 2**31 - 1


def record_pages(*, store: Store, prefix: str, plan_hash: str, segment: int, pages: IndexSet) -> None:
    """Record which pages of a segment have no text: its name says how many, and as many of them as it has room for.

    Args:
        store: the tenant's store.
        prefix: the version's.
        plan_hash: the plan's.
        segment: the segment's index.
        pages: counted from 1; there is one at least.

    Raises:
        WorkerError: StoreUnavailable, StoreForbidden.
    """
    named = pages.beginning(_NAMED)
    key = layout.blank_pages_key(prefix=prefix, plan_hash=plan_hash, segment=segment, count=len(pages), pages=named)
    store.put(key=key, data=str(pages).encode())


def record_attachments(*, store: Store, prefix: str, plan_hash: str, segment: int | None, count: int) -> None:
    """Record how many files are attached to the document, or to the pages of a segment.

    Args:
        store: the tenant's store.
        prefix: the version's.
        plan_hash: the plan's.
        segment: the segment's index; None for the document.
        count: one at least.

    Raises:
        WorkerError: StoreUnavailable, StoreForbidden.
    """
    key = layout.attachments_key(prefix=prefix, plan_hash=plan_hash, segment=segment, count=count)
    store.put(key=key, data=b"")


class NotRead:
    """What all records of a plan say together."""

    def __init__(self) -> None:
        self._pages: dict[int, tuple[int, IndexSet]] = {}
        self._attachments: dict[str, int] = {}

    def take(self, *, key: str) -> None:
        """Take in one key of a listing; what is no record is passed over."""
        with suppress(ValueError):
            segment, count, pages = layout.parse_blank_pages_key(key=key)
            self._pages[segment] = count, pages
        with suppress(ValueError):
            folder, count = layout.parse_attachments_key(key=key)
            self._attachments[folder] = count

    def message(self) -> dict[str, Any]:
        """Return what a termination message says of it: nothing if all was read."""
        count = sum(count for count, _ in self._pages.values())
        attachments = sum(self._attachments.values())
        if not count and not attachments:
            return {}
        pages = IndexSet.parse(",".join(str(pages) for _, pages in self._pages.values() if pages))
        counts = {"pageCount": min(count, _MOST), "attachments": min(attachments, _MOST)}
        return {"notRead": {**counts, "pages": str(pages.beginning(MAX_PAGES_LENGTH))}}
