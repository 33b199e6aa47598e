"""Whether sigma(margin) is the probability that it is meant to be: reliability, calibration error, Brier score.

Under Bradley and Terry's model sigma(margin) is how probably a person prefers the chosen completion. It is compared
from the side that the model prefers, so that which completion is called chosen doesn't enter: a pair with sigma 0.2 is
one where the model prefers the rejected completion with confidence 0.8.

- Against raters, a bin's observation is the mean share of raters who prefer what the model prefers.
- Against plain outcomes (nobody counted raters) the chosen completion is right by definition, and the observation is
  how often it is the one that the model prefers: accuracy at that confidence. People disagree, and plain outcomes don't
  show it: a model that knows how divided people are looks too timid by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from prefopt.data.statistics import wilson
from prefopt.errors import DataError
from prefopt.eval.intervals import Estimate, Floats, Mean, mean
from prefopt.eval.records import plain

EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs on which the model is about equally sure: low <= confidence < high, the last bin with its upper edge."""

    low: float
    high: float
    n: int
    predicted: float | None
    """Mean confidence."""
    observed: Estimate
    """How often people prefer what the model prefers: against raters with a bootstrap interval, else Wilson's."""

    def to_dict(self) -> dict[str, Any]:
        return plain(self)


@dataclass(frozen=True)
class Calibration:
    """How well sigma(margin) foretells what people prefer."""

    against: Literal["raters", "outcomes"]
    n: int
    ties: int
    """Pairs with sigma(margin) = 1/2 exactly, which are in no bin."""
    bins: tuple[CalibrationBin, ...]
    expected_error: float | None
    """Mean of |predicted - observed| over pairs in bins. Chance alone makes it positive: more so with few pairs."""
    brier: Mean
    """Mean squared error of sigma(margin) against one rater's vote: 0.25 without an opinion, less is better."""

    def to_dict(self) -> dict[str, Any]:
        return plain(self)


def sigmoid(values: Floats) -> Floats:
    """Return 1 / (1 + exp(-values)), without overflow at either end."""
    small = np.exp(-np.abs(values))
    return np.where(values >= 0, 1 / (1 + small), small / (1 + small))


def calibration(
    probability: ArrayLike, raters: ArrayLike | None = None, *, resamples: int = 2000, seed: int = 0
) -> Calibration:
    """Compare probabilities that the chosen completion is preferred with what people prefer.

    Args:
        probability: (P,), sigma(margin), from 0 to 1.
        raters: (P,), the share of raters who prefer the chosen completion; NaN leaves a pair out. None: outcomes.
        resamples: bootstrap resamples of the intervals of means.
        seed: decides the bootstrap.

    Raises:
        DataError: a probability, or a share of raters, outside 0 to 1.
    """
    given = np.asarray(probability, dtype=np.float64)
    target = np.ones_like(given) if raters is None else np.asarray(raters, dtype=np.float64)
    known = np.isfinite(target)
    p, a = given[known], target[known]
    for name, values in (("probability", p), ("share of raters", a)):
        if values.size and not ((values >= 0) & (values <= 1)).all():
            raise DataError(f"Calibration compares shares from 0 to 1, but a {name} is {_outside(values)}.")
    confidence, agreed = np.maximum(p, 1 - p), np.where(p < 0.5, 1 - a, a)
    decided = p != 0.5
    bins = []
    for low, high in pairwise(EDGES):
        upper = confidence <= high if high == EDGES[-1] else confidence < high
        inside = decided & (confidence >= low) & upper
        observed = _observed(agreed[inside], raters is None, resamples, seed)
        predicted = float(confidence[inside].mean()) if inside.any() else None
        bins.append(CalibrationBin(low, high, int(inside.sum()), predicted, observed))
    return Calibration(
        against="outcomes" if raters is None else "raters",
        n=len(p),
        ties=int((~decided).sum()),
        bins=tuple(bins),
        expected_error=_expected_error(bins),
        # E over a vote v that is 1 with a: (p - v)^2 = (p - a)^2 + a (1 - a)
        brier=mean((p - a) ** 2 + a * (1 - a), resamples=resamples, seed=seed),
    )


def _observed(agreed: Floats, outcomes: bool, resamples: int, seed: int) -> Estimate:
    if not agreed.size:
        return Estimate(0, None, None, None)
    if outcomes:
        return Estimate(agreed.size, float(agreed.mean()), *wilson(int(agreed.sum()), agreed.size))
    found = mean(agreed, resamples=resamples, seed=seed)
    return Estimate(found.n, found.value, found.low, found.high)


def _expected_error(bins: list[CalibrationBin]) -> float | None:
    gaps = [
        (part.n, abs(part.predicted - part.observed.value))
        for part in bins
        if part.predicted is not None and part.observed.value is not None
    ]
    total = sum(n for n, _ in gaps)
    return sum(n * gap for n, gap in gaps) / total if total else None


def _outside(values: Floats) -> float:
    return float(values[~((values >= 0) & (values <= 1))][0])
