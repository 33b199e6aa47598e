"""Near-duplicate texts: sketches of five-character shingles, and the Jaccard index that they estimate.

A sketch is the smallest hashes of a text's shingles (Broder 1997, "On the resemblance and containment of documents");
of a text with fewer shingles than that it holds all, and the index is exact. Memory is bounded by `CAP` texts.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.8
"""Jaccard index from which two texts are near-duplicates."""
CAP = 100_000
"""Distinct texts that are compared; further ones are counted, and not compared."""

_WIDTH = 5  # characters of a shingle
_SKETCH = 128  # hashes of a sketch
_KEYS = 24  # neighbouring pairs of a sketch's smallest hashes; two near-duplicates share one of them all but always
_WINDOW = 4  # texts with the same key that each is compared with
_NONE = np.uint32(0xFFFFFFFF)  # stands behind the hashes of a short text
_CHUNK = 1 << 16

Uint32s = NDArray[np.uint32]
Uint64s = NDArray[np.uint64]


@dataclass(frozen=True)
class NearDuplicates:
    """How many distinct texts have a near-duplicate among the others."""

    distinct: int
    """Distinct texts, after white space, case and Unicode's compatible characters are folded."""
    compared: int
    """How many of them were looked at: all, or the first `CAP`."""
    near: int
    threshold: float = THRESHOLD


def fold(text: str) -> str:
    """Return what two texts are compared by: compatible characters, case and white space made one."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def digest(text: str) -> bytes:
    """Return 16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def sketch(folded: str) -> Uint32s:
    """Return the smallest distinct shingle hashes of a folded text, ascending: (128,) uint32, `_NONE` behind them."""
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    if len(codes) < _WIDTH:
        codes = np.pad(codes, (0, _WIDTH - len(codes)))
    smallest = np.zeros(0, dtype=np.uint32)
    for start in range(0, len(codes) - _WIDTH + 1, _CHUNK):
        hashes = _hashes(codes[start : start + _CHUNK + _WIDTH - 1])
        smallest = np.unique(np.concatenate([smallest, hashes]))[:_SKETCH]
    return np.pad(smallest, (0, _SKETCH - len(smallest)), constant_values=_NONE)


def resemblance(left: Uint32s, right: Uint32s) -> NDArray[np.float64]:
    """Estimate the Jaccard index of texts by their sketches: (M, 128) and (M, 128) uint32 -> (M,) float64."""
    both = np.sort(np.concatenate([left, right], axis=1), axis=1)
    again = np.zeros(both.shape, dtype=bool)
    again[:, 1:] = both[:, 1:] == both[:, :-1]
    real = both != _NONE
    rank = np.cumsum(real & ~again, axis=1)  # of the union's hashes, the smallest first
    counted = real & (rank <= _SKETCH)
    return np.asarray((counted & again).sum(axis=1) / np.minimum(rank[:, -1], _SKETCH))


class Texts:
    """Distinct texts, as digests and sketches."""

    def __init__(self) -> None:
        self.seen: dict[bytes, None] = {}  # in order of appearance
        self._sketches: list[Uint32s] = []

    def add(self, text: str) -> None:
        folded = fold(text)
        key = digest(folded)
        if key in self.seen:
            return
        self.seen[key] = None
        if len(self._sketches) < CAP:
            self._sketches.append(sketch(folded))

    def near_duplicates(self) -> NearDuplicates:
        """Count the texts that resemble another one."""
        sketches = self._matrix()
        keys, owners = _postings(sketches)
        near = np.zeros(len(sketches), dtype=bool)
        pairs = [(owners[step:], owners[:-step], keys[step:] == keys[:-step]) for step in range(1, _WINDOW + 1)]
        for left, right in _resembling(sketches, sketches, pairs):
            near[left] = near[right] = True
        return NearDuplicates(len(self.seen), len(sketches), int(near.sum()))

    def near_in(self, others: Texts) -> NearDuplicates:
        """Count the texts that resemble one of `others`, those that are the same included."""
        sketches, found = self._matrix(), others._matrix()
        keys, owners = _postings(sketches)
        known, holders = _postings(found)
        near = np.array([key in others.seen for key in islice(self.seen, len(sketches))], dtype=bool)
        if len(known):
            first = np.searchsorted(known, keys)
            places = [np.minimum(first + step, len(known) - 1) for step in range(_WINDOW)]
            pairs = [(owners, holders[place], known[place] == keys) for place in places]
            for left, _ in _resembling(sketches, found, pairs):
                near[left] = True
        return NearDuplicates(len(self.seen), len(sketches), int(near.sum()))

    def _matrix(self) -> Uint32s:
        return np.stack(self._sketches) if self._sketches else np.zeros((0, _SKETCH), dtype=np.uint32)


def _hashes(codes: Uint64s) -> Uint32s:
    """Hash each run of five characters: (L + 4,) -> (L,)."""
    count = len(codes) - _WIDTH + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(_WIDTH):
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + count]
    # The finaliser of splitmix64: every bit of the run reaches the upper half.
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    return np.minimum((mixed >> np.uint64(32)).astype(np.uint32), _NONE - np.uint32(1))


def _postings(sketches: Uint32s) -> tuple[Uint64s, NDArray[np.int64]]:
    """Return every text's keys, ascending, and whose they are."""
    smallest = sketches[:, : _KEYS + 1].astype(np.uint64)
    keys = (smallest[:, :-1] << np.uint64(32)) | smallest[:, 1:]
    real = sketches[:, 1 : _KEYS + 1] != _NONE
    real[:, 0] = True  # a text of one shingle has a key too
    owners = np.broadcast_to(np.arange(len(sketches))[:, None], keys.shape)[real]
    order = np.argsort(keys[real], kind="stable")
    return keys[real][order], owners[order]


def _resembling(
    left: Uint32s, right: Uint32s, pairs: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield those of the candidate pairs that reach the threshold."""
    for ones, others, same in pairs:
        candidates = np.unique(np.stack([ones[same], others[same]]), axis=1)
        for start in range(0, candidates.shape[1], _CHUNK // 8):
            a, b = candidates[:, start : start + _CHUNK // 8]
            alike = resemblance(left[a], right[b]) >= THRESHOLD
            yield a[alike], b[alike]
