"""Sequence KL of a policy to its reference from samples: exact per-token divergences, and plain log-ratios beside them.

For completions y drawn from the policy at temperature 1, without top-p and top-k, both of these are unbiased for
KL(pi(.|x) || ref(.|x)), by the chain rule of the divergence:

    kl            sum over t of KL(pi(. | x, y<t) || ref(. | x, y<t))      never negative, little variance
    kl_log_ratio  log pi(y | x) - log ref(y | x)                           may be negative, much variance

A sample that was cut counts as the prefix that it is: what is estimated then is the divergence of completions up to
that length. The share of such samples is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prefopt.errors import DataError
from prefopt.eval.intervals import Floats, Mean, mean


@dataclass(frozen=True)
class ClusteredMean:
    """A mean over prompts of each prompt's mean, with its standard error and a 95 % bootstrap interval over prompts."""

    n: int
    """Prompts."""
    value: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    """Standard deviation of the prompts' means (n - 1) over the root of n; None of fewer than two."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class SequenceKL:
    """How far a policy has moved from its reference, nats a completion."""

    kl: ClusteredMean
    """By the exact divergence at every sampled token."""
    kl_log_ratio: ClusteredMean
    """By log-ratios: the same in expectation, a check on the first."""
    length: Mean
    """Tokens a completion, a mean over prompts."""
    truncated: float
    """Share of samples that were cut at the longest length."""
    completions: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def clustered_mean(values: ArrayLike, prompts: Sequence[Any], *, resamples: int = 2000, seed: int = 0) -> ClusteredMean:
    """Return the mean over prompts of each prompt's mean: samples of one prompt are not independent.

    Args:
        values: (n,); what is not finite, a sample without a score, counts for nothing.
        prompts: n, which prompt each is of.
        resamples: of prompts, for the interval.
        seed: decides the interval.

    Raises:
        DataError: values and prompts are not equally many.
    """
    means = prompt_means(values, prompts)
    n = len(means)
    found = mean(means, resamples=resamples, seed=seed)
    error = float(means.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return ClusteredMean(n, found.value, found.low, found.high, error)


def prompt_means(values: ArrayLike, prompts: Sequence[Any]) -> Floats:
    """Return the mean of each prompt's finite values, (prompts that have any,), in the order of their first sample."""
    data = np.asarray(values, dtype=np.float64)
    if data.shape != (len(prompts),):
        raise DataError(f"There are values of shape {data.shape} for {len(prompts)} prompts; give one prompt a value.")
    held: dict[Any, list[float]] = {}
    for value, prompt in zip(data.tolist(), prompts, strict=True):
        if math.isfinite(value):
            held.setdefault(prompt, []).append(value)
    return np.array([math.fsum(found) / len(found) for found in held.values()], dtype=np.float64)


def sequence_kl(
    kl: ArrayLike,
    log_ratio: ArrayLike,
    prompts: Sequence[Any],
    *,
    length: ArrayLike,
    truncated: ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
) -> SequenceKL:
    """Return the sequence KL that n samples of a policy show.

    Args:
        kl: (n,) nats, of each sample the sum over its tokens of the exact divergence of the next token.
        log_ratio: (n,) nats, log policy - log reference of each sample.
        prompts: n, which prompt each answers.
        length: (n,) tokens.
        truncated: (n,) bool, whether it was cut.
        resamples: of prompts, for the intervals.
        seed: decides the intervals.

    Raises:
        DataError: there is no sample, or the arrays are not equally long.
    """
    if not len(prompts):
        raise DataError("There is no sample to measure a divergence on.")
    cut = np.asarray(truncated, dtype=bool)
    if cut.shape != (len(prompts),):
        raise DataError(f"truncated has shape {cut.shape}; it needs one flag for each of {len(prompts)} samples.")
    resampling = {"resamples": resamples, "seed": seed}
    return SequenceKL(
        kl=clustered_mean(kl, prompts, **resampling),
        kl_log_ratio=clustered_mean(log_ratio, prompts, **resampling),
        length=mean(prompt_means(length, prompts), **resampling),
        truncated=float(cut.mean()),
        completions=len(prompts),
    )


def dominating(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return which (kl, reward) points no other dominates: the Pareto set of most reward for least divergence.

    A point is dominated by one of no more divergence and no less reward that is better in one of the two. NaN is
    never in the set and dominates nothing.
    """
    order = sorted(
        (at for at, point in enumerate(points) if all(map(math.isfinite, point))),
        key=lambda at: (points[at][0], -points[at][1]),
    )
    chosen, best, at_kl = set(), -math.inf, math.nan
    for at in order:
        kl, reward = points[at]
        if reward > best or (reward == best and kl == at_kl):
            chosen.add(at)
            best, at_kl = reward, kl
    return [at in chosen for at in range(len(points))]
