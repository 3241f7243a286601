"""HTTP/1.1 by uvicorn's fast parser, with the bound on a request's head that it lacks.

Its other parser, h11, has one, and takes several times as long over each request (docs/performance.md).
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class BoundedHttp(HttpToolsProtocol):
    """Answers 400 and hangs up once request line and headers grow over `h11_max_incomplete_event_size`, as h11 does.

    Bytes are counted as they come: the parser keeps a header without an end to itself.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limit = self.config.h11_max_incomplete_event_size
        self._head: int | None = 0
        """Bytes that came since a head began; None while a body is read."""

    def data_received(self, data: bytes) -> None:
        """Take in bytes."""
        if self._head is not None:
            self._head += len(data)
        super().data_received(data)
        if self._head is not None and self._limit is not None and self._head > self._limit:
            self.logger.warning("Request line and headers are too large.")
            self.send_400_response("Request line and headers are too large.")

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._head = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request is whole; the next head may begin."""
        self._head = 0
        super().on_message_complete()
