"""Win rate of one model's completions over another's: raw, and at equal length.

The length-controlled one fits, by maximum likelihood over all comparisons,

    logit P(A wins) = theta + phi * tanh(d / s)        d = length of A's completion - length of B's, s = its deviation

and reports sigmoid(theta), the rate at d = 0. A tie counts as half a win. Swapping A and B turns theta around, so the
two rates add up to 1 exactly. It has no term for the instruction and no fixed baseline model: it is *not* the
length-controlled win rate of the AlpacaEval leaderboard (arXiv:2404.04475), whose numbers are of another kind.

A ridge of `RIDGE` / 2 * (theta^2 + phi^2), against a log-likelihood that sums over comparisons, keeps both finite where
one side wins everything or length decides everything; it is even in both, so it leaves the symmetry alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.data.statistics import wilson
from prefopt.errors import DataError
from prefopt.eval.intervals import Estimate, Floats, Mean, Share, mean, share
from prefopt.eval.kl import prompt_means

RIDGE = 1e-3
_STEPS, _LONGEST_STEP, _CLOSE = 100, 2.0, 1e-11
_BLOCK = 2_000_000
"""Weights that the bootstrap holds at once: 16 MB."""


@dataclass(frozen=True)
class Position:
    """What a judge that saw both orders says about itself."""

    first: Estimate
    """How often the answer that stood first was preferred, of all verdicts that prefer one; 0.5 is no bias. The two
    verdicts of a comparison count as one in the interval, Wilson's: `n` is the comparisons with a preference."""
    agree: Share
    """How often both orders lead to the same preference, of comparisons where both prefer one."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class WinRate:
    """How often A's completions are better than B's."""

    prompts: int
    """With at least one comparison."""
    wins_a: int
    wins_b: int
    ties: int
    failed: int
    """Comparisons without a verdict; they count for nothing else."""
    raw: Estimate
    """Ties count half; a mean over prompts, with a bootstrap interval over prompts, as the next one."""
    length_controlled: Estimate
    """The same at equal length, see above."""
    length_effect: float | None
    """phi: above 0, the longer one wins more often."""
    length_a: Mean
    """Tokens, a mean over prompts."""
    length_b: Mean

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def win_rate(
    outcomes: ArrayLike,
    length_a: ArrayLike,
    length_b: ArrayLike,
    prompts: Sequence[Any],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> WinRate:
    """Return raw and length-controlled win rate of n comparisons.

    Every prompt has the same weight, however many of its comparisons have a verdict. The deviation of the length
    differences is that of all comparisons, also in resamples.

    Args:
        outcomes: (n,) 1 where A is better, 0 where B is, 0.5 for a tie, NaN without a verdict.
        length_a: (n,) tokens of A's completions.
        length_b: (n,) of B's.
        prompts: n, which prompt each comparison is of.
        resamples: of prompts, for the intervals.
        seed: decides the intervals.

    Raises:
        DataError: nothing has a verdict, an outcome is none of these, or the arrays are not equally long.
    """
    won, one, other = (np.asarray(x, dtype=np.float64) for x in (outcomes, length_a, length_b))
    if not won.shape == one.shape == other.shape == (len(prompts),):
        raise DataError(
            f"outcomes, length_a, length_b and prompts have {won.shape}, {one.shape}, {other.shape} and "
            f"({len(prompts)},) entries; give every comparison one of each."
        )
    there = np.isfinite(won)
    if not np.isin(won[there], (0.0, 0.5, 1.0)).all():
        raise DataError("An outcome is neither 1 (A is better), 0 (B is), 0.5 (a tie) nor NaN (no verdict).")
    if not there.any():
        raise DataError("No comparison has a verdict, so there is no win rate: see why the scorer failed.")
    names: dict[Any, int] = {}
    index = np.array([names.setdefault(p, len(names)) for p, known in zip(prompts, there, strict=True) if known])
    result, gap = won[there], (one - other)[there]
    sizes = np.bincount(index, minlength=len(names))
    weight = len(index) / len(names) / sizes[index]  # 1 where all prompts have as many comparisons
    spread = float(gap.std())
    bent = np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)
    theta, phi = _fit(result, bent, weight[None])
    by_prompt = prompt_means(result, index.tolist())
    raw = mean(by_prompt, resamples=resamples, seed=seed)
    controlled = _sigmoid(_resampled(result, bent, weight, index, len(names), resamples, seed))
    low, high = np.quantile(controlled, [0.025, 0.975])
    listed = list(prompts)
    return WinRate(
        prompts=len(names),
        wins_a=int((result == 1).sum()),
        wins_b=int((result == 0).sum()),
        ties=int((result == 0.5).sum()),
        failed=int((~there).sum()),
        raw=Estimate(raw.n, raw.value, raw.low, raw.high),
        length_controlled=Estimate(len(names), float(_sigmoid(theta)[0]), float(low), float(high)),
        length_effect=float(phi[0]) if spread > 0 else None,
        length_a=mean(prompt_means(one, listed), resamples=resamples, seed=seed),
        length_b=mean(prompt_means(other, listed), resamples=resamples, seed=seed),
    )


def both_orders(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Position]:
    """Return the outcome of comparisons that a judge saw in both orders, and how far the order swayed it.

    A wins where both orders say so, or one does and the other calls a tie; opposite verdicts are a tie.

    Args:
        first: (n,) 1 where A is better, 0 where B is, 0.5 for a tie, NaN without a verdict; A stood first.
        second: (n,) the same when B stood first.
    """
    ahead, behind = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    total = ahead + behind
    outcome = np.where(np.isfinite(total), (np.sign(total - 1) + 1) / 2, np.nan)
    both = np.isin(ahead, (0, 1)) & np.isin(behind, (0, 1))
    chose_first = int((ahead == 1).sum() + (behind == 0).sum())
    prefers = np.isin(ahead, (0, 1)).astype(int) + np.isin(behind, (0, 1))
    decided, comparisons = int(prefers.sum()), int((prefers > 0).sum())
    first_preferred = Estimate(0, None, None, None)
    if decided:
        rate = chose_first / decided
        first_preferred = Estimate(comparisons, rate, *wilson(rate * comparisons, comparisons))
    return outcome, Position(first_preferred, share(ahead[both] == behind[both]))


def _fit(result: Floats, bent: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return theta and phi of every row of weights (B, n), by Newton's method with bounded steps."""
    theta, phi = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(_STEPS):
        chance = _sigmoid(theta[:, None] + phi[:, None] * bent)
        miss, curve = weights * (result - chance), weights * chance * (1 - chance)
        slope = (miss.sum(1) - RIDGE * theta, miss @ bent - RIDGE * phi)
        a, b, c = curve.sum(1) + RIDGE, curve @ bent, curve @ bent**2 + RIDGE
        scale = a * c - b * b
        steps = ((c * slope[0] - b * slope[1]) / scale, (a * slope[1] - b * slope[0]) / scale)
        longest = np.maximum(np.abs(steps[0]), np.abs(steps[1]))
        shorter = np.minimum(1.0, _LONGEST_STEP / np.maximum(longest, 1e-300))
        theta, phi = theta + shorter * steps[0], phi + shorter * steps[1]
        if float(longest.max()) < _CLOSE:
            break
    return theta, phi


def _resampled(
    result: Floats, bent: Floats, weight: Floats, index: NDArray[np.int64], prompts: int, resamples: int, seed: int
) -> Floats:
    """Return theta of every resample of prompts, (resamples,)."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(result))
    found = []
    for done in range(0, resamples, block):
        count = min(block, resamples - done)
        times = np.stack([np.bincount(row, minlength=prompts) for row in rng.integers(0, prompts, (count, prompts))])
        found.append(_fit(result, bent, weight * times[:, index])[0])
    return np.concatenate(found)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)))
