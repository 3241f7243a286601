"""Benchmarks: every case runs side by side with its baseline, on a control plane of its own.

`python -m ingestion_bench` runs them all; docs/performance.md says what they measure.
"""
