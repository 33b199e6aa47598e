"""The report's figures: each returns its drawing, its title, and the same thing in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from prefopt.report.read import RunFiles
from prefopt.report.svg import AFTER, CHOSEN, GRID, INK, MUTED, REJECTED, draw
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


PLOTS = (
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


def training_curves(run: RunFiles, breaks: Sequence[float] = ()) -> list[Drawing]:
    """Return the curves over steps that the run has values for: loss, accuracy, margin, log-ratios, divergence.

    `breaks`: steps at which a new round begins, drawn as lines.
    """
    drawings = [_over_steps(run, plot, breaks) for plot in PLOTS]
    return [drawing for drawing in drawings if drawing is not None]


Points = tuple[Curve, NDArray[np.float64], NDArray[np.float64]]


def _over_steps(run: RunFiles, plot: Plot, breaks: Sequence[float]) -> Drawing | None:
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
        f"curve-{plot.name}",
        f"{plot.title} over steps. {text}",
        lambda axes: _paint(axes, plot, training, held_out, breaks),
    )
    return Drawing(plot.title, text, svg)


def _series(rows: Sequence[Row], curves: Sequence[Curve], prefix: str) -> list[Points]:
    found = [(curve, *points(rows, prefix + curve.key)) for curve in curves]
    return [(curve, x, y) for curve, x, y in found if len(x)]


def _paint(
    axes: Any, plot: Plot, training: Sequence[Points], held_out: Sequence[Points], breaks: Sequence[float]
) -> None:
    for step in breaks:
        axes.axvline(step, color=GRID, linewidth=1.2)
    if plot.level is not None:
        axes.axhline(plot.level, color=MUTED, linewidth=1, dashes=(3, 3))
    for curve, x, y in training:
        if len(x) < _SMOOTH_FROM:
            axes.plot(x, y, color=curve.colour, marker="o" if len(x) == 1 else "", label=curve.label)
        else:
            axes.plot(x, y, color=curve.colour, alpha=0.35, linewidth=1)
            axes.plot(x, running_mean(y), color=curve.colour, label=f"{curve.label}, running mean")
    for curve, x, y in held_out:
        colour = AFTER if len(plot.curves) == 1 else curve.colour
        label = "held out" if len(plot.curves) == 1 else f"{curve.label}, held out"
        axes.plot(x, y, color=colour, linestyle="", marker="D", markersize=5, label=label)
    if plot.name == "accuracy":
        lowest = min(float(y.min()) for _, _, y in (*training, *held_out))
        axes.set_ylim(min(0.4, lowest - 0.02), 1.02)
        axes.yaxis.set_major_formatter(share_tick)
    if len(training) + len(held_out) > 1:
        legend(axes)
    whole_ticks(axes)
    axes.set_xlabel("step")
    axes.set_ylabel(plot.unit)


def points(rows: Sequence[Row], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps that have a number under `key`, and those numbers."""
    found = [(row["step"], row[key]) for row in rows if is_number(row.get(key))]
    x, y = zip(*found, strict=True) if found else ((), ())
    return np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)


def running_mean(values: NDArray[np.float64], fewest: int = _SMOOTH_FROM) -> NDArray[np.float64]:
    """Return the mean of each value and its neighbours, over about a twentieth of the run; of fewer, themselves."""
    if len(values) < fewest:
        return values
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
    # What no font can draw (half a surrogate pair, marks that turn the direction of writing) becomes a visible mark.
    words = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(str(text).split()))
    return words if len(words) <= most else words[: most - 1] + "…"


def share_tick(value: float, _: object) -> str:
    """0.325 -> `32.5 %`, for an axis of shares."""
    return f"{100 * value:.3g} %"


def whole_ticks(axes: Any) -> None:
    """Let no tick of the horizontal axis stand at half a step."""
    axes.xaxis.get_major_locator().set_params(integer=True)


def legend(axes: Any, *, points: float = 1.0) -> None:
    """Put the legend above the axes, where it can't cover what it explains.

    `points`: how much larger its markers are than those in the figure.
    """
    labels = axes.get_legend_handles_labels()[1]
    longest = max(map(len, labels), default=0)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=3 if longest < 9 else 2, borderaxespad=0.2,
        handlelength=1.6, columnspacing=1.4, labelspacing=0.25, markerscale=points,
    )  # fmt: skip
