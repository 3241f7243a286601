"""What a plan asks for: changes of the cluster, and events for people."""

from __future__ import annotations

from dataclasses import dataclass

from ingestion_crds import JsonObject
from ingestion_crds.constants import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A Kubernetes event about the job, to be sent once the status that it tells of is written."""

    reason: Reason
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateChildren:
    """Create the ConfigMap, then the Job."""

    config_map: JsonObject
    job: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreConfigMap:
    """Create the ConfigMap of a running Job again."""

    config_map: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteJob:
    """Delete a Job and its ConfigMap.

    A tombstone that is replaced, a late duplicate, a suspended Job that a cancelled attempt gives up, or a finished
    one that makes room in a quota.
    """

    name: str
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteConfigMap:
    """Delete the ConfigMap of a Job that is gone, or never was."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchJob:
    """Change suspend, parallelism or activeDeadlineSeconds of a Job; nothing else is ever patched."""

    name: str
    uid: str
    spec: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePods:
    """Remove the pods of a finished Job, but for those of the kept indexes, whose logs somebody may want."""

    job_uid: str
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchIngestionJob:
    """Answer an annotation by a JSON patch of the IngestionJob, if it is still what the plan was made from.

    Args:
        token: of the annotation, by which it is known that it was answered.
        told: to be sent once that is done.
    """

    token: str
    operations: tuple[JsonObject, ...]
    told: Event | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteIngestionJob:
    """Delete the IngestionJob: its time to live is over."""

    uid: str


Action = (
    CreateChildren
    | RestoreConfigMap
    | DeleteJob
    | DeleteConfigMap
    | PatchJob
    | RemovePods
    | PatchIngestionJob
    | DeleteIngestionJob
)
