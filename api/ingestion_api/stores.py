"""The tenants' buckets: credentials from the tenant's Secret, kept for a minute."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from ingestion_crds.config import Config, Tenant
from ingestion_crds.constants import STORE_ACCESS_KEY, STORE_SECRET_KEY, STORE_SESSION_TOKEN, TRANSIENT_EXIT_CODE
from ingestion_crds.kube import KubeClient
from ingestion_worker.outcome import WorkerError
from ingestion_worker.store import Store, StoreConfig

from ingestion_api.kube_secrets import READ_SECONDS, read_secret
from ingestion_api.problems import ProblemError, bad_request, out_of_order, unavailable

FRESH_SECONDS: Final = 60.0


def tenant_of(config: Config, *, namespace: str) -> Tenant:
    """Return the tenant that a namespace is.

    Raises:
        ProblemError: 400 when it is none, as one that was taken out of the chart's values.
    """
    tenant = config.tenant(namespace)
    if tenant is None:
        raise bad_request(
            f"namespace {namespace} has no store: it is not among the tenants of this installation",
            error="not_a_tenant",
        )
    return tenant


class TenantStores:
    """Opens the bucket of a namespace, if the configuration makes it a tenant.

    Args:
        kube: reads the Secrets.
        config: names tenants, buckets and the endpoint. An endpoint `file:///folder` is for tests and
            development: the bucket is then a folder in it, and needs no Secret.
    """

    def __init__(self, *, kube: KubeClient, config: Config) -> None:
        self._kube = kube
        self._config = config
        self._open: dict[str, tuple[float, Store]] = {}
        self._reads: dict[str, asyncio.Task[Store]] = {}

    async def of(self, *, namespace: str, refresh: bool = False) -> Store:
        """Return the namespace's store.

        Args:
            namespace: the caller's.
            refresh: read the Secret even if it was read a moment ago, as the store refused the credentials.

        Raises:
            ProblemError: 400 when the namespace is no tenant; 503 when its credentials cannot be had.
            ApiError: the API server does not say.
        """
        tenant = tenant_of(self._config, namespace=namespace)
        read_at, store = self._open.get(namespace, (0.0, None))
        if store is not None and not refresh and time.monotonic() - read_at <= FRESH_SECONDS:
            return store
        # All who wait share one read: while the API server hangs they would else wait for one read after the other.
        read = self._reads.get(namespace)
        if read is None:
            read = self._reads[namespace] = asyncio.create_task(self._connect(tenant))
            read.add_done_callback(lambda read: self._ended(namespace, read))
        return await asyncio.shield(read)

    def _ended(self, namespace: str, read: asyncio.Task[Store]) -> None:
        del self._reads[namespace]
        if not read.cancelled() and read.exception() is None:
            self._open[namespace] = (time.monotonic(), read.result())

    async def _connect(self, tenant: Tenant) -> Store:
        endpoint = self._config.store.endpoint
        if endpoint and endpoint.startswith("file://"):
            return Store(config=StoreConfig(url=f"{endpoint.rstrip('/')}/{tenant.bucket}"))
        where = f"{tenant.namespace}/{tenant.store_secret}"
        values = await read_secret(
            self._kube, namespace=tenant.namespace, name=tenant.store_secret, timeout=READ_SECONDS
        )
        if values is None:
            raise out_of_order(f"the Secret {where} with the store's credentials does not exist")
        # Only keys that hold for a time come with a token.
        values = {STORE_SESSION_TOKEN: "", **values}
        missing = [key for key in (STORE_ACCESS_KEY, STORE_SECRET_KEY) if not (values.get(key) or "").strip()]
        missing += [STORE_SESSION_TOKEN] * (values[STORE_SESSION_TOKEN] is None)
        if missing:
            raise out_of_order(f"the Secret {where} lacks {' and '.join(missing)}, or what it has there is no text")
        return Store(
            config=StoreConfig(
                url=f"s3://{tenant.bucket}",
                endpoint=endpoint,
                region=self._config.store.region,
                access_key_id=values[STORE_ACCESS_KEY],
                secret_access_key=values[STORE_SECRET_KEY],
                session_token=values[STORE_SESSION_TOKEN],
            )
        )


def from_worker_error(error: WorkerError) -> ProblemError:
    """Return what a failure of store or embedder means to a client: what does not pass by itself has to be mended."""
    if error.code == "DocumentTooLarge":
        return ProblemError(status=413, error="too_large", message=error.message)
    if error.code == "EmbeddingRejected":
        return bad_request(f"the embedding endpoint refused the query: {error.message}", error="embedding_rejected")
    if error.code == "StoreForbidden" or error.exit_code != TRANSIENT_EXIT_CODE:
        return out_of_order(str(error))
    return unavailable(str(error))
