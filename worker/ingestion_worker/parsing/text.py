"""Plain text and Markdown, and the decoding that HTML shares."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ingestion_worker.outcome import WorkerError

_BOMS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Text in these is valid UTF-8 as well, or holds zero bytes: they are not guessed, but must be stated.
_STATED_ONLY: Final = ("utf-16", "utf-32", "utf-7", "iso2022", "hz")
# What browsers read under these names: Windows' supersets, in which such text is mostly written.
# Source: https://encoding.spec.whatwg.org/#names-and-labels
_MEANT: Final = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
_WESTERN: Final = "cp1252"
# The Western code page lacks letters of these, but reading their text in it looks as good as in their own.
_NOT_WESTERN: Final = frozenset(
    {"Croatian", "Czech", "Hungarian", "Lithuanian", "Polish", "Romanian", "Slovak", "Slovene", "Turkish"}
)
# The encodings that are guessed: some text would fit each of a hundred, but documents are written in these.
_USED: Final = [
    *("cp1250", "cp1251", _WESTERN, "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258", "cp866", "cp874"),
    *("iso8859_2", "iso8859_5", "iso8859_7", "koi8_r", "koi8_u"),
    *("big5hkscs", "cp932", "cp949", "euc_jp", "gb18030"),
]
# Measured with texts of 25 languages: how much worse than the best the Western reading may look.
_CHAOS_MARGIN: Final = 0.05
_COHERENCE_MARGIN: Final = 0.1
_BEFORE_BYTES: Final = 256
_GUESS_BYTES: Final = 16_384
_STEP_BYTES: Final = 512
# Fewer bytes beyond ASCII would fit any encoding.
_TELLING_BYTES: Final = 8
_LONGEST_CHARACTER: Final = 4
_REPLACEMENT: Final = "\ufffd"
_BEYOND_ASCII: Final = bytes(range(128, 256))
_DAMAGED_SHARE: Final = 0.25
_PROBE_BYTES: Final = 65_536
LINE_END: Final = re.compile("\r\n|[\r\x0b\x0c]")
# These only say where a line may end. Left in a word they hide it from search.
INVISIBLE: Final = "\u200b\u2060\ufeff"
_SOFT_HYPHEN: Final = re.compile("\u00ad\n?")
_UNSEEN: Final = re.compile(f"[\x00-\x08\x0e-\x1f\x7f{INVISIBLE}]")


def parse_text(*, path: Path, name: str, write: Callable[[str], None], limit: int, charset: str | None = None) -> None:
    """Write the file's text as it is, with `\\n` line ends and nothing that is not seen.

    Args:
        path: the file.
        name: its name at the source.
        write: takes the text.
        limit: how many bytes of it are taken at most.
        charset: what is stated of it.

    Raises:
        WorkerError: DocumentUnreadable when it is no text, DocumentTruncated when it ends inside a character;
            DocumentTooLarge, before it is read, when it cannot be within the limit.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        marked = file.read(_LONGEST_CHARACTER).startswith(tuple(mark for mark, _ in _BOMS))
    wide = marked or _known(charset).startswith(("utf-16", "utf-32"))
    # Four bytes of UTF-32 may become one; elsewhere a line end's two do.
    if size > limit * (4 if wide else 2):
        raise WorkerError("DocumentTooLarge", f"{name} has {size} bytes; of text at most {limit} are read")
    write(normal_lines(text=decode(data=path.read_bytes(), name=name, charset=charset)))


def normal_lines(*, text: str) -> str:
    """Return text with `\\n` line ends, words joined at soft hyphens, and no control or invisible characters."""
    return _UNSEEN.sub("", _SOFT_HYPHEN.sub("", LINE_END.sub("\n", text)))


def decode(*, data: bytes, name: str, charset: str | None) -> str:
    """Decode text: by its byte order mark, as UTF-8, by the stated charset, else by what the bytes look like.

    A stated charset comes before UTF-8 if its text is valid UTF-8 as well. A few damaged bytes in UTF-8 become U+FFFD,
    whether there is a mark or not.

    Args:
        data: the bytes.
        name: the document's, for messages.
        charset: what is stated; None, or a name that nobody knows, states nothing.

    Raises:
        WorkerError: DocumentUnreadable or DocumentTruncated.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _strict(data=data[len(mark) :], encoding=encoding, name=name)
    marked = data.startswith(codecs.BOM_UTF8)
    if marked:
        data, charset = data.removeprefix(codecs.BOM_UTF8), "utf-8"
    stated, zeros = _known(charset), not marked and b"\x00" in data[:_PROBE_BYTES]
    # Text of two or four bytes for a character has a zero byte in each space and line end.
    if stated.startswith(_STATED_ONLY) and (zeros or not stated.startswith(("utf-16", "utf-32"))):
        with contextlib.suppress(UnicodeError):
            return data.decode(stated)
    if zeros:
        raise WorkerError("DocumentUnreadable", f"{name} is not text: it holds zero bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = error.start
        cut = error.reason == "unexpected end of data" and error.start > len(data) - 4 and error.start > 0
        ascii_only = data[: error.start].isascii()
        if cut and (marked or not ascii_only):
            raise WorkerError("DocumentTruncated", f"{name} ends inside a character") from error
    replaced = data.decode("utf-8", "replace")
    if _damaged(data=data, replaced=replaced):
        return replaced
    for encoding in (_MEANT.get(stated, stated), stated, _guess(data=data, at=at)):
        # A codec such as zlib is known, but decodes no text.
        with contextlib.suppress(LookupError, UnicodeError):
            return data.decode(encoding)
    raise WorkerError("DocumentUnreadable", f"{name} is not text in any encoding that is known")


def _damaged(*, data: bytes, replaced: str) -> bool:
    """Return True for UTF-8 with some damage: in another encoding hardly any byte beyond ASCII would pass for it."""
    invalid = replaced.count(_REPLACEMENT) - data.count(_REPLACEMENT.encode())
    beyond = len(data) - len(data.translate(None, _BEYOND_ASCII))
    return invalid <= beyond * _DAMAGED_SHARE


def _strict(*, data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if error.end >= len(data) and error.start > len(data) - 4:
            raise WorkerError("DocumentTruncated", f"{name} ends inside a character") from error
        raise WorkerError("DocumentUnreadable", f"{name} is not the {encoding} that its first bytes say") from error


def _known(charset: str | None) -> str:
    try:
        return codecs.lookup(charset or "").name
    except (LookupError, ValueError):
        return ""


def _guess(*, data: bytes, at: int) -> str:
    """Guess the encoding by the lines that are not all ASCII, from the first byte on that is not UTF-8, at `at`."""
    from charset_normalizer import from_bytes

    start = max(0, at - _BEFORE_BYTES)
    window = data[start : at + _GUESS_BYTES]
    if at + _GUESS_BYTES < len(data):
        window = window[: window.rfind(b"\n", at - start) + 1] or window
    lines = b"".join(line for line in window.splitlines(keepends=True) if not line.isascii())
    if sum(byte > 127 for byte in lines) < _TELLING_BYTES:
        return _WESTERN
    # Without a line end the last character may be cut in two, and fit no encoding.
    for cut in range(_LONGEST_CHARACTER):
        probe = lines[: len(lines) - cut]
        matches = from_bytes(probe, steps=max(1, len(probe) // _STEP_BYTES), chunk_size=_STEP_BYTES, cp_isolation=_USED)
        best = matches.best()
        if best is None:
            continue
        for match in matches:
            near = match.chaos <= best.chaos + _CHAOS_MARGIN and match.coherence >= best.coherence - _COHERENCE_MARGIN
            western = _NOT_WESTERN.isdisjoint((best.language, match.language))
            if near and western and _WESTERN in match.could_be_from_charset:
                return _WESTERN
        return best.encoding
    return _WESTERN
