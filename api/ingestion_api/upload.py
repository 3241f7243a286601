"""A multipart body, read as it arrives: fields, and a file, of which no more than a piece is in memory.

Source: RFC 7578.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from fastapi import Request
from ingestion_crds.constants import MAX_CONTENT_TYPE_LENGTH
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from ingestion_api.forms import FIELDS
from ingestion_api.problems import ProblemError, bad_request, unsupported_type

MAX_FIELDS: Final = 16
MAX_FIELD_BYTES: Final = 16 * 1024
MANIFEST: Final = "manifest"
"""The one field that grows with the number of files."""
MAX_MANIFEST_BYTES: Final = 512 * 1024
MAX_PART_HEADER_BYTES: Final = 4096
MAX_PARTS: Final = 2048
"""Fields, files, and file inputs in which nothing was chosen, which no other bound counts."""
# A client that is slower, or keeps its upload open with a byte now and then, loses its place to another.
_LEAST_BYTES: Final = 64 * 1024
# Forms should have none (RFC 7578, 4.2). But clients of .NET give a name that is not ASCII so, and beside it nothing,
# or an encoded-word. It comes before that (RFC 6266, 4.3).
_EXTENDED_NAME: Final = re.compile(rb";\s*filename\*\s*=\s*utf-8'[^';]*'([^\s;]*)", re.IGNORECASE)
# To the end where it is not closed: else each quote in it would be tried, each to the end.
_QUOTED: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?')


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """The head of the file's part.

    Args:
        name: the client's file name; may be empty.
        content_type: the client's media type; None when it gave none, or one that says nothing.
    """

    name: str
    content_type: str | None


class MultipartReader:
    """Reads one request's body.

    Args:
        request: with content-type multipart/form-data.
        stall_seconds: how long is waited for the next 64 KiB.

    Raises:
        ProblemError: 415 when the body is announced as another type, 400 when it is no multipart form.
    """

    def __init__(self, *, request: Request, stall_seconds: float) -> None:
        kind, options = parse_options_header(request.headers.get("content-type", ""))
        boundary = options.get(b"boundary", b"")
        if kind != b"multipart/form-data":
            raise unsupported_type("multipart/form-data with a boundary")
        if not 1 <= len(boundary) <= 200:
            raise bad_request("content-type: multipart/form-data needs a boundary of 1 to 200 bytes")
        self.fields: dict[str, str] = {}
        """Those read so far. Some clients cannot choose where the file is among them: they come before or after it."""
        self._stream = request.stream()
        self._stall = stall_seconds
        self._waited = 0.0
        self._arrived = 0
        self._parts = 0
        self._events: deque[tuple[str, bytes]] = deque()
        self._parser = MultipartParser(boundary, self._callbacks())

    def _callbacks(self) -> Any:
        def data(name: str) -> Any:
            return lambda block, start, end: self._events.append((name, block[start:end]))

        def mark(name: str) -> Any:
            return lambda: self._events.append((name, b""))

        def begin() -> None:
            # Here, not as they are taken: of a block that is full of parts no more are made than are read.
            self._parts += 1
            if self._parts > MAX_PARTS:
                raise bad_request(f"at most {MAX_PARTS} parts are read")

        return {
            "on_part_begin": begin,
            "on_header_field": data("field"),
            "on_header_value": data("value"),
            "on_header_end": mark("header"),
            "on_headers_finished": mark("headers"),
            "on_part_data": data("data"),
            "on_part_end": mark("end"),
            "on_end": mark("close"),
        }

    async def _next(self) -> tuple[str, bytes]:
        while not self._events:
            begun = time.monotonic()
            try:
                async with asyncio.timeout(self._stall - self._waited):
                    block = await anext(self._stream, b"")
            except TimeoutError:
                raise ProblemError(
                    status=408,
                    error="timeout",
                    message=f"less than {_LEAST_BYTES} bytes arrived in {self._stall:.0f} s",
                ) from None
            except ClientDisconnect:
                raise bad_request("the connection ended before the body did") from None
            if not block:
                raise bad_request("the body ends before its last boundary")
            self._waited += time.monotonic() - begun
            self._arrived += len(block)
            if self._arrived >= _LEAST_BYTES:
                self._waited, self._arrived = 0.0, 0
            try:
                self._parser.write(block)
            except FormParserError as error:
                raise bad_request(f"the body is no multipart form: {error}") from error
        return self._events.popleft()

    async def _part_head(self) -> tuple[str, FilePart | None] | None:
        """Return the next part's field name, and what it says of a file; None after the last part."""
        headers: dict[bytes, bytes] = {}
        field, value, size = b"", b"", 0
        while True:
            event, data = await self._next()
            size += len(data)
            if size > MAX_PART_HEADER_BYTES:
                raise bad_request(f"a part has more than {MAX_PART_HEADER_BYTES} bytes of headers")
            match event:
                case "close":
                    return None
                case "field":
                    field += data
                case "value":
                    value += data
                case "header":
                    headers[field.lower()] = value
                    field, value = b"", b""
                case "headers":
                    break
        disposition = headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        file_name = options.get(b"filename")
        if extended := _EXTENDED_NAME.search(_QUOTED.sub(b'""', disposition)):
            file_name = unquote_to_bytes(extended[1])
        if file_name is None:
            return name, None
        kind = headers.get(b"content-type", b"").decode(errors="replace").strip().lower()
        meaningful = kind and kind != "application/octet-stream" and len(kind) <= MAX_CONTENT_TYPE_LENGTH
        return name, FilePart(name=file_name.decode(errors="replace"), content_type=kind if meaningful else None)

    async def next_file(self) -> FilePart | None:
        """Read fields, up to the head of a file's part; None at the end of the form.

        What is called as a field is one, although it has a file name, as a Blob of JavaScript always has. A part with
        neither name nor bytes is no file: browsers send it for an input in which none was chosen.

        Raises:
            ProblemError: 400 when fields are too many, too long, given twice or not UTF-8, or the parts too many.
        """
        while (head := await self._part_head()) is not None:
            await asyncio.sleep(0)  # there may be hundreds in one block: the turn of others
            name, file = head
            if file is None or name in FIELDS:
                await self._read_field(name)
            elif file.name or await self._has_bytes():
                return file
        return None

    async def _has_bytes(self) -> bool:
        """Return whether the part whose head was read last has any; one that has none is read to its end."""
        event = await self._next()
        if event[0] != "data":
            return False
        self._events.appendleft(event)
        return True

    async def _read_field(self, name: str) -> None:
        if len(self.fields) == MAX_FIELDS:
            raise bad_request(f"at most {MAX_FIELDS} fields are read")
        value = bytearray()
        most = MAX_MANIFEST_BYTES if name == MANIFEST else MAX_FIELD_BYTES
        while (event := await self._next())[0] == "data":
            value += event[1]
            if len(value) > most:
                raise bad_request(f"{name[:64]}: more than {most} bytes")
        if name in self.fields:
            raise bad_request(f"{name[:64]}: given twice")
        try:
            self.fields[name] = value.decode()
        except UnicodeDecodeError:
            raise bad_request(f"{name[:64]}: not UTF-8") from None

    async def file(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the file whose head was read last."""
        while (event := await self._next())[0] == "data":
            yield event[1]
