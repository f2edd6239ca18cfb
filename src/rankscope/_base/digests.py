"""A digest of a tag and of the digests of its parts, and what every part of a walk over objects knows of the others."""

from __future__ import annotations

import hashlib
from typing import Any

__all__ = ["Walk", "node", "text"]


def node(tag: str, *parts: bytes) -> bytes:
    total = hashlib.blake2b(tag.encode("utf-8", "surrogatepass"), digest_size=16)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()


def text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


class Walk:
    """What digests any object: each part of it asks the whole for the digests of what it finds."""

    def of(self, value: Any) -> bytes:
        """The digest of any object."""
        raise NotImplementedError
