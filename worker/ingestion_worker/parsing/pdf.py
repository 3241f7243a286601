"""PDF through pdfium. Only inside the guarded child: the error code may be of an earlier document of the process."""

from __future__ import annotations

import ctypes
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pypdfium2
from pypdfium2 import raw

from ingestion_worker.outcome import WorkerError
from ingestion_worker.parsing.text import INVISIBLE, LINE_END

MAX_PAGES: Final = 200_000
MAX_PAGE_CHARACTERS: Final = 5_000_000
_TAIL_BYTES: Final = 65_536
_DAMAGED: Final = 3
_ENCRYPTED: Final = 4
# These mark what is there, or hold notes that a viewer shows on demand: nothing of them is text of the page.
_SILENT: Final = frozenset(
    {
        raw.FPDF_ANNOT_LINK,
        raw.FPDF_ANNOT_TEXT,
        raw.FPDF_ANNOT_POPUP,
        raw.FPDF_ANNOT_HIGHLIGHT,
        raw.FPDF_ANNOT_UNDERLINE,
        raw.FPDF_ANNOT_SQUIGGLY,
        raw.FPDF_ANNOT_STRIKEOUT,
    }
)
_TELLING_CHARACTERS: Final = 100
# Of numbers of glyphs, one of six or seven is that of a space; TeX has ligatures and Greek letters at such codes too.
_CONTROLS_SHARE: Final = 0.1
_FAR: Final = 1e6  # points: no page is so large
_SOFT_HYPHEN: Final = "\u00ad"
_HYPHEN: Final = re.compile(f"[\x02{_SOFT_HYPHEN}\ufffe]\n?")
_CONTROL: Final = re.compile(f"[\x00-\x08\x0e-\x1f\x7f-\x9f{INVISIBLE}\uffff]")


def inspect_pdf(*, path: Path, name: str) -> dict[str, Any]:
    """Return {"pages": n, "attachments": m} of a PDF that has text somewhere.

    Raises:
        WorkerError: DocumentUnreadable, DocumentEncrypted, DocumentTruncated, DocumentEmpty, DocumentTooLarge;
            UnsupportedType for an XFA form.
    """
    document = _open(path=path, name=name)
    if document.get_formtype() == raw.FORMTYPE_XFA_FULL:
        # Its only page says "Please wait...": what stands on the others is made by the viewer.
        raise WorkerError("UnsupportedType", f"{name} is an XFA form: print it to a PDF")
    pages = len(document)
    if pages == 0:
        raise WorkerError("DocumentEmpty", f"{name} has no pages")
    if pages > MAX_PAGES:
        raise WorkerError("DocumentTooLarge", f"{name} has {pages} pages; at most {MAX_PAGES} are read")
    found = {"pages": pages, "attachments": document.count_attachments()}
    failed = 0
    for index in range(pages):
        try:
            text, _ = _read_page(document=document, index=index)
            if text.strip():
                return found
        except pypdfium2.PdfiumError:
            failed += 1
    if failed == pages:
        raise WorkerError("DocumentUnreadable", f"none of the {pages} pages of {name} can be read")
    if failed:
        # Its segment will say which page that is.
        return found
    raise WorkerError(
        "DocumentEmpty",
        f"there is no text on the {pages} pages of {name}; is it scanned, or written in fonts that do not say which"
        " characters they show?",
    )


def read_pages(*, path: Path, name: str, first: int, last: int, before: bool) -> Iterator[tuple[str, int]]:
    """Yield the text of the page before `first` if it is wanted, then of the pages [first, last), counted from 0.

    With each text comes how many files are attached to the page. The page before is empty when it cannot be read: that
    is the other segment's to report.

    Args:
        path: the file.
        name: its name at the source.
        first, last: which pages.
        before: whether the page before is wanted.

    Raises:
        WorkerError: PageUnreadable naming the page, counted from 1, or what `inspect_pdf` raises.
    """
    document = _open(path=path, name=name)
    if before:
        try:
            text, attachments = _read_page(document=document, index=first - 1)
            yield text[-MAX_PAGE_CHARACTERS:], attachments
        except pypdfium2.PdfiumError:
            yield "", 0
    for index in range(first, last):
        try:
            text, attachments = _read_page(document=document, index=index)
        except pypdfium2.PdfiumError as error:
            raise WorkerError("PageUnreadable", f"page {index + 1} of {name} cannot be read: {error}") from error
        if len(text) > MAX_PAGE_CHARACTERS:
            raise WorkerError(
                "DocumentTooComplex", f"page {index + 1} of {name} has more than {MAX_PAGE_CHARACTERS} characters"
            )
        yield text, attachments


def clean_text(*, text: str) -> str:
    """Return a page's text as `normal_lines` would, without the control characters that pdfium adds."""
    return _CONTROL.sub("", _HYPHEN.sub(_hyphen, LINE_END.sub("\n", text)))


def _hyphen(found: re.Match[str]) -> str:
    """Return `-` where no word is divided: before a digit, and before a capital unless all is in capitals.

    pdfium has one mark for every hyphen at a line's end.
    """
    if found[0].startswith(_SOFT_HYPHEN):
        return ""
    text, start, end = found.string, found.start(), found.end()
    before, after = text[max(0, start - 1) : start], text[end : end + 2]
    capital = after[:1].isupper() and not (before.isupper() and after.isupper())
    return "-" if after[:1].isdigit() or capital else ""


def _open(*, path: Path, name: str) -> Any:
    try:
        document = pypdfium2.PdfDocument(str(path))
        # Fields that were filled in without being drawn are drawn by this.
        document.init_forms()
        return document
    except pypdfium2.PdfiumError as error:
        code = error.err_code
        if code == _ENCRYPTED:
            raise WorkerError("DocumentEncrypted", f"{name} needs a password") from error
        with path.open("rb") as file:
            head = file.read(1024)
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            tail = file.read()
        if b"%PDF-" not in head:
            raise WorkerError("DocumentUnreadable", f"{name} is not a PDF: it does not begin with %PDF-") from error
        if b"%%EOF" not in tail and b"startxref" not in tail:
            raise WorkerError("DocumentTruncated", f"{name} ends before its cross-reference table") from error
        if code == 0:
            raise WorkerError("DocumentEmpty", f"{name} has no pages") from error
        if code == _DAMAGED:
            raise WorkerError("DocumentUnreadable", f"{name} is damaged: its structure cannot be read") from error
        raise WorkerError("DocumentUnreadable", f"{name} cannot be opened: {error}") from error


def _read_page(*, document: Any, index: int) -> tuple[str, int]:
    """Return a page's text, and how many files are attached to it."""
    page = document[index]
    try:
        # Asked first: flattening gives the page other boxes.
        left, bottom, right, top = seen = page.get_bbox()
        cropped = seen != _media_box(document=document, index=index, page=page)
        # What is filled into a form, or lies on top of a page, is text of the page only once it is flattened into it.
        on_top, attachments = _look_at_annotations(page=page)
        if on_top and raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY) == raw.FLATTEN_SUCCESS:
            page.close()
            page = document[index]
        text_page = _upright_text(page=page)
        try:
            if _is_glyph_numbers(text_page=text_page):
                return "", attachments
            text = text_page.get_text_range()
            # On a page that is not cropped, text that sticks out over an edge is kept.
            if cropped and left < right and bottom < top and text_page.get_text_bounded(*seen).split() != text.split():
                text = _inside(text_page=text_page, box=seen)
            return clean_text(text=text), attachments
        finally:
            text_page.close()
    finally:
        page.close()


def _upright_text(*, page: Any) -> Any:
    """Return the text of a page, turned so that most of it is upright, whichever way it is displayed.

    pdfium orders lines as they are displayed: sideways they come from last to first, with words torn or glued.
    """
    text_page = page.get_textpage()
    angles = Counter(
        round(-math.degrees(raw.FPDFText_GetCharAngle(text_page, index)) / 90) % 4 * 90
        for index in _telling(text_page=text_page)
    )
    ((angle, _),) = angles.most_common(1) or [(page.get_rotation(), 0)]
    if angle == page.get_rotation():
        return text_page
    text_page.close()
    page.set_rotation(angle)
    return page.get_textpage()


def _is_glyph_numbers(*, text_page: Any) -> bool:
    """Return whether most of the text is numbers of glyphs, of fonts that do not say which characters those show.

    pdfium takes the code for the character then. That is right for most fonts with codes of one byte, whatever names
    they have for their glyphs. Among numbers of glyphs are many control characters, as that of the space.
    """
    telling = _telling(text_page=text_page)
    unknown = [index for index in telling if raw.FPDFText_HasUnicodeMapError(text_page, index) == 1]
    if len(unknown) * 2 <= len(telling):
        return False
    count: int = text_page.count_chars()
    controls: int = sum(
        raw.FPDFText_GetUnicode(text_page, index) < ord(" ") and not raw.FPDFText_IsGenerated(text_page, index)
        for index in range(count)
    )
    return controls > count * _CONTROLS_SHARE


def _telling(*, text_page: Any) -> list[int]:
    """Return which characters are looked at for what holds for most: some that are drawn, from all over the page."""
    count = text_page.count_chars()
    spread = range(0, count, max(1, count // _TELLING_CHARACTERS))
    return [index for index in spread if not raw.FPDFText_IsGenerated(text_page, index)]


def _inside(*, text_page: Any, box: tuple[float, float, float, float]) -> str:
    """Return what is in a box at least in part, with a line end or a space for what is not.

    pdfium itself glues what is left of a line to the next one, and lines that run upwards.
    """
    left, bottom, right, top = box
    x1, x2, y1, y2 = (ctypes.c_double() for _ in range(4))

    def is_inside(index: int) -> bool:
        raw.FPDFText_GetCharBox(text_page, index, x1, x2, y1, y2)
        return max(left, x1.value) < min(right, x2.value) and max(bottom, y1.value) < min(top, y2.value)

    pieces = []
    for inside, run in itertools.groupby(range(text_page.count_chars()), key=is_inside):
        first, *more = run
        text = text_page.get_text_range(first, 1 + len(more))
        pieces.append(text if inside else "\n" if "\n" in text else " ")
    return "".join(pieces).strip()


def _media_box(*, document: Any, index: int, page: Any) -> tuple[float, float, float, float]:
    """Return the box of the whole page. One that is inherited pdfium tells only while nothing is cropped off."""
    own: tuple[float, float, float, float] | None = page.get_mediabox(fallback_ok=False)
    if own is not None:
        return own
    seen = page.get_bbox()
    page.set_cropbox(-_FAR, -_FAR, _FAR, _FAR)
    whole = document[index]
    try:
        media: tuple[float, float, float, float] = whole.get_bbox()
        return media
    finally:
        whole.close()
        page.set_cropbox(*seen)


def _look_at_annotations(*, page: Any) -> tuple[bool, int]:
    """Return whether an annotation may hold text of the page, and how many attach a file to it.

    If one may, those that never do or are not shown are removed.
    """
    silent = []
    attachments = 0
    for index in range(raw.FPDFPage_GetAnnotCount(page)):
        annotation = raw.FPDFPage_GetAnnot(page, index)
        kind = raw.FPDFAnnot_GetSubtype(annotation)
        unseen = raw.FPDFAnnot_GetFlags(annotation) & raw.FPDF_ANNOT_FLAG_NOVIEW
        silent.append(bool(unseen) or kind in _SILENT)
        attachments += kind == raw.FPDF_ANNOT_FILEATTACHMENT
        raw.FPDFPage_CloseAnnot(annotation)
    if all(silent):
        return False, attachments
    for index in reversed(range(len(silent))):
        if silent[index]:
            raw.FPDFPage_RemoveAnnot(page, index)
    return True, attachments
