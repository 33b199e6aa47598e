"""Two models measured on the same pairs: which is better, or that it can't be told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from prefopt.errors import DataError
from prefopt.eval.intervals import Estimate, Floats, Share, paired_difference, share
from prefopt.eval.pairs import PairEvaluation
from prefopt.eval.records import plain

_SURE = 0.05
"""A smaller p-value tells two models apart."""


@dataclass(frozen=True)
class Contrast:
    """One measure of two models on the same pairs. A tie is not right: the chosen completion must have more."""

    measure: Literal["reward", "logprob", "logprob_per_token"]
    a: Share
    """Pairs on which the first model is right."""
    b: Share
    accuracy: Estimate
    """Share of b minus share of a: bootstrap interval over pairs."""
    only_a: int
    """Pairs on which a is right and b isn't."""
    only_b: int
    p: float
    """Of McNemar's exact test, two-sided: how probable so uneven a split of those pairs is by chance."""
    margin: Estimate
    """Mean margin of b minus that of a; of the reward with each model's own beta. Bootstrap interval over pairs."""

    def to_dict(self) -> dict[str, Any]:
        return plain(self)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same pairs."""

    a: str
    b: str
    n: int
    fingerprint: str
    contrasts: tuple[Contrast, ...]
    """The one to judge by first: the reward where both have one, otherwise the log-prob."""
    verdict: str
    """Who is better by it, or that it can't be told: a sentence."""
    pairs: str | None = None
    """Under which name both runs keep what is compared; `after`: measured when their training ended."""

    def to_dict(self) -> dict[str, Any]:
        return plain(self)


def compare_evaluations(
    a: PairEvaluation, b: PairEvaluation, names: tuple[str, str] = ("a", "b"), *, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compare two models that were measured on the same pairs.

    Raises:
        DataError: they were measured on different pairs, in another order or with another tokenizer.
    """
    if a.fingerprint != b.fingerprint or len(a.pairs.policy) != len(b.pairs.policy):
        raise DataError(
            f"{names[0]} and {names[1]} were measured on different pairs ({len(a.pairs.policy)} and "
            f"{len(b.pairs.policy)}), so their measures can't be compared; measure both on the same file, with the "
            "same tokenizer and the same settings of the recipe's data section."
        )
    first, second = _margins(a), _margins(b)
    contrasts = tuple(
        contrast(first[key], second[key], key, resamples=resamples, seed=seed) for key in first if key in second
    )
    return Comparison(
        *names, len(a.pairs.policy), a.fingerprint, contrasts, _verdict(contrasts[0], names, len(a.pairs.policy))
    )


def contrast(
    a: ArrayLike,
    b: ArrayLike,
    measure: Literal["reward", "logprob", "logprob_per_token"] = "reward",
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Contrast:
    """Compare the margins of two models on the same pairs.

    Args:
        a: (P,), margins of the first model, positive where it prefers the chosen completion.
        b: (P,), those of the second, of the same pairs in the same order.
        measure: what the margins are of.
        resamples: bootstrap resamples of the intervals.
        seed: decides the bootstrap.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    right_a, right_b = first > 0, second > 0
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return Contrast(
        measure=measure,
        a=share(right_a),
        b=share(right_b),
        accuracy=paired_difference(right_a, right_b, resamples=resamples, seed=seed),
        only_a=only_a,
        only_b=only_b,
        p=mcnemar(only_a, only_b),
        margin=paired_difference(first, second, resamples=resamples, seed=seed),
    )


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test (1947): of a fair coin that fell so, or more unevenly."""
    n, fewer = only_a + only_b, min(only_a, only_b)
    if 2 * fewer >= n:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - n * math.log(2)) for log in logs))


def _margins(evaluation: PairEvaluation) -> dict[Literal["reward", "logprob", "logprob_per_token"], Floats]:
    scores = evaluation.pairs
    found: dict[Literal["reward", "logprob", "logprob_per_token"], Floats] = {}
    if scores.log_ratio is not None:
        found["reward"] = evaluation.metrics.beta * scores.margins
    found["logprob"] = scores.policy[:, 0] - scores.policy[:, 1]
    per_token = scores.policy / scores.length
    found["logprob_per_token"] = per_token[:, 0] - per_token[:, 1]
    return found


def _verdict(found: Contrast, names: Sequence[str], n: int) -> str:
    by = "implicit reward" if found.measure == "reward" else "log-prob"
    if found.a.value is None or found.b.value is None or found.accuracy.value is None:
        return "There are no pairs to compare by."
    better, worse = (names[1], names[0]) if found.b.value > found.a.value else (names[0], names[1])
    high, low = sorted((found.a.value, found.b.value), reverse=True)
    uneven = found.only_a + found.only_b
    test = f"{uneven} {'pair is' if uneven == 1 else 'pairs are'} right with one of them only, p = {found.p:.2g}"
    if found.p < _SURE:
        sign = 1 if found.accuracy.value > 0 else -1
        ends = sorted(100 * sign * (end or 0.0) for end in (found.accuracy.low, found.accuracy.high))
        return (
            f"{better} prefers the chosen completion more often than {worse} by {by}: on {high:.1%} against {low:.1%} "
            f"of {n} pairs, {100 * (high - low):.1f} points more ({ends[0]:.1f} to {ends[1]:.1f}; {test})."
        )
    return (
        f"It can't be told which of {names[0]} and {names[1]} prefers the chosen completion more often by {by}: "
        f"{found.a.value:.1%} and {found.b.value:.1%} of {n} pairs ({test})."
    )
