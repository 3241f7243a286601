"""Files on the container's own disk. A full one is no fault of the document, of its source, or of the store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ingestion_worker.outcome import WorkerError


class ScratchFile:
    """A local file that is written from its beginning.

    Args:
        path: the file.
        what: is written, for messages.

    Raises:
        WorkerError: Internal, which is transient, when the disk does not take it; every method raises it.
    """

    def __init__(self, *, path: Path, what: str) -> None:
        self._what = what
        with self._reported():
            self._file: IO[bytes] = path.open("wb")

    def __enter__(self) -> ScratchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Append bytes."""
        with self._reported():
            self._file.write(data)

    def flush(self) -> None:
        """Make what was written visible to others."""
        with self._reported():
            self._file.flush()

    def close(self) -> None:
        """Write what is left, and close the file."""
        with self._reported():
            self._file.close()

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WorkerError("Internal", f"{self._what} cannot be written: {error}") from error
