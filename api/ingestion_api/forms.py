"""What a client says of the documents that it uploads: the form's fields, and what they make of each file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

from ingestion_crds.constants import MAX_DOCUMENTS, MAX_TITLE_LENGTH, Mode
from ingestion_crds.job import (
    BackoffLimit,
    Count,
    Deadline,
    Document,
    Model,
    Parallelism,
    Pipeline,
    Segmentation,
    Source,
    TimeToLive,
)
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from ingestion_api.problems import bad_request

# pydantic tells of all errors or of none. A manifest can be wrong in 65,000 places; by mistake, in some of each entry.
_MOST_TOLD: Final = 5 * MAX_DOCUMENTS


class IngestOptions(Model):
    """What a client may choose of a job: the field `options`, a JSON object. Names and bounds are those of `Spec`.

    As in a resource, null is the default. The pod template is left out: who has an API key must not choose what runs in
    the cluster.
    """

    mode: Mode | None = None
    segmentation: Segmentation | None = None
    pipeline: Pipeline | None = None
    parallelism: Parallelism | None = None
    segment_backoff_limit: BackoffLimit | None = None
    max_failed_segments: Count | None = None
    active_deadline_seconds: Deadline | None = None
    ttl_seconds_after_finished: TimeToLive | None = None

    @field_validator("pipeline")
    @classmethod
    def overlap_is_smaller(cls, pipeline: Pipeline | None) -> Pipeline | None:
        """Refuse, before a file is sent, what the CRD's own rule refuses after it."""
        if pipeline is not None and pipeline.chunk_overlap >= pipeline.chunk_size:
            told = f"chunkOverlap ({pipeline.chunk_overlap}) must be less than chunkSize ({pipeline.chunk_size})"
            raise PydanticCustomError("overlap", told)
        return pipeline


class DocumentFields(BaseModel):
    """What is said of one document: an entry of `manifest`, or fields of their own in a form of one file."""

    model_config = ConfigDict(extra="forbid")

    title: str | None = Field(None, max_length=MAX_TITLE_LENGTH)
    document_id: UUID | None = None


class _Fields(DocumentFields):
    mode: Mode | None = None
    options: str | None = None
    manifest: str | None = None


FIELDS: Final = frozenset(_Fields.model_fields)
_MANIFEST: Final = TypeAdapter(Annotated[list[DocumentFields], Field(min_length=1, max_length=MAX_DOCUMENTS)])


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestForm:
    """The fields of a form that are there so far.

    Args:
        own: what the form says of its only file.
        manifest: what it says of each file, in the files' order; None without one.
        mode: for all documents.
        options: for all documents.
    """

    own: DocumentFields
    manifest: list[DocumentFields] | None
    mode: Mode | None
    options: IngestOptions

    def fields_of(self, index: int) -> DocumentFields:
        """Return what is said of a file, counted from 0.

        Raises:
            ProblemError: 400 when the manifest does not have it.
        """
        if self.manifest is None:
            return self.own
        if index >= len(self.manifest):
            raise bad_request(f"manifest: it has {len(self.manifest)} entries, and the form more files")
        return self.manifest[index]

    def check(self, *, files: int) -> None:
        """See that the form fits its files.

        Raises:
            ProblemError: 400 when it does not.
        """
        if self.manifest is not None and len(self.manifest) != files:
            raise bad_request(f"manifest: it has {len(self.manifest)} entries, and the form {files} files")
        self.check_own(files=files)

    def check_own(self, *, files: int) -> None:
        """See that what is said of one file is not said of several.

        Raises:
            ProblemError: 400 when it is.
        """
        for name in ("title", "document_id"):
            if files > 1 and getattr(self.own, name) is not None:
                raise bad_request(f"{name}: the form has several files; say it of each in manifest")

    def chosen(self) -> dict[str, Any]:
        """Return what is chosen for all documents, as a spec has it."""
        chosen = self.options.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        if self.mode is not None:
            chosen["mode"] = self.mode.value
        return chosen


def read_form(fields: Mapping[str, str]) -> IngestForm:
    """Return what the fields say.

    Raises:
        ProblemError: 400, with what is wrong.
    """
    try:
        read = _Fields.model_validate(fields)
    except ValidationError as error:
        raise bad_request(words(error, "")) from error
    try:
        options = _options(read.options) if read.options else IngestOptions()
    except ValidationError as error:
        raise bad_request(words(error, "options.")) from error
    try:
        manifest = _MANIFEST.validate_json(read.manifest, strict=True) if read.manifest else None
    except ValidationError as error:
        raise bad_request(words(error, "manifest.")) from error
    own = DocumentFields(title=read.title, document_id=read.document_id)
    if manifest is not None:
        if own != DocumentFields():
            raise bad_request("title, document_id: the form has a manifest; say it there")
        ids = [entry.document_id for entry in manifest if entry.document_id is not None]
        if len(ids) != len(set(ids)):
            raise bad_request("manifest: a document_id is there twice; versions of a document go in one after another")
    return IngestForm(own=own, manifest=manifest, mode=read.mode, options=options)


def document_of(fields: DocumentFields, *, document_id: str, file_name: str, source: Source) -> Document:
    """Return what a job's spec says of a document.

    Args:
        fields: what its client said of it.
        document_id: for one that its client gave none.
        file_name: for one without a title.
        source: where its bytes are.
    """
    title = (fields.title or file_name or "Untitled")[:MAX_TITLE_LENGTH]
    return Document(id=str(fields.document_id or document_id), title=title, source=source)


def words(error: ValidationError, prefix: str) -> str:
    """Return what is wrong, for people; of a text that is wrong in very many places, how many those are."""
    if error.error_count() > _MOST_TOLD:
        told = f"wrong in {error.error_count()} places"
        return f"{prefix.rstrip('.')}: {told}" if prefix else told
    wrong = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{prefix}{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in wrong)[:2000]


def _options(text: str) -> IngestOptions:
    """Read `options` as the API server reads a spec: by its own names and types, and nothing that it does not know.

    By themselves the models ignore unknown fields, as a newer release may have written a resource.
    """
    return IngestOptions.model_validate_json(text, strict=True, extra="forbid", by_alias=True, by_name=False)
