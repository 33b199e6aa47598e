"""What a set of preferences is like, beyond its counts: length bias, histograms, scores, near-duplicates, overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.near import NearDuplicates

KEPT = 0.99
"""Share of the rows that a suggested `max_length` holds: what `data.max_rejected` allows by default."""
_Z = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True)
class Rate:
    """How often something is so, with Wilson's 95 % interval."""

    count: int
    n: int
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, count: int, n: int) -> Rate | None:
        """Return the rate, or None where there is nothing to count."""
        if not n:
            return None
        return cls(count, n, count / n, *wilson(count, n))


def wilson(count: float, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927), count of n; n > 0."""
    p = count / n
    centre = p + _Z**2 / (2 * n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    scale = 1 + _Z**2 / n
    # At 0 of n and n of n an end is 0 or 1 exactly; rounding must not move it.
    low = 0.0 if count == 0 else (centre - half) / scale
    high = 1.0 if count == n else (centre + half) / scale
    return low, high


@dataclass(frozen=True)
class Histogram:
    """Counts between shared edges: bin i holds edges[i] <= value < edges[i + 1]."""

    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    """Name of a series -> its counts."""


@dataclass(frozen=True)
class ScoreStatistics:
    """What scores say of the preferences beside which they stand."""

    scored: int
    """Examples with scores."""
    against: int
    """Pairs whose rejected completion is scored higher."""
    tied: int
    """Pairs whose scores are equal; of lists, those in which all are."""
    tied_pairs: Rate | None
    """Of lists: pairs of completions with equal scores."""
    gap: tuple[float, float, float]
    """Chosen minus rejected, of lists best minus worst: 10 %, median, 90 %."""
    gaps: Histogram


@dataclass(frozen=True)
class Candidate:
    """A `max_length`, and what would be left out by it."""

    max_length: int
    rows_dropped: int
    rows_share: float
    tokens_dropped: int
    tokens_share: float


@dataclass(frozen=True)
class Overlap:
    """How much of the held-out preferences stands in these as well."""

    source: str
    rows: int
    """Held-out rows."""
    shared_rows: int
    """Held-out rows whose prompt is one of these rows' too."""
    prompts: int
    """Distinct held-out prompts."""
    shared_prompts: int
    near: NearDuplicates
    """Held-out prompts that resemble one of these, the same ones included."""


@dataclass(frozen=True)
class Statistics:
    """Everything that is measured of one source."""

    histogram: Histogram
    """Lengths in the summary's unit."""
    longer: Rate | None
    """How often the better completion is the longer one, of those that differ in length; None for labels."""
    same_length: int
    contradicted: int
    """Judgements of which another one says the opposite: the same prompt and completions the other way round."""
    scores: ScoreStatistics | None
    near_prompts: NearDuplicates
    near_rows: NearDuplicates
    candidates: tuple[Candidate, ...]
    """Of `max_length`, ascending; none without a tokenizer."""
    suggested: int | None
    """The smallest candidate that holds `KEPT` of the rows."""
    overlap: Overlap | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy."""
        return asdict(self)


def length_histogram(series: Mapping[str, NDArray[np.int64]]) -> Histogram:
    """Count lengths between 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: doublings and what lies midway."""
    top = max(int(values.max(initial=0)) for values in series.values())
    edges = [0, 1, 2, 3]
    while edges[-1] <= top:
        edges.append(edges[-2] * 2)
    return _between(edges, series)


def gap_histogram(gaps: NDArray[np.float64], bins: int = 9) -> Histogram:
    """Count gaps of scores between equally wide, round edges, one of which is 0."""
    low, high = float(gaps.min()), float(gaps.max())
    width = _round_up(max(high - low, abs(high), abs(low), 1e-6) / bins)
    first, last = math.floor(low / width), math.floor(high / width) + 1
    return _between([i * width for i in range(first, last + 1)], {"gap": gaps})


def longer_rate(better: NDArray[np.int64], worse: NDArray[np.int64]) -> tuple[Rate | None, int]:
    """Return how often the better completion is longer where lengths differ, and how often they don't."""
    same = int((better == worse).sum())
    return Rate.of(int((better > worse).sum()), len(better) - same), same


def score_statistics(scores: Sequence[tuple[float, ...]], *, lists: bool) -> ScoreStatistics | None:
    """Measure scores, one tuple an example with the preferred completion's first; None where there are none."""
    if not scores:
        return None
    gaps = np.array([own[0] - own[-1] for own in scores], dtype=np.float64)
    tied_pairs = None
    if lists:
        equal = compared = 0
        for own in scores:
            compared += len(own) * (len(own) - 1) // 2
            equal += sum(n * (n - 1) // 2 for n in np.unique(own, return_counts=True)[1].tolist())
        tied_pairs = Rate.of(equal, compared)
    low, middle, high = np.quantile(gaps, (0.1, 0.5, 0.9)).tolist()
    return ScoreStatistics(
        scored=len(gaps),
        against=int((gaps < 0).sum()),
        tied=int((gaps == 0).sum()),
        tied_pairs=tied_pairs,
        gap=(low, middle, high),
        gaps=gap_histogram(gaps),
    )


def length_candidates(totals: NDArray[np.int64]) -> tuple[tuple[Candidate, ...], int | None]:
    """Say what each `max_length` would leave out, and which is suggested.

    Args:
        totals: tokens of each row's prompt with its longest completion: (rows,) int64.
    """
    if not len(totals):
        return (), None
    ordered = np.sort(totals)
    sums = np.concatenate([[0], np.cumsum(ordered)])
    sizes = [64]
    while sizes[-1] < ordered[-1]:
        sizes.append(sizes[-1] * 3 // 2 if sizes[-1].bit_count() == 1 else sizes[-1] // 3 * 4)
    found = []
    for size in sizes:
        kept = int(np.searchsorted(ordered, size, side="right"))
        rows, tokens = len(ordered) - kept, int(sums[-1] - sums[kept])
        found.append(Candidate(size, rows, rows / len(ordered), tokens, tokens / max(int(sums[-1]), 1)))
    suggested = next(one.max_length for one in found if one.rows_share <= 1 - KEPT)
    worthwhile = [one for one in found if one.rows_share < 0.5]
    return tuple(worthwhile), suggested


def _between(edges: Sequence[float], series: Mapping[str, NDArray[Any]]) -> Histogram:
    found = {}
    for name, values in series.items():
        bins = np.searchsorted(np.array(edges, dtype=np.float64), values, side="right") - 1
        found[name] = tuple(np.bincount(bins, minlength=len(edges) - 1)[: len(edges) - 1].tolist())
    used = [i for i in range(len(edges) - 1) if any(counts[i] for counts in found.values())]
    first, last = (used[0], used[-1] + 1) if used else (0, 1)
    return Histogram(tuple(edges[first : last + 1]), {name: counts[first:last] for name, counts in found.items()})


def _round_up(value: float) -> float:
    scale = 10.0 ** math.floor(math.log10(value))
    return next(step * scale for step in (1, 2, 2.5, 5, 10) if step * scale >= value * (1 - 1e-12))
