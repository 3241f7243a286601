"""Searches: one query, embedded as each live version was, scanned over the published segments."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from ingestion_crds.config import Config
from ingestion_crds.constants import BUILTIN_DIMENSIONS, BUILTIN_MODEL, BUILTIN_PROVIDER, PROVIDER_API_KEY
from ingestion_crds.kube import KubeClient
from ingestion_worker.budget import Budget
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store

from ingestion_api.kube_secrets import READ_SECONDS, read_secret
from ingestion_api.options import Options
from ingestion_api.problems import out_of_order, unavailable
from ingestion_api.slots import Slots
from ingestion_api.stores import TenantStores, from_worker_error

if TYPE_CHECKING:
    # pyarrow and the built-in embedder's weights: loaded with the first search, so that the API starts quickly.
    from ingestion_worker.embedding import Embedder, EmbeddingSpec, RequestLimits
    from ingestion_worker.search import Hit, SegmentCache

_TENANT_CACHES: Final = 4
# Together with the caches (512 MiB), uploads, and the process itself this fits into the chart's memory limit.
_READ_BYTES: Final = 192 * 2**20
# Of providers. Bounded, as it is tenants who choose their specs.
_EMBEDDERS: Final = 32


class Searches:
    """Runs searches in threads of their own, a bounded number at a time.

    Args:
        kube: reads the providers' Secrets, in the API's own namespace.
        config: names the providers.
        stores: opens the tenants' buckets.
        options: of the process: that namespace, and bounds.
    """

    def __init__(self, *, kube: KubeClient, config: Config, stores: TenantStores, options: Options) -> None:
        self._kube = kube
        self._config = config
        self._stores = stores
        self._options = options
        self._slots = Slots(
            what="searches",
            count=options.searches,
            tenants=len(config.tenants),
            wait_seconds=options.search_seconds / 2,
        )
        self._threads = ThreadPoolExecutor(max_workers=options.searches, thread_name_prefix="search")
        self._budget = Budget(max_bytes=_READ_BYTES)
        self._caches: OrderedDict[str, SegmentCache] = OrderedDict()
        self._builtin: Embedder | None = None
        self._embedders: OrderedDict[EmbeddingSpec, tuple[Embedder, str | None]] = OrderedDict()
        self._lock = threading.Lock()

    @asynccontextmanager
    async def best(
        self, *, namespace: str, knowledge_bases: Iterable[str], query: str, limit: int
    ) -> AsyncIterator[list[tuple[str, Hit]]]:
        """Give the best chunks of all of some knowledge bases, each with its base, best first.

        They hold a slot until they are let go of: what was found is part of the memory that a slot is for.

        Args:
            namespace: the caller's.
            knowledge_bases: UUIDs.
            query: the question.
            limit: chunks at most.

        Raises:
            ProblemError: 400 no tenant; 413 a segment too large to be read; 429 too many searches; 503 store, embedder
                or its key away, or too slow.
        """
        from ingestion_worker.search import best_of

        seconds = self._options.search_seconds
        let_go = asyncio.Event()
        looking: set[asyncio.Task[list[Hit]]] = set()

        async def hold() -> None:
            await let_go.wait()
            # A thread cannot be cancelled: what takes too long keeps its slot until it has noticed.
            await asyncio.gather(*looking, return_exceptions=True)

        try:
            try:
                async with asyncio.timeout(seconds):
                    store = await self._stores.of(namespace=namespace)
                    keys = await self._provider_keys()
                    await self._slots.start(hold, namespace=namespace)
                best: list[tuple[str, Hit]] = []
                for base in knowledge_bases:
                    look = asyncio.create_task(self._look(store, keys, namespace, base, query, limit))
                    looking.add(look)
                    async with asyncio.timeout(seconds):
                        best += [(base, hit) for hit in await asyncio.shield(look)]
                    looking.remove(look)
                    best = best_of(best, limit=limit, hit_of=itemgetter(1))
            except TimeoutError as error:
                raise unavailable(f"the search took longer than {seconds:.0f} s") from error
            except WorkerError as error:
                raise from_worker_error(error) from error
            yield best
        finally:
            let_go.set()

    def close(self) -> None:
        """Give back what is held open; what still runs ends by itself."""
        self._threads.shutdown(wait=False)
        self._embedders.clear()

    async def _look(
        self, store: Store, keys: dict[str, str], namespace: str, knowledge_base: str, query: str, limit: int
    ) -> list[Hit]:
        """Search one knowledge base in a thread.

        Raises:
            TimeoutError: soon after the time is over.
            WorkerError: as `search_text`.
        """
        from ingestion_worker.search import search_text

        search = functools.partial(
            search_text,
            knowledge_base=knowledge_base,
            text=query,
            limit=limit,
            embedder_for=lambda spec: self._embedder(spec, keys),
            cache=self._cache(namespace),
            budget=self._budget,
            deadline=time.monotonic() + self._options.search_seconds,
        )
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, functools.partial(search, store=store))
        except WorkerError as error:
            if error.code != "StoreForbidden":
                raise
            # The tenant's credentials may have been changed since they were read.
            store = await self._stores.of(namespace=namespace, refresh=True)
            return await loop.run_in_executor(self._threads, functools.partial(search, store=store))

    def _cache(self, namespace: str) -> SegmentCache:
        from ingestion_worker.search import SegmentCache

        cache = self._caches.pop(namespace, None) or SegmentCache(max_bytes=self._options.cache_bytes)
        self._caches[namespace] = cache
        while len(self._caches) > _TENANT_CACHES:
            self._caches.popitem(last=False)
        return cache

    def _embedder(self, spec: EmbeddingSpec, keys: dict[str, str]) -> Embedder | None:
        """Return the embedder of a live version; None, so that it is passed over, when its provider or model is gone.

        Raises:
            ProblemError: 503 when the provider's key cannot be had.
        """
        from ingestion_worker.embedding import make_embedder

        if spec.provider == BUILTIN_PROVIDER:
            if (spec.model, spec.dimensions) != (BUILTIN_MODEL, BUILTIN_DIMENSIONS):
                return None  # another worker image or release has put it there
            with self._lock:
                self._builtin = self._builtin or make_embedder(spec=spec)
                return self._builtin
        provider = self._config.provider(spec.provider)
        if provider is None:
            return None
        key = keys.get(spec.provider)
        if provider.secret_name and key is None:
            raise out_of_order(
                f"the Secret of the provider {provider.name} is missing, or its {PROVIDER_API_KEY} is, or is no text"
            )
        with self._lock:
            embedder, made_with = self._embedders.get(spec, (None, None))
        if embedder is None or made_with != key:  # not under the lock: it takes its time, and all searches share that
            limits = _request_limits(self._options.search_seconds)
            embedder = make_embedder(spec=spec, url=provider.url, api_key=key, limits=limits)
        with self._lock:
            self._embedders[spec] = (embedder, key)
            self._embedders.move_to_end(spec)
            if len(self._embedders) > _EMBEDDERS:
                self._embedders.popitem(last=False)
            return embedder

    async def _provider_keys(self) -> dict[str, str]:
        """Return the keys that can be had: a missing one matters only to a search that needs it."""
        keys: dict[str, str] = {}
        for provider in self._config.embedding_providers:
            if not provider.secret_name:
                continue
            values = await read_secret(
                self._kube, namespace=self._options.namespace, name=provider.secret_name, timeout=READ_SECONDS
            )
            if (key := (values or {}).get(PROVIDER_API_KEY)) is not None:
                keys[provider.name] = key
        return keys


def _request_limits(seconds: float) -> RequestLimits:
    """Return limits of what an endpoint is asked in a search of so many seconds."""
    from ingestion_worker.embedding import RequestLimits

    # Of six parts. A request takes half a part to connect, half for TLS, and three for the answer: a model that was
    # not used for a while may have to be loaded, and some servers end that when their client leaves. Only what failed
    # within a part is asked for again: that, the pause and the second request take five and a half.
    part = seconds / 6
    return RequestLimits(
        connect_seconds=part / 2,
        read_seconds=3 * part,
        total_seconds=3 * part,
        tries=2,
        slow_seconds=part,
        pause_seconds=part / 2,
    )
