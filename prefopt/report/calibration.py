"""Calibration: how often people side with the model where it says that they will."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.eval.intervals import share
from prefopt.report.figures import Drawing, legend, share_tick
from prefopt.report.svg import AFTER, MUTED, draw
from prefopt.report.words import is_number, number, percent

_BINS = 8
_RIGHT = "its ranking is right"
_FEWEST = 40
"""Pairs below which bins say nothing."""
Floats = NDArray[np.float64]


def calibration_figure(name: str, evaluation: Mapping[str, Any] | None) -> Drawing | None:
    """Return what an evaluation says of calibration: its own bins where it has them, else from its pairs' margins."""
    found = evaluation or {}
    given = _given(found)
    if given is not None:
        return _drawn(name, *given)
    made = _of_pairs(found)
    return None if made is None else _drawn(name, *made)


Bins = list[tuple[float, float, float, float, int]]
"""Said, seen, low and high of it, pairs."""


def _given(found: Mapping[str, Any]) -> tuple[Bins, str, str] | None:
    part = found.get("calibration")
    if not isinstance(part, Mapping):
        return None
    bins = part.get("bins")
    known: Bins = []
    for one in bins if isinstance(bins, list) else ():
        seen = one.get("observed") if isinstance(one, Mapping) else None
        if not isinstance(seen, Mapping) or not is_number(said := one.get("predicted")):
            continue
        middle, low, high = (seen.get(key) for key in ("value", "low", "high"))
        if is_number(middle) and is_number(low) and is_number(high):
            known.append((float(said), float(middle), float(low), float(high), int(one.get("n") or 0)))
    if not known:
        return None
    raters = part.get("against") == "raters"
    axis = "people side with it" if raters else "ranked right"
    return known, axis, _words(known, part.get("expected_error"), "people side with it" if raters else _RIGHT)


def _of_pairs(found: Mapping[str, Any]) -> tuple[Bins, str, str] | None:
    """Fold margins: a pair of margin m is said to be ranked right with sigma(|m|), and is right where m > 0."""
    pairs = found.get("pairs") or {}
    policy, reference = pairs.get("policy"), pairs.get("reference")
    beta = (found.get("metrics") or {}).get("beta")
    if not policy or not reference or len(policy) != len(reference) or not is_number(beta):
        return None
    ratio = np.array(policy, dtype=np.float64) - np.array(reference, dtype=np.float64)
    margin: Floats = beta * (ratio[:, 0] - ratio[:, 1])
    margin = margin[margin != 0]
    if len(margin) < _FEWEST:
        return None
    said = 1 / (1 + np.exp(-np.abs(margin)))
    right = margin > 0
    order = np.argsort(said, kind="stable")
    bins: Bins = []
    for part in np.array_split(order, _BINS):
        seen = share(right[part])
        assert seen.value is not None  # no part of 40 pairs or more is empty
        assert seen.low is not None
        assert seen.high is not None
        bins.append((float(said[part].mean()), seen.value, seen.low, seen.high, len(part)))
    error = sum(n * abs(expected - value) for expected, value, _, _, n in bins) / len(margin)
    return bins, "ranked right", _words(bins, error, _RIGHT)


def _words(bins: Bins, error: Any, what: str) -> str:
    first, last = bins[0], bins[-1]
    text = f"Where the model claims {percent(first[0])}, {what} in {percent(first[1])} of pairs"
    if len(bins) > 1:
        text += f"; where it claims {percent(last[0])}, in {percent(last[1])}"
    text += "."
    if is_number(error):
        text += f" On average {number(100 * error)} points lie between the two."
        lean = sum(n * (seen - said) for said, seen, _, _, n in bins) / max(1, sum(one[4] for one in bins))
        if error > 0.02 and abs(lean) > 0.5 * error:
            text += " It is more often right than it claims." if lean > 0 else " It claims more than it keeps."
    return text


def _drawn(name: str, bins: Bins, axis: str, words: str) -> Drawing:
    def paint(axes: Any) -> None:
        said = [one[0] for one in bins]
        seen = [one[1] for one in bins]
        ends = [[one[1] - one[2] for one in bins], [one[3] - one[1] for one in bins]]
        low = min(0.45, *(one[2] for one in bins)) - 0.02
        axes.plot(
            [max(low, 0), 1],
            [max(low, 0), 1],
            color=MUTED,
            linewidth=1,
            dashes=(3, 3),
            label="right as often as claimed",
        )
        axes.errorbar(said, seen, yerr=ends, color=AFTER, marker="o", markersize=5.5, linestyle="", elinewidth=1.6,
                      label="measured")  # fmt: skip
        # Claims that all lie close together need the width; the line of what is claimed leaves the figure then.
        axes.set_xlim(min(0.49, *said) - 0.01, min(1.02, max(said) + max(0.02, 0.08 * (max(said) - 0.5))))
        axes.set_ylim(low, 1.02)
        for side in (axes.xaxis, axes.yaxis):
            side.set_major_formatter(share_tick)
        axes.set_xlabel("claimed: σ(|margin|)")
        axes.set_ylabel(axis)
        legend(axes)

    told = "; ".join(f"claimed {percent(said)}: {percent(seen)} of {n}" for said, seen, _, _, n in bins)
    return Drawing("Calibration", words, draw(name, f"Calibration. {words} {told}.", paint))
