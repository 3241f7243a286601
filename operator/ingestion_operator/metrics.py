"""What Prometheus sees. Names follow https://prometheus.io/docs/practices/naming/."""

from __future__ import annotations

from typing import Final

from ingestion_crds.constants import Phase, Reason, Trigger
from ingestion_crds.errors import ERROR_CODES
from prometheus_client import Counter, Gauge, Histogram

LEADER: Final = Gauge("ingestion_leader", "1 while this replica leads, 0 while it stands by.")
QUEUE_DEPTH: Final = Gauge("ingestion_queue_depth", "Keys that wait to be looked at.")
QUEUE_AGE: Final = Gauge(
    "ingestion_queue_oldest_age_seconds", "How long the first key has waited that something happened to."
)
QUEUE_WAIT: Final = Histogram(
    "ingestion_queue_wait_seconds",
    "How long a key waited until a worker took it, because something happened to it or because it was due.",
    ["why"],
    # Close together, as the question is how unequal the waits are.
    buckets=[round(step * 10.0**power, 4) for power in range(-3, 3) for step in (1, 1.5, 2, 3, 5, 7)],
)
WATCH_EVENTS: Final = Counter("ingestion_watch_events", "Events taken in, objects of first lists among them.", ["kind"])
RECONCILE_SECONDS: Final = Histogram("ingestion_reconcile_seconds", "Duration of one look at a job, or a batch.")
RECONCILE_ERRORS: Final = Counter("ingestion_reconcile_errors", "Looks that ended in an error.", ["reason"])
STATUS_WRITES: Final = Counter("ingestion_status_writes", "Status writes that the API server accepted.")
CONFLICTS: Final = Counter("ingestion_conflicts", "Writes that lost a race and were planned anew.")
ATTEMPTS: Final = Counter("ingestion_attempts", "Attempts begun.", ["trigger"])
ATTEMPTS_ENDED: Final = Counter("ingestion_attempts_ended", "Attempts ended.", ["reason"])
FAILURES: Final = Counter("ingestion_failures", "Failed segments and stages.", ["code"])
BATCH_ATTEMPTS_ENDED: Final = Counter("ingestion_batch_attempts_ended", "Attempts of batches ended.", ["reason"])
BATCH_DOCUMENTS_ENDED: Final = Counter(
    "ingestion_batch_documents_ended", "Documents of batches that are completed, or whose attempt failed.", ["result"]
)
PAGES_NOT_READ: Final = Counter("ingestion_pages_not_read", "Pages without text in what was published.")
ATTACHMENTS_NOT_READ: Final = Counter("ingestion_attachments_not_read", "Files attached to what was published.")

# A series that is born with its first increase shows none to `rate`: those whose labels are known begin at 0.
# Source: https://prometheus.io/docs/practices/instrumentation/#avoid-missing-metrics
for _trigger in Trigger:
    ATTEMPTS.labels(trigger=_trigger.value)
for _reason in (
    Reason.SUCCEEDED,
    Reason.PREPARE_FAILED,
    Reason.SEGMENTS_FAILED,
    Reason.PUBLISH_FAILED,
    Reason.CANCELLED,
):
    ATTEMPTS_ENDED.labels(reason=_reason.value)
for _code in ERROR_CODES:
    FAILURES.labels(code=_code)
for _reason in (Reason.SUCCEEDED, Reason.DOCUMENTS_FAILED, Reason.CANCELLED):
    BATCH_ATTEMPTS_ENDED.labels(reason=_reason.value)
for _phase in (Phase.COMPLETED, Phase.FAILED):
    BATCH_DOCUMENTS_ENDED.labels(result=_phase.value)
