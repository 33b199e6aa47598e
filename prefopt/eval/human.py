"""The human ceiling: how often one rater agrees with the rest on which of two texts is better.

A model that is trained on the mean of many raters can beat a single one, but no measure of it means much without
knowing how far people agree. Precisely, for texts A and B with ratings a_1..a_n and b_1..b_m:

    one rater's vote    sign(a_i - b_j)
    the rest's vote     sign(mean of a without a_i  -  mean of b without b_j)

A vote of 0 on either side is a tie and counted apart; otherwise the rater agrees when the two votes are equal.
Where ratings of the two texts are by the same people in the same order (`aligned`), i = j runs over people. Otherwise a
rater is a draw of one rating of each text, and all n * m draws are counted, which is that draw's exact expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import DataError
from prefopt.eval.intervals import Floats, Mean, mean

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class HumanAgreement:
    """For each of P pairs, how many single votes agree with the rest, disagree, or are ties."""

    agree: Counts
    """(P,)"""
    disagree: Counts
    """(P,)"""
    ties: Counts
    """(P,)"""

    @property
    def share(self) -> Floats:
        """Return agree / (agree + disagree) of each pair, (P,); NaN where every vote is a tie."""
        decided = self.agree + self.disagree
        return np.divide(self.agree, decided, out=np.full(len(decided), np.nan), where=decided > 0)

    def ceiling(self, *, resamples: int = 2000, seed: int = 0) -> Mean:
        """Return the mean of `share` over pairs, with a bootstrap interval over pairs."""
        known = self.share
        return mean(known[np.isfinite(known)], resamples=resamples, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        total = int(self.agree.sum() + self.disagree.sum() + self.ties.sum())
        return {**self.ceiling().to_dict(), "tie_share": int(self.ties.sum()) / total if total else None}


def human_agreement(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, aligned: bool = False
) -> HumanAgreement:
    """Count, for each pair of texts, how many raters agree with the rest.

    Args:
        first: P lists of at least two ratings, of each pair's one text.
        second: the same of its other text. Which is which does not matter.
        aligned: the same rater stands at the same place in both lists.

    Raises:
        DataError: the two are not equally many, a text has fewer than two ratings, or aligned lists differ in length.
    """
    if len(first) != len(second):
        raise DataError(f"Human agreement needs ratings of both texts of a pair: got {len(first)} and {len(second)}.")
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        if min(len(a), len(b)) < 2 or (aligned and len(a) != len(b)):
            raise DataError(
                f"Pair {index} has {len(a)} and {len(b)} ratings: each text needs at least 2, for one rater and the "
                "rest, and aligned ones equally many."
            )
    left, right = _padded(first), _padded(second)
    rest_left, rest_right = _mean_of_rest(left), _mean_of_rest(right)
    if not aligned:
        left, rest_left = left[:, :, None], rest_left[:, :, None]
        right, rest_right = right[:, None, :], rest_right[:, None, :]
    votes = _sign(left - right) * _sign(rest_left - rest_right)  # 1 agree, -1 disagree, 0 tie, NaN padding
    both = votes.reshape(len(first), -1)
    return HumanAgreement(*(np.asarray((both == value).sum(axis=1), dtype=np.int64) for value in (1, -1, 0)))


def _padded(ratings: Sequence[Sequence[float]]) -> Floats:
    """Return (P, longest), NaN behind the last rating of each."""
    widest = max(map(len, ratings), default=0)
    out = np.full((len(ratings), widest), np.nan)
    for row, values in zip(out, ratings, strict=True):
        row[: len(values)] = values
    return out


def _mean_of_rest(ratings: Floats) -> Floats:
    """Return, for each rating, the mean of its text's others, (P, longest)."""
    count = np.isfinite(ratings).sum(axis=1, keepdims=True)
    return np.asarray((np.nansum(ratings, axis=1, keepdims=True) - ratings) / (count - 1))


def _sign(differences: Floats) -> Floats:
    """Return the sign, taking for 0 what only rounding keeps from it: equal means of unequally many ratings."""
    return np.sign(np.where(np.abs(differences) < 1e-9, 0.0, differences))
