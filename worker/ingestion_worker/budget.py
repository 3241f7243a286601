"""A bound on bytes that threads share."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """At most so many bytes are in memory at the same time; who wants more waits until others have given theirs back.

    Args:
        max_bytes: of all shares together. One that is larger than that is held alone.
    """

    def __init__(self, *, max_bytes: int = 256 * 2**20) -> None:
        self._max_bytes = max_bytes
        self._held = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int, *, deadline: float | None = None) -> Iterator[None]:
        """Hold a share.

        Args:
            size: bytes.
            deadline: until when to wait for it, in monotonic seconds; None waits without end.

        Raises:
            TimeoutError: it was not free by then.
        """
        share = min(size, self._max_bytes)
        with self._changed:
            left = None if deadline is None else deadline - time.monotonic()
            if not self._changed.wait_for(lambda: self._held + share <= self._max_bytes, timeout=left):
                raise TimeoutError(f"no {share} bytes were free in time")
            self._held += share
        try:
            yield
        finally:
            with self._changed:
                self._held -= share
                self._changed.notify_all()
