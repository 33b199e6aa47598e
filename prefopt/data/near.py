"""Near-duplicate texts: sketches of five-character shingles, and the Jaccard index that they estimate.

A sketch is the smallest hashes of a text's shingles (Broder 1997, "On the resemblance and containment of documents");
of a text with fewer shingles than that it holds all, and the index is exact. Memory is bounded by `CAP` texts.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
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
_GLANCE = 32  # hashes by which most pairs are told apart
_NONE = np.uint32(0xFFFFFFFF)  # stands behind the hashes of a short text
_CHUNK = 1 << 15

Uint32s = NDArray[np.uint32]
Uint64s = NDArray[np.uint64]
Places = NDArray[np.int64]


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
    return sketches([folded])[0]


def sketches(folded: Sequence[str]) -> Uint32s:
    """Return the sketch of each folded text: (texts, 128) uint32."""
    found = np.full((len(folded), _SKETCH), _NONE, dtype=np.uint32)
    whole = [at for at, text in enumerate(folded) if len(text) <= _CHUNK]
    found[whole] = _sketched([folded[at] for at in whole])
    for at, text in enumerate(folded):
        if len(text) > _CHUNK:
            step = _CHUNK - _WIDTH + 1
            parts = _sketched([text[start : start + _CHUNK] for start in range(0, len(text) - _WIDTH + 1, step)])
            smallest = np.unique(parts)[:_SKETCH]  # `_NONE` is the largest number there is
            found[at, : len(smallest)] = smallest
    return found


def resemblance(left: Uint32s, right: Uint32s) -> NDArray[np.float64]:
    """Estimate the Jaccard index of texts by their sketches: (M, 128) and (M, 128) uint32 -> (M,) float64."""
    common, union = _shared(left, right)
    return np.asarray(common / union)


class Texts:
    """Distinct texts, as digests and sketches."""

    def __init__(self) -> None:
        self.seen: dict[bytes, None] = {}  # in order of appearance
        self._sketches: list[Uint32s] = []
        self._waiting: list[str] = []  # folded, without a sketch yet: many at once take less time
        self._size = 0  # of those, characters
        self._compared = 0

    def add(self, text: str) -> None:
        folded = fold(text)
        key = digest(folded)
        if key in self.seen:
            return
        self.seen[key] = None
        if self._compared < CAP:
            self._compared += 1
            self._waiting.append(folded)
            self._size += len(folded) + _WIDTH
            if self._size >= _CHUNK:
                self._sketch()

    def near_duplicates(self) -> NearDuplicates:
        """Count the texts that resemble another one."""
        own = self._matrix()
        keys, owners = _postings(own)
        near = np.zeros(len(own), dtype=bool)
        pairs = [(owners[step:], owners[:-step], keys[step:] == keys[:-step]) for step in range(1, _WINDOW + 1)]
        for left, right in _candidates(pairs, len(own)):
            open_ = ~(near[left] & near[right])
            left, right = left[open_], right[open_]
            alike = _resembling(own[left], own[right])
            near[left[alike]] = near[right[alike]] = True
        return NearDuplicates(len(self.seen), len(own), int(near.sum()))

    def near_in(self, others: Texts) -> NearDuplicates:
        """Count the texts that resemble one of `others`, those that are the same included."""
        own, found = self._matrix(), others._matrix()
        keys, owners = _postings(own)
        known, holders = _postings(found)
        near = np.array([key in others.seen for key in islice(self.seen, len(own))], dtype=bool)
        if len(known):
            first = np.searchsorted(known, keys)
            places = [np.minimum(first + step, len(known) - 1) for step in range(_WINDOW)]
            pairs = [(owners, holders[place], known[place] == keys) for place in places]
            for left, right in _candidates(pairs, len(found)):
                open_ = ~near[left]
                left, right = left[open_], right[open_]
                near[left[_resembling(own[left], found[right])]] = True
        return NearDuplicates(len(self.seen), len(own), int(near.sum()))

    def _sketch(self) -> None:
        self._sketches.append(sketches(self._waiting))
        self._waiting, self._size = [], 0

    def _matrix(self) -> Uint32s:
        self._sketch()
        self._sketches = [np.concatenate(self._sketches)]
        return self._sketches[0]


def _sketched(folded: Sequence[str]) -> Uint32s:
    """Sketch texts that are looked at together: as one row of characters, sorted by text and hash."""
    texts = [text if len(text) >= _WIDTH else text.ljust(_WIDTH, "\0") for text in folded]
    found = np.full((len(texts), _SKETCH), _NONE, dtype=np.uint32)
    if not texts:
        return found
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4")
    counts = np.fromiter(map(len, texts), dtype=np.int64) - (_WIDTH - 1)
    owners = np.repeat(np.arange(len(texts)), counts)
    # A shingle that begins in one text and ends in the next is none.
    inside = np.arange(len(owners)) + owners * (_WIDTH - 1)
    keyed = owners.astype(np.uint64) << np.uint64(32) | _hashes(codes.astype(np.uint64))[inside]
    keyed.sort()
    keyed = keyed[np.concatenate([[True], keyed[1:] != keyed[:-1]])]
    owners = (keyed >> np.uint64(32)).astype(np.int64)
    rank = np.arange(len(owners)) - np.searchsorted(owners, np.arange(len(texts)))[owners]
    kept = rank < _SKETCH
    found[owners[kept], rank[kept]] = keyed[kept].astype(np.uint32)
    return found


def _hashes(codes: Uint64s) -> Uint32s:
    """Hash each run of five characters: (L + 4,) -> (L,)."""
    count = len(codes) - _WIDTH + 1
    mixed = codes[:count].copy()
    for offset in range(1, _WIDTH):
        mixed *= np.uint64(0x9E3779B97F4A7C15)
        mixed += codes[offset : offset + count]
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


def _candidates(
    pairs: Sequence[tuple[Places, Places, NDArray[np.bool_]]], others: int
) -> Iterator[tuple[Places, Places]]:
    """Yield places of texts that share a key, each two once, a few thousand at a time; `others` are the second's."""
    both = np.concatenate([ones[same] * others + twos[same] for ones, twos, same in pairs])
    both.sort()
    both = both[np.concatenate([[True], both[1:] != both[:-1]])[: len(both)]]
    for start in range(0, len(both), _CHUNK // 8):
        yield np.divmod(both[start : start + _CHUNK // 8], others)


def _resembling(left: Uint32s, right: Uint32s) -> Places:
    """Return the rows at which two sketches reach the threshold."""
    # Of the union's first hashes, 128 at most, a fifth at most may be in one text alone. Where more than those 25 are
    # so among the first 32 already, which most are that share a key by chance, the rest need not be looked at.
    common, union = _shared(left[:, :_GLANCE], right[:, :_GLANCE])
    at = np.flatnonzero(union - common <= (1 - THRESHOLD) * _SKETCH)
    return at[resemblance(left[at], right[at]) >= THRESHOLD]


def _shared(left: Uint32s, right: Uint32s) -> tuple[Places, Places]:
    """Of the K smallest hashes of two texts' union, or all if they are fewer, count those of both, and all.

    Both arguments are (M, K), the K smallest of each text.
    """
    size = left.shape[1]
    both = np.concatenate([left, right], axis=1)
    both.sort(axis=1)
    again = np.zeros(both.shape, dtype=bool)
    again[:, 1:] = both[:, 1:] == both[:, :-1]
    real = both != _NONE
    again &= real
    rank = np.cumsum(real & ~again, axis=1, dtype=np.int16)  # of the union's hashes, the smallest first
    common = np.count_nonzero(again & (rank <= size), axis=1)
    return common, np.minimum(rank[:, -1], size)
