"""The cases; importing this package registers them, in the order of the table."""

from ingestion_bench.cases import api, idle, latency, requests, retry, running, segment, size, storm

__all__ = ["api", "idle", "latency", "requests", "retry", "running", "segment", "size", "storm"]
