"""What a plan asks for: changes of the cluster, events for people, and another look."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ingestion_crds import JsonObject
from ingestion_crds.constants import Reason
from ingestion_crds.job import ChildUid

LOOK_AT_BLOCKED_SECONDS: Final = 30.0
"""Until what waits for a person, or was refused, is looked at again."""
TRY_TO_DELETE_SECONDS: Final = 600.0
"""The same of what is completed and may not be deleted: many of those are not to keep the operator busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A Kubernetes event about the job or batch, to be sent once the status that it tells of is written."""

    reason: Reason
    message: str
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateChild:
    """Create the ConfigMap, then the Job, whose JSON `body` is."""

    config_map: JsonObject
    body: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreConfigMap:
    """Create the ConfigMap of a running Job again."""

    config_map: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteChild:
    """Delete a Job and its ConfigMap.

    A tombstone that is replaced, a late duplicate, a suspended Job that a cancelled attempt gives up, or a finished
    one that makes room in a quota.
    """

    name: str
    uid: ChildUid


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteConfigMap:
    """Delete the ConfigMap of a Job that is gone, or never was."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchChild:
    """Change suspend, parallelism or activeDeadlineSeconds of a Job; nothing else of its spec is ever patched.

    Args:
        spec: the change.
        annotations: to be changed with it, or alone if it is empty.
        clear_start_of: the Job's resourceVersion, if its status.startTime is to be taken off before; else None.
    """

    name: str
    uid: ChildUid
    spec: JsonObject
    annotations: JsonObject
    clear_start_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePods:
    """Remove some of a finished Job's pods, but none of the kept indexes, whose logs somebody may want."""

    child_uid: ChildUid
    keep: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerAnnotation:
    """Answer an annotation by a JSON patch of what carries it, if that is still what the plan was made from.

    Args:
        token: of the annotation, by which it is known that it was answered.
        operations: the patch.
        told: to be sent once that is done.
    """

    token: str
    operations: tuple[JsonObject, ...]
    told: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteIngestionJob:
    """Delete the IngestionJob: its time to live is over."""

    uid: str


Action = (
    CreateChild
    | RestoreConfigMap
    | DeleteChild
    | DeleteConfigMap
    | PatchChild
    | RemovePods
    | AnswerAnnotation
    | DeleteIngestionJob
)
