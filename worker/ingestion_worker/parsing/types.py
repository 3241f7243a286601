"""What type a document is: by its content type, else what a server said, its file name, or its first bytes."""

from __future__ import annotations

import mmap
import re
from enum import StrEnum
from pathlib import Path
from typing import Final

from ingestion_worker.outcome import WorkerError

_MAGIC_BYTES: Final = 4096
_START_BYTES: Final = 65_536
# An entry of a ZIP archive's table of contents: 46 bytes, then the name.
_WORD_ENTRY: Final = re.compile(rb"PK\x01\x02.{42}word/", re.DOTALL)
# What may stand before the first tag of a page, once byte order marks and UTF-16's zero bytes are taken out.
_BEFORE_A_TAG: Final = re.compile(rb"(?:\s|<\?xml.*?\?>|<!--.*?-->)*", re.DOTALL)
_UNSEEN_BYTES: Final = b"\x00\xef\xbb\xbf\xff\xfe"
# Written in characters, but no text for a reader: rich text, PostScript, pictures, mails, notebooks.
_FOREIGN_STARTS: Final = (b"{\\rtf", b"%!ps", b"<svg")
_FOREIGN_EXTENSIONS: Final = frozenset({"rtf", "ps", "eps", "svg", "eml", "mht", "mhtml", "ipynb"})


class DocumentType(StrEnum):
    """The formats that can be ingested."""

    PDF = "pdf"
    DOCX = "docx"
    HTML = "html"
    XHTML = "xhtml"
    MARKDOWN = "markdown"
    TEXT = "text"


_DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
_BY_CONTENT_TYPE: Final = {
    "application/pdf": DocumentType.PDF,
    "application/x-pdf": DocumentType.PDF,
    _DOCX: DocumentType.DOCX,
    "text/html": DocumentType.HTML,
    "application/xhtml+xml": DocumentType.XHTML,
    "text/markdown": DocumentType.MARKDOWN,
    "text/x-markdown": DocumentType.MARKDOWN,
    "text/plain": DocumentType.TEXT,
}
# What a client says when it does not know.
_SAYS_NOTHING: Final = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/x-download"})
_BINARY: Final = (DocumentType.PDF, DocumentType.DOCX)
_BY_EXTENSION: Final = {
    "pdf": DocumentType.PDF,
    "docx": DocumentType.DOCX,
    "html": DocumentType.HTML,
    "htm": DocumentType.HTML,
    "xhtml": DocumentType.XHTML,
    "md": DocumentType.MARKDOWN,
    "markdown": DocumentType.MARKDOWN,
    "txt": DocumentType.TEXT,
    "text": DocumentType.TEXT,
}


def detect_type(*, path: Path, name: str, content_type: str | None, served_type: str | None) -> DocumentType:
    """Tell a document's type.

    Args:
        path: the file.
        name: its name at the source.
        content_type: what the job says; it decides unless it says nothing (`application/octet-stream`).
        served_type: what an HTTP server said. That it is a web page counts more than a name such as `README.md`, but
            less than a name that promises a PDF: a page in its place asks to log in.

    Raises:
        WorkerError: UnsupportedType, naming what was found.
    """
    stated = media_type(value=content_type)
    if stated not in _SAYS_NOTHING:
        kind = _BY_CONTENT_TYPE.get(stated)
        if kind is None:
            raise WorkerError("UnsupportedType", f"{name}: the content type {stated} is not supported")
        return kind
    named = _BY_EXTENSION.get(_extension(name))
    served = _BY_CONTENT_TYPE.get(media_type(value=served_type))
    if named not in _BINARY and served not in (None, DocumentType.TEXT):
        return served
    kind = named or served or _by_magic(path=path, name=name)
    if kind is DocumentType.TEXT and named is None:
        # Servers say `text/plain` of what they do not know.
        _refuse_foreign(path=path, name=name)
    return kind


def type_of(*, name: str, content_type: str | None) -> DocumentType | None:
    """Return the type that a content type states or, where it says nothing, a name does; None for one not supported."""
    stated = media_type(value=content_type)
    return _BY_EXTENSION.get(_extension(name)) if stated in _SAYS_NOTHING else _BY_CONTENT_TYPE.get(stated)


def media_type(*, value: str | None) -> str:
    """Return a Content-Type without its parameters, in lower case."""
    return (value or "").partition(";")[0].strip().lower()


def _extension(name: str) -> str:
    return name.rpartition(".")[2].lower() if "." in name else ""


def _by_magic(*, path: Path, name: str) -> DocumentType:
    with path.open("rb") as file:
        head = file.read(_MAGIC_BYTES)
    if b"%PDF-" in head[:1024]:
        return DocumentType.PDF
    if head.startswith(b"PK\x03\x04"):
        if _holds_word(path=path):
            return DocumentType.DOCX
        raise WorkerError("UnsupportedType", f"{name} is a ZIP archive, but no Word document")
    if _start(path=path).startswith((b"<!doctype html", b"<html")):
        return DocumentType.HTML
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return DocumentType.TEXT
    control = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    if control == 0:
        return DocumentType.TEXT
    raise WorkerError("UnsupportedType", f"{name}: neither its name nor its first bytes say a supported type")


def _start(*, path: Path) -> bytes:
    """Return how a file begins, in lower case, from its first tag or word on."""
    with path.open("rb") as file:
        start = file.read(_START_BYTES).translate(None, _UNSEEN_BYTES)
    found = _BEFORE_A_TAG.match(start)
    return start[found.end() if found else 0 :].lower()


def _refuse_foreign(*, path: Path, name: str) -> None:
    extension = _extension(name)
    if extension in _FOREIGN_EXTENSIONS:
        raise WorkerError("UnsupportedType", f"{name}: files called .{extension} are not supported")
    start = _start(path=path)
    if start.startswith(_FOREIGN_STARTS):
        raise WorkerError("UnsupportedType", f"{name} begins with {start[:5].decode('ascii')}: that is not supported")


def _holds_word(*, path: Path) -> bool:
    # Only the guarded parser opens archives: a table of contents of millions of entries takes gigabytes.
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _WORD_ENTRY.search(data) is not None
