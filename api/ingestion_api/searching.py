"""Searches: one query, embedded as each live version was, scanned over the published segments."""

from __future__ import annotations

import asyncio
import base64
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from ingestion_crds.config import Config, EmbeddingProvider
from ingestion_crds.constants import BUILTIN_PROVIDER
from ingestion_crds.kube import KubeClient, core_path
from ingestion_worker.outcome import WorkerError

from ingestion_api.options import Options
from ingestion_api.problems import ProblemError, unavailable
from ingestion_api.slots import Slots
from ingestion_api.stores import TenantStores, from_worker_error

if TYPE_CHECKING:
    # pyarrow and the built-in embedder's weights: loaded with the first search, so that the API starts quickly.
    from ingestion_worker.embedding import Embedder, EmbeddingSpec
    from ingestion_worker.search import Hit, SegmentCache

_TENANT_CACHES: Final = 4


class Searches:
    """Runs searches in threads, a bounded number at a time.

    Args:
        kube: reads the providers' Secrets, in the API's own namespace.
        config: names the providers.
        stores: opens the tenants' buckets.
        options: bounds.
        namespace: the API's own.
    """

    def __init__(
        self, *, kube: KubeClient, config: Config, stores: TenantStores, options: Options, namespace: str
    ) -> None:
        self._kube = kube
        self._config = config
        self._stores = stores
        self._options = options
        self._namespace = namespace
        self._slots = Slots(what="searches", count=options.searches, wait_seconds=options.search_seconds / 2)
        self._caches: OrderedDict[str, SegmentCache] = OrderedDict()
        self._embedders: dict[EmbeddingSpec, Embedder] = {}

    async def run(self, *, namespace: str, knowledge_base: str, query: str, limit: int) -> list[Hit]:
        """Return the best chunks of one knowledge base, best first.

        Args:
            namespace: the caller's.
            knowledge_base: UUID.
            query: the question.
            limit: chunks at most.

        Raises:
            ProblemError: 400 no tenant; 429 too many searches; 503 store or embedder away, or too slow.
        """
        from ingestion_worker.search import search_text

        store = await self._stores.of(namespace=namespace)
        keys = await self._provider_keys()

        async def look() -> list[Hit]:
            return await asyncio.to_thread(
                search_text,
                store=store,
                knowledge_base=knowledge_base,
                text=query,
                limit=limit,
                embedder_for=lambda spec: self._embedder(spec, keys),
                cache=self._cache(namespace),
            )

        async with self._slots.one():
            try:
                async with asyncio.timeout(self._options.search_seconds):
                    try:
                        return await look()
                    except WorkerError as error:
                        if error.code != "StoreForbidden":
                            raise
                        # The tenant's credentials may have been changed since they were read.
                        store = await self._stores.of(namespace=namespace, refresh=True)
                        return await look()
            except TimeoutError as error:
                seconds = self._options.search_seconds
                raise unavailable(f"the search took longer than {seconds:.0f} s") from error
            except WorkerError as error:
                raise from_worker_error(error) from error

    def _cache(self, namespace: str) -> SegmentCache:
        from ingestion_worker.search import SegmentCache

        cache = self._caches.pop(namespace, None) or SegmentCache(max_bytes=self._options.cache_bytes)
        self._caches[namespace] = cache
        while len(self._caches) > _TENANT_CACHES:
            self._caches.popitem(last=False)
        return cache

    def _embedder(self, spec: EmbeddingSpec, keys: dict[str, str]) -> Embedder | None:
        """Return the embedder of a live version; None, so that it is passed over, when its provider is gone."""
        from ingestion_worker.embedding import make_embedder

        if spec in self._embedders:
            return self._embedders[spec]
        provider = self._config.provider(spec.provider)
        if provider is None and spec.provider != BUILTIN_PROVIDER:
            return None
        url = provider.url if provider else None
        embedder = self._embedders[spec] = make_embedder(spec=spec, url=url, api_key=keys.get(spec.provider))
        return embedder

    async def _provider_keys(self) -> dict[str, str]:
        keys: dict[str, str] = {}
        for provider in self._config.embedding_providers:
            if provider.secret_name:
                keys[provider.name] = await self._provider_key(provider, provider.secret_name)
        return keys

    async def _provider_key(self, provider: EmbeddingProvider, secret_name: str) -> str:
        secret = await self._kube.request("GET", core_path("secrets", self._namespace, secret_name))
        encoded = (secret.get("data") or {}).get("apiKey")
        if encoded is None:
            raise ProblemError(
                status=503, error="unavailable", message=f"the Secret of provider {provider.name} lacks apiKey"
            )
        return base64.b64decode(encoded).decode()
