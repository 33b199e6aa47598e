"""What held-out pairs look like one by one: margins before and after, what moved, calibration, length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.eval.intervals import accuracy
from prefopt.report.calibration import calibration_figure
from prefopt.report.figures import Drawing, legend, share_tick
from prefopt.report.read import RunFiles
from prefopt.report.svg import AFTER, BEFORE, INK, MUTED, REJECTED, draw
from prefopt.report.words import number, percent, plural

Floats = NDArray[np.float64]
_LENGTH_BINS = 6
_FEWEST = 40
"""Pairs below which bins say nothing."""


def pair_figures(run: RunFiles) -> list[Drawing]:
    """Return what the held-out pairs say one by one; without a reference, what they say without."""
    before, after = column(run.before, "policy"), column(run.after, "policy")
    if after is None:
        return []
    reference = column(run.after, "reference")
    drawings = [] if before is None else [_before_and_after(before, after)]
    judged = after[:, 0] - after[:, 1]
    if reference is not None and reference.shape == after.shape:
        ratio = after - reference
        judged = ratio[:, 0] - ratio[:, 1]
        drawings += [_margins(judged), _displacement(ratio)]
    if (figure := calibration_figure("calibration", run.after)) is not None:
        drawings.append(figure)
    length = column(run.after, "length")
    if length is not None and len(length) == len(judged) >= _FEWEST and np.ptp(length[:, 0] - length[:, 1]) > 1:
        drawings.append(_length_bias(judged, length[:, 0] - length[:, 1]))
    return drawings


def column(evaluation: Mapping[str, Any] | None, name: str) -> Floats | None:
    """Return the (P, 2) numbers of each pair, chosen before rejected; None where there are none."""
    try:
        found = np.array(((evaluation or {}).get("pairs") or {}).get(name), dtype=np.float64)
    except (TypeError, ValueError, AttributeError):
        return None
    return found if found.ndim == 2 and found.shape[1] == 2 and len(found) and np.isfinite(found).all() else None


def _before_and_after(before: Floats, after: Floats) -> Drawing:
    margins = [side[:, 0] - side[:, 1] for side in (before, after)]

    def paint(axes: Any) -> None:
        low, high = np.quantile(np.concatenate(margins), [0.005, 0.995])
        width = max(float(high - low), 1e-6) / 32
        edges = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width
        then, now = (np.clip(margin, edges[0], edges[-1]) for margin in margins)
        axes.hist(now, edges, color=AFTER, alpha=0.55, label="after")
        axes.hist(then, edges, color=BEFORE, histtype="step", linewidth=1.8, label="before")
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel("log-prob. of chosen − rejected, nats")
        axes.set_ylabel("pairs")
        legend(axes)

    shares = [percent(float((margin > 0).mean())) for margin in margins]
    middles = [number(float(np.median(margin))) for margin in margins]
    words = (
        f"Right of zero the chosen completion is the more likely one: {shares[0]} of pairs before training, "
        f"{shares[1]} after. The median moved from {middles[0]} to {middles[1]} nats."
    )
    title = "Margins by the model’s own log-probs, before and after"
    return Drawing(title, words, draw("margins-both", f"Two histograms of margins. {words}", paint))


def _length_bias(judged: Floats, longer: Floats) -> Drawing:
    order = np.argsort(longer, kind="stable")
    parts = [part for part in np.array_split(order, _LENGTH_BINS) if len(part)]
    known = []
    for part in parts:
        found = accuracy(judged[part])
        if found.value is not None and found.low is not None and found.high is not None:
            known.append((float(longer[part].mean()), found.value, found.low, found.high, len(part)))

    def paint(axes: Any) -> None:
        ends = [[value - low for _, value, low, _, _ in known], [high - value for _, value, _, high, _ in known]]
        axes.axhline(0.5, color=MUTED, linewidth=1, dashes=(3, 3))
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.errorbar([one[0] for one in known], [one[1] for one in known], yerr=ends, color=AFTER, marker="o",
                      markersize=5.5, linewidth=1.2, elinewidth=1.6)  # fmt: skip
        axes.set_ylim(min([0.4, *(one[2] for one in known)]) - 0.03, 1.02)
        axes.yaxis.set_major_formatter(share_tick)
        axes.set_xlabel("tokens by which the chosen one is longer")
        axes.set_ylabel("ranked right")

    told = "; ".join(f"longer by {number(round(at, 1))}: {percent(value)} of {n}" for at, value, _, _, n in known)
    words = "A level line means that length plays no part."
    if known:
        first, last = known[0], known[-1]
        words = (
            f"{percent(first[1])} are ranked right where the chosen completion is {_longer(first[0])}, "
            f"{percent(last[1])} where it is {_longer(last[0])}. {words}"
        )
    if known and (spread := float(np.std(longer))) and float(np.std(judged)):
        tie = float(np.corrcoef(longer / spread, judged)[0, 1])
        words += f" Margin and length difference correlate at {number(tie, 2)}."
    return Drawing("Accuracy by difference in length", words, draw("length-bias", f"{words} {told}.", paint))


def _longer(tokens: float) -> str:
    whole = round(tokens)
    if whole == 0:
        return "as long as the rejected one"
    return f"{plural(abs(whole), 'token')} {'longer' if whole > 0 else 'shorter'}"


def _margins(margin: NDArray[np.float64]) -> Drawing:
    def paint(axes: Any) -> None:
        low, high = np.quantile(margin, [0.005, 0.995])
        width = max(float(high - low), 1e-6) / 40
        # An edge at 0, so that no bar mixes right and wrong pairs.
        edges = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width
        inside = np.clip(margin, edges[0], edges[-1])
        axes.hist(inside[margin > 0], edges, color=AFTER, label="right")
        axes.hist(inside[margin <= 0], edges, color=REJECTED, label="wrong")
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_xlabel("log-ratio of chosen − rejected, nats")
        axes.set_ylabel("pairs")
        legend(axes)

    low, middle, high = np.quantile(margin, [0.1, 0.5, 0.9])
    words = (
        f"{percent(float((margin > 0).mean()))} of {number(len(margin))} pairs lie right of zero, where the chosen "
        f"completion gained on the rejected one. The median is {number(float(middle))} nats; eight of ten pairs lie "
        f"between {number(float(low))} and {number(float(high))}."
    )
    return Drawing(
        "Margins against the reference, after training", words, draw("margins", f"Histogram of margins. {words}", paint)
    )


def _displacement(ratio: NDArray[np.float64]) -> Drawing:
    chosen, rejected = ratio[:, 0], ratio[:, 1]

    def paint(axes: Any) -> None:
        # At most 1,500 points: more add bytes to the page and no information to the eye.
        shown = np.linspace(0, len(ratio) - 1, min(len(ratio), 1500)).astype(int)
        right = chosen[shown] > rejected[shown]
        for mask, colour, label in ((right, AFTER, "right"), (~right, REJECTED, "wrong")):
            axes.plot(rejected[shown][mask], chosen[shown][mask], linestyle="", marker="o", markersize=3, alpha=0.55,
                      markeredgewidth=0, color=colour, label=label)  # fmt: skip
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.axline((0, 0), slope=1, color=MUTED, linewidth=1, dashes=(3, 3))
        axes.set_xlabel("log-ratio of rejected, nats")
        axes.set_ylabel("log-ratio of chosen, nats")
        legend(axes, points=2.2)

    up, down = float((chosen > 0).mean()), float((rejected < 0).mean())
    words = (
        f"The chosen completion became more likely in {percent(up)} of pairs, the rejected one less likely in "
        f"{percent(down)}. Each point is a pair; above the dashed line it is ranked right."
    )
    return Drawing("How far each completion moved", words, draw("displacement", f"Scatter plot. {words}", paint))
