"""Selectors that make pairs (chosen, rejected) of one prompt's candidates.

Where scores decide, equal ones never make a pair. `correct_vs_incorrect` looks at correctness alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from prefopt.rounds.select_config import Ties
from prefopt.rounds.select_records import Scored, is_correct, ranked, shuffled

Pair = tuple[Scored, Scored]


def best_vs_worst(pool: Sequence[Scored], *, limit: int, ties: Ties, generator: np.random.Generator) -> list[Pair]:
    """Pair the best with the worst, the second best with the second worst, and so on while their scores differ."""
    order = ranked(pool, ties, generator)
    pairs = zip(order, reversed(order), strict=True)
    return [(best, worst) for best, worst in islice(pairs, limit) if best.score > worst.score]


def best_vs_random(pool: Sequence[Scored], *, limit: int, ties: Ties, generator: np.random.Generator) -> list[Pair]:
    """Pair the best with candidates that are drawn, without repetition, from those with a lower score."""
    order = ranked(pool, ties, generator)
    lower = [one for one in order if one.score < order[0].score]
    return [(order[0], other) for other in shuffled(lower, generator)[:limit]]


def correct_vs_incorrect(
    pool: Sequence[Scored], *, lowest: float | None, limit: int, generator: np.random.Generator
) -> list[Pair]:
    """Pair correct with incorrect candidates (Iterative RPO, Pang et al. 2024, arXiv:2404.19733).

    Both sides stand in random order and are gone through round and round, so that each candidate is in as many pairs as
    any other of its side, give or take one; no pair comes twice.

    Raises:
        DataError: without `lowest`, for a candidate of which the scorer doesn't say whether it is correct.
    """
    correct = shuffled([one for one in pool if is_correct(one, lowest)], generator)
    wrong = shuffled([one for one in pool if not is_correct(one, lowest)], generator)
    return list(islice(_evenly(correct, wrong), limit))


def west_of_n(
    pool: Sequence[Scored], *, confidence: float, limit: int, ties: Ties, generator: np.random.Generator
) -> list[Pair]:
    """Pair as `best_vs_worst`, where the best is preferred with probability sigmoid(r_best - r_worst) >= confidence.

    West-of-N (Pace et al. 2024, arXiv:2401.12086), with a fixed confidence in place of a share of the data set, and
    without its filter by likelihood.
    """
    least = math.log(confidence / (1 - confidence))
    pairs = best_vs_worst(pool, limit=limit, ties=ties, generator=generator)
    return [(best, worst) for best, worst in pairs if best.score - worst.score >= least]


def first_round(accepted: Sequence[Scored], *, limit: int | None) -> list[Pair]:
    """Pair accepted candidates two by two, in the order of their acceptance; the higher score is chosen.

    RSO's first-round ranking (arXiv:2309.06657); two equal scores make no pair.
    """
    found = []
    for one, other in zip(accepted[::2], accepted[1::2], strict=False):
        if one.score != other.score:
            found.append((one, other) if one.score > other.score else (other, one))
    return found[:limit]


def _evenly(first: Sequence[Scored], second: Sequence[Scored]) -> Iterator[Pair]:
    """Yield every pair of the two sides once."""
    rounds = min(len(first), len(second))
    for shift in range(rounds):
        for at in range(max(len(first), len(second))):
            if len(first) >= len(second):
                yield first[at], second[(at + shift) % len(second)]
            else:
                yield first[(at + shift) % len(first)], second[at]
