"""Shares, means and differences with 95 % intervals: Wilson's score for shares, a seeded bootstrap for means."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.data.statistics import wilson

Z = 1.959963984540054
"""The normal distribution's 97.5 % point."""

Floats = NDArray[np.float64]

_SIGNS = 6
"""The fewest values of one sign that chance gives less often than once in twenty (sign test, two-sided: 2 / 2^6)."""

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
class Estimate:
    """A number with a 95 % interval; what makes it says of which kind. Nothing to measure: no value, no interval."""

    n: int
    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Mean(Estimate):
    """A mean with the 95 % percentile interval of its bootstrap."""

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on that side of zero, 0 where that may be chance.

        Equal values give an interval without width, however few they are: fewer than `_SIGNS` of them are no sign.
        """
        if self.low is None or self.high is None or (self.low == self.high and self.n < _SIGNS):
            return 0
        return int(self.low > 0) - int(self.high < 0)


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
    if data.size == 0:
        return Mean(0, None, None, None)
    return Mean(int(data.size), float(data.mean()), *_bootstrap(data, resamples, seed))


def paired_difference(first: ArrayLike, second: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Return the mean of second - first, (n,) each and of the same n things, with a bootstrap interval over things."""
    found = mean(
        np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64), resamples=resamples, seed=seed
    )
    return Estimate(found.n, found.value, found.low, found.high)


def share_difference(first: Accuracy | Share, second: Accuracy | Share) -> Estimate:
    """Return second - first of two shares of different things, with Newcombe's interval from their Wilson intervals.

    Method 10 of Newcombe (1998), Statistics in Medicine 17, 873-890. `n` counts what both shares are of.
    """
    counted = _of(first) + _of(second)
    if first.value is None or second.value is None:
        return Estimate(counted, None, None, None)
    assert first.low is not None
    assert first.high is not None
    assert second.low is not None
    assert second.high is not None
    difference = second.value - first.value
    below = math.hypot(second.value - second.low, first.high - first.value)
    above = math.hypot(second.high - second.value, first.value - first.low)
    return Estimate(counted, difference, difference - below, difference + above)


def _of(found: Accuracy | Share) -> int:
    return found.right + found.wrong if isinstance(found, Accuracy) else found.n


def _bootstrap(data: Floats, resamples: int, seed: int) -> tuple[float, float]:
    n = data.size
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    means = np.concatenate(
        [
            data[rng.integers(0, n, (min(block, resamples - done), n))].mean(axis=1)
            for done in range(0, resamples, block)
        ]
    )
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
