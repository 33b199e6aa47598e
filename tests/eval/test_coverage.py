"""Every kind of interval holds the truth in 95 of 100 samples: simulations of 2,000 samples of 200."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from prefopt.eval import auc, contrast, length_bias, mean, share
from prefopt.eval.calibration import calibration

pytestmark = pytest.mark.soak
SIMULATIONS, N = 2000, 200
Floats = NDArray[np.float64]
Interval = tuple[float | None, float | None]


def coverage(draw: Callable[[np.random.Generator, int], Interval], truth: float, name: str) -> None:
    """Assert that draws' intervals hold the truth in 95 +- 1.5 % of the simulations, and print how often."""
    rng = np.random.default_rng(7)
    held = 0
    for seed in range(SIMULATIONS):
        low, high = draw(rng, seed)
        assert low is not None
        assert high is not None
        held += low <= truth <= high
    print(f"{name}: {held / SIMULATIONS:.2%}")
    assert held / SIMULATIONS == pytest.approx(0.95, abs=0.015), name


@pytest.mark.parametrize("p", [0.5, 0.7, 0.9])
def test_wilson(p: float) -> None:
    def draw(rng: np.random.Generator, seed: int) -> Interval:
        found = share(rng.random(N) < p)
        return found.low, found.high

    coverage(draw, p, f"Wilson at {p}")


@pytest.mark.parametrize("skewed", [False, True])
def test_the_bootstrap_of_a_mean(skewed: bool) -> None:
    def draw(rng: np.random.Generator, seed: int) -> Interval:
        found = mean(rng.gamma(4.0, 0.25, N) if skewed else rng.normal(1.0, 2.0, N), seed=seed)
        return found.low, found.high

    coverage(draw, 1.0, f"bootstrap of a {'skewed' if skewed else 'normal'} mean")


@pytest.mark.parametrize("of", ["accuracy", "margin"])
def test_the_paired_difference(of: str) -> None:
    # margins with a common part: normal, means 0.5 and 0.9, standard deviation sqrt(2); P(right) is Phi(mean / sqrt(2))
    truth = {"accuracy": 0.7377409 - 0.6381632, "margin": 0.4}[of]

    def draw(rng: np.random.Generator, seed: int) -> Interval:
        common = rng.normal(size=N)
        a, b = common + rng.normal(0.5, 1, N), common + rng.normal(0.9, 1, N)
        found = getattr(contrast(a, b, seed=seed), of)
        return found.low, found.high

    coverage(draw, truth, f"paired difference of {of}")


def test_the_difference_of_shares_of_different_pairs() -> None:
    # the shorter one is chosen in a third of the pairs; right with 0.6 there, with 0.8 elsewhere
    def draw(rng: np.random.Generator, seed: int) -> Interval:
        shorter = rng.random(N) < 1 / 3
        margins = np.where(rng.random(N) < np.where(shorter, 0.6, 0.8), 1.0, -1.0)
        found = length_bias(margins, np.where(shorter, 1, 2), np.where(shorter, 2, 1)).difference
        return found.low, found.high

    coverage(draw, 0.2, "Newcombe's difference of two shares")


@pytest.mark.parametrize(("gap", "truth"), [(0.5, 0.6381632), (2.0, 0.9213504)])
def test_the_area_under_the_curve(gap: float, truth: float) -> None:
    # completions of a pair have a common part, half their variance; those of two pairs have none: Phi(gap / sqrt(2))
    def draw(rng: np.random.Generator, seed: int) -> Interval:
        common = rng.normal(0, 0.5**0.5, N)
        found = auc(common + rng.normal(gap, 0.5**0.5, N), common + rng.normal(0, 0.5**0.5, N))
        return found.low, found.high

    coverage(draw, truth, f"area of {truth:.2f}")


def test_the_brier_score_and_a_bin_of_raters() -> None:
    # one confidence, 0.8; the share of 10 raters is a mean of votes with 0.7: E (p - a)^2 + a (1 - a) = p^2 - 2 p q + q
    def brier(rng: np.random.Generator, seed: int) -> Interval:
        found = calibration(np.full(N, 0.8), rng.binomial(10, 0.7, N) / 10, seed=seed).brier
        return found.low, found.high

    def observed(rng: np.random.Generator, seed: int) -> Interval:
        found = calibration(np.full(N, 0.85), rng.binomial(10, 0.7, N) / 10, seed=seed).bins[3].observed
        return found.low, found.high

    coverage(brier, 0.64 - 2 * 0.8 * 0.7 + 0.7, "Brier score")
    coverage(observed, 0.7, "a bin of raters")
