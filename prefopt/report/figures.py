"""The report's figures: each returns its drawing, its title, and the same thing in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from prefopt.report.read import RunFiles
from prefopt.report.svg import AFTER, CHOSEN, INK, MUTED, REJECTED, draw
from prefopt.report.words import is_number, number, percent

Row = Mapping[str, Any]

_SMOOTH_FROM = 60
"""Logged steps from which a running mean is drawn over the faint raw curve."""


@dataclass(frozen=True)
class Drawing:
    """One figure of the page."""

    title: str
    words: str
    """Its caption. The drawing carries a text alternative of its own."""
    svg: Markup


@dataclass(frozen=True)
class Curve:
    """One line of a plot over steps."""

    key: str
    label: str
    colour: str


@dataclass(frozen=True)
class Plot:
    """One plot over steps."""

    name: str
    title: str
    unit: str
    curves: tuple[Curve, ...]
    level: float | None
    """Where nothing has been learned yet, drawn as a dashed line."""


_PLOTS = (
    Plot("loss", "Loss", "", (Curve("loss", "training", INK),), None),
    Plot("accuracy", "Accuracy", "share of pairs", (Curve("rewards/accuracies", "training", INK),), 0.5),
    Plot("margin", "Margin, chosen − rejected", "implicit reward", (Curve("rewards/margins", "training", INK),), 0.0),
    Plot(
        "ratios",
        "Log-ratios to the reference",
        "nats",
        (Curve("log_ratios/chosen", "chosen", CHOSEN), Curve("log_ratios/rejected", "rejected", REJECTED)),
        0.0,
    ),
    Plot("kl", "Divergence on samples", "nats a token", (Curve("kl_per_token", "KL to the reference", INK),), 0.0),
)


def training_curves(run: RunFiles) -> list[Drawing]:
    """Return the curves over steps that the run has values for: loss, accuracy, margin, log-ratios, divergence."""
    drawings = [_over_steps(run, plot) for plot in _PLOTS]
    return [drawing for drawing in drawings if drawing is not None]


Points = tuple[Curve, NDArray[np.float64], NDArray[np.float64]]


def _over_steps(run: RunFiles, plot: Plot) -> Drawing | None:
    # Where policy and reference still agree exactly every pair is a tie: there is no accuracy yet to draw.
    rows = [row for row in run.metrics if plot.name != "accuracy" or row.get("rewards/margins") != 0]
    training = _series(rows, plot.curves, "")
    held_out = _series(run.held_out, plot.curves, "eval_")
    if not training and not held_out:
        return None
    shown: Callable[[Any], str] = percent if plot.name == "accuracy" else number
    several = len(plot.curves) > 1
    words = [_course(curve.label if several else plot.title, x, y, shown) for curve, x, y in training]
    words += [_course(f"held out, {curve.label}" if several else "held out", x, y, shown) for curve, x, y in held_out]
    text = "; ".join(words) + "."
    text = text[0].upper() + text[1:]
    svg = draw(
        f"curve-{plot.name}", f"{plot.title} over steps. {text}", lambda axes: _paint(axes, plot, training, held_out)
    )
    return Drawing(plot.title, text, svg)


def _series(rows: Sequence[Row], curves: Sequence[Curve], prefix: str) -> list[Points]:
    found = [(curve, *_points(rows, prefix + curve.key)) for curve in curves]
    return [(curve, x, y) for curve, x, y in found if len(x)]


def _paint(axes: Any, plot: Plot, training: Sequence[Points], held_out: Sequence[Points]) -> None:
    if plot.level is not None:
        axes.axhline(plot.level, color=MUTED, linewidth=1, dashes=(3, 3))
    for curve, x, y in training:
        if len(x) < _SMOOTH_FROM:
            axes.plot(x, y, color=curve.colour, marker="o" if len(x) == 1 else "", label=curve.label)
        else:
            axes.plot(x, y, color=curve.colour, alpha=0.35, linewidth=1)
            axes.plot(x, _running_mean(y), color=curve.colour, label=f"{curve.label}, running mean")
    for curve, x, y in held_out:
        colour = AFTER if len(plot.curves) == 1 else curve.colour
        label = "held out" if len(plot.curves) == 1 else f"{curve.label}, held out"
        axes.plot(x, y, color=colour, linestyle="", marker="D", markersize=5, label=label)
    if plot.name == "accuracy":
        lowest = min(float(y.min()) for _, _, y in (*training, *held_out))
        axes.set_ylim(min(0.4, lowest - 0.02), 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    if len(training) + len(held_out) > 1:
        legend(axes)
    axes.set_xlabel("step")
    axes.set_ylabel(plot.unit)


def _points(rows: Sequence[Row], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    found = [(row["step"], row[key]) for row in rows if is_number(row.get(key))]
    x, y = zip(*found, strict=True) if found else ((), ())
    return np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each value and its neighbours, over about a twentieth of the run."""
    half = max(2, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return np.asarray((total[high] - total[low]) / (high - low))


def _course(label: str, x: NDArray[np.float64], y: NDArray[np.float64], shown: Callable[[Any], str]) -> str:
    if len(x) == 1:
        return f"{label} {shown(float(y[0]))} at step {number(float(x[0]))}"
    return (
        f"{label} from {shown(float(y[0]))} at step {number(float(x[0]))} to {shown(float(y[-1]))} at step "
        f"{number(float(x[-1]))}"
    )


def short(text: object, most: int) -> str:
    """Cut text from data to what fits beside an axis."""
    words = " ".join(str(text).split())
    return words if len(words) <= most else words[: most - 1] + "…"


def legend(axes: Any) -> None:
    """Put the legend above the axes, where it can't cover what it explains."""
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, borderaxespad=0.2, handlelength=1.4,
        columnspacing=1.4, labelspacing=0.25,
    )  # fmt: skip


def pair_figures(run: RunFiles) -> list[Drawing]:
    """Return what the held-out pairs look like one by one after training: margins, and where they come from."""
    pairs = (run.after or {}).get("pairs") or {}
    policy, reference = pairs.get("policy"), pairs.get("reference")
    if not policy or not reference or len(policy) != len(reference):
        return []
    ratio = np.array(policy, dtype=np.float64) - np.array(reference, dtype=np.float64)
    return [_margins(ratio[:, 0] - ratio[:, 1]), _displacement(ratio)]


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
        f"{percent(float((margin > 0).mean()))} of {number(len(margin))} pairs lie right of zero; the middle one at "
        f"{number(float(middle))} nats, eight of ten between {number(float(low))} and {number(float(high))}."
    )
    return Drawing("How far apart the pairs are", words, draw("margins", f"Histogram of margins. {words}", paint))


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
        legend(axes)

    up, down = float((chosen > 0).mean()), float((rejected < 0).mean())
    words = (
        f"Each point is a pair; above the dashed line it is ranked right. The chosen completion became more likely in "
        f"{percent(up)} of pairs, the rejected one less likely in {percent(down)}."
    )
    return Drawing(
        "What moved: chosen up or rejected down", words, draw("displacement", f"Scatter plot. {words}", paint)
    )
