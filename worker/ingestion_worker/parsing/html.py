"""HTML through lexbor: the body's text, one block per line."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from selectolax.lexbor import LexborHTMLParser

from ingestion_worker.outcome import WorkerError
from ingestion_worker.parsing.text import decode, normal_lines

# The parser is quadratic in nesting and takes eleven times the file in memory.
MAX_HTML_BYTES: Final = 64 * 2**20
# A page in which this is found is not in UTF-16, whatever it says.
_META: Final = re.compile(
    rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*(?!utf.?(?:16|32))([A-Za-z0-9_.:-]{1,40})""", re.IGNORECASE
)
# XHTML's own place for the charset.
_DECLARATION: Final = re.compile(
    rb"""\s*<\?xml\s[^>]{0,200}?encoding\s*=\s*["'](?!utf.?(?:16|32))([A-Za-z0-9_.:-]{1,40})""",
    re.IGNORECASE,
)
# What no browser shows, or only one that cannot play, draw or run the rest. `rt` says how a Chinese or Japanese word is
# pronounced, in the middle of it.
_INVISIBLE: Final = [
    *("script", "style", "noscript", "template", "head", "svg", "iframe", "object", "audio", "video", "canvas"),
    *("datalist", "noembed", "noframes", "rp", "rt", "rtc"),
]
# What a reader unfolds by a click is text, and so is a page that shows itself by a script.
_HIDDEN: Final = (
    "body [hidden]:not([hidden=until-found i]):not([role=tabpanel]):not([role=region]), body dialog:not([open])"
)
# XML may close any element by `/>`. HTML takes that for a start tag, so that the element swallows what follows, unless
# it is one that never holds anything. And HTML takes CDATA for a comment.
_CLOSED: Final = re.compile(r"""<([A-Za-z][^\s<>"'/]*)((?:[^<>"']|"[^"]*"|'[^']*')*)/>""")
_NEVER_HOLD: Final = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"}
)
# Unlike other templates, this one is shown, as the inside of its parent. Here it becomes an element of another name,
# which ends where its parent does.
_SHADOW: Final = re.compile(
    r"""<template(?=\s[^>]{0,1000}\bshadowrootmode\s*=\s*["']?(?:open|closed)\b)""", re.IGNORECASE
)
_BLOCKS: Final = (
    "address,article,aside,blockquote,br,button,caption,center,dd,details,div,dl,dt,fieldset,figcaption,figure,footer,form,"
    "h1,h2,h3,h4,h5,h6,header,hr,label,legend,li,main,nav,ol,option,p,pre,section,shadow-root,summary,table,tr,ul"
)
# Marks around text whose spaces are kept. Control characters, which are never published, whoever wrote them.
_KEPT: Final = re.compile("\x01([^\x01\x02]*)\x02")
_SPACES: Final = re.compile(r"[ \t\u00a0]+")
_LINES: Final = re.compile(r" ?\n[ \n]*\n ?")


def parse_html(
    *, path: Path, name: str, write: Callable[[str], None], charset: str | None = None, xml: bool = False
) -> None:
    """Write the visible text of the body.

    Args:
        path: the file.
        name: its name at the source.
        write: takes the text.
        charset: what is stated of it.
        xml: it is XHTML; a file that begins with `<?xml` is so without being told.

    Raises:
        WorkerError: DocumentUnreadable, DocumentTruncated, DocumentTooLarge.
    """
    check_size(size=path.stat().st_size, name=name)
    write(html_text(data=path.read_bytes(), name=name, charset=charset, xml=xml))


def check_size(*, size: int, name: str) -> None:
    """Refuse more HTML than is read.

    Raises:
        WorkerError: DocumentTooLarge.
    """
    if size > MAX_HTML_BYTES:
        raise WorkerError("DocumentTooLarge", f"{name} has {size} bytes; at most {MAX_HTML_BYTES} of HTML are read")


def html_text(*, data: bytes, name: str, charset: str | None = None, xml: bool = False) -> str:
    """Return the visible text of the body.

    Args:
        data: the file's bytes.
        name, charset, xml: as for `parse_html`.

    Raises:
        WorkerError: DocumentUnreadable, DocumentTruncated.
    """
    found = _META.search(data[:4096]) or _DECLARATION.match(data[:1024])
    text = decode(data=data, name=name, charset=charset or (found.group(1).decode("ascii") if found else None))
    if xml or text.lstrip().startswith("<?xml"):
        text = _CLOSED.sub(_opened_and_closed, _without_cdata(text=text))
    tree = LexborHTMLParser(_SHADOW.sub("<shadow-root", text))
    tree.strip_tags(_INVISIBLE)
    for node in tree.css(_HIDDEN):
        node.decompose(recursive=False)
    body = tree.body
    if body is None:
        return ""
    for node in body.css(_BLOCKS):
        node.insert_before("\n")
        node.insert_after("\n")
    for node in body.css("td,th"):
        node.insert_after("\t")
    for node in body.css("pre,textarea"):
        node.insert_before("\x01")
        node.insert_after("\x02")
    parts = [normal_lines(text=part) for part in _KEPT.split(body.text() or "")]
    parts[::2] = [_LINES.sub("\n\n", _SPACES.sub(" ", part)) for part in parts[::2]]
    parts[1::2] = [part.replace("\u00a0", " ") for part in parts[1::2]]
    parts[0] = parts[0].lstrip()
    return "".join(parts).lstrip("\n").rstrip() + "\n"


def _opened_and_closed(found: re.Match[str]) -> str:
    tag, attributes = found.groups()
    return found[0] if tag.lower() in _NEVER_HOLD else f"<{tag}{attributes}></{tag}>"


def _without_cdata(*, text: str) -> str:
    before, *parts = text.split("<![CDATA[")
    pairs = (part.partition("]]>") for part in parts)
    return before + "".join(html.escape(literal) + after for literal, _, after in pairs)
