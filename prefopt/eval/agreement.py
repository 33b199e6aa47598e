"""How often a model is right where people agree, and where they don't, beside how often one of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prefopt.errors import DataError
from prefopt.eval.intervals import Accuracy, Mean, accuracy, mean
from prefopt.eval.records import plain

EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class AgreementBin:
    """Pairs on which about the same share of raters prefers the chosen completion."""

    low: float
    """Share of raters, included."""
    high: float
    """Excluded, but for the last bin."""
    n: int
    accuracy: Accuracy
    """Of the model: Wilson's interval."""
    human: Mean | None
    """The ceiling: how often one rater agrees with the majority of the rest; bootstrap interval over pairs."""

    def to_dict(self) -> dict[str, Any]:
        return plain(self)


def accuracy_by_agreement(
    margins: ArrayLike,
    raters: ArrayLike,
    human: ArrayLike | None = None,
    *,
    edges: Sequence[float] = EDGES,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[AgreementBin, ...]:
    """Return a model's accuracy and the human ceiling by how far raters agree; bins without pairs are left out.

    Args:
        margins: (P,), positive where the model prefers the chosen completion.
        raters: (P,), the share of raters who prefer the chosen completion, 0 to 1; NaN where unknown.
        human: (P,), the share of single raters who agree with the rest (`human_agreement`); NaN where unknown.
        edges: ascending edges of the bins.
        resamples: bootstrap resamples of the ceiling's interval.
        seed: decides the bootstrap.

    Raises:
        DataError: a share of raters outside 0 to 1.
    """
    values, share = np.asarray(margins, dtype=np.float64), np.asarray(raters, dtype=np.float64)
    known = np.isfinite(share)
    if ((share[known] < 0) | (share[known] > 1)).any():
        raise DataError("A share of raters who prefer the chosen completion is outside 0 to 1: give shares.")
    single = None if human is None else np.asarray(human, dtype=np.float64)
    found = []
    for low, high in pairwise(edges):
        inside = known & (share >= low) & ((share <= high) if high == edges[-1] else (share < high))
        if not inside.any():
            continue
        ceiling = None if single is None else single[inside & np.isfinite(single)]
        found.append(
            AgreementBin(
                low=low,
                high=high,
                n=int(inside.sum()),
                accuracy=accuracy(values[inside]),
                human=None if ceiling is None or not ceiling.size else mean(ceiling, resamples=resamples, seed=seed),
            )
        )
    return tuple(found)
