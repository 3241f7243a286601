"""The cases; importing this package registers them, in the order of the table."""

from ingestion_bench.cases import api, batch, idle, latency, requests, retry, running, segment, size, storm

__all__ = ["api", "batch", "idle", "latency", "requests", "retry", "running", "segment", "size", "storm"]
