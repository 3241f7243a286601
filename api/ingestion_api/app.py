"""The app: routes, limits, errors, probes. It is built without a cluster; connections are made when it starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from ingestion_crds.config import Config
from ingestion_crds.kube import KubeClient
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ingestion_api import problems
from ingestion_api.auth import KeyRing
from ingestion_api.job_index import JobIndex
from ingestion_api.jobs import Jobs
from ingestion_api.metrics import Metrics
from ingestion_api.middleware import AccessLog, Limits
from ingestion_api.options import Options
from ingestion_api.retry import Retries
from ingestion_api.routes import ingest, jobs, search
from ingestion_api.searching import Searches
from ingestion_api.services import Services
from ingestion_api.slots import Slots
from ingestion_api.stores import TenantStores


def create_app(options: Options, config: Config) -> FastAPI:
    """Build the app. Nothing is connected until it starts.

    Args:
        options: of the process.
        config: the installation's configuration.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with await KubeClient.connect(kubeconfig=options.kubeconfig) as kube:
            services = connect(kube=kube, config=config, options=options, metrics=metrics)
            app.state.services = services
            watching = asyncio.create_task(services.index.run())
            try:
                yield
            finally:
                services.searches.close()
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)

    app = FastAPI(
        title="Ingestion API",
        description="Documents go in, versions come out; a retry runs what failed and nothing else.",
        version="0.1.0",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        # Else a path with a slash too many or too few is redirected, to whatever host the client named as Host.
        redirect_slashes=False,
    )
    app.state.metrics = metrics
    problems.install(app)
    app.include_router(jobs.router)
    app.include_router(ingest.router)
    app.include_router(search.router)
    _add_probes(app, metrics)
    app.add_middleware(Limits, upload_suffix="/ingest")
    app.add_middleware(AccessLog, metrics=metrics)
    return app


def connect(*, kube: KubeClient, config: Config, options: Options, metrics: Metrics) -> Services:
    """Put the parts together.

    Args:
        kube: the cluster.
        config: the installation's configuration.
        options: of the process.
        metrics: what the parts count in.
    """
    index = JobIndex(kube=kube, metrics=metrics)
    found = Jobs(kube=kube, index=index)
    stores = TenantStores(kube=kube, config=config)
    return Services(
        options=options,
        config=config,
        keys=KeyRing(kube=kube, namespace=options.namespace),
        index=index,
        jobs=found,
        retries=Retries(kube=kube, jobs=found, index=index, metrics=metrics),
        stores=stores,
        searches=Searches(kube=kube, config=config, stores=stores, options=options),
        uploads=Slots(
            what="uploads", count=options.uploads, tenants=len(config.tenants), wait_seconds=options.stall_seconds
        ),
        metrics=metrics,
    )


def _add_probes(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/healthz", include_in_schema=False)
    async def healthz(response: Response) -> dict[str, bool]:
        healthy = not app.state.services.index.ended
        response.status_code = 200 if healthy else 503
        return {"healthy": healthy}

    @app.get("/readyz", include_in_schema=False)
    async def readyz(response: Response) -> dict[str, bool]:
        services: Services = app.state.services
        index, keys = services.index, services.keys
        # A replica that has lost the API server answers nobody with a key. A list that fails does not say so: it may be
        # too much for an API server that answers all else. Whether the keys can be read does; at rest nobody asks.
        in_doubt = index.failing or keys.failing
        ready = index.synced and not index.ended and not (in_doubt and not await keys.readable())
        response.status_code = 200 if ready else 503
        return {"ready": ready}

    @app.get("/metrics", include_in_schema=False)
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
