"""What the routes work with: made when the app starts, found on `app.state.services`."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request
from ingestion_crds.config import Config

from ingestion_api.auth import KeyRing
from ingestion_api.job_index import JobIndex
from ingestion_api.jobs import Jobs
from ingestion_api.metrics import Metrics
from ingestion_api.options import Options
from ingestion_api.retry import Retries
from ingestion_api.searching import Searches
from ingestion_api.slots import Slots
from ingestion_api.stores import TenantStores


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The connected parts of one API process."""

    options: Options
    config: Config
    keys: KeyRing
    index: JobIndex
    jobs: Jobs
    retries: Retries
    stores: TenantStores
    searches: Searches
    uploads: Slots
    metrics: Metrics


def services_of(request: Request) -> Services:
    """Return the services of the app that a request came to.

    For routes to call: as a dependency it would run in a thread, for each request.
    """
    services: Services = request.app.state.services
    return services
