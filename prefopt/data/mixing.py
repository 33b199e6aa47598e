"""Several sources by weight: how often each example of an epoch comes, and whose turn it is in a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefopt.data.config import DataOptions, WeightedSource
from prefopt.data.sources import open_sources
from prefopt.errors import DataError


@dataclass(frozen=True)
class Weighted:
    """Sources that count as one, and their weight; weights need not add up to 1."""

    names: tuple[str, ...]
    """The files or datasets, as the `source` of an example names them before the line."""
    weight: float


@dataclass(frozen=True)
class Share:
    """What a weighted source is of an epoch."""

    names: tuple[str, ...]
    examples: int
    """Examples it has."""
    drawn: int
    """Examples of it in an epoch."""


def weighted(sources: Iterable[WeightedSource], options: DataOptions) -> tuple[Weighted, ...]:
    """Find the files that weighted sources name.

    Raises:
        DataError: a source that is missing, or a file that two of them name.
    """
    found = tuple(
        Weighted(tuple(named.name for named in open_sources(one.source, options)), one.weight) for one in sources
    )
    names = [name for one in found for name in one.names]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"{twice} is named twice in data.train; a source has one weight.")
    return found


def shares(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many examples of each source an epoch holds.

    The source that is largest for its weight is seen exactly once, and the others as often as their weights then ask,
    so that every example comes at least once.
    """
    per_weight = max(size / weight for size, weight in zip(sizes, weights, strict=True))
    return [max(size, round(weight * per_weight)) for size, weight in zip(sizes, weights, strict=True)]


def parts_of(sources: Sequence[str], weights: Sequence[Weighted]) -> NDArray[np.int64]:
    """Return which weighted source each example came from: (examples,) int64.

    Args:
        sources: where each example came from, as `file.jsonl:12`.
        weights: the weighted sources.

    Raises:
        DataError: an example from another source, or a source without examples.
    """
    number = {name: index for index, weighted in enumerate(weights) for name in weighted.names}
    parts = np.fromiter((number.get(source.rpartition(":")[0], -1) for source in sources), dtype=np.int64)
    if (strange := np.flatnonzero(parts < 0)).size:
        raise DataError(f"The example from {sources[int(strange[0])] or 'nowhere'} belongs to no weighted source.")
    for index in np.flatnonzero(np.bincount(parts, minlength=len(weights)) == 0).tolist():
        raise DataError(f"{', '.join(weights[index].names)} has no example that this loss can use; leave it out.")
    return parts


def turn(weights: Sequence[float], drawn: Sequence[int]) -> int:
    """Return which source a stream reads next: the one that is furthest behind its share; the first of equals."""
    total = sum(weights)
    behind = [weight / total * (sum(drawn) + 1) - taken for weight, taken in zip(weights, drawn, strict=True)]
    return behind.index(max(behind))
