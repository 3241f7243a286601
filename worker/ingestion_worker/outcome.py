"""How a container ends: one error type, its exit code, and the JSON termination message."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ingestion_crds.constants import MAX_TERMINATION_MESSAGE_BYTES, TRANSIENT_EXIT_CODE
from ingestion_crds.errors import ERROR_CODES, Code

ENV_TERMINATION_LOG: Final = "INGESTION_TERMINATION_LOG"
DEFAULT_TERMINATION_LOG: Final = "/dev/termination-log"
_ELLIPSIS: Final = "…"


class WorkerError(Exception):
    """A failure that has a name in the table of error codes.

    Args:
        code: which one.
        message: what is wrong with what, for a person; never a secret.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code: Code = code
        self.message = message

    @property
    def retryable(self) -> bool:
        """True when a retry can succeed once the cause outside the job is mended."""
        return ERROR_CODES[self.code].retryable

    @property
    def exit_code(self) -> int:
        """The exit code of a container that ends with this error."""
        code = ERROR_CODES[self.code].exit_code
        return TRANSIENT_EXIT_CODE if code is None else code


def failure_message(*, error: WorkerError) -> dict[str, Any]:
    """Return the termination message of a failed container, as the contract writes it."""
    return {"code": error.code, "message": error.message, "retryable": error.retryable}


def encode_termination(*, message: Mapping[str, Any], limit: int = MAX_TERMINATION_MESSAGE_BYTES) -> bytes:
    """Encode a termination message as JSON of at most `limit` bytes.

    The kubelet cuts a longer file in the middle of a string, so the text under `message` is cut here, on a
    code point, until the whole is valid JSON within the limit.

    Args:
        message: the object to write; only its `message` string may be shortened.
        limit: bytes.

    Raises:
        ValueError: the object is over the limit even without its `message`.
    """
    encoded = _dump(message)
    if len(encoded) <= limit:
        return encoded
    text = str(message.get("message", ""))
    low, high = 0, len(text)
    if len(_dump({**message, "message": _ELLIPSIS})) > limit:
        raise ValueError("the termination message is over the limit even without its text")
    while low < high:
        middle = (low + high + 1) // 2
        if len(_dump({**message, "message": text[:middle] + _ELLIPSIS})) <= limit:
            low = middle
        else:
            high = middle - 1
    return _dump({**message, "message": text[:low] + _ELLIPSIS})


def write_termination(*, message: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """Write the termination message where the kubelet (or a test) reads it.

    A path that cannot be written is no reason to fail work that is done, so that error is dropped: the operator then
    reports `ResultLost` or `ContainerError`.

    Source: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
    """
    path = Path(env.get(ENV_TERMINATION_LOG, DEFAULT_TERMINATION_LOG))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(encode_termination(message=message))
    except OSError:
        return


def _dump(value: Mapping[str, Any]) -> bytes:
    # A lone surrogate (from a file name that is not UTF-8) must not turn the report into a crash.
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", errors="replace")
