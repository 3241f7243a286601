"""The IngestionJob resource: pydantic models, the one source of the CRD, the views and the docs.

`ingestion_crds.schema` turns these models into a structural OpenAPI schema; a field's description here is what
`kubectl explain` says. Bounds stand on every string, list and map, so that an object that validates stays under 1 MiB.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NewType, Self
from uuid import NAMESPACE_OID, uuid5

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationInfo
from pydantic.alias_generators import to_camel

from ingestion_crds import JsonObject
from ingestion_crds.constants import (
    ANNOTATION_IDEMPOTENCY_KEYS,
    ANNOTATION_RETRY_HANDLED,
    ANNOTATION_RETRY_ORIGIN,
    ANNOTATION_RETRY_REQUESTED,
    BUILTIN_DIMENSIONS,
    BUILTIN_MODEL,
    BUILTIN_PROVIDER,
    GROUP,
    LABEL_QUEUE_NAME,
    MAX_ATTEMPTS,
    MAX_CONTENT_TYPE_LENGTH,
    MAX_FAILURE_MESSAGE_BYTES,
    MAX_FAILURES,
    MAX_PAGES_LENGTH,
    MAX_REQUESTED_BY_LENGTH,
    MAX_RETRY_TOKEN_LENGTH,
    MAX_SEGMENTS,
    MAX_TITLE_LENGTH,
    ConditionType,
    Mode,
    Phase,
    Reason,
    Stage,
    Trigger,
    VersionState,
)
from ingestion_crds.digest import MAP_DIGEST_LENGTH
from ingestion_crds.indexset import PATTERN as INDEX_SET_PATTERN

UUID_PATTERN: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
INT32_MAX: Final = 2**31 - 1
# The longest set holds two of every three segments, in pairs: of 100,000 segments that takes 393,000 characters.
INDEX_SET_LENGTH: Final = 400_000
RETRY_SET_LENGTH: Final = 65_536
# Names are ASCII where Kubernetes wants that too: any other character may take six bytes in JSON.
NAME_PATTERN: Final = r"^[A-Za-z0-9._-]*$"
KEY_PATTERN: Final = r"^[A-Za-z0-9._/-]*$"
QUANTITY_PATTERN: Final = r"^[A-Za-z0-9.+-]+$"
KEY_LENGTH: Final = 317
CODE_LENGTH: Final = 32
MAX_CODES: Final = 48
# Of an annotation: twenty Idempotency-Keys take some 2,000 characters.
_LONGEST_VALUE: Final = 4_096


@lru_cache(maxsize=4096)  # a status holds many times; most of them were in it when it was last written
def format_time(moment: datetime) -> str:
    """Return a time as Kubernetes writes it: RFC 3339, UTC, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[datetime, PlainSerializer(format_time, return_type=str)]
Uuid = Annotated[str, Field(pattern=UUID_PATTERN, max_length=36)]
ChildUid = NewType("ChildUid", str)
"""The UID of a Kubernetes Job, which an IngestionJob's must not be taken for: it would select no pods."""
Count = Annotated[int, Field(ge=0, le=MAX_SEGMENTS)]
Parallelism = Annotated[int, Field(ge=1, le=10_000)]
BackoffLimit = Annotated[int, Field(ge=0, le=20)]
Deadline = Annotated[int, Field(ge=1, le=INT32_MAX)]
TimeToLive = Annotated[int, Field(ge=0, le=INT32_MAX)]


class Model(BaseModel):
    """Camel-case outside, snake-case inside; unknown fields are ignored; values are immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True, use_enum_values=False
    )

    def changed(self, **fields: Any) -> Self:
        """Return a copy with other values. They are not validated.

        Raises:
            TypeError: there is no such field; `model_copy` drops it in silence.
        """
        if unknown := fields.keys() - type(self).model_fields.keys():
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        return self.model_copy(update=fields)


# ── spec ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Source(Model):
    """Where the document's bytes are."""

    uri: str = Field(
        min_length=1,
        max_length=2048,
        # Without classes such as \s, which match other characters in the API server than in pydantic.
        pattern=r"^(s3|https?)://[^/ \t\n\f\r]+/?[^ \t\n\f\r]*$",
        description="An object of the tenant's own bucket (s3://BUCKET/KEY), or an http(s) URL on a public"
        " or allowed address.",
    )
    content_type: str | None = Field(
        None,
        max_length=MAX_CONTENT_TYPE_LENGTH,
        description="Media type of the document; found from its name and first bytes when absent.",
    )
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        max_length=64,
        description="SHA-256 of the bytes, lower-case hex; other bytes fail with SourceHashMismatch.",
    )


class Document(Model):
    """The document that this job ingests."""

    id: Uuid = Field(description="UUID of the document; jobs with the same id make versions of one document.")
    title: str = Field("", max_length=MAX_TITLE_LENGTH, description="Title shown with search results.")
    source: Source = Field(description="Where the document's bytes are.")


class Segmentation(Model):
    """How a document is cut into segments, and up to what size it is not cut at all."""

    pages_per_segment: int = Field(32, ge=1, le=10_000, description="Pages of a PDF in one segment.")
    characters_per_segment: int = Field(
        65_536, ge=1_024, le=16_777_216, description="Characters of any other document in one segment."
    )
    single_pass_max_pages: int = Field(
        64, ge=0, le=100_000, description="In mode Auto, a PDF of at most so many pages is done in a single pass."
    )
    single_pass_max_characters: int = Field(
        262_144,
        ge=0,
        le=1_073_741_824,
        description="In mode Auto, other documents up to so long are done in a single pass.",
    )


class Embedding(Model):
    """Which embedder turns a chunk into a vector."""

    provider: str = Field(
        BUILTIN_PROVIDER,
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        description="`builtin`, or the name of an entry of the chart's embeddingProviders.",
    )
    model: str = Field(BUILTIN_MODEL, min_length=1, max_length=128, description="The provider's name of the model.")
    dimensions: int = Field(BUILTIN_DIMENSIONS, ge=1, le=16_384, description="Length of each vector.")


class Pipeline(Model):
    """How text becomes searchable chunks."""

    chunk_size: int = Field(1000, ge=64, le=32_768, description="Characters of a chunk at most.")
    chunk_overlap: int = Field(
        100, ge=0, le=16_384, description="Characters that a chunk shares with the one before; less than chunkSize."
    )
    embedding: Embedding = Field(
        default_factory=Embedding,
        description="Which embedder turns a chunk into a vector.",
        json_schema_extra={"default": {}},
    )


def _decimal(value: Any) -> Any:
    return str(value) if isinstance(value, float) else value


Quantity = Annotated[int | str, BeforeValidator(_decimal)]
"""As in a pod. The chart's values may say 0.5, which is a float in YAML; the CRD wants "0.5" or 500m."""


class Resources(Model):
    """Requests and limits of the worker container, as in a pod."""

    requests: dict[str, Quantity] | None = Field(None, max_length=16, description="What the scheduler sets aside.")
    limits: dict[str, Quantity] | None = Field(None, max_length=16, description="What the container may use at most.")


class Toleration(Model):
    """A taint that the worker pods put up with, as in a pod."""

    key: str | None = Field(
        None, max_length=KEY_LENGTH, pattern=KEY_PATTERN, description="The taint's key; every key when absent."
    )
    operator: Literal["Exists", "Equal"] | None = Field(None, description="Exists, or Equal (the default).")
    value: str | None = Field(None, max_length=63, pattern=NAME_PATTERN, description="The taint's value, for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="The taint's effect; every effect when absent."
    )
    toleration_seconds: int | None = Field(
        None, ge=0, le=INT32_MAX, description="Seconds to stay on a node after a NoExecute taint appears."
    )


class LocalObjectReference(Model):
    """The name of an object in the same namespace."""

    name: str = Field(min_length=1, max_length=253, pattern=NAME_PATTERN, description="Name of the Secret.")


class Template(Model):
    """The part of the worker pods that a job may choose. Takes effect with the next stage that begins."""

    image: str | None = Field(
        None, min_length=1, max_length=512, description="Worker image; the chart's default when absent."
    )
    resources: Resources | None = Field(None, description="Requests and limits of the worker container.")
    node_selector: dict[str, Annotated[str, Field(max_length=63, pattern=NAME_PATTERN)]] | None = Field(
        None, max_length=32, description="Labels that a node must have."
    )
    tolerations: list[Toleration] | None = Field(None, max_length=32, description="Taints that the pods put up with.")
    priority_class_name: str | None = Field(
        None, max_length=253, pattern=NAME_PATTERN, description="PriorityClass of the pods."
    )
    image_pull_secrets: list[LocalObjectReference] | None = Field(
        None, max_length=8, description="Secrets of the namespace to pull the image with."
    )


class Spec(Model):
    """What is to be ingested, how, and which attempt is wanted."""

    knowledge_base: Uuid = Field(description="UUID of the knowledge base. Immutable.")
    document: Document = Field(description="The document that this job ingests. Immutable.")
    mode: Mode = Field(
        Mode.AUTO,
        description="Segmented: a pod for each segment. SinglePass: one pod does everything. "
        "Auto: by the document's size. Immutable.",
    )
    segmentation: Segmentation = Field(
        default_factory=Segmentation,
        description="How the document is cut into segments. Immutable.",
        json_schema_extra={"default": {}},
    )
    pipeline: Pipeline = Field(
        default_factory=Pipeline,
        description="How text becomes searchable chunks. Immutable.",
        json_schema_extra={"default": {}},
    )
    template: Template | None = Field(None, description="The part of the worker pods that a job may choose.")
    parallelism: Parallelism = Field(10, description="Segments that run at the same time at most.")
    segment_backoff_limit: BackoffLimit = Field(
        3,
        description="How often the cluster runs a transiently failing segment again within one attempt; takes effect"
        " with the next stage that begins.",
    )
    max_failed_segments: Count | None = Field(
        None,
        description="The attempt stops early once more segments than this have failed; no limit when absent."
        " Takes effect with the next stage that begins.",
    )
    active_deadline_seconds: Deadline = Field(
        21_600,
        description="Seconds that one attempt may run, suspension not counted: after it a stage's time begins anew."
        " May be changed while it runs.",
    )
    suspend: bool = Field(False, description="True stops the pods and keeps what is done; false goes on.")
    retry_generation: int = Field(
        0,
        ge=0,
        le=INT32_MAX,
        description="The attempt that is wanted. Raise it by one to retry a failed or partially failed job.",
    )
    retry_segments: str | None = Field(
        None,
        max_length=RETRY_SET_LENGTH,
        pattern=INDEX_SET_PATTERN,
        description="Only these of the unfinished segments are retried, such as 3,5,9-12, until it is changed or"
        " removed: set it to null with the next retry. All when absent or empty. Changes only with a retry.",
    )
    cancel_generation: int | None = Field(
        None, ge=0, le=INT32_MAX, description="Attempts up to and including this one are stopped."
    )
    ttl_seconds_after_finished: TimeToLive | None = Field(
        None, description="Seconds after which a completed job is deleted; never when absent."
    )
    parent_generation: int | None = Field(
        None,
        ge=0,
        le=INT32_MAX,
        description="Of a job that an IngestionBatch has made: the batch's retryGeneration that it was last made or"
        " retried for, or that was cancelled before that. Never lowered.",
    )


# ── status ────────────────────────────────────────────────────────────────────────────────────────────────────


class Version(Model):
    """The version of the document that this job makes."""

    id: str = Field(max_length=64, pattern=NAME_PATTERN, description="UUID of the version.")
    number: int | None = Field(None, ge=1, description="Its place in the document's history.")
    state: VersionState = Field(
        VersionState.PENDING,
        description="Active once it was published, also when a newer one has taken its place: searches see the newest.",
    )
    plan_hash: str | None = Field(None, max_length=64, description="Hash of all that decides the version's bytes.")


class Segments(Model):
    """Which segments are done. Index sets are written when an attempt ends; counts while it runs."""

    total: int = Field(0, ge=0, le=MAX_SEGMENTS, description="Segments of the document.")
    completed: str = Field(
        "", max_length=INDEX_SET_LENGTH, pattern=INDEX_SET_PATTERN, description="Index set of the completed segments."
    )
    failed: str = Field(
        "",
        max_length=INDEX_SET_LENGTH,
        pattern=INDEX_SET_PATTERN,
        description="Index set of the unfinished segments at the end of the last attempt.",
    )
    completed_count: int = Field(
        0, ge=0, le=MAX_SEGMENTS, description="Segments done, those of the running attempt included."
    )
    failed_count: int = Field(
        0,
        ge=0,
        le=MAX_SEGMENTS,
        description="Segments that failed so far in the running attempt; once it has ended, all that are unfinished.",
    )
    progress: str = Field("0/0", max_length=16, description="completedCount/total.")


_STAGES: Final = frozenset(Stage)


def _known_stage(value: Any) -> Any:
    """Call a stage that only a newer release has as the last one of this, as `_known_attempt` does."""
    return Stage.PUBLISH if isinstance(value, str) and value not in _STAGES else value


ToldStage = Annotated[Stage, BeforeValidator(_known_stage)]
"""A stage that is told: what is done next is decided by the records of the attempt's Jobs."""


class NotRead(Model):
    """What of the document is not in the published version."""

    page_count: int = Field(0, ge=0, le=INT32_MAX, description="Pages in which no text was found.")
    pages: str = Field(
        "",
        max_length=MAX_PAGES_LENGTH,
        pattern=INDEX_SET_PATTERN,
        description="Which pages these are, such as 2-4,6, counted from 1; of very many only some.",
    )
    attachments: int = Field(0, ge=0, le=INT32_MAX, description="Files that are attached to the document.")


class Failure(Model):
    """Why a segment, or a stage, failed."""

    segment: int | None = Field(None, ge=0, le=MAX_SEGMENTS, description="The segment; absent for prepare and publish.")
    stage: ToldStage = Field(description="The stage that failed.")
    code: str = Field(max_length=CODE_LENGTH, pattern=NAME_PATTERN, description="A code of docs/error-codes.md.")
    retryable: bool = Field(
        description="Whether a retry can succeed once its cause is mended; docs/error-codes.md says what to do."
    )
    message: str = Field("", max_length=MAX_FAILURE_MESSAGE_BYTES, description="What happened, at most 200 bytes.")
    exit_code: int | None = Field(None, description="The container's exit code.")
    attempt: int = Field(ge=0, description="The generation that failed.")


class AttemptJob(Model):
    """A Kubernetes Job of an attempt: one for each stage that it ran. Recorded before it is created."""

    stage: Stage = Field(description="The stage that the Job runs.")
    name: str = Field(max_length=63, pattern=NAME_PATTERN, description="Name of the Job and of its ConfigMap.")
    uid: ChildUid | None = Field(
        None, max_length=36, pattern=NAME_PATTERN, description="UID of the Job, recorded once it exists."
    )
    map_digest: str = Field(
        max_length=MAP_DIGEST_LENGTH, pattern=NAME_PATTERN, description="Digest of the attempt's file in the ConfigMap."
    )
    start_time: Time | None = Field(None, description="When the Job began.")
    completion_time: Time | None = Field(None, description="When the Job ended, or was found gone.")


class Attempt(Model):
    """What one retry generation dispatched, and how it ended."""

    generation: int = Field(ge=0, description="The retry generation; 0 is the first run.")
    trigger: Trigger = Field(description="Initial, REST, Annotation, Patch or Batch.")
    requested_by: str | None = Field(
        None, max_length=MAX_REQUESTED_BY_LENGTH, description="`key:` and the key's id, for a retry by REST."
    )
    segments: int = Field(0, ge=0, le=MAX_SEGMENTS, description="Segments dispatched by this attempt.")
    completed: int = Field(0, ge=0, le=MAX_SEGMENTS, description="Of these, completed.")
    failed: int = Field(0, ge=0, le=MAX_SEGMENTS, description="Of these, failed.")
    codes: dict[str, Count] | None = Field(None, max_length=MAX_CODES, description="Failures by code.")
    reason: Reason | None = Field(None, description="How it ended; absent while it runs.")
    jobs: list[AttemptJob] = Field(default_factory=list, max_length=3, description="Its Jobs, in order.")
    start_time: Time = Field(description="When the operator took it up.")
    completion_time: Time | None = Field(None, description="When it ended.")


class Condition(Model):
    """A condition, as in metav1."""

    type: ConditionType = Field(description="The condition's type.")
    status: Literal["True", "False", "Unknown"] = Field(description="True, False or Unknown.")
    reason: Reason = Field(description="CamelCase reason.")
    message: str = Field("", max_length=1024, description="For people.")
    last_transition_time: Time | None = Field(None, description="When the status last changed.")
    observed_generation: int | None = Field(None, ge=0, description="metadata.generation that this is about.")


_TYPES: Final = frozenset(ConditionType)
_REASONS: Final = frozenset(Reason)
_TRIGGERS: Final = frozenset(Trigger)
_ENDS: Final = {Phase.COMPLETED: Reason.SUCCEEDED, Phase.PARTIAL_FAILURE: Reason.SEGMENTS_FAILED}


def known_conditions(value: Any) -> Any:
    """Leave out what only a newer release can say: after a rollback, all conditions are worked out anew."""
    if not isinstance(value, list):
        return value
    return [
        item
        for item in value
        if not isinstance(item, dict) or (item.get("type") in _TYPES and item.get("reason") in _REASONS)
    ]


def _known_attempts(value: Any, info: ValidationInfo) -> Any:
    """Say in words of this release what only a newer one can: how the last attempt ended, the phase tells.

    But not of an attempt that is open: what its Jobs do is to be known, and who does not know it leaves it alone.
    """
    if not isinstance(value, list):
        return value
    last = _ENDS.get(info.data.get("phase", Phase.FAILED), Reason.PUBLISH_FAILED)
    return [_known_attempt(item, last if item is value[-1] else Reason.SEGMENTS_FAILED) for item in value]


def _known_attempt(attempt: Any, end: Reason) -> Any:
    if not isinstance(attempt, dict):
        return attempt
    known: JsonObject = {}
    if attempt.get("trigger") not in _TRIGGERS:
        known["trigger"] = Trigger.PATCH
    if attempt.get("reason", end) not in _REASONS:
        known["reason"] = end
    jobs = attempt.get("jobs")
    if "completionTime" in attempt and isinstance(jobs, list) and not all(map(_is_known_job, jobs)):
        known["jobs"] = [job if _is_known_job(job) else {**job, "stage": Stage.PUBLISH} for job in jobs[-len(Stage) :]]
    return {**attempt, **known} if known else attempt


def _is_known_job(job: Any) -> bool:
    return not isinstance(job, dict) or job.get("stage") in _STAGES


class Status(Model):
    """What the operator has recorded. Written by the operator alone."""

    job_id: str | None = Field(None, alias="jobID", max_length=64, description="The job's id in the REST API.")
    observed_generation: int | None = Field(None, ge=0, description="metadata.generation last acted on.")
    observed_retry_generation: int | None = Field(None, ge=0, description="spec.retryGeneration last acted on.")
    last_handled_retry_request: str | None = Field(
        None,
        max_length=MAX_RETRY_TOKEN_LENGTH,
        description="The last value of the annotation retry-requested-at that was dealt with.",
    )
    phase: Phase = Field(Phase.QUEUED, description="queued, processing, completed, failed or partial_failure.")
    stage: ToldStage | None = Field(None, description="The stage that runs, or that ended the attempt.")
    mode: Mode | None = Field(None, description="Segmented or SinglePass, once prepare_document has decided.")
    version: Version | None = Field(None, description="The version of the document that this job makes.")
    segments: Segments | None = Field(None, description="Which segments are done.")
    chunks: int | None = Field(None, ge=0, description="Chunks of the published version.")
    not_read: NotRead | None = Field(
        None, description="What of the document is not in the published version; absent when all is."
    )
    failures: list[Failure] = Field(
        default_factory=list, max_length=MAX_FAILURES, description="Why segments or stages failed: the first 100."
    )
    failure_summary: dict[str, Count] = Field(
        default_factory=dict, max_length=MAX_CODES, description="Number of failures by code, over all of them."
    )
    attempts: Annotated[list[Attempt], BeforeValidator(_known_attempts)] = Field(
        default_factory=list, max_length=MAX_ATTEMPTS, description="The last 20 attempts, oldest first."
    )
    start_time: Time | None = Field(None, description="When the last attempt began that prepared the document.")
    completion_time: Time | None = Field(None, description="When the last attempt ended; absent while one runs.")
    pods_to_remove: ChildUid | None = Field(
        None,
        max_length=36,
        pattern=NAME_PATTERN,
        description="UID of the last Job that was made, while its finished pods are still to be removed.",
    )
    progress_percent: int = Field(0, ge=0, le=100, description="0 to 100; 100 only when the version is active.")
    conditions: Annotated[list[Condition], BeforeValidator(known_conditions)] = Field(
        default_factory=list,
        max_length=16,
        description="Conditions, kstatus's Ready, Reconciling and Stalled among them.",
    )


def _only(*ours: str) -> BeforeValidator:
    """Return a validator that keeps these entries of a map, and of each value no more than is ever in ours."""

    def kept(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: value[name][:_LONGEST_VALUE] for name in ours if isinstance(value.get(name), str)}

    return BeforeValidator(kept)


class Metadata(Model):
    """The part of metadata that decisions are made from: whoever may write an object may fill the rest of it."""

    name: str
    namespace: str
    uid: str
    resource_version: str = ""
    generation: int = 1
    creation_timestamp: Time
    deletion_timestamp: Time | None = None
    labels: Annotated[dict[str, str], _only(LABEL_QUEUE_NAME)] = Field(default_factory=dict)
    annotations: Annotated[
        dict[str, str],
        _only(
            ANNOTATION_RETRY_REQUESTED,
            ANNOTATION_RETRY_HANDLED,
            ANNOTATION_RETRY_ORIGIN,
            ANNOTATION_IDEMPOTENCY_KEYS,
        ),
    ] = Field(default_factory=dict)


class Resource(Model):
    """What an IngestionJob and an IngestionBatch have in common."""

    metadata: Metadata

    @property
    def key(self) -> str:
        """namespace/name, as logs and the work queue write it."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    @property
    def job_id(self) -> str:
        """The id that the REST API knows it by: its name when that is a UUID, else its UID."""
        return job_id_of(self.metadata.name, self.metadata.uid)


class IngestionJob(Resource):
    """One document on its way into a knowledge base."""

    spec: Spec
    status: Status = Field(default_factory=Status)

    @property
    def retry_pending(self) -> bool:
        """True while a retry is recorded that the operator has not taken up."""
        return is_retry_pending(wanted=self.spec.retry_generation, observed=self.status.observed_retry_generation)


def job_id_of(name: str, uid: str) -> str:
    """Return a job's REST id: the name when REST created it (a UUID), else the object's UID."""
    return name if re.match(UUID_PATTERN, name) else uid


def is_retry_pending(*, wanted: int, observed: int | None) -> bool:
    """Return whether a retry is recorded that the operator has not taken up. A new job's first generation is none.

    Args:
        wanted: spec.retryGeneration.
        observed: status.observedRetryGeneration.
    """
    return observed is not None and wanted > observed


def version_id_of(uid: str) -> str:
    """Return the id of the version that the job with this UID makes: the same whoever asks, however often."""
    return str(uuid5(NAMESPACE_OID, f"{GROUP}/{uid}"))


def dump_status(status: Model) -> JsonObject:
    """Return a status as it is stored: camel case, absent fields left out."""
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)
