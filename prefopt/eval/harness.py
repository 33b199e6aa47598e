"""The measures of a benchmark, of two models on the same documents: how far apart they are, with an interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prefopt.eval.intervals import mean

_WIDTH = 1.959963984540054
"""Standard errors to each side of a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """A measure of one model, with the standard error that the benchmark gives."""

    value: float
    standard_error: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Difference:
    """A measure of the tuned model less that of the base, with a 95 % interval; no interval where nothing says one."""

    value: float
    low: float | None
    high: float | None
    paired: bool
    """Over the same documents; otherwise from the two standard errors, as if the two had seen different ones."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """One measure of one task, of both models."""

    task: str
    metric: str
    filter: str
    """How the benchmark made an answer of what the model wrote; "none" is as it stands."""
    higher_is_better: bool | None
    documents: int
    num_fewshot: int | None
    base: Estimate
    tuned: Estimate
    difference: Difference

    @property
    def name(self) -> str:
        return f"{self.task} {self.metric}" + ("" if self.filter == "none" else f" ({self.filter})")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def difference(
    base: Estimate,
    tuned: Estimate,
    documents: tuple[Mapping[int, Any], Mapping[int, Any]] | None = None,
    aggregate: Callable[[list[Any]], float] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Difference:
    """Return how far the tuned model's measure is above the base's.

    Args:
        base: the measure of the base model.
        tuned: the measure of the tuned one.
        documents: what each document contributes to the one and to the other, by the document's number; None where
            the benchmark doesn't say, so that the interval comes from the two standard errors.
        aggregate: how a measure comes of its documents, where that is not their mean. The same documents are drawn for
            both models then, and the measure is computed of every draw.
        resamples: draws of the bootstrap over documents.
        seed: decides the draws.
    """
    gap = tuned.value - base.value
    pairs = (
        []
        if documents is None
        else [(documents[0][at], documents[1][at]) for at in sorted(documents[0].keys() & documents[1].keys())]
    )
    if pairs and _is_mean(pairs, base, tuned):
        found = mean([float(after) - float(before) for before, after in pairs], resamples=resamples, seed=seed)
        return Difference(gap, found.low, found.high, True)
    if pairs and aggregate is not None:
        return Difference(gap, *_bootstrapped(pairs, aggregate, resamples, seed), True)
    if base.standard_error is None or tuned.standard_error is None:
        return Difference(gap, None, None, False)
    half = _WIDTH * math.hypot(base.standard_error, tuned.standard_error)
    return Difference(gap, gap - half, gap + half, False)


def _is_mean(pairs: Sequence[tuple[Any, Any]], base: Estimate, tuned: Estimate) -> bool:
    """Whether both measures are the means of what their documents contribute."""
    if not all(isinstance(one, int | float | np.number | np.bool_) for pair in pairs for one in pair):
        return False
    means = np.asarray(pairs, dtype=np.float64).mean(0)
    return bool(np.allclose(means, [base.value, tuned.value], rtol=1e-9, atol=1e-12))


def _bootstrapped(
    pairs: Sequence[tuple[Any, Any]], aggregate: Callable[[list[Any]], float], resamples: int, seed: int
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    gaps = []
    for _ in range(resamples):
        drawn = rng.integers(0, len(pairs), len(pairs))
        before, after = ([pairs[at][side] for at in drawn] for side in (0, 1))
        gaps.append(float(aggregate(after)) - float(aggregate(before)))
    low, high = np.nanquantile(gaps, [0.025, 0.975])
    return float(low), float(high)


def harness_in_words(compared: Sequence[Comparison]) -> tuple[str, ...]:
    """Return what the comparison shows: a sentence for every interval that leaves out 0, and one for the rest."""
    said: list[str] = []
    without = open_ended = 0
    for one in compared:
        low, high = one.difference.low, one.difference.high
        if low is None or high is None:
            open_ended += 1
        elif low <= 0 <= high:
            without += 1
        else:
            said.append(_sentence(one, low, high))
    known = len(compared) - open_ended
    if said and known > 1:
        said.append(f"Of {known} such intervals one in twenty leaves out 0 where nothing changed.")
    if without:
        said.append(f"In {without} of {known} measures the interval holds 0: these documents show no difference.")
    if open_ended:
        said.append(f"{open_ended} of {len(compared)} measures have no standard error, and so no interval.")
    return tuple(said)


def _sentence(one: Comparison, low: float, high: float) -> str:
    rose = one.difference.value > 0
    verdict = ""
    if one.higher_is_better is not None:
        verdict = ", for the better" if rose == one.higher_is_better else ", for the worse"
    moved = f"{'rose' if rose else 'fell'} from {one.base.value:.3f} to {one.tuned.value:.3f}{verdict}"
    paired = "" if one.difference.paired else ", not paired"
    return f"{one.name} {moved}; the 95 % interval of the difference is {low:+.3f} to {high:+.3f}{paired}."
