"""Plain text and Markdown, and the decoding that HTML shares."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ingestion_worker.outcome import WorkerError

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_PROBE_BYTES: Final = 65_536
_CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")


def parse_text(*, path: Path, name: str, write: Callable[[str], None], charset: str | None = None) -> None:
    """Write the file's text as it is, with `\\n` line ends and no control characters.

    Raises:
        WorkerError: DocumentUnreadable when it is no text, DocumentTruncated when it ends inside a character.
    """
    write(normal_lines(text=decode(data=path.read_bytes(), name=name, charset=charset)))


def normal_lines(*, text: str) -> str:
    """Return text with `\\n` line ends and without control characters."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def decode(*, data: bytes, name: str, charset: str | None) -> str:
    """Decode text: by its byte order mark, as strict UTF-8, by the stated charset, else by what the bytes look like.

    Raises:
        WorkerError: DocumentUnreadable or DocumentTruncated.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _strict(data=data[len(mark) :], encoding=encoding, name=name)
    if b"\x00" in data[:_PROBE_BYTES]:
        raise WorkerError("DocumentUnreadable", f"{name} is not text: it holds zero bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data" and error.start > len(data) - 4 and error.start > 0
        ascii_only = data[: error.start].isascii()
        if cut and not ascii_only:
            raise WorkerError("DocumentTruncated", f"{name} ends inside a character") from error
    for guess in (_known(charset), _guess(data)):
        if guess is not None:
            try:
                return data.decode(guess)
            except UnicodeDecodeError:
                continue
    raise WorkerError("DocumentUnreadable", f"{name} is not text in any encoding that is known")


def _strict(*, data: bytes, encoding: str, name: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if error.end >= len(data) and error.start > len(data) - 4:
            raise WorkerError("DocumentTruncated", f"{name} ends inside a character") from error
        raise WorkerError("DocumentUnreadable", f"{name} is not the {encoding} that its first bytes say") from error


def _known(charset: str | None) -> str | None:
    try:
        return codecs.lookup(charset).name if charset else None
    except (LookupError, ValueError):
        return None


def _guess(data: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(data[:_PROBE_BYTES]).best()
    return best.encoding if best else None
