"""What the API counts, for Prometheus. One registry per app, so that two apps in one process do not collide."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)


class Metrics:
    """The API's metrics; `operation` is the operationId, so that ids in paths make no series."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ingestion_api_requests", "Requests answered.", ["operation", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "ingestion_api_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            ["operation"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.retries = Counter(
            "ingestion_api_retries",
            "Retry requests by outcome: bumped, joined, repeated or refused.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in ("bumped", "joined", "repeated", "refused"):
            self.retries.labels(outcome=outcome)  # begin at 0: `rate` sees no increase in a series that was not there
        self.upload_bytes = Counter(
            "ingestion_api_upload_bytes", "Bytes of documents received.", registry=self.registry
        )
        self.indexed_jobs = Gauge("ingestion_api_index_jobs", "Jobs in the in-memory index.", registry=self.registry)
        self.index_lists = Counter(
            "ingestion_api_index_lists",
            "Full lists of IngestionJobs; one each start or expiry.",
            registry=self.registry,
        )
        self.index_failures = Counter(
            "ingestion_api_index_failures", "Lists or watches that ended in an error.", registry=self.registry
        )
