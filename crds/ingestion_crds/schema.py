"""The CustomResourceDefinitions, generated from the models of `ingestion_crds.job` and `ingestion_crds.batch`.

A structural schema is pydantic's JSON schema with references written out,
nulls removed and Kubernetes' own keywords added.
Source: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import yaml

from ingestion_crds import JsonObject
from ingestion_crds.batch import MAX_DOCUMENTS_TEXT_BYTES, BatchSpec, BatchStatus, IngestionBatch
from ingestion_crds.constants import (
    BATCH_KIND,
    BATCH_PLURAL,
    GROUP,
    KIND,
    PLURAL,
    VERSION,
    ConditionType,
    Phase,
    Reason,
)
from ingestion_crds.job import CODE_LENGTH, KEY_LENGTH, QUANTITY_PATTERN, IngestionJob, Model, Spec, Status

_DROPPED: Final = frozenset({"title", "propertyNames", "discriminator"})

_RETRY_RULE: Final = (
    "self.spec.retryGeneration == oldSelf.spec.retryGeneration"
    " || (self.spec.retryGeneration == oldSelf.spec.retryGeneration + 1"
    " && has(oldSelf.status) && has(oldSelf.status.phase) && has(oldSelf.status.observedRetryGeneration)"
    " && oldSelf.status.phase in ['failed', 'partial_failure']"
    " && oldSelf.status.observedRetryGeneration == oldSelf.spec.retryGeneration)"
)
_IMMUTABLE: Final = ("knowledgeBase", "document", "pipeline", "mode", "segmentation")
_BATCH_IMMUTABLE: Final = ("knowledgeBase", "documents", "pipeline", "mode", "segmentation")
_READY: Final = ".status.conditions[?(@.type=='Ready')]"

Column = tuple[str, str, str, int, str]
"""Of what `kubectl get` prints: name, type, path, priority (1: with -o wide alone), description."""

_COLUMNS: Final[list[Column]] = [
    ("Phase", "string", ".status.phase", 0, "Where the job is."),
    ("Stage", "string", ".status.stage", 0, "The stage that runs, or that ended the attempt."),
    ("Segments", "string", ".status.segments.progress", 0, "Completed segments of all."),
    ("Failed", "integer", ".status.segments.failedCount", 0, "Segments failed so far, or unfinished at the end."),
    ("Retries", "integer", ".spec.retryGeneration", 0, "The attempt that is wanted."),
    ("Reason", "string", f"{_READY}.reason", 0, "What it does, waits for, or failed by."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Age of the job."),
    ("Attempt", "integer", ".status.observedRetryGeneration", 1, "The attempt that was begun last."),
    ("Title", "string", ".spec.document.title", 1, "Title of the document."),
    ("Version", "integer", ".status.version.number", 1, "The version of the document that the job makes."),
    ("State", "string", ".status.version.state", 1, "Active once that version was published."),
    ("Error", "string", ".status.failures[0].code", 1, "Code of the first failure."),
    ("Message", "string", f"{_READY}.message", 1, "In words."),
]
_BATCH_COLUMNS: Final[list[Column]] = [
    ("Phase", "string", ".status.phase", 0, "Where the batch is."),
    ("Documents", "string", ".status.documents.progress", 0, "Completed documents of all."),
    ("Partial", "integer", ".status.documents.partialFailureCount", 0, "Documents that have failed in part."),
    ("Failed", "integer", ".status.documents.failedCount", 0, "Documents that have failed."),
    ("Retries", "integer", ".spec.retryGeneration", 0, "The attempt that is wanted."),
    ("Reason", "string", f"{_READY}.reason", 0, "What it does, waits for, or failed by."),
    ("Age", "date", ".metadata.creationTimestamp", 0, "Age of the batch."),
    ("Processing", "integer", ".status.documents.processingCount", 1, "Documents that are being processed."),
    ("Message", "string", f"{_READY}.message", 1, "In words."),
]


@dataclass(frozen=True, kw_only=True)
class _Resource:
    """What the definitions of the two kinds differ in.

    Args:
        word: for people.
        selectable: fields that lists may be selected by.
        status: its schema, without the default.
    """

    kind: str
    plural: str
    short_name: str
    word: str
    description: str | None
    selectable: tuple[str, ...]
    columns: list[Column]
    spec: JsonObject
    status: JsonObject


def custom_resource_definition() -> JsonObject:
    """Return the CRD of IngestionJobs as a dict, ready to be written or applied."""
    spec, status = _spec_schema(Spec, _job_rules()), _status_schema(Status)
    attempt = status["properties"]["attempts"]["items"]["properties"]
    attempt["codes"]["x-kubernetes-validations"] = [_short_keys("code", CODE_LENGTH)]
    status["properties"]["attempts"]["x-kubernetes-list-type"] = "atomic"
    return _definition(
        _Resource(
            kind=KIND,
            plural=PLURAL,
            short_name="ij",
            word="job",
            description=IngestionJob.__doc__,
            selectable=(
                ".status.phase",
                ".status.jobID",
                ".spec.knowledgeBase",
                ".spec.document.id",
                ".spec.parentGeneration",
                ".spec.suspend",
            ),
            columns=_COLUMNS,
            spec=spec,
            status=status,
        )
    )


def batch_resource_definition() -> JsonObject:
    """Return the CRD of IngestionBatches as a dict, ready to be written or applied."""
    spec = _spec_schema(BatchSpec, _rules(_BATCH_IMMUTABLE, "batch"))
    documents = spec["properties"]["documents"]
    documents["x-kubernetes-list-type"] = "atomic"
    documents["x-kubernetes-validations"] = [_documents_rule()]
    return _definition(
        _Resource(
            kind=BATCH_KIND,
            plural=BATCH_PLURAL,
            short_name="ib",
            word="batch",
            description=IngestionBatch.__doc__,
            selectable=(".status.phase", ".status.jobID", ".spec.knowledgeBase"),
            columns=_BATCH_COLUMNS,
            spec=spec,
            status=_status_schema(BatchStatus),
        )
    )


def _definition(resource: _Resource) -> JsonObject:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        # Who deletes the CRD deletes all jobs. Helm never does; Argo CD would, together with its application.
        "metadata": {
            "name": f"{resource.plural}.{GROUP}",
            "annotations": {"argocd.argoproj.io/sync-options": "Prune=false,Delete=false"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short_name],
                "categories": ["knowledge"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "selectableFields": [{"jsonPath": path} for path in resource.selectable],
                    "additionalPrinterColumns": [
                        # Kubernetes keeps no priority of 0: for Argo CD a file that has one would differ for ever.
                        {
                            "name": name,
                            "type": kind,
                            "jsonPath": path,
                            **({"priority": priority} if priority else {}),
                            "description": text,
                        }
                        for name, kind, path, priority, text in resource.columns
                    ],
                    "schema": {"openAPIV3Schema": _root_schema(resource)},
                }
            ],
        },
    }


def _root_schema(resource: _Resource) -> JsonObject:
    # kstatus calls an object without conditions current: a fresh job must not look finished.
    resource.status["default"] = {
        "phase": Phase.QUEUED.value,
        "conditions": [
            {
                "type": ConditionType.READY.value,
                "status": "Unknown",
                "reason": Reason.QUEUED.value,
                "message": "Waiting for the operator",
                "lastTransitionTime": "1970-01-01T00:00:00Z",
            }
        ],
    }
    return {
        "type": "object",
        "description": resource.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": resource.spec,
            "status": resource.status,
        },
        "x-kubernetes-validations": [
            {
                "rule": _RETRY_RULE,
                "message": f"retryGeneration can only be raised by one, and only while the {resource.word} is failed or"
                " partial_failure with its last generation observed",
                "fieldPath": ".spec.retryGeneration",
                "reason": "FieldValueForbidden",
            }
        ],
    }


def _spec_schema(model: type[Model], rules: list[JsonObject]) -> JsonObject:
    spec = structural(model)
    spec["x-kubernetes-validations"] = rules
    spec["properties"]["pipeline"]["x-kubernetes-validations"] = [
        {
            "rule": "!has(self.chunkOverlap) || !has(self.chunkSize) || self.chunkOverlap < self.chunkSize",
            "message": "chunkOverlap must be less than chunkSize",
            "fieldPath": ".chunkOverlap",
        }
    ]
    template = spec["properties"]["template"]["properties"]
    resources = template["resources"]["properties"]
    template["nodeSelector"]["x-kubernetes-validations"] = [_short_keys("label's name", KEY_LENGTH)]
    for quantities in (resources["requests"], resources["limits"]):
        quantities["x-kubernetes-validations"] = [_short_keys("resource's name", KEY_LENGTH)]
    return spec


def _status_schema(model: type[Model]) -> JsonObject:
    status = _without_defaults(structural(model))
    fields = status["properties"]
    fields["failureSummary"]["x-kubernetes-validations"] = [_short_keys("code", CODE_LENGTH)]
    fields["conditions"] |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    # Unless a list is atomic, Kubernetes writes each of its items into managedFields.
    fields["failures"]["x-kubernetes-list-type"] = "atomic"
    return status


def _short_keys(what: str, length: int) -> JsonObject:
    """Return the rule that bounds a map's keys: OpenAPI has no word for it, and an object must not outgrow etcd."""
    rule = f"self.all(key, size(key) <= {length} && key.matches('^[A-Za-z0-9._/-]+$'))"
    return {"rule": rule, "message": f"a {what} has at most {length} characters: letters, digits, and . _ - /"}


def _documents_rule() -> JsonObject:
    """Return the rule that bounds the texts of all documents together: each alone may be longer than its share."""
    texts = (
        "size(bytes(item.source.uri))"
        " + (has(item.title) ? size(bytes(item.title)) : 0)"
        " + (has(item.source.contentType) ? size(bytes(item.source.contentType)) : 0)"
    )
    return {
        "rule": f"self.map(item, {texts}).sum() <= {MAX_DOCUMENTS_TEXT_BYTES}",
        "message": f"the titles, URIs and content types of all documents together have more than"
        f" {MAX_DOCUMENTS_TEXT_BYTES:,} bytes: make several batches",
    }


def _rules(immutable: tuple[str, ...], word: str) -> list[JsonObject]:
    rules = [
        {
            "rule": f"has(self.{field}) == has(oldSelf.{field})"
            f" && (!has(self.{field}) || self.{field} == oldSelf.{field})",
            "message": f"{field} is immutable: make a new {word} for another one",
            "fieldPath": f".{field}",
        }
        for field in immutable
    ]
    rules.append(
        {
            "rule": "!has(self.cancelGeneration) || self.cancelGeneration <= self.retryGeneration",
            "message": "cancelGeneration must not be greater than retryGeneration",
            "fieldPath": ".cancelGeneration",
        }
    )
    return rules


def _job_rules() -> list[JsonObject]:
    old, new = (f"(has({name}.retrySegments) ? {name}.retrySegments : '')" for name in ("oldSelf", "self"))
    return [
        *_rules(_IMMUTABLE, "job"),
        {
            "rule": f"{new} == {old} || self.retryGeneration > oldSelf.retryGeneration",
            "message": "retrySegments can only change together with retryGeneration",
            "fieldPath": ".retrySegments",
        },
        # Or a patch of the batch's that arrives late would have the job retried twice for one of the batch's retries.
        {
            "rule": "!has(oldSelf.parentGeneration)"
            " || (has(self.parentGeneration) && self.parentGeneration >= oldSelf.parentGeneration)",
            "message": "parentGeneration cannot be lowered",
            "fieldPath": ".parentGeneration",
        },
    ]


def structural(model: type[Model]) -> JsonObject:
    """Return a model's structural schema.

    Args:
        model: a pydantic model; its fields' descriptions and bounds are taken over.
    """
    raw = model.model_json_schema(by_alias=True)
    definitions = raw.pop("$defs", {})
    schema = _converted(raw, definitions)
    assert isinstance(schema, dict)
    return schema


def _converted(node: Any, definitions: JsonObject) -> Any:
    if isinstance(node, list):
        return [_converted(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        return _converted({**target, **{key: value for key, value in node.items() if key != "$ref"}}, definitions)
    if "anyOf" in node:
        options = [option for option in node["anyOf"] if option != {"type": "null"}]
        rest = {key: value for key, value in node.items() if key != "anyOf"}
        if len(options) > 1:  # only `int | str` stands in the models: a quantity
            quantity = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
            return {**_converted(rest, definitions), **quantity, "maxLength": 64, "pattern": QUANTITY_PATTERN}
        return _converted({**options[0], **rest}, definitions)
    converted: JsonObject = {}
    for key, value in node.items():
        if key == "properties":
            converted[key] = {name: _converted(field, definitions) for name, field in value.items()}
        elif key not in _DROPPED and not (key == "default" and value is None):
            converted[key] = _converted(value, definitions)
    # A Literal of one type has no "type" of its own; a structural schema must have one.
    if "enum" in converted:
        converted.setdefault("type", "string")
    return converted


def _without_defaults(schema: JsonObject) -> JsonObject:
    """Remove the defaults: in status an absent field says that nothing is known yet."""
    cleaned = {key: value for key, value in schema.items() if key != "default"}
    if "properties" in cleaned:
        cleaned["properties"] = {name: _without_defaults(field) for name, field in cleaned["properties"].items()}
    if isinstance(cleaned.get("items"), dict):
        cleaned["items"] = _without_defaults(cleaned["items"])
    return cleaned


def render(definition: JsonObject) -> str:
    """Return a CRD as YAML."""
    body = yaml.safe_dump(definition, sort_keys=False, width=120, allow_unicode=True)
    return f"# Generated by `make generate` from the models of ingestion_crds. Do not edit.\n{body}"
