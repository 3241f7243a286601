"""What a stage works with, put together once by `main` (or by a test)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ingestion_worker import layout
from ingestion_worker.attempt import Attempt
from ingestion_worker.embedding import Embedder
from ingestion_worker.parsing.guard import ParserLimits
from ingestion_worker.source import AllowList, FetchLimits, Resolver
from ingestion_worker.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """A stage's surroundings.

    Args:
        attempt: what to do.
        store: the tenant's store.
        scratch: an empty folder for this run.
        make_embedder: makes the embedder when the stage comes to need it.
        allow: addresses that sources may be on besides public ones.
        fetch_limits: bounds of the download.
        parser_limits: bounds of a parser; the container's own when None.
        resolver: name resolution for sources, for tests.
    """

    attempt: Attempt
    store: Store
    scratch: Path
    make_embedder: Callable[[], Embedder]
    allow: AllowList = field(default_factory=lambda: AllowList(text=""))
    fetch_limits: FetchLimits = field(default_factory=FetchLimits)
    parser_limits: ParserLimits | None = None
    resolver: Resolver | None = None

    def version_prefix(self, *, version_id: str) -> str:
        """Return the prefix of a version of this attempt's document."""
        return layout.version_prefix(
            knowledge_base=self.attempt.knowledge_base,
            document_id=self.attempt.document_id,
            version_id=version_id,
        )
