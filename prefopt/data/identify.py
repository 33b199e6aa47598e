"""Which sequences of token ids are the same: numbered in bounded memory, wherever the tokens lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

CHUNK = 1 << 20
"""Tokens that are looked at together."""


def number_sequences(tokens: NDArray[np.int32], lengths: Ints, stops: Ints, places: Ints) -> Ints:
    """Number the distinct sequences in order of appearance.

    Sequences are told apart by a 64-bit hash, and those that share one are compared token by token.

    Args:
        tokens: all sequences end to end.
        lengths: tokens of each sequence, at least one: (sequences,).
        stops: where each ends in `tokens`: (sequences,).
        places: which sequences to number: (places,).

    Returns:
        (places,), equal numbers for equal sequences.
    """
    if not len(places):
        return np.zeros(0, dtype=np.int64)
    hashes = _hashes(tokens, lengths, stops, places)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    representative = first[inverse]
    repeated = np.flatnonzero(representative != np.arange(len(places)))
    if not _all_equal(tokens, lengths, stops, places[repeated], places[representative[repeated]]):
        return _number_exactly(tokens, lengths, stops, places)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse]


def _hashes(tokens: NDArray[np.int32], lengths: Ints, stops: Ints, places: Ints) -> NDArray[np.uint64]:
    own, starts = lengths[places], (stops - lengths)[places]
    bounds = np.concatenate([[0], np.cumsum(own)])
    found = np.empty(len(places), dtype=np.uint64)
    at = 0
    while at < len(places):
        stop = max(at + 1, int(np.searchsorted(bounds, bounds[at] + CHUNK, side="right")) - 1)
        size = own[at:stop]
        heads = bounds[at:stop] - bounds[at]
        inside = np.arange(int(size.sum()), dtype=np.int64) - np.repeat(heads, size)
        held = tokens[inside + np.repeat(starts[at:stop], size)].astype(np.uint64)
        mixed = _mix(held + inside.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        found[at:stop] = _mix(np.add.reduceat(mixed, heads) + size.astype(np.uint64))
        at = stop
    return found


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's last steps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _all_equal(tokens: NDArray[np.int32], lengths: Ints, stops: Ints, some: Ints, others: Ints) -> bool:
    if not np.array_equal(lengths[some], lengths[others]):
        return False
    for a, b, size in zip(stops[some].tolist(), stops[others].tolist(), lengths[some].tolist(), strict=True):
        if a != b and not np.array_equal(tokens[a - size : a], tokens[b - size : b]):
            return False
    return True


def _number_exactly(tokens: NDArray[np.int32], lengths: Ints, stops: Ints, places: Ints) -> Ints:
    known: dict[bytes, int] = {}
    numbers = np.empty(len(places), dtype=np.int64)
    for index, place in enumerate(places.tolist()):
        key = tokens[stops[place] - lengths[place] : stops[place]].tobytes()
        numbers[index] = known.setdefault(key, len(known))
    return numbers
