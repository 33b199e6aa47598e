"""Whether a preference is one for length: accuracy where the better text is the shorter one, and where it is longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prefopt.eval.intervals import Accuracy, Estimate, accuracy, share_difference
from prefopt.eval.records import plain


@dataclass(frozen=True)
class LengthBias:
    """Accuracy by which completion of a pair has more tokens."""

    shorter: Accuracy
    """Where the chosen completion is the shorter one."""
    longer: Accuracy
    """Where it is the longer one."""
    same: Accuracy
    """Where both are equally long."""
    difference: Estimate
    """`longer` minus `shorter`, with Newcombe's interval: above 0 long completions are favoured, below 0 short ones."""

    def to_dict(self) -> dict[str, Any]:
        return plain(self)


def length_bias(margins: ArrayLike, chosen: ArrayLike, rejected: ArrayLike) -> LengthBias:
    """Compare accuracy between pairs whose chosen completion is the shorter and the longer one.

    Args:
        margins: (P,), positive where the chosen completion is preferred.
        chosen: (P,), its length.
        rejected: (P,), that of the other one.
    """
    values = np.asarray(margins, dtype=np.float64)
    sign = np.sign(np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64))
    shorter, longer, same = (accuracy(values[sign == at]) for at in (-1, 1, 0))
    return LengthBias(shorter, longer, same, share_difference(shorter, longer))
