"""Area under the ROC curve of a number that is to tell chosen completions from rejected ones."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from prefopt.data.statistics import wilson
from prefopt.eval.intervals import Estimate, Floats, Z


def auc(chosen: ArrayLike, rejected: ArrayLike) -> Estimate:
    """Return how probably the chosen completion of one pair has more than the rejected one of any pair; ties half.

    Unlike accuracy, which compares within pairs, it compares completions of different prompts too: it says whether
    one threshold on the number could tell chosen from rejected completions.

    The interval is on the logit scale, from DeLong's variance for pairs: both completions of a pair are one cluster
    (Obuchowski 1997, Biometrics 53, 567-578). At 0 and 1, where that variance is none, it is Wilson's of P pairs.

    Args:
        chosen: (P,), the number of each chosen completion.
        rejected: (P,), that of each rejected one.
    """
    better, worse = (np.asarray(values, dtype=np.float64) for values in (chosen, rejected))
    pairs = len(better)
    if pairs == 0:
        return Estimate(0, None, None, None)
    above = _share_below(better, worse)
    below = 1 - _share_below(worse, better)
    area = float(above.mean())
    return Estimate(pairs, area, *_interval(area, above + below - 2 * area))


def _share_below(values: Floats, others: Floats) -> Floats:
    """Return what share of `others` is less than each of `values`, equal ones counting half."""
    ordered = np.sort(others)
    less, at_most = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.asarray((less + at_most) / (2 * len(ordered)))


def _interval(area: float, deviations: Floats) -> tuple[float, float]:
    pairs = len(deviations)
    if area in (0.0, 1.0):
        return wilson(round(area * pairs), pairs)
    if pairs == 1:
        return 0.0, 1.0
    error = math.sqrt(float((deviations**2).sum()) / (pairs * (pairs - 1)))
    centre, half = math.log(area / (1 - area)), Z * error / (area * (1 - area))
    return _logistic(centre - half), _logistic(centre + half)


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0
