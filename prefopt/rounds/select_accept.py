"""Selectors that accept single candidates: rejection sampling, RSO's Algorithm 1, the best k, those over a threshold.

Each takes one prompt's candidates and returns those that it accepts, in the order in which it accepts them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prefopt.errors import DataError
from prefopt.rounds.select_config import Ties
from prefopt.rounds.select_records import Scored, is_correct, ranked, shuffled


def rejection(pool: Sequence[Scored], *, beta: float, bound: float, generator: np.random.Generator) -> list[Scored]:
    """Accept each candidate by itself with probability exp((r - bound) / beta).

    Accepted candidates are independent draws from q exp(r / beta), where q is what the candidates were drawn from; how
    many there are is random. (Neumann's rejection sampling, with a bound that doesn't depend on the candidates.)

    Raises:
        DataError: a score is above the bound.
    """
    for one in pool:
        if one.score > bound:
            raise DataError(
                f"candidate {one.index} has the score {one.score:g}, above the bound {bound:g}: rejection sampling is "
                "wrong then. Set select.bound to a score that none exceeds."
            )
    draws = generator.random(len(pool))
    return [one for one, u in zip(pool, draws, strict=True) if u < math.exp((one.score - bound) / beta)]


def rso(pool: Sequence[Scored], *, k: int, beta: float, generator: np.random.Generator) -> list[Scored]:
    """Accept up to k candidates by Algorithm 1 of RSO (Liu et al. 2023, arXiv:2309.06657), on shuffled candidates.

    In sweeps over those that remain, each is accepted with probability exp((r - r_max) / beta), r_max the highest
    score among those that remained when the sweep began; accepted ones are taken out. It ends at k, or when none is
    left. Not exact: the bound depends on the candidates and one that is accepted can't be again, so that for few
    candidates a place (small n / k) the accepted ones lie between q and q exp(r / beta).
    """
    remaining = shuffled(pool, generator)
    accepted: list[Scored] = []
    while remaining and len(accepted) < k:
        highest = max(one.score for one in remaining)
        left: list[Scored] = []
        for one in remaining:
            takes = len(accepted) < k and generator.random() < math.exp((one.score - highest) / beta)
            (accepted if takes else left).append(one)
        remaining = left
    return accepted


def top_k(pool: Sequence[Scored], *, k: int, ties: Ties, generator: np.random.Generator) -> list[Scored]:
    """Accept the k highest scores (RAFT, Dong et al. 2023, arXiv:2304.06767, Algorithm 1 with k = 1)."""
    return ranked(pool, ties, generator)[:k]


def threshold(
    pool: Sequence[Scored], *, lowest: float | None, k: int | None, generator: np.random.Generator
) -> list[Scored]:
    """Accept all that are correct, or k of them at random (ReST-EM, Singh et al. 2023, arXiv:2312.06585; STaR).

    Raises:
        DataError: without `lowest`, for a candidate of which the scorer doesn't say whether it is correct.
    """
    correct = [one for one in pool if is_correct(one, lowest)]
    return correct if k is None or len(correct) <= k else shuffled(correct, generator)[:k]
