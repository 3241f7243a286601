"""Digests: of an attempt's file, and of the UIDs that are in generated names."""

from __future__ import annotations

import hashlib
from typing import Final

MAP_DIGEST_LENGTH: Final = 32


def map_digest(content: bytes) -> str:
    """Return the first hex digits of the SHA-256 of an attempt's file.

    By it a pod tells whether the file that it reads is the one that its Job was made with.
    """
    return hashlib.sha256(content).hexdigest()[:MAP_DIGEST_LENGTH]


def uid_digest(uid: str) -> str:
    """Return what stands for an object's UID in names that are generated for it."""
    return hashlib.sha256(uid.encode()).hexdigest()[:10]


def name_start(*, name: str, uid: str, length: int) -> str:
    """Return what the names begin with that are generated for an object: with its own one, and its UID.

    Args:
        name: the object's.
        uid: the object's.
        length: so much of its name at most.
    """
    prefix = name[:length].replace(".", "-").strip("-")
    return f"{prefix}-{uid_digest(uid)}-"
