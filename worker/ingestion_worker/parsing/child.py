"""The parser's process: sets its own bounds, reads one document, prints one JSON result.

`python -m ingestion_worker.parsing.child` with a request on stdin; only `parsing.guard` runs it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ingestion_worker.outcome import WorkerError
from ingestion_worker.scratch import ScratchFile

_PR_SET_PDEATHSIG: Final = 1


class TextWriter:
    """Writes UTF-8 text to a file, up to a number of bytes.

    Args:
        path: the file.
        name: the document's, for messages.
        limit: bytes at most.
    """

    def __init__(self, *, path: Path, name: str, limit: int) -> None:
        self._file = ScratchFile(path=path, what=f"the text of {name}")
        self._name = name
        self._limit = limit
        self._bytes = 0
        self.characters = 0
        self.has_text = False

    def write(self, text: str) -> None:
        """Append text.

        Raises:
            WorkerError: DocumentTooLarge once it is over the limit; Internal when the disk does not take it.
        """
        data = text.encode("utf-8", "replace")
        self._bytes += len(data)
        if self._bytes > self._limit:
            raise WorkerError("DocumentTooLarge", f"{self._name} holds more than {self._limit} bytes of text")
        self.characters += len(text)
        self.has_text = self.has_text or bool(text.strip())
        self._file.write(data)

    def flush(self) -> None:
        """Make what was written visible to the parent."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _text_operation(parse: Callable[..., None]) -> Callable[..., dict[str, Any]]:
    def run(*, name: str, limit: int, path: str, output: str, **more: Any) -> dict[str, Any]:
        writer = TextWriter(path=Path(output), name=name, limit=limit)
        try:
            parse(path=Path(path), name=name, write=writer.write, **more)
        finally:
            writer.close()
        if not writer.has_text:
            raise WorkerError("DocumentEmpty", f"there is no text in {name}")
        return {"characters": writer.characters}

    return run


def _docx(**arguments: Any) -> dict[str, Any]:
    from ingestion_worker.parsing.docx import parse_docx

    return _text_operation(parse_docx)(**arguments)


def _html(**arguments: Any) -> dict[str, Any]:
    from ingestion_worker.parsing.html import parse_html

    return _text_operation(parse_html)(**arguments)


def _text(**arguments: Any) -> dict[str, Any]:
    from ingestion_worker.parsing.text import parse_text

    return _text_operation(functools.partial(parse_text, limit=arguments["limit"]))(**arguments)


def _pdf_inspect(**arguments: Any) -> dict[str, Any]:
    from ingestion_worker.parsing.pdf import inspect_pdf

    arguments.pop("limit")
    return inspect_pdf(**{**arguments, "path": Path(arguments["path"])})


def _pdf_pages(*, name: str, limit: int, path: str, output: str, first: int, last: int, before: bool) -> dict[str, Any]:
    from ingestion_worker.parsing.pdf import read_pages

    writer = TextWriter(path=Path(output), name=name, limit=limit)
    try:
        for page in read_pages(path=Path(path), name=name, first=first, last=last, before=before):
            writer.write(json.dumps(page, ensure_ascii=False) + "\n")
            writer.flush()
    finally:
        writer.close()
    return {}


OPERATIONS: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "docx": _docx,
    "html": _html,
    "text": _text,
    "pdf_inspect": _pdf_inspect,
    "pdf_pages": _pdf_pages,
}


def _bound(*, memory_bytes: int, cpu_seconds: int, parent: int) -> None:
    # Die with the parent, whatever kills it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """Run the request on stdin; exit 0 with `{"result"}` or `{"error"}` on stdout."""
    # Parsers print warnings on file descriptor 1; keep the answer's channel to ourselves.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    name = request["name"]
    _bound(memory_bytes=request["memoryBytes"], cpu_seconds=request["cpuSeconds"], parent=request["parent"])
    reply: dict[str, Any]
    try:
        operation = OPERATIONS[request["operation"]]
        reply = {"result": operation(name=name, limit=request["outputBytes"], **request["arguments"])}
    except WorkerError as error:
        reply = {"error": {"code": error.code, "message": error.message}}
    except (MemoryError, RecursionError):
        reply = {
            "error": {
                "code": "DocumentTooComplex",
                "message": f"{name} needs more than {request['memoryBytes'] // 2**20} MiB of memory to read",
            }
        }
    json.dump(reply, answer)
    answer.close()
    return 0


if __name__ == "__main__":
    code = main()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    # Skip interpreter teardown: freeing a large document tree can take longer than reading it.
    os._exit(code)
