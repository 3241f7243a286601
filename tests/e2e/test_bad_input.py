"""Bad documents and bad sources, end to end: each job ends with its own code, and harms nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from ingestion_demo import provider
from support.worker_builders import pdf, sentences

from .conftest import LIAR, RELEASE, SYSTEM, Tenant

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

PDF = "application/pdf"
DAMAGED_PDF = b"%PDF-1.7\nnothing that a PDF has\nstartxref\n7\n%%EOF"
GOOD_PDF = pdf(pages=[sentences(count=10)] * 3)
LIES = f"http://{LIAR}.{provider.NAMESPACE}.svc:8080"


@dataclass(frozen=True, kw_only=True)
class Bad:
    """What is wrong with a document or a source, and how the job has to end.

    Args:
        code: the failure's code.
        names: a word that its message must hold.
        retryable: whether a retry can help.
        content: the bytes to put into the bucket, unless the source is elsewhere.
        uri: the source, if it is not the object.
        source: more of spec.document.source.
    """

    code: str
    names: str
    retryable: bool = False
    content: bytes = b""
    uri: str = ""
    source: dict[str, Any] = field(default_factory=dict)


DOCUMENTS = {
    "damaged.pdf": Bad(code="DocumentUnreadable", names="damaged.pdf", content=DAMAGED_PDF),
    "truncated.pdf": Bad(code="DocumentTruncated", names="truncated.pdf", content=GOOD_PDF[: len(GOOD_PDF) // 2]),
    "encrypted.pdf": Bad(code="DocumentEncrypted", names="encrypted.pdf", content=pdf(pages=["x"], password="secret")),
    "empty.pdf": Bad(code="DocumentEmpty", names="empty.pdf"),
    "blank.txt": Bad(code="DocumentEmpty", names="blank.txt", content=b" \n\n "),
    "picture.png": Bad(code="UnsupportedType", names="picture.png", content=b"\x89PNG\r\n\x1a\n" + bytes(64)),
    "other.txt": Bad(code="SourceHashMismatch", names="other.txt", content=b"Some text.", source={"sha256": "0" * 64}),
}
SOURCES = {
    "missing": Bad(code="SourceNotFound", names="404", uri=f"{LIES}/missing", retryable=True),
    "forbidden": Bad(code="SourceForbidden", names="403", uri=f"{LIES}/forbidden", retryable=True),
    "broken": Bad(code="SourceUnavailable", names="500", uri=f"{LIES}/broken", retryable=True),
    "hang": Bad(code="SourceUnavailable", names="timed out", uri=f"{LIES}/hang", retryable=True),
    "short": Bad(code="SourceTruncated", names="short.txt", uri=f"{LIES}/short/short.txt", retryable=True),
    "metadata-service": Bad(
        code="SourceNotAllowed", names="169.254.169.254", uri="http://169.254.169.254/latest/", retryable=True
    ),
    "loopback": Bad(code="SourceNotAllowed", names="127.0.0.1", uri="http://127.0.0.1:8000/", retryable=True),
    "cluster": Bad(
        code="SourceNotAllowed", names=RELEASE, uri=f"http://{RELEASE}-api.{SYSTEM}.svc:8000/notes.txt", retryable=True
    ),
    "other-bucket": Bad(
        code="SourceNotAllowed", names="somebody-else", uri="s3://somebody-else/notes.txt", retryable=True
    ),
    "no-object": Bad(code="SourceNotFound", names="given/none.txt", uri="s3://{bucket}/given/none.txt", retryable=True),
}


def test_bad_documents(tenant: Tenant) -> None:
    """Each names the file."""
    for name, bad in DOCUMENTS.items():
        tenant.apply(name, uri=tenant.put(name, bad.content), source=bad.source)
    check(tenant, DOCUMENTS)


def test_bad_sources(tenant: Tenant, make_tenant: Callable[[], Tenant]) -> None:
    """Gone, refused, broken, slow, lying, forbidden."""
    for name, bad in SOURCES.items():
        source = {"contentType": "text/plain"} if bad.uri.startswith("http") else {}
        tenant.apply(name, uri=bad.uri.format(bucket=tenant.namespace), source=source)
    neighbour = make_tenant()
    theirs = neighbour.put("theirs.txt", b"A secret of the neighbour.")
    tenant.apply("neighbour", uri=theirs)
    check(tenant, SOURCES | {"neighbour": Bad(code="SourceNotAllowed", names=neighbour.namespace, retryable=True)})


def check(tenant: Tenant, expected: dict[str, Bad]) -> None:
    """Every job has ended as it has to, and a good document goes in after all of them."""
    for name, bad in expected.items():
        job = tenant.ended(name, "failed")
        [failure] = job["status"]["failures"]
        assert (name, failure["code"], failure["retryable"]) == (name, bad.code, bad.retryable), failure
        assert bad.names in failure["message"], failure
        stalled = next(item for item in job["status"]["conditions"] if item["type"] == "Stalled")
        assert stalled["status"] == "True"
    tenant.apply("good", uri=tenant.put("good.pdf", GOOD_PDF))
    tenant.ended("good", "completed")
