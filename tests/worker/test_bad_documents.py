"""Every kind of bad document ends with its own code, in bounded time and memory."""

from __future__ import annotations

import contextlib
import io
import posixpath
import time
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from ingestion_worker.outcome import WorkerError
from ingestion_worker.parsing.docx import parse_docx
from ingestion_worker.parsing.guard import ParserLimits, run_parser
from ingestion_worker.parsing.html import html_text
from ingestion_worker.parsing.pdf import clean_text, inspect_pdf, read_pages
from ingestion_worker.parsing.types import DocumentType, detect_type
from ingestion_worker.store import Store
from support.worker_builders import DOCX_TYPE, Worker, docx, pdf, sentences

PDF = "application/pdf"
HTML = "text/html"
TEXT = "text/plain"
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
SMALL = ParserLimits(memory_bytes=600 * 2**20, cpu_seconds=2, wall_seconds=20.0, output_bytes=2**20)


def pdf_object(*, pages: bytes, content: bytes | None = None) -> bytes:
    """Return a small hand-made PDF with a right cross-reference table."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", pages]
    if content is not None:
        objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 100 100] /Contents 4 0 R >>")
        objects.append(b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(content), content))
    return assembled(objects)


def assembled(objects: list[bytes]) -> bytes:
    """Return a PDF of these objects, numbered from 1; the first is its catalog."""
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return out + b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (
        size,
        table,
        size,
        len(out),
    )


def pdf_of(*, content: bytes, page: bytes, pages: bytes = b"") -> bytes:
    """Return a PDF of one page with this content, whose font is F1.

    Args:
        content: what is drawn.
        page: what else the page says.
        pages: what else its parent says.
    """
    return assembled(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 %s >>" % pages,
            b"<< /Type /Page /Parent 2 0 R /Resources << /Font << /F1 4 0 R >> >> /Contents 5 0 R %s >>" % page,
            b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        ]
    )


def archive(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return buffer.getvalue()


def encrypted_zip() -> bytes:
    data = bytearray(docx(paragraphs=["x"]))
    data[6] |= 1
    directory = data.index(b"PK\x01\x02")
    data[directory + 8] |= 1
    return bytes(data)


def declared_bomb() -> bytes:
    """A DOCX of half a megabyte whose document says that it unpacks to 600 MiB."""
    data = bytearray(docx(paragraphs=["x"] * 1000))
    directory = data.index(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = (600 * 2**20).to_bytes(4, "little")
    return bytes(data)


def pdf_with(*, annotations: list[bytes], catalog: bytes = b"", page: bytes = b"") -> bytes:
    """Return a PDF of two pages that say `Body`, each with an appearance that says `Drawn`.

    Args:
        annotations: of each page, in PDF's own words; `%s` in them is a reference to the appearance.
        catalog: what else it says; `%s` in it is references to all annotations.
        page: what else each page says.
    """
    count = len(annotations)
    numbers = range(7, 7 + 2 * count)
    fonts = b"/Resources << /Font << /F1 5 0 R >> >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalog.replace(b"%s", b" ".join(b"%d 0 R" % at for at in numbers)),
        b"<< /Type /Pages /Kids [3 0 R 4 0 R] /Count 2 >>",
    ]
    for own in (numbers[:count], numbers[count:]):
        references = b" ".join(b"%d 0 R" % at for at in own)
        kid = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] %s /Contents %d 0 R /Annots [%s] %s >>"
        objects.append(kid % (fonts, 7 + 2 * count, references, page))
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    drawn = b"BT /F1 12 Tf 2 10 Td (Drawn) Tj ET"
    form = b"<< /Type /XObject /Subtype /Form /BBox [0 0 300 20] %s /Length %d >>\nstream\n%s\nendstream"
    objects.append(form % (fonts, len(drawn), drawn))
    for annotation in annotations * 2:
        body = annotation.replace(b"%s", b"6 0 R")
        objects.append(b"<< /Type /Annot /Rect [40 600 340 620] /F 4 %s >>" % body)
    text = b"BT /F1 12 Tf 40 700 Td (Body) Tj ET"
    objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(text), text))
    return assembled(objects)


GOOD_PDF = pdf(pages=[sentences(count=10)] * 3)
GOOD_DOCX = docx(paragraphs=["Some text."] * 50)
BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";") * 10}">' for i in range(9))
    + "]><document><body><p><t>&j;</t></p></body></document>"
).encode()

CASES = {
    "empty pdf": (PDF, b"", "DocumentEmpty"),
    "empty text": (TEXT, b"", "DocumentEmpty"),
    "blank text": (TEXT, b" \n\t\r\n", "DocumentEmpty"),
    "garbage called pdf": (PDF, b"hello, this is no PDF", "DocumentUnreadable"),
    "html called pdf": (PDF, b"<html><body>login please</body></html>", "DocumentUnreadable"),
    "truncated pdf": (PDF, b"%PDF-1.4\n1 0 obj\n<< /Type /Cat", "DocumentTruncated"),
    "damaged pdf": (PDF, b"%PDF-1.4\n" + b"\x00junk" * 100 + b"\nstartxref\n7\n%%EOF", "DocumentUnreadable"),
    "encrypted pdf": (PDF, pdf(pages=["secret"], password="pw"), "DocumentEncrypted"),
    "pdf of no pages": (PDF, pdf_object(pages=b"<< /Type /Pages /Kids [] /Count 0 >>"), "DocumentEmpty"),
    "scanned pdf": (PDF, pdf(pages=["", ""]), "DocumentEmpty"),
    "pdf whose count lies": (
        PDF,
        pdf_object(pages=b"<< /Type /Pages /Kids [] /Count 5 >>"),
        {"DocumentUnreadable", "DocumentEmpty"},
    ),
    "truncated docx": (DOCX_TYPE, GOOD_DOCX[: len(GOOD_DOCX) // 2], "DocumentTruncated"),
    "docx that is no zip": (DOCX_TYPE, b"hello", "DocumentUnreadable"),
    "docx with broken xml": (DOCX_TYPE, docx(body="<w:p><w:r>"), "DocumentUnreadable"),
    "docx with flipped bits": (
        DOCX_TYPE,
        GOOD_DOCX[:60] + bytes(b ^ 0x55 for b in GOOD_DOCX[60:90]) + GOOD_DOCX[90:],
        "DocumentUnreadable",
    ),
    "zip that is no docx": (DOCX_TYPE, archive({"a.txt": b"x"}), "DocumentUnreadable"),
    "docx without text": (DOCX_TYPE, docx(paragraphs=["", " "]), "DocumentEmpty"),
    "encrypted docx": (DOCX_TYPE, encrypted_zip(), "DocumentEncrypted"),
    "encrypted office file": (DOCX_TYPE, OLE + "EncryptedPackage".encode("utf-16-le"), "DocumentEncrypted"),
    "old doc": (DOCX_TYPE, OLE + b"\x00" * 100, "UnsupportedType"),
    "docx bomb by declared size": (DOCX_TYPE, declared_bomb(), "DocumentTooLarge"),
    "docx bomb of text": (DOCX_TYPE, docx(paragraphs=["x" * 4_000_000]), "DocumentTooLarge"),
    "docx of many parts": (DOCX_TYPE, archive({f"f{i}": b"" for i in range(20_001)}), "DocumentTooLarge"),
    "docx nested deep": (DOCX_TYPE, docx(body="<w:p>" * 5000 + "x" + "</w:p>" * 5000), "DocumentTooComplex"),
    "billion laughs": (
        DOCX_TYPE,
        archive({"word/document.xml": BILLION_LAUGHS}),
        {"DocumentTooComplex", "DocumentEmpty", "DocumentUnreadable"},
    ),
    "html without text": (HTML, b"<html><body><script>x()</script></body></html>", "DocumentEmpty"),
    "html nested deep": (HTML, b"<div>" * 100_000 + b"x", "DocumentTooComplex"),
    "text that is binary": (TEXT, b"abc\x00\x01\x02" * 50, "DocumentUnreadable"),
    "text cut in a character": (TEXT, "Überall größer".encode()[:9] + "ß".encode()[:1], "DocumentTruncated"),
    "utf-16 cut in a character": (TEXT, "Hello".encode("utf-16")[:-1], "DocumentTruncated"),
    "spreadsheet": ("application/vnd.ms-excel", b"x", "UnsupportedType"),
    "image without a type": (None, b"\x89PNG\r\n\x1a\n\x00\x00", "UnsupportedType"),
    "docx of many parts without a type": (
        None,
        archive({f"f{i}": b"" for i in range(20_001)} | {"word/document.xml": b""}),
        "DocumentTooLarge",
    ),
    "zip without a type": ("application/octet-stream", archive({"a": b"x"}), "UnsupportedType"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_document_ends_with_its_code(worker: Worker, case: str) -> None:
    content_type, data, expected = CASES[case]
    worker.more["parser_limits"] = SMALL
    source = {"uri": worker.upload(data=data, name="manual")}
    if content_type:
        source["contentType"] = content_type
    began = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        worker.prepare(document__source=source)
    assert caught.value.code in ({expected} if isinstance(expected, str) else expected), caught.value
    assert "manual" in caught.value.message
    assert time.monotonic() - began < 60
    assert not [entry for entry in worker.store.list(prefix="kb") if "/versions/" in entry.key]


def test_a_pdf_that_inflates_is_stopped(worker: Worker) -> None:
    """A small content stream that becomes 150 MB of drawing."""
    line = b"BT /F1 12 Tf (xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx) Tj ET\n"
    packer = zlib.compressobj(9)
    content = b"".join(packer.compress(line * 10_000) for _ in range(200)) + packer.flush()
    data = pdf_object(pages=b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>", content=content)
    assert len(data) < 2**21
    worker.more["parser_limits"] = ParserLimits(memory_bytes=400 * 2**20, cpu_seconds=3, wall_seconds=20.0)
    with pytest.raises(WorkerError) as caught:
        worker.prepare(document__source__uri=worker.upload(data=data))
    assert caught.value.code in ("DocumentTooComplex", "DocumentEmpty", "DocumentUnreadable")


def test_a_parser_over_its_wall_clock_is_killed(worker: Worker) -> None:
    worker.more["parser_limits"] = ParserLimits(wall_seconds=0.01)
    with pytest.raises(WorkerError, match=r"DocumentTooComplex: .* less than 120 s of processor time"):
        worker.prepare(document__source__uri=worker.upload(data=GOOD_PDF))


def test_a_library_that_gets_no_memory_says_something_else_so_the_message_says_how_much_there_is(
    tmp_path: Path,
) -> None:
    path = tmp_path / "page.html"
    path.write_text("<p>" + "<b>x</b>" * 1_000_000)
    with pytest.raises(WorkerError, match=r"DocumentTooComplex: .*SelectolaxError") as caught:
        read_text(path=path, limits=ParserLimits(memory_bytes=200 * 2**20))
    assert "200 MiB of memory" in caught.value.message


@pytest.mark.parametrize("megabytes", [64, 100])
def test_a_docx_for_which_memory_does_not_suffice_is_not_called_damaged(tmp_path: Path, megabytes: int) -> None:
    """It is libxml2 that needs 130 MiB for this paragraph."""
    path = tmp_path / "manual.docx"
    path.write_bytes(docx(body="<w:p>" + f"<w:x>{'x' * 9_900_000}</w:x>" * 8 + "</w:p>"))
    with pytest.raises(WorkerError, match=f"DocumentTooComplex: .*more than {megabytes} MiB of memory"):
        read_text(path=path, limits=ParserLimits(memory_bytes=megabytes * 2**20), operation="docx")


def test_the_rows_of_a_table_in_a_docx_are_not_kept_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "table.docx"
    row = f"<w:tr><w:trPr>{'x' * 1_000_000}</w:trPr><w:tc><w:p><w:r><w:t>cell</w:t></w:r></w:p></w:tc></w:tr>"
    path.write_bytes(docx(body=f"<w:tbl>{row * 150}</w:tbl>"))
    read_text(path=path, limits=ParserLimits(memory_bytes=100 * 2**20), operation="docx")
    assert path.with_suffix(".out").read_text() == "cell\n" * 150


def test_of_the_text_of_a_segment_the_bytes_are_counted_that_it_has_as_utf_8(tmp_path: Path) -> None:
    letters = "\u0436" * 1000
    says = f"/Span << /ActualText <feff{letters.encode('utf-16-be').hex()}> >> BDC"
    path = tmp_path / "manual.pdf"
    path.write_bytes(pdf_of(content=f"BT /F1 12 Tf {says} (x) Tj EMC ET".encode(), page=b"/MediaBox [0 0 600 800]"))
    assert page_texts(path, pages=1) == [letters]
    arguments = {"path": str(path), "output": str(tmp_path / "out"), "first": 0, "last": 1, "before": False}
    for spare in (20, -20):
        limits = ParserLimits(output_bytes=len(letters.encode()) + spare)
        with contextlib.nullcontext() if spare > 0 else pytest.raises(WorkerError, match="DocumentTooLarge"):
            run_parser(operation="pdf_pages", name=path.name, arguments=arguments, limits=limits)


def test_processor_time_and_memory_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_bytes(b"<div>" * 100_000 + b"x")
    with pytest.raises(WorkerError, match=r"DocumentTooComplex: .*more than 1 s of processor time$"):
        read_text(path=path, limits=ParserLimits(cpu_seconds=1))


def test_a_text_that_is_too_large_whatever_memory_there_is_asks_for_none(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(WorkerError, match="DocumentTooLarge"):
        read_text(path=path, limits=ParserLimits(memory_bytes=600 * 2**20), operation="text")


def read_text(*, path: Path, limits: ParserLimits, operation: str = "html") -> None:
    output = path.with_suffix(".out")
    run_parser(operation=operation, name=path.name, arguments={"path": str(path), "output": str(output)}, limits=limits)


def test_a_truncated_pdf_is_never_published_as_whole_without_its_pages(worker: Worker) -> None:
    data = pdf(pages=[sentences(count=30, tag=f" {page}") for page in range(30)])
    codes = set()
    for share in (0.2, 0.5, 0.9):
        uri = worker.upload(data=data[: int(len(data) * share)], name=f"{share}.pdf")
        with pytest.raises(WorkerError) as caught:
            worker.prepare(document__source__uri=uri, mode="SinglePass")
        codes.add(caught.value.code)
    assert codes <= {"DocumentTruncated", "DocumentUnreadable", "PageUnreadable", "DocumentEmpty"}


def test_docx_text_keeps_order_and_skips_what_is_no_text(worker: Worker) -> None:
    body = (
        "<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>One</w:t><w:tab/><w:t>two</w:t></w:r></w:p>"
        "<w:tbl><w:tr><w:tc><w:p><w:r><w:t>cell</w:t></w:r></w:p></w:tc></w:tr></w:tbl>"
        '<w:p><mc:AlternateContent xmlns:mc="urn:mc"><mc:Choice><w:r><w:t>choice</w:t></w:r></mc:Choice>'
        "<mc:Fallback><w:p><w:r><w:t>again</w:t></w:r></w:p></mc:Fallback></mc:AlternateContent></w:p>"
        "<w:p><w:r><w:delText>deleted</w:delText><w:t>end</w:t></w:r></w:p>"
    )
    assert canonical(worker, docx(body=body), "a.docx") == b"One\ttwo\ncell\nchoice\nend\n"


def field(instruction: str, result: str) -> str:
    """Return a field's runs; `instruction` and `result` are runs."""
    begin, separate, end = (f'<w:r><w:fldChar w:fldCharType="{kind}"/></w:r>' for kind in ("begin", "separate", "end"))
    return f"{begin}{instruction}{separate}{result}{end}"


def said(text: str) -> str:
    return f"<w:r><w:t>{text}</w:t></w:r>"


def inserted(font: str, *codes: str) -> str:
    return "".join(f'<w:r><w:sym w:font="{font}" w:char="{code}"/></w:r>' for code in codes)


SEX = field("<w:r><w:instrText>MERGEFIELD Sex</w:instrText></w:r>", said("M"))
CHOICE = '<mc:AlternateContent xmlns:mc="urn:mc">{}{}</mc:AlternateContent>'
EMOJI = CHOICE.format(
    '<mc:Choice><x:symEx xmlns:x="urn:x" x:font="Emoji" x:char="1F60A"/></mc:Choice>',
    "<mc:Fallback><w:t>again</w:t></mc:Fallback>",
)
IN_FONT = '<w:r><w:rPr><w:rFonts w:ascii="{}" w:hAnsi="Arial"/></w:rPr><w:t>{}</w:t></w:r>'
HIDDEN = "<w:r><w:rPr>{}</w:rPr><w:t>hidden</w:t><w:tab/></w:r>"


@pytest.mark.parametrize(
    ("runs", "wanted"),
    [
        (f"{said('Dear ')}{field(SEX, said('Mr.'))}{said(' Smith')}", "Dear Mr. Smith"),
        (f"{field('', field('', said('linked')) + said(' twice'))}{SEX}", "linked twiceM"),
        (f"<w:r><w:fldChar w:fldCharType='begin'/></w:r>{said('no end')}</w:p><w:p>{SEX}", "no end\nM"),
        (f"<w:r><w:fldChar w:fldCharType='end'/><w:fldChar w:fldCharType='separate'/></w:r>{SEX}", "M"),
        (
            f"<w:r><w:ruby><w:rt>{said('とうきょう')}</w:rt><w:rubyBase>{said('東京')}</w:rubyBase></w:ruby></w:r>",
            "東京",
        ),
        (HIDDEN.format("<w:b/><w:vanish/>") + said("shown"), "shown"),
        (HIDDEN.format('<w:vanish w:val="1"/>') + said("shown"), "shown"),
        (HIDDEN.format('<w:vanish w:val="false"/>') + said("shown"), "hidden\tshown"),
        (HIDDEN.format("<w:rPrChange><w:rPr><w:vanish/></w:rPr></w:rPrChange>") + said("shown"), "hidden\tshown"),
        (f"{said('left')}<w:r><w:ptab/></w:r>{said('right')}", "left\tright"),
        (f"{said('10 ')}{inserted('Symbol', 'F06D')}{said('g, never ')}{inserted('symbol', 'b3')}", "10 µg, never ≥"),
        (inserted("Symbol", "F022", "F07E", "F0A0", "F0CF", "F0D0", "F0EF", "F0F2", "F0FE"), "∀∼€∉∠⎪∫⎭"),
        (inserted("Wingdings", "F04A", "F08A", "F095", "F0E0", "F0F4", "F0FC", "F0FE"), "☺⑩❿→⇳✓☑"),
        (inserted("Wingdings 2", "F052", "00A3"), "☑□"),
        (IN_FONT.format("Symbol", "m\uf06d\xb7≥ 中\xa0") + said("m"), "µµ•≥ 中\xa0m"),
        (IN_FONT.format("Wingdings", "\xfcJ\xa7") + IN_FONT.format("Webdings", "a b"), "✓☺▪\ufffd \ufffd"),
        (IN_FONT.format("Arial", "m\xb7"), "m\xb7"),
        (inserted("MS Gothic", "2612") + f"<w:r>{EMOJI}</w:r>", "☒😊"),
        (f"{said('a')}{inserted('Webdings', 'F061')}{said('b')}", "a\ufffdb"),
        (inserted("Symbol", "F0FF", "D800", "E000", "zz", "-1", ""), "\ufffd" * 6),
        (HIDDEN.format("<w:vanish/>").replace("<w:tab/>", "<w:sym/>") + "<w:r><w:sym/></w:r>", "\ufffd"),
        (CHOICE.format(f"<mc:Choice>{said('one')}</mc:Choice>", f"<mc:Choice>{said('two')}</mc:Choice>") * 2, "oneone"),
    ],
)
def test_docx_text_is_published_as_often_as_readers_see_it(worker: Worker, runs: str, wanted: str) -> None:
    body = f"<w:p>{runs}</w:p><w:p>{said('end')}</w:p>"
    assert canonical(worker, docx(body=body), "a.docx").decode() == f"{wanted}\nend\n"


def run(text: str) -> str:
    """Return a run of an equation."""
    return f"<m:r><m:rPr/><m:t>{text}</m:t></m:r>"


def math(name: str, properties: str = "", **parts: str | list[str]) -> str:
    """Return a structure of an equation.

    Args:
        name: its element.
        properties: some of it, as name=value, with spaces between them.
        parts: what is in its elements; of those that may be repeated, a list.
    """
    pairs = (one.split("=") for one in properties.split())
    said_of_it = "".join(f'<m:{key} m:val="{value}"/>' for key, value in pairs)
    inner = "".join(
        f"<m:{key}>{part}</m:{key}>"
        for key, part_or_more in parts.items()
        for part in ([part_or_more] if isinstance(part_or_more, str) else part_or_more)
    )
    return f"<m:{name}><m:{name}Pr>{said_of_it}<m:ctrlPr><w:rPr/></m:ctrlPr></m:{name}Pr>{inner}</m:{name}>"


X, N, TEN = run("x"), run("n"), run("10")
SUM = run("x+1")
HALF = math("f", num=run("1"), den=run("2"))
SQUARE = math("sSup", e=X, sup=run("2"))
ROW = f"<m:e>{run('1')}</m:e><m:e>{X}</m:e>"


@pytest.mark.parametrize(
    ("equation", "wanted"),
    [
        (run("y=2") + math("d", e=SUM) + HALF + math("sSup", e=TEN, sup=run("6")), "y=2(x+1)1/2 10^6"),
        (run("2") + HALF + run("mg"), "2 1/2 mg"),
        (math("f", num=SUM, den=math("d", e=run("2"))), "(x+1)/((2))"),
        (math("f", "type=lin", num=run("1.5"), den=run("10,000")), "1.5/10,000"),
        (math("d", e=math("f", "type=noBar", num=N, den=run("2"))), "(n¦2)"),
        (math("d", "begChr=[ sepChr=; endChr=)", e=[X, N]), "[x;n)"),
        (math("d", "begChr={ endChr=", e=math("eqArr", e=[run("x&amp;=1"), run("n&amp;=2")])), "{x=1; n=2"),
        (math("d", "begChr=| endChr=|", e=X) + math("d", e=[X, N]), "|x|(x|n)"),
        (math("sSup", e=TEN, sup=run("-6")) + run("m"), "10^(-6)m"),
        (math("sSup", e=HALF, sup=run("2")), "(1/2)^2"),
        (math("sSup", e=math("d", e=SUM), sup=run("2")), "(x+1)^2"),
        (math("sSup", e=SQUARE, sup=run("3")), "(x^2)^3"),
        (run("Na") + math("sSup", e="", sup=run("+")), "Na^(+)"),
        (math("sSub", e=run("H"), sub=run("2")) + run("O"), "H_2 O"),
        (math("sSubSup", e=X, sub=run("i"), sup=run("2")), "x_i^2"),
        (math("sPre", sub=run("6"), sup=run("14"), e=run("C")), "_6^14 C"),
        (math("rad", "degHide=1", deg="", e=SUM), "√(x+1)"),
        (math("rad", deg=run("3"), e=SUM), "(x+1)^(1/3)"),
        (math("nary", "chr=∑", sub=run("i=1"), sup=N, e=math("d", e=SUM)), "∑_(i=1)^n (x+1)"),
        (math("nary", "subHide=1", sub="", sup="", e=X) + run("dx"), "∫x dx"),
        (math("func", fName=math("limLow", e=run("lim"), lim=run("x→0")), e=SQUARE), "lim_(x→0) x^2"),
        (math("func", fName=run("sin"), e=SQUARE), "sin x^2"),
        (math("limUpp", e=X, lim=run("∗")), "x^(∗)"),
        (math("groupChr", "chr=→ pos=top", e=run("heat")) + math("groupChr", e=SUM), "→(heat)⏟(x+1)"),
        (math("acc", e=X) + math("acc", "chr=⃗", e=N), "x\u0302n\u20d7"),
        (math("bar", "pos=top", e=X) + math("bar", e=SUM), "x\u0305(x+1)\u0332"),
        (math("d", "begChr=[ endChr=]", e=math("m", mr=[ROW, ROW])), "[1, x; 1, x]"),
        (math("phant", "show=0", e=SUM) + math("phant", e=N) + math("box", e=X), "n x"),
        ("<w:r><w:sym w:font='Symbol' w:char='F061'/><w:br/><w:t>b</w:t></w:r>", "α\nb"),
        (f"<w:del>{N}</w:del>{X}<m:r><m:rPr/><w:rPr><w:vanish/></w:rPr><m:t>no</m:t></m:r>", "x"),
        (CHOICE.format(f"<mc:Choice>{X}</mc:Choice>", f"<mc:Fallback>{N}</mc:Fallback>"), "x"),
    ],
)
def test_an_equation_of_a_docx_says_the_same_in_one_line(tmp_path: Path, equation: str, wanted: str) -> None:
    body = f'<w:p xmlns:m="urn:m">{said("a ")}<m:oMath>{equation}</m:oMath>{said(" b")}</w:p>'
    assert docx_text(tmp_path, docx(body=body)) == f"a {wanted} b\n"


def docx_text(folder: Path, data: bytes) -> str:
    """Return the text of a DOCX, read in this process."""
    path, pieces = folder / "a.docx", list[str]()
    path.write_bytes(data)
    parse_docx(path=path, name="a.docx", write=pieces.append)
    return "".join(pieces)


def test_an_equation_of_a_docx_that_is_deleted_or_of_an_instruction_is_no_text(tmp_path: Path) -> None:
    gone, kept = (f'<m:oMath xmlns:m="urn:m">{run(text)}</m:oMath>' for text in ("gone", "kept"))
    body = f"<w:p><w:del>{gone}</w:del>{field(field('', gone), kept)}</w:p><w:p>{said('end')}</w:p>"
    assert docx_text(tmp_path, docx(body=body)) == "kept\nend\n"


def test_an_equation_may_nest_as_deep_as_the_xml(worker: Worker) -> None:
    body = f'<w:p xmlns:m="urn:m"><m:oMath>{"<m:d><m:e>" * 110}{X}{"</m:e></m:d>" * 110}</m:oMath></w:p>'
    assert canonical(worker, docx(body=body), "a.docx").decode() == f"{'(' * 110}x{')' * 110}\n"


def test_docx_text_outside_of_any_paragraph_is_text(worker: Worker) -> None:
    assert canonical(worker, archive({"word/document.xml": b"<t>text</t>"}), "a.docx") == b"text"


def canonical(worker: Worker, data: bytes, name: str) -> bytes:
    """Return the text that a document is published as."""
    worker.prepare(document__source__uri=worker.upload(data=data, name=name))
    (text,) = [worker.store.get(key=e.key) for e in worker.store.list(prefix="kb") if e.key.endswith(".txt")]
    return text


def test_docx_text_that_was_moved_is_published_once(worker: Worker) -> None:
    body = (
        "<w:p><w:moveFromRangeStart/><w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom><w:moveFromRangeEnd/></w:p>"
        "<w:p><w:r><w:t>stays</w:t></w:r></w:p><w:p><w:moveTo><w:r><w:t>moved</w:t></w:r></w:moveTo></w:p>"
    )
    assert canonical(worker, docx(body=body), "a.docx") == b"\nstays\nmoved\n"


def test_docx_text_of_a_box_is_lines_of_its_own(worker: Worker) -> None:
    body = (
        "<w:p><w:r><w:t>before</w:t></w:r><w:r><w:txbxContent><w:p><w:r><w:t>in</w:t></w:r></w:p>"
        "<w:p><w:r><w:t>side</w:t></w:r></w:p></w:txbxContent></w:r><w:r><w:t>after</w:t></w:r></w:p>"
    )
    assert canonical(worker, docx(body=body), "a.docx") == b"before\nin\nside\nafter\n"


def including(*, parts: dict[str, tuple[str, bytes]]) -> bytes:
    """Return a DOCX that includes other files between the paragraphs "before" and "after".

    Args:
        parts: by their names under `word/`: the content type, and the file.
    """
    namespace = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
    before, after = (f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in ("before", "after"))
    chunks = "".join(f'<w:altChunk {namespace} r:id="r{number}"/>' for number in range(len(parts)))
    buffer = io.BytesIO(docx(body=f"{before}{chunks}{after}"))
    with zipfile.ZipFile(buffer, "a") as file:
        types = targets = ""
        for number, (part, (content_type, data)) in enumerate(parts.items()):
            file.writestr(f"word/{part}", data)
            types += f'<Override PartName="/word/{part}" ContentType="{content_type}"/>' if content_type else ""
            targets += f'<Relationship Id="r{number}" Target="{("", "/word/")[number % 2]}{part}"/>'
        default = '<Default Extension="HTM" ContentType="text/html"/>'
        file.writestr("[Content_Types].xml", f'<Types xmlns="urn:types">{default}{types}</Types>')
        file.writestr("word/_rels/document.xml.rels", f"<Relationships>{targets}</Relationships>")
    return buffer.getvalue()


def test_what_a_docx_includes_is_read_in_its_place(worker: Worker) -> None:
    data = including(
        parts={
            "a.htm": ("", "<meta charset='latin1'><p>pagé</p><script>no</script>".encode("latin-1")),
            "b.dat": ("application/xhtml+xml", b"<title/><p>strict"),
            "c.dat": ("text/plain; charset=utf-8", b"PKs are\r\nplain\n"),
            "d.docx": (f"{DOCX_TYPE}.main+xml", docx(paragraphs=["inner", "text"])),
        }
    )
    wanted = "before\npagé\nstrict\nPKs are\nplain\ninner\ntext\nafter\n"
    assert canonical(worker, data, "a.docx").decode() == wanted


@pytest.mark.parametrize(
    ("part", "content_type", "data", "wanted"),
    [
        ("a.rtf", "application/rtf", rb"{\rtf1 x}", "UnsupportedType: word/a.rtf of a.docx"),
        ("a.mht", "message/rfc822", b"MIME-Version: 1.0", "UnsupportedType: word/a.mht of a.docx"),
        (
            "a.docx",
            DOCX_TYPE,
            including(parts={"b.txt": ("", b"x")}),
            "UnsupportedType: word/b.txt of word/a.docx of a.docx is included by",
        ),
        ("a.docx", DOCX_TYPE, declared_bomb(), "DocumentTooLarge: word/a.docx of a.docx unpacks to"),
        ("a.docx", DOCX_TYPE, b"PK\x03\x04", "DocumentUnreadable: a.docx is damaged"),
        ("a.txt", "text/plain", b"x\x00", "DocumentUnreadable: word/a.txt of a.docx"),
        ("a.html", "text/html", b" " * (64 * 2**20 + 1), "DocumentTooLarge: word/a.html of a.docx"),
    ],
)
def test_a_part_of_a_docx_that_is_not_read_is_named(
    worker: Worker, part: str, content_type: str, data: bytes, wanted: str
) -> None:
    uri = worker.upload(data=including(parts={part: (content_type, data)}), name="a.docx")
    with pytest.raises(WorkerError, match=wanted):
        worker.prepare(document__source__uri=uri)


def test_a_part_that_a_docx_includes_and_lacks_is_named(worker: Worker) -> None:
    data = docx(body='<w:altChunk xmlns:r="urn:r" r:id="r7"/><w:p><w:r><w:t>text</w:t></w:r></w:p>')
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("word/_rels/document.xml.rels", "<Relationships/>")
    with pytest.raises(WorkerError, match=r"DocumentUnreadable: a.docx is damaged: it includes r7"):
        worker.prepare(document__source__uri=worker.upload(data=buffer.getvalue(), name="a.docx"))


SMART_ART = """<d:dataModel xmlns:d="urn:d" xmlns:a="urn:a"><d:ptLst>
<d:pt type="doc"><d:t><a:p><a:endParaRPr/></a:p></d:t></d:pt>
<d:pt><d:t>
 <a:p><a:r><a:t>Head of </a:t></a:r><a:r><a:t>sales</a:t></a:r></a:p></d:t></d:pt>
<d:pt type="parTrans"><d:t><a:p/></d:t></d:pt><d:pt><d:t><a:p><a:r><a:t>Buyers</a:t></a:r></a:p></d:t></d:pt>
</d:ptLst></d:dataModel>"""
SERIES = """<c:ser><c:tx><c:strRef><c:f>Sheet1!$B$1</c:f>
<c:strCache><c:pt><c:v>{}</c:v></c:pt></c:strCache></c:strRef></c:tx>
<c:cat><c:strRef><c:strCache><c:pt><c:v>North</c:v></c:pt><c:pt><c:v>South</c:v></c:pt></c:strCache></c:strRef></c:cat>
<c:val><c:numRef><c:numCache><c:formatCode>General</c:formatCode><c:pt><c:v>4.3</c:v></c:pt></c:numCache></c:numRef>
</c:val></c:ser>"""
CHART = f"""<c:chartSpace xmlns:c="urn:c" xmlns:a="urn:a" xmlns:r="urn:r"><c:chart r:id="r1"><c:title><c:tx><c:rich>
<a:p><a:r><a:t>Sales of </a:t></a:r><a:r><a:t>tea</a:t></a:r></a:p></c:rich></c:tx></c:title>
{SERIES.format("2024")}{SERIES.format("2025")}<c:cat><c:multiLvlStrRef><c:multiLvlStrCache><c:lvl><c:pt><c:v>West</c:v></c:pt>
</c:lvl></c:multiLvlStrCache></c:multiLvlStrRef></c:cat></c:chart></c:chartSpace>"""


def drawing(before: str, reference: str) -> str:
    """Return a paragraph with a drawing after some text, as Word writes it for its newer and older versions."""
    choice = f"<mc:Choice><w:drawing>{reference}</w:drawing></mc:Choice>"
    return f"<w:p>{said(before)}<w:r>{CHOICE.format(choice, f'<mc:Fallback>{reference}</mc:Fallback>')}</w:r></w:p>"


def test_the_text_of_charts_and_smart_art_is_read_in_its_place(tmp_path: Path) -> None:
    chart, smart_art = (
        drawing("see", f'<x:{element} xmlns:x="urn:x" xmlns:r="urn:r" r:cs="r9" r:{attribute}="{relationship}"/>')
        for element, attribute, relationship in (("chart", "id", "r1"), ("relIds", "dm", "r2"))
    )
    gone = chart.replace('"r1"', '"r3"') + chart.replace('"r1"', '"r4"') + smart_art.replace("r:dm", "r:lo")
    data = docx(body=f"{chart}<w:p>{said('between')}</w:p>{smart_art}{gone}<w:p>{said('end')}</w:p>")
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr("word/charts/chart1.xml", CHART)
        file.writestr("word/charts/_rels/chart1.xml.rels", "<Relationships/>")
        file.writestr("word/diagrams/data1.xml", SMART_ART)
        parts = (("chart", "charts/chart1.xml"), ("diagramData", "diagrams/data1.xml"), ("chart", "charts/gone.xml"))
        targets = [
            f'{RELATIONSHIP.format(f"r{number}", kind)} Target="{target}"/>'
            for number, (kind, target) in enumerate(parts, 1)
        ]
        file.writestr("word/_rels/document.xml.rels", f"<Relationships>{''.join(targets)}</Relationships>")
    chart_text, smart_art_text = "Sales of tea\n2024\nNorth\nSouth\n2025\nWest\n", "Head of sales\nBuyers\n"
    wanted = f"see\n{chart_text}\nbetween\nsee\n{smart_art_text}\nsee\n\nsee\n\nsee\n\nend\n"
    assert docx_text(tmp_path, buffer.getvalue()) == wanted


def test_docx_text_goes_on_after_a_comment(worker: Worker) -> None:
    body = "<w:p><w:r><w:t>foo<!-- c -->bar<?pi x?>baz<![CDATA[qux]]></w:t></w:r></w:p>"
    assert canonical(worker, docx(body=body), "a.docx") == b"foobarbazqux\n"


def test_vertical_tabs_and_form_feeds_end_lines(worker: Worker) -> None:
    assert canonical(worker, b"one\x0btwo\x0cthree\r\nfour\rfive\x08", "a.txt") == b"one\ntwo\nthree\nfour\nfive"
    assert clean_text(text="one\x0btwo\x0cthree\r\nso\x02\r\nft\x00") == "one\ntwo\nthree\nsoft"


UNSEEN = "Haft\u00adpflicht fire\u200bwall 1\u2060000 \ufeffend, क्\u200dष نمی\u200cخواهم so\u00ad"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt", f"{UNSEEN}\nft".encode()),
        ("a.md", f"{UNSEEN}\r\nft".encode()),
        ("a.html", f"<p>{UNSEEN}ft</p>".encode()),
        ("b.html", f"<pre><code>{UNSEEN}ft".encode()),
        ("a.docx", docx(paragraphs=[f"{UNSEEN}ft"])),
        ("b.docx", docx(body=said("Haft") + "<w:r><w:softHyphen/></w:r>" + said(f"{UNSEEN[5:]}ft"))),
    ],
)
def test_a_word_is_whole_whatever_unseen_stands_in_it(worker: Worker, name: str, data: bytes) -> None:
    wanted = "Haftpflicht firewall 1000 end, क्\u200dष نمی\u200cخواهم soft"
    assert canonical(worker, data, name).decode().strip() == wanted
    assert clean_text(text=f"{UNSEEN}\r\nft") == wanted


@pytest.mark.parametrize("mark", ["\x02\r\n", "\ufffe\n", "\ufffe"])
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("exam|ple", "example"),
        ("COVID|19", "COVID-19"),
        ("ISO|9001", "ISO-9001"),
        ("Jean|Paul", "Jean-Paul"),
        ("Type|C", "Type-C"),
        ("COVID|Test", "COVID-Test"),
        ("INSUR|ANCE", "INSURANCE"),
        ("ÜBER|GRÖSSE", "ÜBERGRÖSSE"),
        ("end|", "end"),
        ("|A", "-A"),
    ],
)
def test_a_hyphen_at_a_lines_end_stays_where_no_word_is_divided(text: str, wanted: str, mark: str) -> None:
    assert clean_text(text=text.replace("|", mark)) == wanted
    assert clean_text(text=text.replace("|", "\u00ad\n")) == wanted.replace("-", "")


def test_a_soft_hyphen_joins_no_paragraphs(worker: Worker) -> None:
    assert canonical(worker, docx(paragraphs=["one\u00ad", "two"]), "a.docx") == b"one\ntwo\n"


@pytest.mark.parametrize("element", ["button", "caption", "center", "details", "label", "legend", "option", "summary"])
def test_html_elements_do_not_glue_words_together(worker: Worker, element: str) -> None:
    inner = f"<{element}>one</{element}><{element}>two</{element}>"
    around = {"caption": "table", "legend": "fieldset", "option": "select", "summary": "details"}.get(element, "div")
    page = f"<body><{around}>{inner}</{around}>".encode()
    assert canonical(worker, page, "a.html").split() == [b"one", b"two"]


@pytest.mark.parametrize(
    ("page", "wanted"),
    [
        (
            "<p>a    b</p><pre>\ndef f(x):\n    if <b>x</b>:\n\n\n\n&nbsp;       return 1</pre><p>c \n d</p>",
            "a b\n\ndef f(x):\n    if x:\n\n\n\n        return 1\n\nc \n d\n",
        ),
        ("<pre>    first\n\tsecond\r\n</pre>", "    first\n\tsecond\n"),
        ("<pre></pre><pre></pre><pre>\n    first</pre>", "    first\n"),
        ("<form>a  b<textarea>  x\n    <y></textarea>c  d</form>", "a b  x\n    <y>c d\n"),
        ("<p>\ue000 \ue001</p><pre>\ue000  \uf8ff</pre>", "\ue000 \ue001\n\n\ue000  \uf8ff\n"),
        ("<p>a&#1;  b&#2;  c</p><pre>d&#2;  e&#1;  f", "a  b c\n\nd e  f\n"),
    ],
)
def test_a_listing_keeps_its_indentation(worker: Worker, page: str, wanted: str) -> None:
    assert canonical(worker, f"<body>{page}".encode(), "a.html").decode() == wanted


@pytest.mark.parametrize(
    ("page", "wanted"),
    [
        ("<p>a</p><p hidden>no<b hidden>no</b></p><div hidden=''>no<dialog open>no</dialog></div><p>b", "a b"),
        ("<dialog>no<p hidden>no</p></dialog><dialog open>a</dialog><input hidden><p>b", "a b"),
        ("<body hidden><p hidden=Until-Found>a<details><summary>b</summary>c</details>", "a b c"),
        ("<div role=tabpanel hidden>a</div><section role=region hidden>b</section>", "a b"),
        ("<p>a</p><datalist><option>no</datalist><video>no</video><audio>no</audio><canvas>no</canvas><p>b", "a b"),
        ("<p>a</p><noembed><p>no</p></noembed><noframes><p>no</p></noframes><p>b", "a b"),
        ("<ruby>東<rp>(</rp><rt>とう</rt><rp>)</rp>京<rp>(</rp><rt>きょう<rp>)</rp></ruby>都", "東京都"),
        ("<ruby><rb>東<rb>京<rtc><rt>とう<rt>きょう</rtc></ruby>都", "東京都"),
    ],
)
def test_what_no_browser_shows_of_a_page_is_no_text(page: str, wanted: str) -> None:
    assert html_text(data=page.encode(), name="a.html").split() == wanted.split()


XHTML_BODY = """<head><title/><script src="a.js"/></head><body><p>one<a id="x"/> two</p><br/><img src="/" alt='>'/>
<textarea name="a/b" /><div class='"'/><p>th&nbsp;ree</p><![CDATA[4 < <b>5</b> & <i/>]]>
<iframe src=""/><svg><path/></svg>
<p>seven</p></body>"""


@pytest.mark.parametrize(
    ("name", "content_type", "prolog"),
    [
        ("a.html", None, '<?xml version="1.0" encoding="utf-8"?>\n'),
        ("page", None, '\n<?xml version="1.0"?>'),
        ("a.xhtml", None, ""),
        ("a", "application/xhtml+xml", ""),
    ],
)
def test_an_element_that_xml_closes_at_once_swallows_nothing(
    worker: Worker, name: str, content_type: str | None, prolog: str
) -> None:
    page = f'{prolog}<!DOCTYPE html>\n<html xmlns="http://www.w3.org/1999/xhtml">{XHTML_BODY}</html>'
    source = {"uri": worker.upload(data=page.encode(), name=name)}
    if content_type:
        source["contentType"] = content_type
    worker.prepare(document__source=source)
    (text,) = [worker.store.get(key=e.key) for e in worker.store.list(prefix="kb") if e.key.endswith(".txt")]
    assert text.split() == [b"one", b"two", b"th", b"ree", b"4", b"<", b"<b>5</b>", b"&", b"<i/>", b"seven"]


def test_a_template_that_browsers_show_is_text(worker: Worker) -> None:
    page = (
        b'<body><p>one</p><my-card><template shadowrootmode="open"><style>p{}</style><p>two</p>'
        b"<my-part><TEMPLATE class='x' shadowrootmode=closed>three</TEMPLATE></my-part></template>four</my-card>"
        b"<template id='shadowrootmode'>no</template><p>five"
    )
    assert canonical(worker, page, "a.html").split() == [b"one", b"two", b"three", b"four", b"five"]


@pytest.mark.parametrize(
    ("operation", "data"),
    [
        ("docx", GOOD_DOCX),
        ("docx", docx(paragraphs=[sentences(count=1000)] * 10)),
        ("html", b"<p>Some text."),
        ("text", b"Some text."),
        ("text", sentences(count=1000).encode()),
        ("pdf_pages", GOOD_PDF),
    ],
)
def test_a_full_disk_is_no_fault_of_the_document(tmp_path: Path, operation: str, data: bytes) -> None:
    (tmp_path / "manual").write_bytes(data)
    arguments: dict[str, Any] = {"path": str(tmp_path / "manual"), "output": "/dev/full"}
    if operation == "pdf_pages":
        arguments |= {"first": 0, "last": 1, "before": False}
    with pytest.raises(WorkerError, match=r"Internal: the text of manual .*No space left") as caught:
        run_parser(operation=operation, name="manual", arguments=arguments)
    assert caught.value.exit_code == 1
    assert caught.value.retryable


def test_a_folder_that_is_gone_is_no_fault_of_the_document(tmp_path: Path) -> None:
    (tmp_path / "manual").write_bytes(GOOD_DOCX)
    arguments = {"path": str(tmp_path / "manual"), "output": str(tmp_path / "gone" / "text")}
    with pytest.raises(WorkerError, match="Internal: the text of manual"):
        run_parser(operation="docx", name="manual", arguments=arguments)


def test_a_hijacked_parser_cannot_make_up_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = tmp_path / "python"
    parser.write_text("""#!/bin/sh\necho '{"error": {"code": "MadeUp", "message": "x"}}'\n""")
    parser.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(parser))
    with pytest.raises(WorkerError, match="Internal: x") as caught:
        run_parser(operation="text", name="manual", arguments={})
    assert caught.value.retryable


@pytest.mark.parametrize("served", [None, "application/octet-stream", "text/plain"])
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("notes", rb"{\rtf1\ansi Hello.}"),
        ("figure", b"%!PS-Adobe-3.0\nshowpage\n"),
        ("picture", b'<?xml version="1.0"?>\n<!-- drawn --><svg><path d="M0 0"/></svg>'),
        *((f"a.{extension}", b"It begins like text.") for extension in ("rtf", "ps", "eps", "eml", "ipynb", "SVG")),
    ],
)
def test_what_is_no_text_for_a_reader_is_refused(tmp_path: Path, name: str, data: bytes, served: str | None) -> None:
    path = tmp_path / "source"
    path.write_bytes(data)
    with pytest.raises(WorkerError, match=f"UnsupportedType: {name}"):
        detect_type(path=path, name=name, content_type=None, served_type=served)
    stated = detect_type(path=path, name=name, content_type="text/plain", served_type=served)
    assert stated is detect_type(path=path, name="a.txt", content_type=None, served_type=served) is DocumentType.TEXT


@pytest.mark.parametrize(
    "tag", ["<!DOCTYPE html>", "<html lang='de'>", "<!doctype HTML PUBLIC '-//W3C//DTD XHTML 1.0'>"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    "before",
    [
        "",
        " \r\n\f",
        "<!-- saved from a\nserver -->",
        "<?xml version='1.0'?>\n<!-- x --><!-- y -->\n",
        f"<!--{9000 * '-'}>",
    ],
)
def test_a_page_is_known_whatever_stands_before_its_first_tag(
    tmp_path: Path, before: str, encoding: str, tag: str
) -> None:
    path = tmp_path / "source"
    path.write_bytes(f"{before}{tag}<p>Text.".encode(encoding))
    assert detect_type(path=path, name="page", content_type=None, served_type=None) is DocumentType.HTML
    path.write_bytes(f"{before}<feed>{tag}".encode(encoding))
    assert detect_type(path=path, name="page", content_type=None, served_type=None) is DocumentType.TEXT


def test_an_archive_without_a_type_is_not_opened_outside_of_the_guarded_parser(tmp_path: Path) -> None:
    path = tmp_path / "manual"
    for last, kind in (("word/document.xml", DocumentType.DOCX), ("other", None)):
        path.write_bytes(archive({f"f{i}": b"" for i in range(20_001)} | {last: b""}))
        tracemalloc.start()
        try:
            if kind is None:
                with pytest.raises(WorkerError, match="UnsupportedType"):
                    detect_type(path=path, name="manual", content_type=None, served_type=None)
            else:
                assert detect_type(path=path, name="manual", content_type=None, served_type=None) is kind
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


RELATIONSHIP = '<Relationship Id="{}" Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/{}"'


@pytest.mark.parametrize(
    ("main", "footnotes", "endnotes"),
    [
        ("word/document.xml", None, None),
        ("word/document2.xml", "/word/footnotes2.xml", "endnotes2.xml"),
        ("word/document.xml", "notes/foot.xml", "../other/footnotes.xml"),
    ],
)
def test_docx_notes_come_after_the_text(worker: Worker, main: str, footnotes: str | None, endnotes: str | None) -> None:
    note = '<w:footnote w:id="{}"><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:footnote>'
    namespace = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    buffer = io.BytesIO(docx(paragraphs=["The fee is due monthly."], main=main))
    targets = ""
    with zipfile.ZipFile(buffer, "a") as archive:
        for kind, target, text in (
            ("endnotes", endnotes, "As decided in May."),
            ("footnotes", footnotes, "Except in August."),
        ):
            part = posixpath.normpath(posixpath.join("/word", target or f"{kind}.xml")).lstrip("/")
            notes = note.format(-1, "") + note.format(1, text)
            archive.writestr(part, f'<w:{kind} xmlns:w="{namespace}">{notes}</w:{kind}>')
            targets += f'{RELATIONSHIP.format(kind, kind)} Target="{target}"/>' if target else ""
        of_package = f'{RELATIONSHIP.format("r1", "officeDocument")} Target="{main}"/>'
        archive.writestr("_rels/.rels", f"<Relationships>{of_package}</Relationships>")
        if targets:
            archive.writestr(f"word/_rels/{posixpath.basename(main)}.rels", f"<Relationships>{targets}</Relationships>")
    wanted = b"The fee is due monthly.\nExcept in August.\nAs decided in May.\n"
    assert canonical(worker, buffer.getvalue(), "a.docx") == wanted


def page_texts(path: Path, *, pages: int) -> list[str]:
    """Return the texts of a PDF's first pages, read in this process."""
    return [text for text, _ in read_pages(path=path, name="a.pdf", first=0, last=pages, before=False)]


def test_what_is_filled_into_a_pdf_form_is_text(tmp_path: Path) -> None:
    from reportlab.pdfgen import canvas

    def form(line: str) -> bytes:
        buffer = io.BytesIO()
        paper = canvas.Canvas(buffer, invariant=True)
        paper.drawString(40, 800, line)
        paper.acroForm.textfield(name="name", value="Alexandrina Quill", x=40, y=700, width=300, height=20)
        paper.showPage()
        paper.save()
        return buffer.getvalue()

    for line in ("Name:", ""):
        file = tmp_path / "form.pdf"
        file.write_bytes(form(line))
        assert inspect_pdf(path=file, name="form.pdf") == {"pages": 1, "attachments": 0}
        (page,) = page_texts(file, pages=1)
        assert page.split() == [*line.split(), "Alexandrina", "Quill"]


FORM = b"/AcroForm << /Fields [%s] /NeedAppearances true /DA (/F 12 Tf 0 g) /DR << /Font << /F 5 0 R >> >> >>"
FIELD = b"/Subtype /Widget /FT /Tx /T (name) /V (Quill) /DA (/F 12 Tf 0 g)"
DRAWN = b"/AP << /N %s >>"


@pytest.mark.parametrize(
    ("annotations", "catalog", "wanted"),
    [
        ([FIELD], FORM, ["Body", "Quill"]),
        ([FIELD], FORM.replace(b"true", b"false"), ["Body", "Quill"]),
        ([FIELD + DRAWN], FORM.replace(b"true", b"false"), ["Body", "Drawn"]),
        ([b"/Subtype /FreeText /Contents (Said)" + DRAWN], b"", ["Body", "Drawn"]),
        ([b"/Subtype /Stamp" + DRAWN], b"", ["Body", "Drawn"]),
        (
            [
                b"/Subtype /%s /Contents (Said) /Open true /T (Bob) /QuadPoints [40 620 340 620 40 600 340 600]" % kind
                + appearance
                for kind in (b"Link", b"Highlight", b"Underline", b"Squiggly", b"StrikeOut", b"Text", b"Popup")
                for appearance in (b"", DRAWN)
            ],
            b"",
            ["Body"],
        ),
        (
            [b"/Subtype /Highlight" + DRAWN, b"/Subtype /Stamp" + DRAWN, b"/Subtype /Popup /Contents (Said)" + DRAWN],
            b"",
            ["Body", "Drawn"],
        ),
        ([b"/Subtype /Stamp /F 36" + DRAWN], b"", ["Body"]),
        ([FIELD + b"/F 36", b"/Subtype /Stamp" + DRAWN], FORM, ["Body", "Drawn"]),
    ],
)
def test_what_lies_visibly_on_a_page_is_text_and_nothing_else(
    tmp_path: Path, annotations: list[bytes], catalog: bytes, wanted: list[str]
) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf_with(annotations=annotations, catalog=catalog))
    pages = page_texts(file, pages=2)
    assert [page.split() for page in pages] == [wanted, wanted]


@pytest.mark.parametrize(
    ("page", "wanted"),
    [
        (b"/CropBox [0 650 600 800]", ["Body"]),
        (b"/CropBox [0 0 600 650]", ["Drawn"]),
        (b"/CropBox [0 0 600 650] /Rotate 90", ["Drawn"]),
        (b"/CropBox [0 0 600 800]", ["Body", "Drawn"]),
        (b"/CropBox [-9 -9 999 999]", ["Body", "Drawn"]),
        (b"/CropBox [1000 0 2000 800]", ["Body", "Drawn"]),  # nothing would be left of the page
        (b"/MediaBox [0 0 50 800]", ["Body", "Drawn"]),
    ],
)
def test_what_is_cropped_off_a_page_is_no_text_of_it(tmp_path: Path, page: bytes, wanted: list[str]) -> None:
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf_with(annotations=[b"/Subtype /Stamp" + DRAWN], page=page))
    pages = page_texts(file, pages=2)
    assert [text.split() for text in pages] == [wanted, wanted]


OWN, CROP = "/MediaBox [0 0 600 800]", "/CropBox [0 100 600 800]"


@pytest.mark.parametrize(
    ("page", "inherited", "cropped"),
    [
        (OWN + CROP, "", True),
        (OWN, CROP, True),
        (CROP, OWN, True),
        ("", OWN + CROP, True),
        ("", OWN, False),
        ("/CropBox [0 0 600 800]", OWN, False),
        (OWN + "/CropBox [-100 -100 700 900]", "", False),
    ],
)
def test_boxes_that_pages_inherit_count(tmp_path: Path, page: str, inherited: str, cropped: bool) -> None:
    """Of a page that is not cropped, what sticks out over an edge is kept."""
    text = b"BT /F1 12 Tf 560 700 Td (sticks out) Tj ET BT /F1 12 Tf 40 50 Td (below) Tj ET"
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf_of(content=text, page=page.encode(), pages=inherited.encode()))
    (found,) = page_texts(file, pages=1)
    assert ("sticks out" in found, "below" in found) == (not cropped, not cropped)


CODES = range(32, 127)
GLYPHS = b"/Encoding << /Type /Encoding /Differences [32 %s] >>" % b" ".join(b"/G%02X" % code for code in CODES)
ODD_FONTS = [
    b"<< /Type /Font /Subtype /Type1 /BaseFont /Odd %s >>" % GLYPHS,
    b"<< /Type /Font /Subtype /TrueType /BaseFont /Odd %s >>" % GLYPHS,
    b"<< /Type /Font /Subtype /Type3 /FontBBox [0 0 500 500] /FontMatrix [.001 0 0 .001 0 0]"
    b" /FirstChar 32 /LastChar 126 /Widths [%s] /CharProcs << %s >> %s >>"
    % (b"500 " * len(CODES), b" ".join(b"/G%02X 7 0 R" % code for code in CODES), GLYPHS),
]
UNMAPPED_FONT = b"""<< /Type /Font /Subtype /Type0 /BaseFont /Odd /Encoding /Identity-H /DescendantFonts [<<
/Type /Font /Subtype /CIDFontType2 /BaseFont /Odd /CIDSystemInfo << /Registry (Adobe) /Ordering (Identity) /Supplement 0
>> /DW 600 >>] >>"""


def pdf_in(font: bytes, *, pages: list[bytes]) -> bytes:
    """Return a PDF whose pages draw this content, in the fonts F1 (Helvetica) and F2."""
    draw = b"500 0 d0 0 0 400 400 re f"
    kids = [(8 + 2 * number, content) for number, content in enumerate(pages)]
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b" ".join(b"%d 0 R" % kid for kid, _ in kids), len(kids)),
        b"<< /Font << /F1 4 0 R /F2 5 0 R >> >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        font,
        b"null",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(draw), draw),
    ]
    for kid, content in kids:
        shared = b"/Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources 3 0 R"
        objects.append(b"<< %s /Contents %d 0 R >>" % (shared, kid + 1))
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    return assembled(objects)


def glyph_numbers(text: str) -> bytes:
    """Return text as the glyphs' numbers that the usual TrueType fonts have for it."""
    return b"<%s>" % b"".join(b"%04x" % (ord(character) - 29) for character in text)


PROSE = "Hello World, this is a contract that two parties have signed"
IN_HELVETICA = b"BT /F1 12 Tf 40 700 Td (%s) Tj ET\n" % PROSE.encode()
IN_GLYPHS = b"BT /F2 12 Tf 40 600 Td %s Tj ET\n" % glyph_numbers(PROSE)


@pytest.mark.parametrize("font", ODD_FONTS, ids=["Type1", "TrueType", "Type3"])
def test_text_in_a_font_with_odd_names_of_its_own_is_text(tmp_path: Path, font: bytes) -> None:
    """It is in ASCII, but for a ligature here and there."""
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf_in(font, pages=[IN_HELVETICA.replace(b"F1", b"F2").replace(b"signed", rb"signed\017")]))
    assert page_texts(file, pages=1) == [PROSE]


def test_hyphens_at_the_ends_of_lines_are_those_of_the_words(tmp_path: Path) -> None:
    lines = (b"caused by COVID-", b"19 in Jean-", b"Paul and exam-", b"ple and GPT-", b"4.")
    drawn = b" 0 -14 Td ".join(b"(%s) Tj" % line for line in lines)
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf_of(content=b"BT /F1 12 Tf 40 700 Td %s ET" % drawn, page=b"/MediaBox [0 0 600 800]"))
    (found,) = page_texts(file, pages=1)
    assert found == "caused by COVID-19 in Jean-Paul and example and GPT-4."


def test_numbers_of_glyphs_are_no_text(tmp_path: Path) -> None:
    """Of a page that is otherwise text, they are kept: a bullet or a formula must not cost a page."""
    file = tmp_path / "a.pdf"
    file.write_bytes(pdf_in(UNMAPPED_FONT, pages=[IN_GLYPHS, IN_HELVETICA * 2 + IN_GLYPHS, IN_GLYPHS]))
    assert inspect_pdf(path=file, name="a.pdf") == {"pages": 3, "attachments": 0}
    first, second, third = page_texts(file, pages=3)
    assert (first, third) == ("", "")
    assert PROSE in second
    file.write_bytes(pdf_in(UNMAPPED_FONT, pages=[IN_GLYPHS]))
    with pytest.raises(WorkerError, match=r"DocumentEmpty: there is no text .* fonts that do not say"):
        inspect_pdf(path=file, name="a.pdf")


TURNS = {0: b"1 0 0 1 0 0", 90: b"0 1 -1 0 600 0", 180: b"-1 0 0 -1 600 800", 270: b"0 -1 1 0 0 800"}
LINES = b"""BT /F1 12 Tf 60 500 Td [(The)-350(liability)-350(insur-)] TJ 0 -14 Td (ance holds) Tj
0 -14 Td (for all.) Tj ET BT /F1 12 Tf 300 500 Td (A second) Tj 0 -14 Td (column) Tj ET"""


@pytest.mark.parametrize("rotate", [0, 90, 180, 270, -90, 450])
@pytest.mark.parametrize("box", [b"", b"/CropBox [5 5 595 795]"])
@pytest.mark.parametrize("turned", TURNS)
def test_a_page_is_read_from_its_first_line_however_it_is_displayed(
    tmp_path: Path, turned: int, box: bytes, rotate: int
) -> None:
    """Sideways pages are scans that nobody turned; others hold wide tables, turned so that they are upright."""
    file = tmp_path / "a.pdf"
    page = b"/MediaBox [0 0 600 800] /Rotate %d %s" % (rotate, box)
    file.write_bytes(pdf_of(content=b"q %s cm %s Q" % (TURNS[turned], LINES), page=page))
    (found,) = page_texts(file, pages=1)
    assert found == "The liability insurance holds\nfor all.\nA second\ncolumn"


@pytest.mark.parametrize(
    ("turned", "box"),
    [(0, b"150 0 350 800"), (90, b"0 150 600 350"), (180, b"250 0 450 800"), (270, b"0 450 600 650")],
)
def test_what_is_cropped_off_glues_nothing_together(tmp_path: Path, turned: int, box: bytes) -> None:
    lines = b"""BT /F1 12 Tf 200 500 Td (one) Tj -100 -14 Td (out) Tj 100 0 Td (two) Tj 200 0 Td (out) Tj
    -200 -14 Td (three) Tj -120 -14 Td [(out)-7000(four)-14000(out)] TJ 120 -14 Td (five) Tj ET"""
    file = tmp_path / "a.pdf"
    page = b"/MediaBox [0 0 600 800] /CropBox [%s] /Rotate %d" % (box, turned)
    file.write_bytes(pdf_of(content=b"q %s cm %s Q" % (TURNS[turned], lines), page=page))
    (found,) = page_texts(file, pages=1)
    assert found == "one\ntwo\nthree\nfour\nfive"


def test_an_xfa_form_is_not_published_as_a_request_to_wait(worker: Worker) -> None:
    form = FORM.removesuffix(b">>") + b"/XFA (form) >>"
    uri = worker.upload(data=pdf_with(annotations=[FIELD], catalog=form + b" /NeedsRendering true"))
    with pytest.raises(WorkerError, match=r"UnsupportedType: handbook.pdf is an XFA form"):
        worker.prepare(document__source__uri=uri)
    # Where the form does not have to be rendered, the pages hold its text.
    worker.prepare(document__source__uri=worker.upload(data=pdf_with(annotations=[FIELD], catalog=form)))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_attachments_that_are_not_read_are_counted(
    worker: Worker, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    file = b"<< /Type /Filespec /F (c.pdf) /EF << /F << /Type /EmbeddedFile >> >> >>"
    names = b" ".join(b"(%d) %s" % (number, file) for number in range(count))
    portfolio = b"/Collection << /Type /Collection >> /Names << /EmbeddedFiles << /Names [%s] >> >>" % names
    uri = worker.upload(data=pdf_with(annotations=[], catalog=portfolio))
    said = {"pageCount": 0, "pages": "", "attachments": count} if count else None
    for mode, uid in (("SinglePass", "one"), ("SinglePass", "one"), ("Segmented", "other")):
        assert worker.ingest(document__source__uri=uri, mode=mode, job__uid=uid).get("notRead") == said
    lines = [line for line in caplog.records if line.message == "attachments are not read"]
    assert [(line.levelname, line.document, line.attachments) for line in lines] == [
        ("WARNING", "handbook.pdf", count) for _ in range(2 * bool(count))
    ]


def test_files_that_are_attached_to_pages_are_counted_too(
    worker: Worker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its page, as a segment reads the end of the page before it too; and before the segment's output."""
    file = b"<< /Type /Filespec /F (c.pdf) /EF << /F << /Type /EmbeddedFile >> >> >>"
    names = b"/Names << /EmbeddedFiles << /Names [(c.pdf) %s] >> >>" % file
    pin = b"/Subtype /FileAttachment /FS %s" % file
    uri = worker.upload(data=pdf_with(annotations=[pin, pin + DRAWN, b"/Subtype /Stamp" + DRAWN], catalog=names))
    put = Store.put

    def killed(store: Store, *, key: str, data: bytes) -> None:
        if key.endswith(".parquet"):
            raise KeyboardInterrupt
        put(store, key=key, data=data)

    monkeypatch.setattr(Store, "put", killed)
    with pytest.raises(KeyboardInterrupt):
        worker.ingest(document__source__uri=uri, mode="SinglePass", job__uid="killed")
    monkeypatch.setattr(Store, "put", put)
    assert [key for entry in worker.store.list(prefix="kb") if (key := entry.key).endswith("/000000/0000004.not-read")]
    for changes, counts in (
        ({"mode": "SinglePass"}, [1, 4]),
        ({"mode": "Segmented", "segmentation__pagesPerSegment": 1, "job__uid": "other"}, [1, 2, 2]),
    ):
        caplog.clear()
        said = worker.ingest(document__source__uri=uri, **changes)["notRead"]
        assert said == {"pageCount": 0, "pages": "", "attachments": 5}
        assert [line.attachments for line in caplog.records if line.message == "attachments are not read"] == counts
        # So says who finds it live already.
        assert worker.ingest(document__source__uri=uri, **changes)["notRead"] == said


@pytest.mark.parametrize(
    ("name", "served", "kind"),
    [
        ("README.md", "text/html; charset=utf-8", DocumentType.HTML),
        ("notes.txt", "text/html", DocumentType.HTML),
        ("page", "text/html", DocumentType.HTML),
        ("page.html", "application/pdf", DocumentType.PDF),
        ("README.md", "text/plain", DocumentType.MARKDOWN),
        ("README.md", "application/octet-stream", DocumentType.MARKDOWN),
        ("README.md", None, DocumentType.MARKDOWN),
        ("page", "text/plain", DocumentType.TEXT),
        ("manual.pdf", "text/html", DocumentType.PDF),  # a login page: it is to be refused, and not published
        ("manual.docx", "text/html", DocumentType.DOCX),
    ],
)
def test_what_a_server_says_counts_unless_the_name_promises_more(
    tmp_path: Path, name: str, served: str | None, kind: DocumentType
) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"nothing that tells")
    assert detect_type(path=path, name=name, content_type=None, served_type=served) is kind
    assert detect_type(path=path, name=name, content_type="text/markdown", served_type=served) is DocumentType.MARKDOWN
