"""The cases; importing this package registers them, in the order of the table."""

from ingestion_bench.cases import latency, requests, retry, size

__all__ = ["latency", "requests", "retry", "size"]
