"""DOCX: the paragraphs of the main document, then its notes, streamed out of the XML."""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from lxml import etree

from ingestion_worker.outcome import WorkerError

# The sum of the sizes that the archive declares; a ratio would refuse honest files (one had 91 times).
MAX_UNPACKED_BYTES: Final = 512 * 2**20
MAX_ENTRIES: Final = 20_000
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_RELATIONSHIP: Final = "/officeDocument"
_MAIN: Final = "word/document.xml"
_NOTES: Final = ("footnotes.xml", "endnotes.xml")


def parse_docx(*, path: Path, name: str, write: Callable[[str], None]) -> None:
    """Write the document's text, one paragraph per line; footnotes and endnotes after it.

    Raises:
        WorkerError: DocumentUnreadable, DocumentEncrypted, DocumentTruncated, DocumentTooLarge, DocumentTooComplex.
    """
    with path.open("rb") as file:
        head = file.read(8)
    if head == _OLE:
        with path.open("rb") as file:
            encrypted = "EncryptedPackage".encode("utf-16-le") in file.read(8 * 2**20)
        if encrypted:
            raise WorkerError("DocumentEncrypted", f"{name} needs a password")
        raise WorkerError("UnsupportedType", f"{name} is an old binary Office document, not DOCX")
    if not head.startswith(b"PK"):
        raise WorkerError("DocumentUnreadable", f"{name} is not a DOCX: it is no ZIP archive")
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive=archive, name=name)
            main = _main_part(archive=archive, name=name)
            with archive.open(main) as part:
                _paragraphs(part=part, write=write)
            for notes in (posixpath.join(posixpath.dirname(main), file) for file in _NOTES):
                if notes in archive.namelist():
                    with archive.open(notes) as part:
                        # The lines that separate them from the text are notes without any.
                        _paragraphs(part=part, write=lambda text: write(text) if text.strip() else None)
    except zipfile.BadZipFile as error:
        if "CRC" in str(error) or "overlap" in str(error).lower() or _has_directory(path):
            raise WorkerError("DocumentUnreadable", f"{name} is damaged: {error}") from error
        raise WorkerError("DocumentTruncated", f"{name} ends before its table of contents") from error
    except etree.XMLSyntaxError as error:
        message = str(error)
        if "depth" in message.lower() or "huge" in message.lower() or "amplification" in message.lower():
            raise WorkerError("DocumentTooComplex", f"{name}: {message[:200]}") from error
        raise WorkerError("DocumentUnreadable", f"{name} is damaged: {message[:200]}") from error
    except (zlib.error, EOFError, NotImplementedError, OSError, ValueError, KeyError) as error:
        raise WorkerError("DocumentUnreadable", f"{name} is damaged: {error}") from error


def _has_directory(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65_600))
        return b"PK\x05\x06" in file.read()


def _check_sizes(*, archive: zipfile.ZipFile, name: str) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise WorkerError("DocumentTooLarge", f"{name} has {len(entries)} parts; at most {MAX_ENTRIES} are read")
    if any(entry.flag_bits & 1 for entry in entries):
        raise WorkerError("DocumentEncrypted", f"{name} needs a password")
    # zipfile reads no more of a part than the archive declares, so the declared sizes bound the real ones.
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > MAX_UNPACKED_BYTES:
        raise WorkerError(
            "DocumentTooLarge", f"{name} unpacks to {unpacked} bytes; at most {MAX_UNPACKED_BYTES} are read"
        )


def _main_part(*, archive: zipfile.ZipFile, name: str) -> str:
    names = set(archive.namelist())
    if "_rels/.rels" in names:
        with archive.open("_rels/.rels") as part:
            for _, element in _events(part):
                if str(element.get("Type", "")).endswith(_RELATIONSHIP):
                    target = posixpath.normpath(str(element.get("Target", "")).lstrip("/"))
                    if target in names and target.startswith("word/"):
                        return target
    if _MAIN in names:
        return _MAIN
    raise WorkerError("DocumentUnreadable", f"{name} is a ZIP archive, but holds no Word document")


def _events(part: IO[bytes]) -> Any:
    # No entities, no DTD, no network, and libxml2's own bounds on depth (256) and text stay on.
    return etree.iterparse(
        part, events=("start", "end"), resolve_entities=False, load_dtd=False, no_network=True, huge_tree=False
    )


# Inside these nothing is text: a Fallback repeats content for older readers, properties hold tab stops, and what was
# moved stands where it was moved to as well.
_SKIPPED: Final = frozenset({"Fallback", "moveFrom", "pPr", "rPr", "sectPr"})
_MARKS: Final = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def _paragraphs(*, part: IO[bytes], write: Callable[[str], None]) -> None:
    pieces: list[str] = []
    skipping = 0
    for event, element in _events(part):
        tag = element.tag
        local = tag.rpartition("}")[2] if isinstance(tag, str) else ""
        if event == "start":
            skipping += local in _SKIPPED
            if local == "p" and pieces and not skipping:
                # A text box's paragraph, inside the one that it is anchored to.
                write("".join(pieces) + "\n")
                pieces.clear()
            continue
        if local in _SKIPPED:
            skipping -= 1
        elif skipping:
            continue
        elif local == "t":
            pieces.append(element.text or "")
        elif local in _MARKS:
            pieces.append(_MARKS[local])
        elif local == "p":
            write("".join(pieces) + "\n")
            pieces.clear()
        if local in ("p", "tbl"):
            # Free what was read: a document of 5 million characters stays at a few MiB.
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    if pieces:
        write("".join(pieces))
