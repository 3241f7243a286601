"""Which requests of the audit log `make bench` counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ingestion_bench.audit import Audit, without_events, writes


def entry(verb: str, resource: str = "", **more: str) -> Mapping[str, object]:
    return {"verb": verb, **({"objectRef": {"resource": resource, **more}} if resource else {})}


LOG = [
    entry("get"),  # /version, say
    entry("watch", "jobs"),
    entry("list", "ingestionjobs"),
    entry("get", "jobs"),
    entry("patch", "ingestionjobs", subresource="status"),
    entry("create", "events"),
    entry("list", "events"),
]


def test_an_event_is_a_write_at_rest_and_none_that_a_retry_costs(tmp_path: Path) -> None:
    (tmp_path / "audit.log").write_text("".join(f"{json.dumps(line)}\n" for line in LOG))
    audit = Audit(tmp_path)
    read = audit.read()
    assert writes(read) == ["patch ingestionjobs/status", "create events"]
    assert without_events(read) == ["list ingestionjobs", "get jobs", "patch ingestionjobs/status"]
    assert audit.read() == []
