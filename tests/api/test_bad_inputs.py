"""Requests as nobody would write them, over HTTP: never a 500, and answers that keep to the OpenAPI document.

The short part has a fixed seed; INGESTION_FAULTS=full makes thousands, with a seed of its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from ingestion_api.app import create_app
from ingestion_api.options import Options
from ingestion_crds.config import Config
from ingestion_crds.kube import batch_path, ingestion_path
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance
from support.builders import DOCUMENT, KNOWLEDGE_BASE
from support.campaign import record

from .conftest import Api

pytestmark = pytest.mark.controlplane

FULL = os.environ.get("INGESTION_FAULTS") == "full"
REQUESTS = 400 if FULL else 15
SEED = random.randrange(2**32) if FULL else 5
PREFIX = "/v1/knowledge-base"
# Refusals that every operation may give before it looks at what is asked; the document names those of the operation,
# but for a retry, which is declared as the API has it that it is compatible with.
ANYWHERE = {404, 405, 414, 431}
UNDECLARED = {"retryIngestionJob": {408, 413}}
CONFORMS = [not_a_server_error, content_type_conformance, response_schema_conformance]
OPENAPI = create_app(Options(namespace="system"), Config(worker_image="worker:test")).openapi()
OPERATIONS = {
    operation.definition.raw["operationId"]: operation
    for operation in (found.ok() for found in schemathesis.openapi.from_dict(OPENAPI).get_all_operations())
}


def each(strategy: st.SearchStrategy[Any], test: Callable[[Any], None], *, count: int = REQUESTS) -> None:
    """Run a test on so many values of a strategy; the seed says which."""

    @seed(SEED)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(value: Any) -> None:
        test(value)

    run()


def refused_or_served(response: httpx.Response, what: Any) -> None:
    """Check that an answer is no accident: a known shape, and never a 5xx."""
    assert response.status_code < 500, f"{what!r}: {response.status_code} {response.text} (seed {SEED})"
    if response.status_code >= 400:
        body = response.json()
        assert "detail" in body if response.status_code == 422 else {"error", "message"} <= set(body), body


def no_exception(caplog: pytest.LogCaptureFixture) -> None:
    assert not [record for record in caplog.records if record.exc_info], caplog.text


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", list(OPERATIONS))
async def test_answers_keep_to_the_document(api: Api, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    job_id = await api.failed()
    operation = OPERATIONS[name]
    documented = {int(code) for code in operation.definition.raw["responses"]} | ANYWHERE | UNDECLARED.get(name, set())
    seen: Counter[int] = Counter()
    of_the_job: Counter[int] = Counter()

    def one(case: schemathesis.Case) -> None:
        known = "job_id" in case.path_parameters and seen.total() % 2
        if known:
            case.path_parameters["job_id"] = job_id  # a random UUID is nobody's
        response = case.call(base_url=api.url, headers={"x-api-key": api.key})
        case.validate_response(response, checks=CONFORMS)
        assert response.status_code in documented, response.status_code
        # Some of the odd requests lack the key.
        assert response.status_code != 401 or response.request.headers.get("x-api-key") != api.key
        seen[response.status_code] += 1
        if known:
            of_the_job[response.status_code] += 1

    for mode in GenerationMode:
        await asyncio.to_thread(each, operation.as_strategy(generation_mode=mode), one)
    no_exception(caplog)
    print(name, dict(seen), dict(of_the_job), f"seed {SEED}")
    assert any(status < 300 for status in (of_the_job or seen)), "nothing was served"
    record(f"odd request to {name}", injected=seen.total(), survived=seen.total(), invariants=[])


# What h11 lets through as a header's value: visible characters, spaces inside, and bytes over 0x7f.
HEADER = st.binary(max_size=300).map(
    lambda raw: bytes(byte for byte in raw if byte >= 0x21 and byte != 0x7F)
) | st.sampled_from([b"", b"x" * 256, b"a b", b"\xff\xfe", b"0", b"null", b'"', b"../..", b"%00"])
IDS = st.text(min_size=1, max_size=60) | st.sampled_from(
    [
        DOCUMENT,
        DOCUMENT.upper(),
        DOCUMENT.replace("-", ""),
        f"{{{DOCUMENT}}}",
        f"urn:uuid:{DOCUMENT}",
        "..",
        "%",
        "0" * 500,
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)
# As text, because no Python value stands for it: half a surrogate pair, numbers out of any range, what is twice there.
RAW_JSON = st.sampled_from(
    [
        '{"query": "\\ud800", "kb_ids": ["' + KNOWLEDGE_BASE + '"]}',
        '{"query": "\\u0000", "kb_ids": ["' + KNOWLEDGE_BASE + '"]}',
        '{"query": "q", "kb_ids": ["\\ud800"]}',
        '{"\\ud800": 1}',
        '{"query": "q", "kb_ids": ["' + KNOWLEDGE_BASE + '"], "limit": 1e999}',
        '{"query": "q", "kb_ids": ["' + KNOWLEDGE_BASE + '"], "limit": -Infinity}',
        '{"query": "q", "query": 5}',
        "NaN",
        "[" * 10_000,
        '{"a":' * 5_000,
        "1" * 5_000,
        "",
        "\ufeff{}",
    ]
) | JSON.map(json.dumps)


async def test_raw_requests(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """Keys, ids, Idempotency-Keys, cursors and JSON bodies of any form."""
    caplog.set_level(logging.ERROR)
    job_id = await api.failed()
    count = 0

    def send(client: httpx.Client) -> Callable[[Any], None]:
        def one(item: tuple[bytes, bytes, str, str, str]) -> None:
            nonlocal count
            key, idempotency, identity, cursor, body = item
            headers = {"idempotency-key": idempotency}
            one_job = f"{PREFIX}/ingestion-jobs/{quote(identity, safe='')}"
            for response in (
                client.get(one_job),
                client.get(f"{one_job}/documents", params={"cursor": cursor}),
                client.post(f"{one_job}/retry", headers=headers),
                client.post(f"{PREFIX}/ingestion-jobs/{job_id}/retry", headers=headers),
                client.get(f"{PREFIX}/ingestion-jobs/{job_id}", headers={"x-api-key": key}),
                client.get(
                    f"{PREFIX}/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs",
                    params={"cursor": cursor, "status": identity, "limit": cursor},
                ),
                client.get(f"{PREFIX}/knowledge-bases/{KNOWLEDGE_BASE}/ingestion-jobs", params={"cursor": cursor}),
                client.post(f"{PREFIX}/search", content=body.encode(), headers={"content-type": "application/json"}),
            ):
                refused_or_served(response, (str(response.request.url), item))
                count += 1

        return one

    cursors = st.text(max_size=40) | st.sampled_from(["W10=", "WzEsMl0=", "WyJhIiwgMV0=", "W05hTiwgIngiXQ==", "ÿ"])
    items = st.tuples(HEADER, HEADER, IDS, cursors, RAW_JSON)
    with httpx.Client(base_url=api.url, headers={"x-api-key": api.key}, timeout=30, trust_env=False) as client:
        await asyncio.to_thread(each, items, send(client), count=4 * REQUESTS)
    no_exception(caplog)
    record("raw request: keys, ids, cursors, JSON", injected=count, survived=count, invariants=[])


FIELDS = st.sampled_from(["title", "document_id", "mode", "options", "manifest", "colour", "", "file", "é"])
VALUES = st.binary(max_size=60) | st.sampled_from(
    [
        b'{"pipeline": {"chunkSize": 64, "chunkOverlap": 63}}',
        b'{"pipeline": {"embedding": {"dimensions": 1e400}}}',
        b'{"segmentation": {"pagesPerSegment": true}}',
        b'{"pipeline": {"embedding": {"provider": "\\ud800"}}}',
        b'{"mode": "\\u0000"}',
        b"[{}]",
        b"[{}, {}]",
        b'[{"title": "\\ud800"}, {"document_id": null}]',
        b'[{"title": 5}]',
        b"[" * 10_000,
        b"Auto",
        b"\xed\xa0\x80",
        b"\x00" * 20,
        DOCUMENT.encode(),
        b"x" * 20_000,
    ]
)
FILE_NAMES = st.sampled_from(
    [
        "a.md",
        "",
        "..",
        "../../etc/passwd",
        "a/b",
        "%2e%2e",
        "\u2603" * 200,
        'a"b.txt',
        "a\x00b",
        "CON",
        "x" * 3000,
        ".",
        "\ud83d\ude00",
    ]
)


@st.composite
def forms(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """Draw a multipart body and its content-type, whole or cut or glued in a wrong way."""
    boundary = draw(st.sampled_from([b"b", b"B" * 70, b"-", b"b b", b"'()+_,-./:=?"]))
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        name = draw(FIELDS).encode()
        parts.append(b'Content-Disposition: form-data; name="' + name + b'"\r\n\r\n' + draw(VALUES))
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        name = draw(FILE_NAMES).encode(errors="surrogatepass")
        kind = draw(st.sampled_from([b"text/markdown", b"", b"\xff", b"x" * 500, b"text/plain; charset=\xff"]))
        parts.append(
            b'Content-Disposition: form-data; name="file"; filename="' + name + b'"\r\nContent-Type: ' + kind
            + b"\r\n\r\n" + draw(st.binary(max_size=200))
        )  # fmt: skip
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    if draw(st.booleans()):
        at = draw(st.integers(0, len(body)))
        body = (
            body[:at]
            + draw(st.sampled_from([b"", b"\x00", b"\r\n", b"--" + boundary]))
            + body[at + draw(st.integers(0, 3)) :]
        )
    quoted = b'"' + boundary + b'"'
    kind = draw(st.sampled_from([quoted, quoted, quoted, b"", b"\xff", b'"']))
    return b"multipart/form-data; boundary=" + kind, body


async def test_raw_forms(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """What is refused leaves no file behind, and what is taken has a job, or a batch."""
    caplog.set_level(logging.ERROR)
    seen: Counter[int] = Counter()
    made: Counter[int] = Counter()

    def send(client: httpx.Client) -> Callable[[Any], None]:
        def one(item: tuple[bytes, bytes]) -> None:
            kind, body = item
            path = f"{PREFIX}/knowledge-bases/{KNOWLEDGE_BASE}/ingest"
            response = client.post(path, content=body, headers={"content-type": kind})
            refused_or_served(response, item)
            seen[response.status_code] += 1
            if response.status_code == 202:
                made[len(response.json()["items"])] += 1

        return one

    with httpx.Client(base_url=api.url, headers={"x-api-key": api.key}, timeout=30, trust_env=False) as client:
        await asyncio.to_thread(each, forms(), send(client), count=8 * REQUESTS)
    no_exception(caplog)
    files = [path for path in api.store.rglob("*") if path.is_file()]
    assert len(files) == sum(documents * count for documents, count in made.items())
    for path, count in ((ingestion_path, made[1]), (batch_path, made.total() - made[1])):
        assert len((await api.kube.request("GET", path(api.namespace)))["items"]) == count
        assert count > 0, "no form was whole"
    print(dict(seen), dict(made), f"seed {SEED}")
    record("raw form", injected=seen.total(), survived=seen.total(), invariants=[])
