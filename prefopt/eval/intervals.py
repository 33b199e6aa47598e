"""Shares and means with 95 % intervals: Wilson's for a share, a seeded bootstrap for a mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.data.statistics import wilson

Floats = NDArray[np.float64]

_BLOCK = 4_000_000
"""Draws that the bootstrap holds at once: 32 MB."""


@dataclass(frozen=True)
class Share:
    """How often something was so, with Wilson's 95 % interval. Empty: no value and no interval."""

    count: int
    n: int
    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Mean:
    """A mean with the 95 % percentile interval of its bootstrap. Empty: no value and no interval."""

    n: int
    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Accuracy:
    """Right and wrong answers with Wilson's 95 % interval of right / (right + wrong); ties are counted apart.

    A tie is an exact one: the two numbers that were compared are equal. Only ties: no value.
    """

    right: int
    wrong: int
    ties: int
    value: float | None
    low: float | None
    high: float | None

    @property
    def n(self) -> int:
        return self.right + self.wrong + self.ties

    @property
    def tie_share(self) -> float | None:
        return self.ties / self.n if self.n else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "n": self.n, "tie_share": self.tie_share}


def share(flags: ArrayLike) -> Share:
    """Return how often `flags` (n,) bool are true."""
    values = np.asarray(flags, dtype=bool)
    count, n = int(values.sum()), int(values.size)
    if n == 0:
        return Share(0, 0, None, None, None)
    return Share(count, n, count / n, *wilson(count, n))


def accuracy(margins: ArrayLike) -> Accuracy:
    """Return how often `margins` (n,) are positive (right) rather than negative (wrong); zeros are ties.

    The interval takes the pairs as independent: where one completion stands in many pairs it is too narrow.
    """
    values = np.asarray(margins, dtype=np.float64)
    right, wrong = int((values > 0).sum()), int((values < 0).sum())
    ties = int((values == 0).sum())
    if right + wrong == 0:
        return Accuracy(right, wrong, ties, None, None, None)
    return Accuracy(right, wrong, ties, right / (right + wrong), *wilson(right, right + wrong))


def mean(values: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Mean:
    """Return the mean of `values` (n,) with a percentile bootstrap interval that `seed` decides."""
    data = np.asarray(values, dtype=np.float64)
    n = int(data.size)
    if n == 0:
        return Mean(0, None, None, None)
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    means = np.concatenate(
        [
            data[rng.integers(0, n, (min(block, resamples - done), n))].mean(axis=1)
            for done in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return Mean(n, float(data.mean()), float(low), float(high))
