"""How pods ended and what they said: termination messages, exit codes and reasons become results by Job index.

The messages come from pods, so from strangers: nothing in them is believed without a check.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal, Self

from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.constants import Mode, VersionState
from ingestion_crds.errors import ERROR_CODES, Code
from ingestion_crds.job import INT32_MAX, UUID_PATTERN, NotRead
from pydantic import AliasPath, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

_CODE_IN_TRUNCATED: Final = re.compile(r'"code"\s*:\s*"([A-Za-z]{1,63})"')
_MESSAGE_IN_TRUNCATED: Final = re.compile(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)')
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]+")
# Anybody may write the annotation, and Python reads no number of thousands of digits.
_INDEX: Final = re.compile(rf"[0-9]{{1,{len(str(names.MAX_SEGMENTS - 1))}}}")
START_REASONS: Final = frozenset(
    {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun"}
)
"""Reasons of a container that could not be started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodResult:
    """How the latest pod of a Job index ended.

    Args:
        succeeded: the container exited with 0.
        code: why it failed; empty when it succeeded.
        message: at most 200 bytes.
        exit_code: the container's; None when it never ran.
        payload: what a successful container said.
    """

    succeeded: bool
    code: Code | Literal[""] = ""
    message: str = ""
    exit_code: int | None = None
    payload: JsonObject = field(default_factory=dict)


_Chunks = Annotated[int, Field(ge=0, le=2**53)]
_CHUNKS: Final = TypeAdapter(_Chunks)


class PrepareResult(BaseModel):
    """What `prepare_document` said, checked."""

    model_config = ConfigDict(frozen=True, strict=True)

    mode: Literal[Mode.SEGMENTED, Mode.SINGLE_PASS]
    segments: int = Field(ge=1, le=names.MAX_SEGMENTS)
    version_id: str = Field(validation_alias=AliasPath("version", "id"), pattern=UUID_PATTERN)
    version_number: int = Field(validation_alias=AliasPath("version", "number"), ge=1, le=INT32_MAX)
    plan_hash: str = Field(validation_alias=AliasPath("version", "planHash"), pattern=r"^[0-9A-Za-z]{1,64}$")
    state: Any = Field(None, validation_alias=AliasPath("version", "state"))
    chunks: _Chunks | None = None

    @model_validator(mode="after")
    def _single_pass_has_published(self) -> Self:
        # A single pass publishes too: without an active version it has not done its work.
        if self.mode is Mode.SINGLE_PASS and self.state != VersionState.ACTIVE:
            raise ValueError("the version is not active")
        return self


Harvest = dict[int, PodResult]


def shorten(message: str, *, limit: int = names.MAX_FAILURE_MESSAGE_BYTES) -> str:
    """Return the message on one line and within `limit` bytes, never cut inside a character.

    Half a character, as JSON can have and UTF-8 cannot, becomes a question mark.
    """
    raw = _CONTROL.sub(" ", message).strip().encode(errors="replace")
    return raw.decode() if len(raw) <= limit else raw[: limit - 3].decode(errors="ignore") + "…"


def failed(code: Code, message: str, exit_code: int | None = None) -> PodResult:
    """Return the result of a pod that failed, or was never seen to end."""
    return PodResult(succeeded=False, code=code, message=shorten(message), exit_code=exit_code)


class Results:
    """The result of the latest finished pod of each Job index, of pods that come in any order."""

    def __init__(self) -> None:
        self._latest: dict[int, tuple[str, PodResult]] = {}

    def take(self, pods: Iterable[JsonObject]) -> None:
        """Take in raw pods of one Job; those still running are passed over."""
        for pod in pods:
            index = _index_of(pod)
            result = _result_of(pod)
            if index is None or result is None:
                continue
            created = str(pod["metadata"].get("creationTimestamp", ""))
            # A success is final whatever the clock says: one index has at most one. A pod that is being deleted was
            # told to end, as those are that run at the Job's deadline: the one before it says more.
            place = 2 if result.succeeded else 0 if "deletionTimestamp" in pod["metadata"] else 1
            rank = f"{place}{created}"
            if index not in self._latest or rank >= self._latest[index][0]:
                self._latest[index] = (rank, result)

    @property
    def harvest(self) -> Harvest:
        """The results, by Job index."""
        return {index: result for index, (_, result) in self._latest.items()}


def _index_of(pod: JsonObject) -> int | None:
    metadata, name = pod["metadata"], names.LABEL_COMPLETION_INDEX
    text = (metadata.get("labels") or {}).get(name) or (metadata.get("annotations") or {}).get(name)
    return int(text) if text and _INDEX.fullmatch(text) else None


def _result_of(pod: JsonObject) -> PodResult | None:
    status = pod.get("status", {})
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    container: JsonObject = next(
        (item for item in status.get("containerStatuses", []) if item.get("name") == names.WORKER_CONTAINER), {}
    )
    state = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated") or {}
    said = state.get("message", "")
    exit_code = state.get("exitCode")
    if status["phase"] == "Succeeded":
        return PodResult(succeeded=True, exit_code=exit_code, payload=_json(said))
    # What the cluster says beats what the container managed to write before it was killed.
    if state.get("reason") == "OOMKilled" or status.get("reason") == "OOMKilled":
        return failed("OOMKilled", "the container was killed at its memory limit", exit_code)
    if status.get("reason") == "DeadlineExceeded":
        return failed("Deadline", status.get("message", ""), exit_code)
    disrupted = any(
        item.get("type") == "DisruptionTarget" and item.get("status") == "True" for item in status.get("conditions", [])
    )
    # What the kubelet says of a pod that it did not take; of its container, which never ran, it says 137 or nothing.
    rejected = status.get("message", "").startswith("Pod was rejected")
    if disrupted or rejected or status.get("reason") in ("Evicted", "NodeLost", "Terminated", "Shutdown", "Preempting"):
        return failed("Evicted", status.get("message") or f"the pod was put out: {status.get('reason', '')}", exit_code)
    if state.get("reason") in START_REASONS:
        return failed("StartError", said or state["reason"], exit_code)
    code, message = _error(said)
    if code is not None:
        return failed(code, message, exit_code)
    if exit_code is None:
        code, message = "PodLost", status.get("message") or "the pod failed and says nothing of its container"
    else:
        code, message = "ContainerError", f"exit code {exit_code}: {said or state.get('reason', '')}"
    if "deletionTimestamp" in pod["metadata"]:
        # It was told to end, as those are that run at the Job's deadline. Not every worker says so, and of a container
        # that never ran the kubelet says 137.
        code, message = "Interrupted", f"the pod was deleted; {message}"
    return failed(code, message, exit_code)


def _json(text: str) -> JsonObject:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _error(said: str) -> tuple[Code | None, str]:
    """Return code and message of a failure's JSON, whole or cut off; None and no message without a known code."""
    body = _json(said)
    if body:
        code, message = body.get("code"), body.get("message")
    else:  # The kubelet cuts at 4096 bytes over all containers: what is left still names the cause.
        found, text = _CODE_IN_TRUNCATED.search(said), _MESSAGE_IN_TRUNCATED.search(said)
        code, message = found and found[1], text and text[1]
    known = ERROR_CODES.get(code) if isinstance(code, str) else None
    if known is None:
        return None, ""
    return known.code, message if isinstance(message, str) else ""


def read_prepare(payload: JsonObject) -> PrepareResult | None:
    """Check what `prepare_document` said; None when it is not what the contract allows."""
    try:
        return PrepareResult.model_validate(payload)
    except ValidationError:
        return None


def read_chunks(payload: JsonObject) -> int | None:
    """Return the number of chunks that `publish_version` said, if it did."""
    try:
        return _CHUNKS.validate_python(payload.get("chunks"), strict=True)
    except ValidationError:
        return None


def read_not_read(payload: JsonObject) -> NotRead | None:
    """Return what whoever published said of the document that is not in the version; None when that is nothing."""
    try:
        said = NotRead.model_validate(payload["notRead"])
    except (KeyError, ValidationError):
        return None
    return said if said.page_count or said.attachments else None
