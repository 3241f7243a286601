"""The map digest: by it a pod tells whether the file that it reads is the one that its Job was made with."""

from __future__ import annotations

import hashlib
from typing import Final

MAP_DIGEST_LENGTH: Final = 32


def map_digest(content: bytes) -> str:
    """Return the first hex digits of the SHA-256 of an attempt's file."""
    return hashlib.sha256(content).hexdigest()[:MAP_DIGEST_LENGTH]
