"""An API server in memory, as honest as the operator can tell: `test_truth.py` compares it with a real one.

Requests come in as `KubeClient.request` sends them, so the operator's real `KubeCluster` runs over it unchanged.
What is modelled: resourceVersion and uid preconditions, 404 and 409, JSON and merge patches, spec and status apart,
metadata.generation, no-op writes that change nothing, the CRD's defaults and transition rules, finalizers, graceful
deletion of pods, the three propagation policies, and the log of changes that watches are made from.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/ and k8s.io/apiserver/pkg/registry/generic/registry.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import jsonpatch
import jsonpointer
import orjson
from ingestion_crds import JsonObject
from ingestion_crds import constants as names
from ingestion_crds.batch import IngestionBatch
from ingestion_crds.job import IngestionJob, format_time
from ingestion_crds.kube import JSON_PATCH, MERGE_PATCH, TABLE, ApiError
from ingestion_crds.schema import batch_resource_definition, custom_resource_definition
from pydantic import ValidationError

Json = TypeVar("Json")
Key = tuple[str, str, str]  # resource, namespace, name

INGESTION_JOBS: Final = names.PLURAL
BATCHES: Final = names.BATCH_PLURAL
POD_GRACE_SECONDS: Final = 30
JOB_TRACKING: Final = "batch.kubernetes.io/job-tracking"
FOREGROUND: Final = "foregroundDeletion"
ORPHAN: Final = "orphan"
_VERSIONS: Final[dict[str, JsonObject]] = {
    INGESTION_JOBS: custom_resource_definition()["spec"]["versions"][0],
    BATCHES: batch_resource_definition()["spec"]["versions"][0],
}
KINDS: Final = {
    INGESTION_JOBS: (names.API_VERSION, names.KIND),
    BATCHES: (names.API_VERSION, names.BATCH_KIND),
    "jobs": ("batch/v1", "Job"),
    "configmaps": ("v1", "ConfigMap"),
    "pods": ("v1", "Pod"),
    "events": ("v1", "Event"),
}
_PATH: Final = re.compile(
    r"^/(?:api/v1|apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<subresource>status))?$"
)
_REQUIREMENT: Final = re.compile(
    r"(?P<key>[^,=!\s]+)\s*(?:(?P<not>!?)=\s*(?P<value>[^,]*)|notin \((?P<values>[^)]*)\))"
)
_FIXED_METADATA: Final = (
    "uid",
    "name",
    "namespace",
    "creationTimestamp",
    "generation",
    "resourceVersion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_JOB_SPEC_MUTABLE: Final = frozenset({"suspend", "parallelism", "activeDeadlineSeconds", "completions"})


class Release(Enum):
    """Releases of Kubernetes, by what becomes of status.startTime where a Job is suspended and resumed.

    Source: kubernetes issue 134521 and its backports, pull request 135104 (KEP-5440).
    """

    CLEARED = "1.36: taken away at the suspension"
    RESET = "1.33.6, 1.34.2, 1.35: set anew at the resumption, once the deadline was asked"
    STUCK = "1.33.5, 1.34.1: as RESET, and the API server refuses the new one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One committed change, as a watch would tell of it.

    Args:
        kind: ADDED, MODIFIED or DELETED.
        before: the object before; None when it is new.
        after: the object as it is now, or as it was last.
        by: who asked for it.
    """

    kind: str
    resource: str
    before: JsonObject | None
    after: JsonObject
    by: str


def copied(value: Json) -> Json:
    """Return a deep copy of a JSON value."""
    return cast(Json, orjson.loads(orjson.dumps(value)))


def merged(value: Any, patch: Any) -> Any:
    """Return a value with a merge patch applied (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for key, part in patch.items():
        if part is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), part)
    return result


def with_defaults(schema: JsonObject, value: Any) -> Any:
    """Return a value with a structural schema's defaults filled in."""
    if not isinstance(value, dict):
        return value
    for name, part in schema.get("properties", {}).items():
        if name not in value and "default" in part:
            value[name] = copied(part["default"])
        if name in value:
            value[name] = with_defaults(part, value[name])
    return value


def owner_of(body: JsonObject) -> JsonObject | None:
    """Return the reference to an object's controller."""
    references = body["metadata"].get("ownerReferences", [])
    return next((reference for reference in references if reference.get("controller")), None)


def finished(job: JsonObject) -> bool:
    """True for a Job that is Complete or Failed."""
    conditions = job.get("status", {}).get("conditions", [])
    return any(item["type"] in ("Complete", "Failed") and item["status"] == "True" for item in conditions)


def ended(pod: JsonObject) -> bool:
    """True for a pod whose containers have ended for good."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


class ApiServer:
    """Objects by key, and the requests on them.

    Args:
        now: the wall clock.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.release = Release.CLEARED
        self._objects: dict[Key, JsonObject] = {}
        self.version = 100  # the last resourceVersion
        self._uids = 0
        self.changes: list[Change] = []
        self.on_change: list[Callable[[Change], None]] = []

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────────

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        by: str = "kubectl",
    ) -> JsonObject:
        """Answer one request.

        Raises:
            ApiError: as a real API server answers.
        """
        match = _PATH.match(path)
        if match is None or match["resource"] not in KINDS:
            raise ApiError(status=404, reason="NotFound", message=f"the server could not find {path}")
        resource, namespace, name = match["resource"], match["namespace"] or "", match["name"] or ""
        body = copied(body)
        match method, bool(name):
            case "GET", True:
                return self._read((resource, namespace, name))
            case "GET", False:
                listed = self._list(resource, namespace, query or {})
                return _table(resource, listed["items"]) if accept == TABLE else listed
            case "POST", False:
                return self.create(resource, namespace, body, by=by)
            case "PATCH", True:
                return self._patch((resource, namespace, name), body, content_type, match["subresource"] or "", by)
            case "DELETE", True:
                return self.delete((resource, namespace, name), body or {}, by=by)
            case "DELETE", False:
                page = self._list(resource, namespace, query or {})
                for found in page["items"]:
                    self.delete(key_of(resource, found), body or {}, by=by)
                return page
            case _:
                raise ApiError(status=405, reason="MethodNotAllowed", message=f"{method} {path}")

    def _read(self, key: Key) -> JsonObject:
        found = self._objects.get(key)
        if found is None:
            raise ApiError(status=404, reason="NotFound", message=f'{key[0]} "{key[2]}" not found')
        return copied(found)

    def _list(self, resource: str, namespace: str, query: Mapping[str, Any]) -> JsonObject:
        items = sorted(self._selected(resource, namespace, query), key=lambda item: key_of(resource, item))
        after = query.get("continue", "")
        items = [item for item in items if "/".join(key_of(resource, item)) > after]
        limit = int(query.get("limit", 0)) or len(items)
        metadata: JsonObject = {"resourceVersion": str(self.version)}
        if len(items) > limit:
            metadata["continue"] = "/".join(key_of(resource, items[limit - 1]))
        page = copied(items[:limit])
        if resource not in _VERSIONS:  # the items of a list have no kind of their own, but for custom resources
            page = [{key: value for key, value in item.items() if key not in ("apiVersion", "kind")} for item in page]
        return {"metadata": metadata, "items": page}

    def _selected(self, resource: str, namespace: str, query: Mapping[str, Any]) -> Iterator[JsonObject]:
        labels, fields = str(query.get("labelSelector", "")), str(query.get("fieldSelector", ""))
        for (kind, place, _), item in self._objects.items():
            if kind != resource or (namespace and place != namespace):
                continue
            if _matches(labels, item["metadata"].get("labels", {})) and _matches(fields, _Fields(item)):
                yield item

    def create(self, resource: str, namespace: str, body: JsonObject, *, by: str) -> JsonObject:
        """Create an object.

        Raises:
            ApiError: 409 AlreadyExists, 422 for what the schema forbids.
        """
        metadata = body["metadata"]
        self._uids += 1
        if "name" not in metadata:
            metadata["name"] = f"{metadata['generateName']}{self._uids:05d}"
        key = (resource, namespace, metadata["name"])
        if key in self._objects:
            raise ApiError(status=409, reason="AlreadyExists", message=f'{resource} "{key[2]}" already exists')
        metadata |= {
            "namespace": namespace,
            "uid": str(UUID(int=self._uids)),
            "creationTimestamp": format_time(self._now()),
            "generation": 1,
        }
        metadata.pop("resourceVersion", None)
        body["apiVersion"], body["kind"] = KINDS[resource]
        body.pop("status", None)
        if resource in _VERSIONS:
            body = with_defaults(_VERSIONS[resource]["schema"]["openAPIV3Schema"], body)
            _check_resource(resource, None, body)
        elif resource == "jobs":
            _default_job(body)
        elif resource == "pods":
            body["status"] = {"phase": "Pending"}
        self._commit("ADDED", key, None, body, by)
        return copied(body)

    def _patch(self, key: Key, patch: Any, content_type: str, subresource: str, by: str) -> JsonObject:
        before = self._read(key)
        if content_type == JSON_PATCH:
            try:
                after = jsonpatch.apply_patch(before, patch)
            except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException) as error:
                raise _invalid(f"the server rejected our request due to an error in our request: {error}") from error
        elif content_type == MERGE_PATCH:
            after = merged(before, patch)
        else:
            raise ApiError(status=415, reason="UnsupportedMediaType", message=content_type)
        return self.update(key, after, subresource=subresource, by=by)

    def update(self, key: Key, after: JsonObject, *, subresource: str = "", by: str) -> JsonObject:
        """Replace an object, or its status alone.

        Raises:
            ApiError: 409 when the resourceVersion is not the live one, 422 for what is forbidden.
        """
        before = self._read(key)
        old, new = before["metadata"], after["metadata"]
        if new.get("resourceVersion") not in (None, "", old["resourceVersion"]):
            raise ApiError(status=409, reason="Conflict", message="the object has been modified")
        if subresource == "status":
            after = {**before, "status": after.get("status", {})}
            if key[0] == "jobs":
                _check_job_status(before, after, self.release)
        else:
            if new.get("uid") != old["uid"]:
                raise _invalid("metadata.uid: Invalid value: field is immutable")
            if "deletionTimestamp" in old and set(new.get("finalizers", [])) - set(old.get("finalizers", [])):
                raise _invalid("metadata.finalizers: Forbidden: no new finalizers can be added while it is deleted")
            after["metadata"] = {**new, **{name: old[name] for name in _FIXED_METADATA if name in old}}
            if "status" in before:
                after["status"] = before["status"]
        if key[0] in _VERSIONS:
            after = with_defaults(_VERSIONS[key[0]]["schema"]["openAPIV3Schema"], after)
            _check_resource(key[0], before, after)
        elif key[0] == "jobs":
            _check_job(before, after)
        elif key[0] == "configmaps" and before.get("immutable") and before.get("data") != after.get("data"):
            raise _invalid("data: Forbidden: field is immutable when `immutable` is set")
        if after == before:
            return before
        if after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] = old["generation"] + 1
        if "deletionTimestamp" in old and not self._held(key[0], after):
            self._remove(key, after, by)
            return after
        self._commit("MODIFIED", key, before, after, by)
        return copied(after)

    def delete(self, key: Key, options: JsonObject, *, by: str) -> JsonObject:
        """Delete an object, or mark it for deletion while something holds it.

        Raises:
            ApiError: 404, or 409 when the uid precondition fails.
        """
        before = self._read(key)
        wanted = options.get("preconditions", {}).get("uid")
        if wanted is not None and wanted != before["metadata"]["uid"]:
            raise ApiError(
                status=409,
                reason="Conflict",
                message=f"Precondition failed: UID in precondition: {wanted}, UID in object meta: "
                f"{before['metadata']['uid']}",
            )
        after = copied(before)
        finalizers = set(after["metadata"].get("finalizers", []))
        # batch/v1 alone orphans its dependents by default: registry/batch/job/strategy.go.
        policy = options.get("propagationPolicy", "Orphan" if key[0] == "jobs" else "Background")
        finalizers -= {FOREGROUND, ORPHAN}
        if policy in ("Foreground", "Orphan"):
            finalizers.add(FOREGROUND if policy == "Foreground" else ORPHAN)
        after["metadata"]["finalizers"] = sorted(finalizers)
        grace = 0
        if key[0] == "pods" and not ended(before) and before.get("spec", {}).get("nodeName"):
            grace = int(options.get("gracePeriodSeconds", POD_GRACE_SECONDS))
        if "deletionTimestamp" not in after["metadata"]:
            after["metadata"]["deletionTimestamp"] = format_time(self._now())
            after["metadata"]["generation"] += 1
        if key[0] == "pods":
            shorter = min(grace, before["metadata"].get("deletionGracePeriodSeconds", grace))
            after["metadata"]["deletionGracePeriodSeconds"] = shorter
        if not finalizers:
            del after["metadata"]["finalizers"]
        if self._held(key[0], after):
            if after != before:
                self._commit("MODIFIED", key, before, after, by)
            return copied(after)
        self._remove(key, after, by)
        return copied(after)

    @staticmethod
    def _held(resource: str, body: JsonObject) -> bool:
        metadata = body["metadata"]
        graceful = resource == "pods" and metadata.get("deletionGracePeriodSeconds", 0) > 0
        return bool(metadata.get("finalizers")) or graceful

    def _remove(self, key: Key, body: JsonObject, by: str) -> None:
        before = self._objects.pop(key)
        self._announce(Change(kind="DELETED", resource=key[0], before=before, after=self._versioned(body), by=by))

    def _commit(self, kind: str, key: Key, before: JsonObject | None, after: JsonObject, by: str) -> None:
        self._objects[key] = self._versioned(after)
        self._announce(Change(kind=kind, resource=key[0], before=before, after=copied(after), by=by))

    def _versioned(self, body: JsonObject) -> JsonObject:
        self.version += 1
        body["metadata"]["resourceVersion"] = str(self.version)
        return body

    def _announce(self, change: Change) -> None:
        self.changes.append(change)
        for tell in self.on_change:
            tell(change)

    # ── what the cluster's own parts read ─────────────────────────────────────────────────────────────────────

    def all(self, resource: str) -> list[JsonObject]:
        """Return copies of all objects of a resource, oldest first."""
        return [copied(item) for (kind, _, _), item in self._objects.items() if kind == resource]

    def peek(self, resource: str) -> list[JsonObject]:
        """Return all objects of a resource themselves: to be looked at, never to be changed."""
        return [item for (kind, _, _), item in self._objects.items() if kind == resource]

    def find(self, resource: str, namespace: str, name: str) -> JsonObject | None:
        """Return a copy of an object, or None."""
        found = self._objects.get((resource, namespace, name))
        return None if found is None else copied(found)

    def uids(self) -> set[str]:
        """Return the UIDs of all that exists."""
        return {item["metadata"]["uid"] for item in self._objects.values()}


def key_of(resource: str, body: JsonObject) -> Key:
    """Return an object's key."""
    return resource, body["metadata"]["namespace"], body["metadata"]["name"]


class _Fields(Mapping[str, str]):
    """An object's fields by path, for field selectors."""

    def __init__(self, body: JsonObject) -> None:
        self._body = body

    def __getitem__(self, path: str) -> str:
        value: Any = self._body
        for part in path.split("."):
            value = value.get(part, {}) if isinstance(value, dict) else {}
        return "" if value == {} else str(value).lower() if isinstance(value, bool) else str(value)

    def __iter__(self) -> Iterator[str]:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


def _matches(selector: str, values: Mapping[str, str]) -> bool:
    for requirement in _REQUIREMENT.finditer(selector):
        key = requirement["key"]
        try:
            value: str | None = values[key]
        except KeyError:
            value = None
        if requirement["values"] is not None:
            if value is not None and value in requirement["values"].split(","):
                return False
        elif (value == requirement["value"]) == bool(requirement["not"]):
            return False
    return True


def _invalid(message: str) -> ApiError:
    return ApiError(status=422, reason="Invalid", message=message)


def _table(resource: str, items: list[JsonObject]) -> JsonObject:
    """Return objects as kubectl prints them, by the CRD's columns."""
    columns = _VERSIONS[resource]["additionalPrinterColumns"]
    paths = [column["jsonPath"] for column in columns]
    rows = [{"cells": [item["metadata"]["name"], *(_cell(item, path) for path in paths)]} for item in items]
    definitions = [{"name": "Name"}, *({"name": column["name"]} for column in columns)]
    return {"kind": "Table", "metadata": {}, "columnDefinitions": definitions, "rows": rows}


def _cell(item: JsonObject, path: str) -> Any:
    """Return what a column's JSONPath finds: fields, an item of a list, or the condition Ready."""
    value: Any = item
    for part in re.findall(r"[^.\[\]]+|\[[^\]]*\]", path):
        if part == "[0]":
            value = value[0] if value else None
        elif part.startswith("["):
            value = next((each for each in value or () if each["type"] == "Ready"), None)
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_resource(resource: str, before: JsonObject | None, after: JsonObject) -> None:
    """The CRD's bounds, and those of its rules that people run into (crds/ingestion_crds/schema.py)."""
    try:
        (IngestionJob if resource == INGESTION_JOBS else IngestionBatch).model_validate(after)
    except ValidationError as error:
        raise _invalid(str(error)) from error
    new = after["spec"]
    if "cancelGeneration" in new and new["cancelGeneration"] > new["retryGeneration"]:
        raise _invalid("spec.cancelGeneration: must not be greater than retryGeneration")
    if before is None:
        return
    old, status = before["spec"], before.get("status", {})
    for field in ("knowledgeBase", "document", "documents", "pipeline", "mode", "segmentation"):
        if old.get(field) != new.get(field):
            raise _invalid(f"spec.{field} is immutable")
    raised = new["retryGeneration"] > old["retryGeneration"]
    if old.get("retrySegments", "") != new.get("retrySegments", "") and not raised:
        raise _invalid("spec.retrySegments can only change together with retryGeneration")
    if new.get("parentGeneration", 0) < old.get("parentGeneration", 0):
        raise _invalid("spec.parentGeneration cannot be lowered")
    if new["retryGeneration"] == old["retryGeneration"]:
        return
    admitted = (
        new["retryGeneration"] == old["retryGeneration"] + 1
        and status.get("phase") in names.RETRYABLE_PHASES
        and status.get("observedRetryGeneration") == old["retryGeneration"]
    )
    if not admitted:
        raise _invalid("spec.retryGeneration can only be raised by one, and only while the job is failed")


def _default_job(body: JsonObject) -> None:
    """What the API server adds to a Job (pkg/apis/batch/v1/defaults.go, registry/batch/job/strategy.go)."""
    spec, uid, name = body["spec"], body["metadata"]["uid"], body["metadata"]["name"]
    spec.setdefault("suspend", False)
    spec.setdefault("parallelism", 1)
    spec.setdefault("backoffLimit", 2**31 - 1 if "backoffLimitPerIndex" in spec else 6)
    template = spec["template"].setdefault("metadata", {})
    labels = {"controller-uid": uid, "job-name": name}
    labels |= {f"batch.kubernetes.io/{key}": value for key, value in labels.items()}
    template["labels"] = {**template.get("labels", {}), **labels}
    body["status"] = {}


def _check_job(before: JsonObject, after: JsonObject) -> None:
    old, new = before["spec"], after["spec"]
    for field in old.keys() | new.keys():
        if field not in _JOB_SPEC_MUTABLE and old.get(field) != new.get(field):
            raise _invalid(f"spec.{field}: Invalid value: field is immutable")


def _check_job_status(before: JsonObject, after: JsonObject, release: Release) -> None:
    """Check what becomes of startTime: ValidateJobStatusUpdate, by the options of getStatusValidationOptions."""
    old, new = before["status"], after["status"]
    if "startTime" not in old or new.get("startTime") == old["startTime"]:
        return
    resumes = release is not Release.STUCK and (_suspended(old), _suspended(new)) == ("True", "False")
    if not after["spec"]["suspend"] and not resumes:
        raise _invalid("status.startTime: Invalid value: field is immutable for unsuspended job once set")
    if "startTime" not in new and finished(after):
        raise _invalid("status.startTime: Required value: startTime is required for finished job")


def _suspended(status: JsonObject) -> str | None:
    found = (item["status"] for item in status.get("conditions", []) if item["type"] == "Suspended")
    return next(found, None)
