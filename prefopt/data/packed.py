"""Token ids as bytes: four a token, in the machine's order, so that sequences are joined and compared whole."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

WIDTH = 4
"""Bytes of a token id (int32)."""


def pack(ids: Iterable[int]) -> bytes:
    """Return token ids as bytes."""
    return array("i", ids).tobytes()


def unpack(packed: bytes) -> tuple[int, ...]:
    """Return packed token ids as numbers."""
    return tuple(array("i", packed))


def holds(packed: bytes, token: bytes) -> bool:
    """Whether a packed sequence has the (packed) token."""
    at = packed.find(token)
    while at >= 0 and at % WIDTH:  # the bytes of two neighbours
        at = packed.find(token, at + 1)
    return at >= 0
