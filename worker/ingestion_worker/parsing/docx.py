"""DOCX: the paragraphs of the main document, what it includes and draws, then its notes, streamed out of the XML."""

from __future__ import annotations

import functools
import io
import posixpath
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from lxml import etree

from ingestion_worker.outcome import WorkerError
from ingestion_worker.parsing.equations import linear, local_name
from ingestion_worker.parsing.html import check_size, html_text
from ingestion_worker.parsing.symbols import shown, symbol
from ingestion_worker.parsing.text import decode, normal_lines
from ingestion_worker.parsing.types import DocumentType, type_of

# Of all sizes that the archive declares. A ratio would refuse honest files: one unpacked to 91 times its size.
MAX_UNPACKED_BYTES: Final = 512 * 2**20
MAX_ENTRIES: Final = 20_000
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_RELATIONSHIP: Final = "/officeDocument"
_MAIN: Final = "word/document.xml"
_NOTES: Final = ("footnotes", "endnotes")
_DRAWINGS: Final = ("chart", "diagramData")


def parse_docx(*, path: Path, name: str, write: Callable[[str], None]) -> None:
    """Write the document's text, one paragraph per line; footnotes and endnotes after it.

    Args:
        path: the file.
        name: its name at the source.
        write: takes the text.

    Raises:
        WorkerError: DocumentUnreadable, DocumentEncrypted, DocumentTruncated, DocumentTooLarge, DocumentTooComplex;
            UnsupportedType when it includes a file of a type that is not read.
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
            _Package(archive=archive, name=name, write=write, included=False).read()
    except zipfile.BadZipFile as error:
        if "CRC" in str(error) or "overlap" in str(error).lower() or _has_directory(path):
            raise WorkerError("DocumentUnreadable", f"{name} is damaged: {error}") from error
        raise WorkerError("DocumentTruncated", f"{name} ends before its table of contents") from error
    except etree.XMLSyntaxError as error:
        if error.code == etree.ErrorTypes.ERR_NO_MEMORY:
            raise MemoryError from error
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


class _Package:
    """A DOCX, or one that another includes.

    Args:
        archive: its parts.
        name: for messages.
        write: takes the text.
        included: whether another includes it; then it may include none itself.
    """

    def __init__(self, *, archive: zipfile.ZipFile, name: str, write: Callable[[str], None], included: bool) -> None:
        self._archive = archive
        self._name = name
        self._write = write
        self._included = included
        self._targets = functools.cache(self._read_targets)

    def read(self) -> None:
        """Write the text of all parts."""
        _check_sizes(archive=self._archive, name=self._name)
        main = _main_part(archive=self._archive, name=self._name)
        self._read_part(part=main, write=self._write)
        targets = self._targets(main).values() or [
            (notes, posixpath.join(posixpath.dirname(main), f"{notes}.xml")) for notes in _NOTES
        ]
        for notes in (part for wanted in _NOTES for kind, part in targets if kind == wanted):
            if notes in self._archive.namelist():
                # The lines that separate notes from the text are notes too, without text.
                self._read_part(part=notes, write=lambda text: self._write(text) if text.strip() else None)

    def _read_part(self, *, part: str, write: Callable[[str], None]) -> None:
        with self._archive.open(part) as file:
            include, draw = functools.partial(self._include, part), functools.partial(self._draw, part)
            _paragraphs(part=file, write=write, include=include, draw=draw)

    def _draw(self, owner: str, relationship: str) -> None:
        """Write the text of a chart or of SmartArt at this place."""
        kind, part = self._targets(owner).get(relationship, ("", ""))
        if kind not in _DRAWINGS or part not in self._archive.namelist():
            return
        lines: list[str] = []
        with self._archive.open(part) as file:
            _paragraphs(part=file, write=lines.append, include=lambda _: None, draw=lambda _: None)
        # A chart repeats its categories with each of its series.
        for line in dict.fromkeys(line.strip() for line in lines if line.strip()):
            self._write(f"{line}\n")

    def _include(self, owner: str, relationship: str) -> None:
        """Write the text of a file in the archive that Word shows at this place."""
        _, part = self._targets(owner).get(relationship, ("", relationship))
        if part not in self._archive.namelist():
            raise WorkerError("DocumentUnreadable", f"{self._name} is damaged: it includes {part}, which is not there")
        label = f"{part} of {self._name}"
        if self._included:
            raise WorkerError("UnsupportedType", f"{label} is included by what is included itself")
        kind = type_of(
            name=part, content_type=self._types.get(part) or self._types.get(part.rpartition(".")[2].lower())
        )
        with self._archive.open(part) as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if zipped:
            with zipfile.ZipFile(io.BytesIO(self._archive.read(part))) as archive:
                _Package(archive=archive, name=label, write=self._write, included=True).read()
        elif kind in (DocumentType.HTML, DocumentType.XHTML):
            check_size(size=self._archive.getinfo(part).file_size, name=label)
            self._write(html_text(data=self._archive.read(part), name=label, xml=kind is DocumentType.XHTML))
        elif kind is DocumentType.TEXT:
            text = decode(data=self._archive.read(part), name=label, charset=None)
            self._write(normal_lines(text=text).rstrip("\n") + "\n")
        else:
            raise WorkerError("UnsupportedType", f"{label}: of what a DOCX includes, HTML, text and DOCX are read")

    def _read_targets(self, owner: str) -> dict[str, tuple[str, str]]:
        """Return what kind of part a part refers to, and its name."""
        folder, file = posixpath.split(owner)
        relationships = f"{folder}/_rels/{file}.rels"
        if relationships not in self._archive.namelist():
            return {}
        with self._archive.open(relationships) as part:
            return {
                str(element.get("Id")): (
                    str(element.get("Type", "")).rpartition("/")[2],
                    posixpath.normpath(posixpath.join("/", folder, str(element.get("Target", "")))).lstrip("/"),
                )
                for event, element in _events(part)
                if event == "end"
            }

    @functools.cached_property
    def _types(self) -> dict[str, str]:
        """The content types of parts, by their names or their extensions."""
        with self._archive.open("[Content_Types].xml") as part:
            return {
                str(element.get("PartName", "")).lstrip("/") or str(element.get("Extension", "")).lower(): str(
                    element.get("ContentType", "")
                )
                for event, element in _events(part)
                if event == "end"
            }


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
    # No entities, no DTD, no network, and libxml2's own bounds on depth (256) and text stay on. Comments are left out:
    # they would cut a text into pieces.
    return etree.iterparse(
        part,
        events=("start", "end"),
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


# Nothing inside these is text of the document: `del` is deleted, a Fallback repeats content for older readers,
# properties hold tab stops, moved text stands at its new place as well, and `rt` says how a Chinese or Japanese word is
# pronounced.
_SKIPPED: Final = frozenset({"del", "Fallback", "moveFrom", "pPr", "rPr", "rt", "sectPr"})
_MARKS: Final = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
# The second one of newer Words is for emojis.
_SYMBOLS: Final = frozenset({"sym", "symEx"})
# The elements that stand for a chart and for SmartArt, and their attributes with the part's relationship.
_DRAWN: Final = {"chart": "id", "relIds": "dm"}
_OFF: Final = frozenset({"0", "false", "off"})


def _paragraphs(
    *, part: IO[bytes], write: Callable[[str], None], include: Callable[[str], None], draw: Callable[[str], None]
) -> None:
    pieces: list[str] = []
    skipping = 0
    # A field is an instruction, a separator, and its result, which is text. Both can hold other fields.
    fields: list[bool] = []  # the paragraph's open fields, outermost first: True while in the instruction
    around = 0  # how many of them stand in another's instruction
    equation: Any = None  # the outermost that is open

    def flush(end: str) -> None:
        write(normal_lines(text="".join(pieces)) + end)
        pieces.clear()

    for event, element in _events(part):
        local = local_name(element)
        skipped = _is_skipped(element=element, local=local)
        if event == "start":
            skipping += skipped
            if local == "oMath" and equation is None and not skipping:
                equation = element
            if local == "p" and pieces and not skipping:
                # A text box's paragraph, inside the one that it is anchored to.
                flush("\n")
            continue
        if skipped:
            skipping -= 1
        elif skipping:
            continue
        elif equation is not None:
            if element is equation:
                equation = None
                if not around:
                    pieces.append(linear(equation=element, read=_read))
            continue
        elif _is_text(local=local):
            # The result of a field inside another's instruction is part of that instruction.
            if not around:
                pieces.append(_text(element=element, local=local))
        elif local == "fldChar":
            kind = _attribute(element=element, name="fldCharType")
            if kind == "begin":
                around += bool(fields) and fields[-1]
                fields.append(True)
            elif fields and kind == "separate":
                fields[-1] = False
            elif fields and kind == "end":
                fields.pop()
                around -= bool(fields) and fields[-1]
        elif local == "p":
            flush("\n")
            fields.clear()
            around = 0
        elif local == "v" and _is_label(element=element):
            pieces.append(element.text or "")
            flush("\n")
        elif local in _DRAWN and not around:
            if pieces:
                flush("\n")
            draw(_attribute(element=element, name=_DRAWN[local]))
        elif local == "altChunk":
            include(_attribute(element=element, name="id"))
        if local in ("p", "tr", "tbl"):
            # Free what was read: a document of 5 million characters stays at a few MiB.
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    if pieces:
        flush("")


def _read(element: Any) -> str | None:
    """Read an element for `linear`."""
    local = local_name(element)
    if _is_skipped(element=element, local=local):
        return ""
    return _text(element=element, local=local) if _is_text(local=local) else None


def _is_skipped(*, element: Any, local: str) -> bool:
    # A second Choice repeats the first one for other readers.
    return local in _SKIPPED or (local == "Choice" and element.getprevious() is not None)


def _is_text(*, local: str) -> bool:
    return local == "t" or local in _MARKS or local in _SYMBOLS


def _text(*, element: Any, local: str) -> str:
    hidden, font = _properties(run=element.getparent())
    if hidden:
        return ""
    if local in _SYMBOLS:
        return symbol(font=_attribute(element=element, name="font"), code=_attribute(element=element, name="char"))
    return _MARKS.get(local) or shown(text=element.text or "", font=font)


def _properties(*, run: Any) -> tuple[bool, str]:
    """Return whether a run is hidden, and its font."""
    hidden, font = False, ""
    # A run of an equation has two kinds of properties, Word's after the equation's.
    for properties in () if run is None else run.iterchildren("{*}rPr"):
        for found in properties.iterchildren("{*}vanish", "{*}rFonts"):
            if local_name(found) == "rFonts":
                font = _attribute(element=found, name="ascii")
            else:
                hidden = _OFF.isdisjoint(found.attrib.values())
    return hidden, font


def _is_label(*, element: Any) -> bool:
    """Return whether a value of a chart is a name of a series or a category."""
    return next(element.iterancestors("{*}strCache", "{*}multiLvlStrCache"), None) is not None


def _attribute(*, element: Any, name: str) -> str:
    return next((value for key, value in element.attrib.items() if key.endswith(f"}}{name}")), "")
