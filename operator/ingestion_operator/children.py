"""The Kubernetes Jobs and ConfigMaps of an attempt: their names, how they are built, how they are read back.

One Indexed Job for each attempt and stage; an immutable ConfigMap beside it, of the same name, carries the attempt's
input and maps a Job index to a segment.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.config import Config, EmbeddingProvider, Tenant
from ingestion_crds.constants import Stage
from ingestion_crds.digest import map_digest, name_start
from ingestion_crds.indexset import IndexSet
from ingestion_crds.job import ChildUid, IngestionJob, format_time, version_id_of

_STAGE_WORDS: Final = {Stage.PREPARE: "prepare", Stage.SEGMENTS: "segments", Stage.PUBLISH: "publish"}
_WORKER_USER: Final = 65532
_LEAST_TMP_GIB: Final = 4
_TERMINATION_GRACE_SECONDS: Final = 30
_JOB_CONTROLLER: Final = "kubernetes.io/job-controller"
EMPTY: Final = IndexSet()


def child_name(*, job: IngestionJob, stage: Stage, generation: int) -> str:
    """Return the name of the Job and ConfigMap of one attempt and stage.

    The object's UID is in it, hashed: after delete and recreate under one name a pod would otherwise read the old
    object's immutable ConfigMap from the kubelet's cache. With the index that Kubernetes appends for a pod's host name
    it stays under 63 characters.
    """
    return f"{_name_start(job)}{_STAGE_WORDS[stage]}-g{generation}"


def is_child_name(name: str, *, job: IngestionJob) -> bool:
    """Return whether a name is one of those that `child_name` makes for this IngestionJob."""
    return name.startswith(_name_start(job))


def _name_start(job: IngestionJob) -> str:
    return name_start(name=job.metadata.name, uid=job.metadata.uid, length=20)


def attempt_file(*, job: IngestionJob, stage: Stage, generation: int, segments: IndexSet) -> str:
    """Return the attempt's file (docs/worker-contract.md), byte for byte the same whenever it is built.

    Args:
        segments: what the attempt dispatches; the i-th member is Job index i. Empty unless the stage has segments.
    """
    spec, version, counted = job.spec, job.status.version, job.status.segments
    source = spec.document.source.model_dump(by_alias=True, exclude_none=True)
    content: JsonObject = {
        "apiVersion": names.API_VERSION,
        "kind": "Attempt",
        "job": {
            "namespace": job.metadata.namespace,
            "name": job.metadata.name,
            "uid": job.metadata.uid,
            "jobID": job.job_id,
            "created": format_time(job.metadata.creation_timestamp),
        },
        "generation": generation,
        "stage": stage.value,
        "knowledgeBase": spec.knowledge_base,
        "document": {"id": spec.document.id, "title": spec.document.title, "source": source},
        "mode": spec.mode.value,
        "segmentation": spec.segmentation.model_dump(by_alias=True),
        "pipeline": spec.pipeline.model_dump(by_alias=True),
    }
    if stage is Stage.PREPARE:
        content["version"] = {"id": version_id_of(job.metadata.uid)}
    elif version is not None and counted is not None:
        content["version"] = {"id": version.id, "number": version.number, "planHash": version.plan_hash}
        content["totalSegments"] = counted.total
    if stage is Stage.SEGMENTS:
        content["segments"] = str(segments)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Dispatch:
    """All that one Job is built from.

    Args:
        job: the IngestionJob, with the status that the intent was recorded in.
        stage: what to run.
        generation: the attempt's generation.
        segments: the segments to run, for the stage of segments.
        deadline_seconds: what is left of the attempt's activeDeadlineSeconds.
        config: the installation's configuration.
        tenant: the namespace's tenant.
        provider: the embedding provider; None for the built-in embedder.
    """

    job: IngestionJob
    stage: Stage
    generation: int
    segments: IndexSet
    deadline_seconds: int
    config: Config
    tenant: Tenant
    provider: EmbeddingProvider | None

    @cached_property
    def name(self) -> str:
        """The name of the Job, and of its ConfigMap."""
        return child_name(job=self.job, stage=self.stage, generation=self.generation)

    @property
    def completions(self) -> int:
        """How many indexes the Job has: one for each segment, or one for the stage."""
        return len(self.segments) if self.stage is Stage.SEGMENTS else 1

    @property
    def parallelism(self) -> int:
        """How many pods run at the same time at most."""
        return min(self.job.spec.parallelism, self.completions)

    @cached_property
    def file(self) -> str:
        """The attempt's file, which the ConfigMap carries."""
        return attempt_file(job=self.job, stage=self.stage, generation=self.generation, segments=self.segments)

    @cached_property
    def digest(self) -> str:
        """The digest of that file, by which pods and operator know it again."""
        return map_digest(self.file.encode())


def build_config_map(dispatch: Dispatch) -> JsonObject:
    """Return the immutable ConfigMap that carries the attempt's file."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(dispatch),
        "immutable": True,
        "data": {names.ATTEMPT_KEY: dispatch.file},
    }


def build_child(dispatch: Dispatch) -> JsonObject:
    """Return the Indexed Job of one attempt and stage.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/job-v1/ and KEP-3850 (backoff limit
    per index), KEP-3329 (pod failure policy).
    """
    spec = dispatch.job.spec
    queue = dispatch.job.metadata.labels.get(names.LABEL_QUEUE_NAME)
    metadata = _metadata(dispatch)
    child_spec: JsonObject = {
        "completionMode": "Indexed",
        "completions": dispatch.completions,
        "parallelism": dispatch.parallelism,
        "backoffLimitPerIndex": spec.segment_backoff_limit,
        "activeDeadlineSeconds": dispatch.deadline_seconds,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": {
            "rules": [
                # First, or an evicted pod that also exited with a code would fail its index for good.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {
                    "action": "FailIndex",
                    "onExitCodes": {
                        "containerName": names.WORKER_CONTAINER,
                        "operator": "In",
                        "values": list(names.PERMANENT_EXIT_CODES),
                    },
                },
            ]
        },
        "template": {
            # Without the queue's: their Job waits for them, and once it is taken out of the queue they are not in it.
            "metadata": {
                "labels": dispatch.config.worker_pod_labels | metadata["labels"],
                "annotations": dispatch.config.worker_pod_annotations | metadata["annotations"],
            },
            "spec": _pod_spec(dispatch),
        },
    }
    if spec.max_failed_segments is not None and dispatch.stage is Stage.SEGMENTS:
        child_spec["maxFailedIndexes"] = min(spec.max_failed_segments, dispatch.completions)
    if queue:  # Kueue admits a Job by unsuspending it.
        metadata["labels"][names.LABEL_QUEUE_NAME] = queue
        child_spec["suspend"] = True
    else:
        metadata["annotations"] |= suspend_annotation(wanted=False)
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": child_spec}


def suspend_annotation(*, wanted: bool | None) -> JsonObject:
    """Return the annotation that says what the operator has last made of a Job's `spec.suspend`; None takes it off."""
    return {names.ANNOTATION_SUSPEND: None if wanted is None else str(wanted).lower()}


def _metadata(dispatch: Dispatch) -> JsonObject:
    job = dispatch.job
    return {
        "name": dispatch.name,
        "namespace": job.metadata.namespace,
        "labels": {
            names.LABEL_MANAGED_BY: names.MANAGED_BY,
            names.LABEL_JOB_UID: job.metadata.uid,
            names.LABEL_STAGE: dispatch.stage.value,
            names.LABEL_GENERATION: str(dispatch.generation),
        },
        "annotations": {
            names.ANNOTATION_MAP_DIGEST: dispatch.digest,
            names.ANNOTATION_JOB_NAME: job.metadata.name,
        },
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": job.metadata.name,
                "uid": job.metadata.uid,
                "controller": True,
            }
        ],
    }


def _pod_spec(dispatch: Dispatch) -> JsonObject:
    template = dispatch.job.spec.template
    config = dispatch.config
    resources = config.worker_resources
    if template is not None and template.resources is not None:
        resources = template.resources
    container: JsonObject = {
        "name": names.WORKER_CONTAINER,
        "image": (template.image if template else None) or config.worker_image,
        "imagePullPolicy": config.worker_image_pull_policy,
        "args": [names.COMMANDS[dispatch.stage]],
        "env": _environment(dispatch),
        "resources": resources.model_dump(by_alias=True, exclude_none=True),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "attempt", "mountPath": names.ATTEMPT_DIR, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the container's own emptyDir
        ],
    }
    pod: JsonObject = {
        "restartPolicy": "Never",
        "serviceAccountName": names.WORKER_SERVICE_ACCOUNT,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _TERMINATION_GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _WORKER_USER,
            "runAsGroup": _WORKER_USER,
            "fsGroup": _WORKER_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "attempt", "configMap": {"name": dispatch.name}},
            {"name": "tmp", "emptyDir": {"sizeLimit": _tmp_size_limit(config)}},
        ],
    }
    if config.ca_config_map:
        container["volumeMounts"].append({"name": "ca", "mountPath": names.CA_DIR, "readOnly": True})
        pod["volumes"].append({"name": "ca", "configMap": {"name": config.ca_config_map}})
    if config.worker_node_selector:
        pod["nodeSelector"] = config.worker_node_selector
    if config.worker_tolerations:
        pod["tolerations"] = [
            toleration.model_dump(by_alias=True, exclude_none=True) for toleration in config.worker_tolerations
        ]
    if config.worker_priority_class_name:
        pod["priorityClassName"] = config.worker_priority_class_name
    if template is not None:
        chosen = template.model_dump(
            by_alias=True,
            exclude_none=True,
            include={"node_selector", "tolerations", "priority_class_name", "image_pull_secrets"},
        )
        pod.update(chosen)
    return pod


def _tmp_size_limit(config: Config) -> str:
    """Return how large the worker's /tmp may grow: over the limit, the kubelet evicts the pod.

    No stage keeps more there than one copy of the document and the text that a parser takes from it, which is at most
    256 MiB.
    """
    document = -(-config.max_source_bytes // 2**30)
    return f"{max(_LEAST_TMP_GIB, document + 1)}Gi"


def _environment(dispatch: Dispatch) -> list[JsonObject]:
    config, tenant, provider = dispatch.config, dispatch.tenant, dispatch.provider
    plain = {
        names.ENV_ATTEMPT_FILE: names.ATTEMPT_FILE,
        names.ENV_JOB_UID: dispatch.job.metadata.uid,
        names.ENV_GENERATION: str(dispatch.generation),
        names.ENV_STAGE: dispatch.stage.value,
        names.ENV_MAP_DIGEST: dispatch.digest,
        names.ENV_STORE_URL: f"s3://{tenant.bucket}",
        names.ENV_MAX_SOURCE_BYTES: str(config.max_source_bytes),
        names.ENV_LOG_LEVEL: config.worker_log_level,
        names.ENV_STORE_REGION: config.store.region,
        "HOME": "/tmp",  # noqa: S108 - the container's own emptyDir
    }
    if config.store.endpoint:
        plain[names.ENV_STORE_ENDPOINT] = config.store.endpoint
    if config.source_allow:
        plain[names.ENV_SOURCE_ALLOW] = ",".join(config.source_allow)
    if config.ca_config_map:
        plain[names.ENV_CA_FILE] = names.CA_FILE
    if config.source_deny:
        plain[names.ENV_SOURCE_DENY] = ",".join(config.source_deny)
    if provider is not None:
        plain[names.ENV_EMBEDDING_URL] = provider.url
    env: list[JsonObject] = [{"name": name, "value": value} for name, value in plain.items()]
    env += [_from_secret(key, tenant.store_secret, key) for key in (names.STORE_ACCESS_KEY, names.STORE_SECRET_KEY)]
    env.append(_from_secret(names.STORE_SESSION_TOKEN, tenant.store_secret, names.STORE_SESSION_TOKEN, optional=True))
    if provider is not None and provider.secret_name:
        env.append(_from_secret(names.ENV_EMBEDDING_API_KEY, provider.secret_name, names.PROVIDER_API_KEY))
    return env


def _from_secret(name: str, secret: str, key: str, **more: bool) -> JsonObject:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key, **more}}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildJob:
    """What decisions are made from in a Kubernetes Job.

    Args:
        name, uid: the Job's.
        resource_version: 0 before it is stored; a later state of it has a greater one (KEP-5504).
        owner_uid: UID of the controlling owner, or empty.
        stage: as its label says; empty without one.
        map_digest: of the attempt's file that it was made for, as its annotation says; empty without one.
        deleted: when somebody deleted it, which waits for finalizers; None if nobody has.
        queue: the one that it was made for, which suspends it and admits it; empty without one.
        managed_by: who runs it in place of Kubernetes' own Job controller, as in another cluster; else empty.
        suspended: it is to have no pods now.
        let_go: the operator made it to run, or has resumed it last: if it is suspended, somebody else has done that.
            False of a Job that has been in a queue, and of one that a release has made which did not say so.
        parallelism: pods at the same time at most.
        takes_fewer: Kueue may admit it with a lower parallelism, and then lets nobody change that while it runs.
        deadline_seconds: from `start_time` on; None for no end, 0 once its attempt was cancelled.
        active: how many pods have not ended.
        ready: how many of them are ready.
        succeeded: how many Job indexes have.
        completed: Job indexes that succeeded.
        failed: Job indexes that failed for good.
        complete: condition Complete is True.
        failure_reason: the reason of condition Failed=True; None unless the Job has failed.
        failure_message: its message.
        start_time: when it began, or was resumed; None before. Before Kubernetes 1.36 a suspended one keeps it.
        completion_time: when it ended, well or not; None before.
    """

    name: str
    uid: ChildUid
    resource_version: int = 0
    owner_uid: str = ""
    stage: str = ""
    map_digest: str = ""
    deleted: datetime | None = None
    queue: str = ""
    managed_by: str = ""
    suspended: bool = False
    let_go: bool = False
    parallelism: int = 1
    takes_fewer: bool = False
    deadline_seconds: int | None = None
    active: int = 0
    ready: int = 0
    succeeded: int = 0
    completed: IndexSet = EMPTY
    failed: IndexSet = EMPTY
    complete: bool = False
    failure_reason: str | None = None
    failure_message: str = ""
    start_time: datetime | None = None
    completion_time: datetime | None = None

    @property
    def finished(self) -> bool:
        """True once the Job is Complete or Failed: not on FailureTarget, while pods still end."""
        return self.complete or self.failure_reason is not None

    @property
    def deleting(self) -> bool:
        """True once it is deleted and not gone yet."""
        return self.deleted is not None

    @property
    def cancelled(self) -> bool:
        """True once its attempt was cancelled. No spec may ask for a deadline of 0, and it cannot be taken back."""
        return self.deadline_seconds == 0


def read_child(raw: JsonObject) -> ChildJob:
    """Return the narrow view of a batch/v1 Job; labels that people have broken read as unknown."""
    metadata, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    labels, annotations = metadata.get("labels", {}), metadata.get("annotations", {})
    owner: JsonObject = next((ref for ref in metadata.get("ownerReferences", []) if ref.get("controller")), {})
    conditions = {item["type"]: item for item in status.get("conditions", []) if item.get("status") == "True"}
    managed_by = spec.get("managedBy", "")
    failed = conditions.get("Failed")
    ended = conditions.get("Complete") or failed or {}
    return ChildJob(
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=int(metadata.get("resourceVersion", 0)),
        owner_uid=owner.get("uid", ""),
        stage=labels.get(names.LABEL_STAGE, ""),
        map_digest=annotations.get(names.ANNOTATION_MAP_DIGEST, ""),
        deleted=_time(metadata.get("deletionTimestamp")),
        queue=labels.get(names.LABEL_QUEUE_NAME, ""),
        managed_by=managed_by if managed_by != _JOB_CONTROLLER else "",
        suspended=bool(spec.get("suspend", False)),
        let_go=annotations.get(names.ANNOTATION_SUSPEND) == "false",
        parallelism=spec.get("parallelism", 1),
        takes_fewer=names.ANNOTATION_MIN_PARALLELISM in annotations,
        deadline_seconds=spec.get("activeDeadlineSeconds"),
        active=status.get("active", 0),
        ready=status.get("ready", 0),
        succeeded=status.get("succeeded", 0),
        completed=IndexSet.parse(status.get("completedIndexes")),
        failed=IndexSet.parse(status.get("failedIndexes")),
        complete="Complete" in conditions,
        failure_reason=failed.get("reason", "Unknown") if failed else None,
        failure_message=failed.get("message", "") if failed else "",
        start_time=_time(status.get("startTime")),
        completion_time=_time(status.get("completionTime") or ended.get("lastTransitionTime")),
    )


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
