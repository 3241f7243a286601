"""The header Idempotency-Key: a request that is sent again with the same one does nothing a second time."""

from __future__ import annotations

import hashlib
import re
from typing import Final, NewType

from ingestion_api.problems import bad_request

KEY_PATTERN: Final = "^[!-~]{1,255}$"
_KEY_TEXT: Final = re.compile(KEY_PATTERN)
_DIGEST_CHARACTERS: Final = 32

KeyDigest = NewType("KeyDigest", str)


def key_digest(text: str | None) -> KeyDigest | None:
    """Return what is kept of an Idempotency-Key.

    Raises:
        ProblemError: 400 when it is not 1 to 255 printable ASCII characters without spaces.
    """
    if text is None:
        return None
    if not _KEY_TEXT.match(text):
        raise bad_request("Idempotency-Key: 1 to 255 printable ASCII characters without spaces")
    return KeyDigest(hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARACTERS])
