"""The one table of error codes: what failed, whether trying again helps, and what to do.

`markdown` writes it as docs/error-codes.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ingestion_crds.constants import TRANSIENT_EXIT_CODE, Stage

ANY: Final = "any"

# The codes of the table, as a type: mypy finds one that is misspelt.
Code = Literal[
    "DocumentUnreadable",
    "DocumentEncrypted",
    "DocumentEmpty",
    "DocumentTruncated",
    "UnsupportedType",
    "DocumentTooLarge",
    "SourceNotFound",
    "SourceForbidden",
    "SourceNotAllowed",
    "SourceHashMismatch",
    "PageUnreadable",
    "EmbeddingRejected",
    "EmbeddingUnauthorized",
    "EmbeddingInvalid",
    "VersionSuperseded",
    "PipelineChanged",
    "InvalidAttempt",
    "DocumentTooComplex",
    "SourceUnavailable",
    "SourceTruncated",
    "StoreUnavailable",
    "StoreForbidden",
    "EmbeddingUnavailable",
    "EmbeddingRateLimited",
    "AttemptMismatch",
    "Fenced",
    "SegmentsMissing",
    "Interrupted",
    "Internal",
    "OOMKilled",
    "Evicted",
    "Deadline",
    "PodLost",
    "JobLost",
    "Cancelled",
    "TooManyFailures",
    "StartError",
    "ContainerError",
    "ResultLost",
    "Unknown",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCode:
    """One row of the table.

    Args:
        code: CamelCase name, at most `CODE_LENGTH` characters, as it stands in status and metrics.
        stage: the stage that reports it, or `any`.
        exit_code: the worker's exit code; None when the operator finds the error, not a worker.
        retryable: a retry of the same job can succeed, once what `remedy` says is done; False means, as a rule, that
            the fault lies in the document, or in settings that a job cannot change.
        meaning: what happened.
        remedy: what a person does about it.
    """

    code: Code
    stage: str
    exit_code: int | None
    retryable: bool
    meaning: str
    remedy: str


def _transient(code: Code, stage: str, meaning: str, remedy: str) -> ErrorCode:
    return ErrorCode(
        code=code,
        stage=stage,
        exit_code=TRANSIENT_EXIT_CODE,
        retryable=True,
        meaning=meaning,
        remedy=remedy,
    )


def _observed(code: Code, stage: str, meaning: str, remedy: str) -> ErrorCode:
    return ErrorCode(code=code, stage=stage, exit_code=None, retryable=True, meaning=meaning, remedy=remedy)


_PREPARE: Final = Stage.PREPARE.value
_SEGMENTS: Final = Stage.SEGMENTS.value

_TABLE: Final = (
    # Permanent: the worker says so by its exit code.
    ErrorCode(
        code="DocumentUnreadable",
        stage=_PREPARE,
        exit_code=64,
        retryable=False,
        meaning="The file is damaged, or is not what its type says.",
        remedy="Open the file yourself; upload a good copy as a new job.",
    ),
    ErrorCode(
        code="DocumentEncrypted",
        stage=_PREPARE,
        exit_code=65,
        retryable=False,
        meaning="The document needs a password.",
        remedy="Remove the password and upload it as a new job.",
    ),
    ErrorCode(
        code="DocumentEmpty",
        stage=_PREPARE,
        exit_code=66,
        retryable=False,
        meaning="The file has no bytes, no pages, or no text in it.",
        remedy="Check the file; a scanned document needs text recognition first.",
    ),
    ErrorCode(
        code="DocumentTruncated",
        stage=_PREPARE,
        exit_code=67,
        retryable=False,
        meaning="The file ends before its format says it should.",
        remedy="Upload the whole file as a new job.",
    ),
    ErrorCode(
        code="UnsupportedType",
        stage=_PREPARE,
        exit_code=68,
        retryable=False,
        meaning="The document, or a file that it includes, is none of PDF, DOCX, HTML, Markdown and plain text, or is"
        " an XFA form.",
        remedy="Convert the document, or correct spec.document.source.contentType in a new job.",
    ),
    ErrorCode(
        code="DocumentTooLarge",
        stage=ANY,
        exit_code=69,
        retryable=False,
        meaning="The document is over a limit of bytes, pages, unpacked size or segments.",
        remedy="See the message for the limit ([all of them](give-a-file.md#how-large)): split the document, or make a"
        " new job with larger segments, where it is their number, or smaller ones, where it is the text of one. If it"
        " is the chart's sources.maxBytes, have that raised and retry.",
    ),
    ErrorCode(
        code="SourceNotFound",
        stage=_PREPARE,
        exit_code=70,
        retryable=True,
        meaning="The source does not exist (404 or 410, or no such object in the bucket).",
        remedy="Put the file where spec.document.source.uri points, then retry.",
    ),
    ErrorCode(
        code="SourceForbidden",
        stage=_PREPARE,
        exit_code=71,
        retryable=True,
        meaning="The source refused access (401, 403 or 407).",
        remedy="Allow access to the source, then retry. If it is a signed URL that has run out, make a new job.",
    ),
    ErrorCode(
        code="SourceNotAllowed",
        stage=_PREPARE,
        exit_code=72,
        retryable=True,
        meaning="The source is another bucket, or an address that the allow-list does not name.",
        remedy="Have the chart's sources.allow extended, then retry; or make a new job with a source in the"
        " tenant's own bucket or on a public address.",
    ),
    ErrorCode(
        code="SourceHashMismatch",
        stage=_PREPARE,
        exit_code=73,
        retryable=False,
        meaning="The bytes read are not those that spec.document.source.sha256 promises.",
        remedy="Find out which of the two is right, then make a new job.",
    ),
    ErrorCode(
        code="PageUnreadable",
        stage=ANY,
        exit_code=74,
        retryable=False,
        meaning="A page of the segment cannot be read.",
        remedy="Repair that page of the document; the message names it.",
    ),
    ErrorCode(
        code="EmbeddingRejected",
        stage=ANY,
        exit_code=75,
        retryable=True,
        meaning="The endpoint refused a text (a 4xx other than 401, 403, 408, 424, 425 and 429), its URL is not valid,"
        " or the built-in embedder has no such model or dimensions.",
        remedy="See the message: correct the endpoint or its content rules, then retry; for another model or other"
        " dimensions make a new job.",
    ),
    ErrorCode(
        code="EmbeddingUnauthorized",
        stage=ANY,
        exit_code=76,
        retryable=True,
        meaning="The embedding endpoint refused the key, or what it is used for (401 or 403).",
        remedy="See the message: correct the provider's Secret in the chart, or have the key allowed the model; then"
        " retry.",
    ),
    ErrorCode(
        code="EmbeddingInvalid",
        stage=ANY,
        exit_code=77,
        retryable=False,
        meaning="The endpoint's vectors have the wrong number, dimension or values.",
        remedy="Set spec.pipeline.embedding.dimensions to what the model gives, in a new job.",
    ),
    ErrorCode(
        code="VersionSuperseded",
        stage=ANY,
        exit_code=78,
        retryable=False,
        meaning="A newer version of the document is already live, or one of a job that was made later.",
        remedy="Nothing: what is live stays. Ingest again for a newer version.",
    ),
    ErrorCode(
        code="PipelineChanged",
        stage=ANY,
        exit_code=79,
        retryable=True,
        meaning="The worker's pipeline differs from the one that began this version.",
        remedy="Name the worker image that it began with in spec.template.image, then retry; or make a new job.",
    ),
    ErrorCode(
        code="InvalidAttempt",
        stage=ANY,
        exit_code=80,
        retryable=True,
        meaning="The attempt's file or environment is not what the worker understands.",
        remedy="Bring the worker image and the operator to the same release, then retry.",
    ),
    ErrorCode(
        code="DocumentTooComplex",
        stage=ANY,
        exit_code=81,
        retryable=False,
        meaning="Reading the document went over the parser's limits of memory or time, or a segment is too large"
        " for searches.",
        remedy="See the message for the limit ([all of them](give-a-file.md#how-large)): split or simplify the"
        " document, or make a new job with smaller segments (and `mode: Segmented`, where one pod did it all) or larger"
        " chunks. If it is memory below 1.5 GiB, which a parser that crashed or ended may have wanted, raise"
        " spec.template.resources.limits.memory and retry. If it is the 10 minutes, its node was busy or its CPU limit"
        " low: raise spec.template.resources.requests.cpu, and limits.cpu where there is one, and retry.",
    ),
    # Transient: the cluster runs the index again, up to segmentBackoffLimit times.
    _transient(
        "SourceUnavailable",
        _PREPARE,
        "The source did not answer, timed out, or did not answer with the document (the message says what).",
        "Check the source. A host that sources.allow names needs a rule in [networkPolicy.workerEgress]"
        "(install.md#certificates-and-networks) too. Then retry.",
    ),
    _transient(
        "SourceTruncated",
        _PREPARE,
        "The source sent fewer or more bytes than it announced.",
        "Check the source, then retry.",
    ),
    _transient(
        "StoreUnavailable",
        ANY,
        "The object store did not answer or refused the operation.",
        "Check the store and its free space (an embedded one's [inodes](install.md#object-store) too). One of your own"
        " that is not at a public address, port 80 or 443, needs a rule in"
        " [networkPolicy.workerEgress](install.md#certificates-and-networks). Then retry.",
    ),
    _transient(
        "StoreForbidden",
        ANY,
        "The object store refused access.",
        "The message has the store's own code, or which key is empty. `RequestTimeTooSkewed` is the clock of a node;"
        " else check the tenant's Secret, and [what its key may do](install.md#object-store), then retry.",
    ),
    _transient(
        "EmbeddingUnavailable",
        ANY,
        "The embedding endpoint did not answer, timed out, or answered 408, 424, 425 or 5xx.",
        "Check the endpoint. One that is not at a public address, port 80 or 443, needs a rule in"
        " [networkPolicy.workerEgress](install.md#certificates-and-networks). If it is slow, lower spec.parallelism."
        " Then retry.",
    ),
    _transient(
        "EmbeddingRateLimited",
        ANY,
        "The embedding endpoint kept answering 429.",
        "Lower spec.parallelism or raise the endpoint's quota, then retry.",
    ),
    _transient(
        "AttemptMismatch",
        ANY,
        "The pod's file is not the one its environment names.",
        "Nothing: the pod wrote nothing and is run again.",
    ),
    _transient(
        "Fenced",
        ANY,
        "A newer attempt owns this version; this pod is a late one.",
        "Nothing: the newer attempt's result stands. After a restore of etcd, retry until the generation is the one"
        " that the message names.",
    ),
    _transient(
        "SegmentsMissing",
        ANY,
        "An output that should be in the store is not there.",
        "Find out who deletes objects in the bucket; bring them back from a backup and retry, or make a new job.",
    ),
    _transient("Interrupted", ANY, "The pod was told to stop before it was done.", "Retry."),
    _transient(
        "Internal",
        ANY,
        "The worker hit an error that it has no name for.",
        "Read the pod's log; retry; report it if it stays.",
    ),
    # Found by the operator in what the cluster says of the pods.
    _observed(
        "OOMKilled",
        ANY,
        "The pod used more memory than its limit.",
        "Raise spec.template.resources.limits.memory, or requests.memory if the pod was below its limit; then retry.",
    ),
    _observed(
        "Evicted",
        ANY,
        "The node put the pod out, or did not take it.",
        "See the message. If it is the node's disk or memory, request what the pod takes of it in"
        " spec.template.resources.requests (`ephemeral-storage`, `memory`). Then retry.",
    ),
    _observed(
        "Deadline",
        ANY,
        "The attempt ran past activeDeadlineSeconds.",
        "See the message for what kept it, and mend that; if it says nothing, raise activeDeadlineSeconds. Then retry.",
    ),
    _observed(
        "PodLost",
        ANY,
        "The pod is gone and left no message.",
        "Find out who deletes pods; retry.",
    ),
    _observed(
        "JobLost",
        ANY,
        "The attempt's Kubernetes Job was deleted from outside.",
        "Find out who deletes Jobs; retry.",
    ),
    _observed("Cancelled", ANY, "The attempt was cancelled.", "Retry when you want it to go on."),
    _observed(
        "TooManyFailures",
        _SEGMENTS,
        "More segments failed than maxFailedSegments allows.",
        "See failureSummary for the cause; mend it, then retry.",
    ),
    _observed(
        "StartError",
        ANY,
        "The container could not be started.",
        "See the message; correct the image or the template, then retry.",
    ),
    _observed(
        "ContainerError",
        ANY,
        "The container ended with an exit code and no readable message.",
        "Read the pod's log, then retry. Exit code 137 is a kill: most often at the memory limit.",
    ),
    _observed(
        "ResultLost",
        ANY,
        "The pod succeeded, but its result could not be read.",
        "Retry: finished work is found in the store.",
    ),
    _observed(
        "Unknown",
        ANY,
        "The cause was not read (more failed pods than are looked at).",
        "See the other failures; retry.",
    ),
)

ERROR_CODES: Final[dict[str, ErrorCode]] = {row.code: row for row in _TABLE}


def markdown() -> str:
    """Return the table as docs/error-codes.md shows it."""
    lines = [
        "# Error codes",
        "",
        "Generated by `make generate` from `ingestion_crds.errors`.",
        "",
        "`retryable`: a retry of the same job can succeed, once what to do is done. Where it says no, make a new job,"
        " with another document or other settings, unless what to do says otherwise.",
        "A permanent exit code (64-113) fails the segment at once;"
        " exit code 1 is run again up to `spec.segmentBackoffLimit` times first.",
        "",
        "| code | stage | exit | retryable | meaning | what to do |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in _TABLE:
        exit_code = "" if row.exit_code is None else str(row.exit_code)
        retryable = "yes" if row.retryable else "no"
        lines.append(f"| `{row.code}` | {row.stage} | {exit_code} | {retryable} | {row.meaning} | {row.remedy} |")
    return "\n".join(lines) + "\n"
