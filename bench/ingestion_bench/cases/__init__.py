"""The cases; importing this package registers them, in the order of the table."""

from ingestion_bench.cases import retry

__all__ = ["retry"]
