"""The names that packages have in common, each once: labels, annotations, environment, reasons.

A variable of the environment that only one of them reads is named where it is read.

Source of the label and annotation conventions:
https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

GROUP: Final = "ingestion-operator.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "IngestionJob"
PLURAL: Final = "ingestionjobs"
BATCH_KIND: Final = "IngestionBatch"
BATCH_PLURAL: Final = "ingestionbatches"

# Labels on every child (Job, ConfigMap, pod).
LABEL_JOB_UID: Final = f"{GROUP}/job-uid"
LABEL_STAGE: Final = f"{GROUP}/stage"
LABEL_GENERATION: Final = f"{GROUP}/generation"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_BY: Final = "ingestion-operator"
LABEL_QUEUE_NAME: Final = "kueue.x-k8s.io/queue-name"
# Kubernetes' own, on the pods of a Job; the index as an annotation too.
LABEL_CONTROLLER_UID: Final = "batch.kubernetes.io/controller-uid"
LABEL_COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
# Labels on an IngestionJob made through REST, to be listed by.
LABEL_KNOWLEDGE_BASE: Final = f"{GROUP}/knowledge-base"
LABEL_DOCUMENT: Final = f"{GROUP}/document"
# Labels on an IngestionJob that an IngestionBatch has made: whose it is, and which of its documents it ingests.
LABEL_BATCH_UID: Final = f"{GROUP}/batch-uid"
LABEL_BATCH_INDEX: Final = f"{GROUP}/batch-index"

# Annotations on children.
ANNOTATION_MAP_DIGEST: Final = f"{GROUP}/map-digest"
ANNOTATION_JOB_NAME: Final = f"{GROUP}/ingestion-job"
ANNOTATION_SUSPEND: Final = f"{GROUP}/suspend"
# Kueue's, on a Job that it may admit with fewer pods than the Job asks for.
ANNOTATION_MIN_PARALLELISM: Final = "kueue.x-k8s.io/job-min-parallelism"

# Annotations on an IngestionJob, or an IngestionBatch.
ANNOTATION_RETRY_REQUESTED: Final = f"{GROUP}/retry-requested-at"
ANNOTATION_RETRY_HANDLED: Final = f"{GROUP}/retry-handled"
ANNOTATION_RETRY_ORIGIN: Final = f"{GROUP}/retry-origin"
ANNOTATION_IDEMPOTENCY_KEYS: Final = f"{GROUP}/idempotency-keys"

# Environment of operator, API and worker.
ENV_LOG_LEVEL: Final = "INGESTION_LOG_LEVEL"

# Environment of operator and API.
ENV_CONFIG: Final = "INGESTION_CONFIG"
ENV_POD_NAMESPACE: Final = "POD_NAMESPACE"

# Environment of a worker container (docs/worker-contract.md).
ENV_ATTEMPT_FILE: Final = "INGESTION_ATTEMPT_FILE"
ENV_JOB_UID: Final = "INGESTION_JOB_UID"
ENV_GENERATION: Final = "INGESTION_GENERATION"
ENV_STAGE: Final = "INGESTION_STAGE"
ENV_MAP_DIGEST: Final = "INGESTION_MAP_DIGEST"
ENV_COMPLETION_INDEX: Final = "JOB_COMPLETION_INDEX"
ENV_STORE_URL: Final = "INGESTION_STORE_URL"
ENV_STORE_ENDPOINT: Final = "AWS_ENDPOINT_URL"
ENV_STORE_REGION: Final = "AWS_REGION"
ENV_EMBEDDING_URL: Final = "INGESTION_EMBEDDING_URL"
ENV_EMBEDDING_API_KEY: Final = "INGESTION_EMBEDDING_API_KEY"
ENV_SOURCE_ALLOW: Final = "INGESTION_SOURCE_ALLOW"
ENV_SOURCE_DENY: Final = "INGESTION_SOURCE_DENY"
ENV_CA_FILE: Final = "INGESTION_CA_FILE"
CA_DIR: Final = "/etc/ingestion-ca"
CA_FILE: Final = f"{CA_DIR}/ca.crt"
ENV_MAX_SOURCE_BYTES: Final = "INGESTION_MAX_SOURCE_BYTES"

ATTEMPT_DIR: Final = "/etc/ingestion"
ATTEMPT_FILE: Final = f"{ATTEMPT_DIR}/attempt.json"
ATTEMPT_KEY: Final = "attempt.json"
WORKER_CONTAINER: Final = "worker"

# Per-tenant objects that the chart makes in the tenant's namespace.
STORE_SECRET: Final = "ingestion-store"  # noqa: S105 - a name
# Keys of that Secret, and the environment of a worker container that they are in.
STORE_ACCESS_KEY: Final = "AWS_ACCESS_KEY_ID"
STORE_SECRET_KEY: Final = "AWS_SECRET_ACCESS_KEY"  # noqa: S105 - a name
STORE_SESSION_TOKEN: Final = "AWS_SESSION_TOKEN"  # noqa: S105 - a name
WORKER_SERVICE_ACCOUNT: Final = "ingestion-worker"
API_KEYS_SECRET: Final = "ingestion-api-keys"  # noqa: S105 - a name
# The key of the Secret that an embedding provider names.
PROVIDER_API_KEY: Final = "apiKey"

BUILTIN_PROVIDER: Final = "builtin"
BUILTIN_MODEL: Final = "wordllama-l2-256"
BUILTIN_DIMENSIONS: Final = 256

# Exit codes: 0 done, this range permanent (the index fails at once), anything else transient.
PERMANENT_EXIT_CODES: Final = range(64, 114)
TRANSIENT_EXIT_CODE: Final = 1

# Bounds of lists and strings in spec and status.
MAX_TITLE_LENGTH: Final = 512
MAX_CONTENT_TYPE_LENGTH: Final = 128
MAX_RETRY_TOKEN_LENGTH: Final = 256
MAX_REQUESTED_BY_LENGTH: Final = 128
MAX_FAILURES: Final = 100
MAX_ATTEMPTS: Final = 20
MAX_FAILURE_MESSAGE_BYTES: Final = 200
MAX_PAGES_LENGTH: Final = 1_000
MAX_IDEMPOTENCY_KEYS: Final = 20
MAX_SEGMENTS: Final = 100_000
MAX_DOCUMENTS: Final = 1_000
MAX_SOURCE_BYTES: Final = 2**30
"""The largest document, uploaded or read, unless the chart's `sources.maxBytes` says otherwise."""
MAX_TERMINATION_MESSAGE_BYTES: Final = 4096


class Stage(StrEnum):
    """One step of a job; each runs as one Kubernetes Job."""

    PREPARE = "prepare_document"
    SEGMENTS = "process_segments"
    PUBLISH = "publish_version"


COMMANDS: Final = {
    Stage.PREPARE: "prepare_document",
    Stage.SEGMENTS: "process_segment",
    Stage.PUBLISH: "publish_version",
}
"""The argument of a worker's container, by stage."""


class Phase(StrEnum):
    """Feather's words for where a job is, derived from what is recorded of its attempts.

    Three things are decided by it: whether a retry is admitted, whether the job is at rest, which needs no more looks,
    and whether its time to live runs. What an attempt does next is decided by the records themselves.
    """

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    PARTIAL_FAILURE = "partial_failure"


RETRYABLE_PHASES: Final = frozenset({Phase.FAILED, Phase.PARTIAL_FAILURE})
TERMINAL_PHASES: Final = RETRYABLE_PHASES | {Phase.COMPLETED}


class Mode(StrEnum):
    """How a document is run: Auto lets `prepare_document` decide by size."""

    AUTO = "Auto"
    SEGMENTED = "Segmented"
    SINGLE_PASS = "SinglePass"  # noqa: S105 - a mode


class VersionState(StrEnum):
    """What readers of a knowledge base can see of a version."""

    PENDING = "pending"
    PROCESSING = "processing"
    ACTIVE = "active"
    FAILED = "failed"


class Trigger(StrEnum):
    """Who asked for an attempt."""

    INITIAL = "Initial"
    REST = "REST"
    ANNOTATION = "Annotation"
    PATCH = "Patch"
    BATCH = "Batch"


class ConditionType(StrEnum):
    """Condition types; the first three are kstatus's.

    Source: https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md
    """

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    COMPLETE = "Complete"
    FAILED = "Failed"
    PREPARED = "Prepared"
    SEGMENTS_PROCESSED = "SegmentsProcessed"
    PUBLISHED = "Published"


class Reason(StrEnum):
    """Reasons of conditions and events."""

    QUEUED = "Queued"
    WAITING = "Waiting"
    PREPARING = "Preparing"
    PROCESSING_SEGMENTS = "ProcessingSegments"
    PUBLISHING = "Publishing"
    PROCESSING_DOCUMENTS = "ProcessingDocuments"
    SUSPENDED = "Suspended"
    CANCELLING = "Cancelling"
    CANCELLED = "Cancelled"
    SUCCEEDED = "Succeeded"
    PREPARE_FAILED = "PrepareFailed"
    SEGMENTS_FAILED = "SegmentsFailed"
    PUBLISH_FAILED = "PublishFailed"
    DOCUMENTS_FAILED = "DocumentsFailed"
    ACTIVE = "VersionActive"
    NOT_ACTIVE = "VersionNotActive"
    NO_STORE = "NoStore"
    UNKNOWN_PROVIDER = "UnknownProvider"
    IMAGE_NOT_ALLOWED = "ImageNotAllowed"
    NAME_CONFLICT = "NameConflict"
    IMAGE_UNAVAILABLE = "ImageUnavailable"
    POD_CREATION_FAILED = "PodCreationFailed"
    POD_PENDING = "PodPending"
    POD_UNSCHEDULABLE = "PodUnschedulable"
    POD_TERMINATING = "PodTerminating"
    REJECTED_BY_CLUSTER = "RejectedByCluster"
    ATTEMPT_STARTED = "AttemptStarted"
    RETRY_REFUSED = "RetryRefused"
