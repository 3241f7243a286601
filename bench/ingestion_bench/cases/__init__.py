"""The cases; importing this package registers them, in the order of the table."""

from ingestion_bench.cases import api, latency, requests, retry, size

__all__ = ["api", "latency", "requests", "retry", "size"]
