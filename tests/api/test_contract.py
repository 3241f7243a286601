"""The OpenAPI document: the retry operation to the letter, and a valid whole. No cluster is needed to read it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from ingestion_api.app import create_app
from ingestion_api.forms import IngestOptions
from ingestion_api.options import Options
from ingestion_crds.batch import BatchSpec
from ingestion_crds.config import Config
from ingestion_crds.constants import MAX_DOCUMENTS, Trigger
from ingestion_crds.job import Spec
from openapi_spec_validator import validate
from pydantic import BaseModel

PREFIX = "/v1/knowledge-base"
PAGE = Path(__file__).parents[2] / "docs" / "rest-api.md"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(Options(namespace="system"), Config(worker_image="worker:test")).openapi()


def error(text: str, schema: str = "ErrorResponse") -> dict[str, Any]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": text, "content": {"application/json": {"schema": reference}}}


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return each operation with its method and path."""
    return [(method, path, item[method]) for path, item in document["paths"].items() for method in item]


def test_the_retry_operation(document: dict[str, Any]) -> None:
    operation = document["paths"][f"{PREFIX}/ingestion-jobs/{{job_id}}/retry"]["post"]
    description = operation.pop("description")
    assert "prepare_document" in description
    assert operation == {
        "tags": ["knowledge-base"],
        "summary": "Retry a failed ingestion job",
        "operationId": "retryIngestionJob",
        "parameters": [
            {
                "name": "job_id",
                "in": "path",
                "required": True,
                "schema": {"type": "string", "format": "uuid", "title": "Job Id"},
            }
        ],
        "responses": {
            "202": {"description": "Successful Response", "content": {"application/json": {"schema": {}}}},
            "400": error("Bad request"),
            "401": error("Authentication required"),
            "404": error("Resource not found"),
            "422": error("Validation Error", "HTTPValidationError"),
        },
        "security": [{"APIKeyHeader": []}],
    }


def test_options_of_an_upload_are_bounded_as_the_spec_is() -> None:
    def bounds(model: type[BaseModel]) -> dict[str, Any]:
        found = {}
        for name, field in model.model_json_schema(by_alias=True)["properties"].items():
            (kind,) = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
            found[name] = {key: value for key, value in kind.items() if key not in ("default", "description", "title")}
        return found

    specs = bounds(Spec)
    assert bounds(IngestOptions) == {name: specs[name] for name in bounds(IngestOptions)}


def test_the_error_schemas(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    body = dict(schemas["ErrorResponse"])
    body.pop("description")
    assert body == {
        "properties": {
            "error": {"type": "string", "title": "Error"},
            "message": {"type": "string", "title": "Message"},
        },
        "type": "object",
        "required": ["error", "message"],
        "title": "ErrorResponse",
    }
    assert set(schemas["ValidationError"]["properties"]) == {"loc", "msg", "type", "input", "ctx"}
    assert schemas["ValidationError"]["required"] == ["loc", "msg", "type"]


def test_a_key_is_declared_in_either_header(document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"] == {
        "APIKeyHeader": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        "HTTPBearer": {"type": "http", "scheme": "bearer"},
    }
    declared = {operation["operationId"]: operation["security"] for _, _, operation in operations(document)}
    del declared["retryIngestionJob"]  # to the letter
    assert len(declared) == 5
    for name, security in declared.items():
        assert sorted(security, key=str) == [{"APIKeyHeader": []}, {"HTTPBearer": []}], name


def test_the_document_is_valid(document: dict[str, Any]) -> None:
    validate(document)


def test_the_operations(document: dict[str, Any]) -> None:
    found = {(method, path): operation["operationId"] for method, path, operation in operations(document)}
    assert found == {
        ("post", f"{PREFIX}/ingestion-jobs/{{job_id}}/retry"): "retryIngestionJob",
        ("get", f"{PREFIX}/ingestion-jobs/{{job_id}}"): "getIngestionJobProgress",
        ("get", f"{PREFIX}/ingestion-jobs/{{job_id}}/documents"): "listIngestionJobDocuments",
        ("get", f"{PREFIX}/knowledge-bases/{{kb_id}}/ingestion-jobs"): "listIngestionJobs",
        ("post", f"{PREFIX}/knowledge-bases/{{kb_id}}/ingest"): "bulkIngest",
        ("post", f"{PREFIX}/search"): "searchKnowledgeBase",
    }


def test_the_page_lists_the_operations_that_are_there_and_those_that_are_not(document: dict[str, Any]) -> None:
    beginning, _, _ = PAGE.read_text().partition("\n## ")
    table = "\n".join(line for line in beginning.splitlines() if line.startswith("|"))
    said, listed = (
        {(method.lower(), PREFIX + path) for method, path in re.findall(r"`([A-Z]+) (/[^`]+)`", text)}
        for text in (beginning, table)
    )
    assert listed == {(method, path) for method, path, _ in operations(document)}
    assert said - listed == {
        ("get", f"{PREFIX}/ingestion-jobs/{{job_id}}/logs"),
        ("get", f"{PREFIX}/knowledge-bases/{{kb_id}}/ingestion-status"),
    }


def test_fields_that_the_page_calls_missing_are(document: dict[str, Any]) -> None:
    fields = {
        f"{schema}.{field}"
        for schema, body in document["components"]["schemas"].items()
        for field in body.get("properties", {})
        if re.search("duplicate_of|pii|sensitivity|answerability", field)
    }
    of = "IngestResultItem.duplicate_of"
    assert fields == {f"{of}_document_id", f"{of}_version_id", f"{of}_document_title"}  # null in ingest's answer


def test_a_job_has_the_fields_that_clients_know(document: dict[str, Any]) -> None:
    fields = set(document["components"]["schemas"]["IngestionJobResponse"]["properties"])
    assert fields >= {
        "id", "job_type", "status", "knowledge_base_id", "total_documents", "completed", "duplicate", "failed",
        "partial_failure", "processing", "queued", "segment_count", "processed_segments", "progress_pct", "created_at",
        "updated_at", "started_at", "completed_at",
    }  # fmt: skip


def test_whatever_triggers_an_attempt_is_named(document: dict[str, Any]) -> None:
    described = document["components"]["schemas"]["AttemptView"]["properties"]["trigger"]["description"]
    assert [trigger for trigger in Trigger if trigger not in described] == []


def test_a_page_of_jobs(document: dict[str, Any]) -> None:
    """Its schema's name is what generated clients call it."""
    operation = document["paths"][f"{PREFIX}/knowledge-bases/{{kb_id}}/ingestion-jobs"]["get"]
    page = "CursorPage_IngestionJobSummaryResponse_"
    assert operation["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": f"#/components/schemas/{page}"
    }
    schema = document["components"]["schemas"][page]
    assert schema["required"] == ["items", "has_more"]
    assert schema["properties"]["items"]["items"] == {"$ref": "#/components/schemas/IngestionJobSummaryResponse"}


def test_a_page_of_documents(document: dict[str, Any]) -> None:
    operation = document["paths"][f"{PREFIX}/ingestion-jobs/{{job_id}}/documents"]["get"]
    page = "CursorPage_IngestionJobDocumentResponse_"
    assert operation["responses"]["200"]["content"]["application/json"]["schema"] == {
        "$ref": f"#/components/schemas/{page}"
    }
    schema = document["components"]["schemas"]["IngestionJobDocumentResponse"]
    assert schema["required"] == ["document_id", "status"]
    assert set(schema["properties"]) >= {
        "document_id", "version_id", "processing_stage", "title", "status", "error_message", "segment_count",
        "processed_segments", "started_at", "completed_at",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "method", "codes"),
    [
        ("ingestion-jobs/{job_id}", "get", {200, 400, 401, 404, 422, 503}),
        ("ingestion-jobs/{job_id}/documents", "get", {200, 400, 401, 404, 422, 503}),
        ("knowledge-bases/{kb_id}/ingestion-jobs", "get", {200, 400, 401, 404, 422, 503}),
        ("knowledge-bases/{kb_id}/ingest", "post", {202, 400, 401, 404, 408, 413, 415, 422, 429, 503}),
        ("search", "post", {200, 400, 401, 408, 413, 415, 422, 429, 503}),
    ],
)
def test_each_operation_declares_its_refusals(
    document: dict[str, Any], path: str, method: str, codes: set[int]
) -> None:
    """Those of the API that it is compatible with, and what else it may answer."""
    responses = document["paths"][f"{PREFIX}/{path}"][method]["responses"]
    assert set(map(int, responses)) == codes
    for code in codes - {200, 202, 422}:
        schema = responses[str(code)]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorResponse"}


def test_an_ingest_of_several_documents(document: dict[str, Any]) -> None:
    operation = document["paths"][f"{PREFIX}/knowledge-bases/{{kb_id}}/ingest"]["post"]
    assert [(parameter["name"], parameter["required"]) for parameter in operation["parameters"]] == [
        ("kb_id", True),
        ("Idempotency-Key", False),
    ]
    assert operation["responses"]["202"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/IngestResponse"
    }
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) == {"title", "document_id", "mode", "options", "manifest", "file"}
    files = form["properties"]["file"]
    assert (files["type"], files["items"]) == ("array", {"type": "string", "format": "binary"})
    assert (files["minItems"], files["maxItems"]) == (1, MAX_DOCUMENTS)
    item = document["components"]["schemas"]["IngestResultItem"]
    assert item["required"] == ["manifest_index", "result"]
    assert item["properties"]["result"]["enum"] == ["queued", "duplicate"]
    entry = document["components"]["schemas"]["IngestionJobSummaryResponse"]
    assert entry["required"] == ["id", "job_type", "status", "created_at"]
    assert set(entry["properties"]) == {
        "id", "job_type", "status", "knowledge_base_id", "item_title", "total_documents", "processed_count",
        "error_message", "progress_pct", "created_at", "updated_at", "started_at", "completed_at",
    }  # fmt: skip


def test_options_of_an_upload_are_those_of_a_batch_too() -> None:
    assert set(IngestOptions.model_fields) < set(BatchSpec.model_fields)


def test_an_answer_to_a_search_says_how_it_is_ranked(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["SearchResponse"]
    assert schema["required"] == ["results", "total_results", "ranking_mode"]
    assert schema["properties"]["ranking_mode"]["enum"] == ["global_score", "reranked", "grouped_unranked"]
    group = document["components"]["schemas"]["SearchResultGroup"]
    assert group["required"] == ["embedding_model", "embedding_dimensions", "kb_ids", "results"]
