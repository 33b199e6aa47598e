"""Curves of several runs over one another: a colour a run, each with an id that the page's switches take away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.report.figures import PLOTS, Drawing, Plot, legend, points, running_mean, share_tick, short, whole_ticks
from prefopt.report.read import Json
from prefopt.report.svg import INK, MUTED, RUNS, draw
from prefopt.report.words import is_number, number, percent, plural

Floats = NDArray[np.float64]
Rows = Mapping[str, Sequence[Json]]
"""Name of a run -> its logged steps."""


_SMOOTH_FROM = 20
"""Logged steps from which several runs are drawn as running means alone: raw lines over one another can't be read."""
_FAR = 8
"""How many times larger one loss has to end than another for a logarithmic scale."""


def colour(at: int) -> str:
    """Return the colour of run number `at`: behind the sixth all are alike, and told apart by their dashes."""
    return RUNS[at] if at < len(RUNS) else INK


def dashes(at: int) -> tuple[float, ...] | str:
    """Return the line style of run number `at`, a matplotlib one."""
    return ("-", "--", ":", "-.")[at // 3 % 4]


def over_steps(rows: Rows, held_out: Rows, places: Mapping[str, int]) -> list[Drawing]:
    """Return training curves over steps, a line a run; where a curve has two sides, a figure for each.

    `places`: which number each run has on the page, which decides its colour.
    """
    found = []
    for plot in PLOTS:
        several = len(plot.curves) > 1
        for curve in plot.curves:
            name = f"several-{plot.name}-{curve.label.split()[0]}"
            title = f"{plot.title}: {curve.label}" if several else plot.title
            lines = {name: points(_told(plot, run), curve.key) for name, run in rows.items()}
            marks = {name: points(run, f"eval_{curve.key}") for name, run in held_out.items()}
            if any(len(x) for x, _ in (*lines.values(), *marks.values())):
                found.append(_figure(name, title, plot, lines, marks, places))
    return found


def by_round(
    name: str,
    title: str,
    unit: str,
    lines: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]],
    *,
    places: Mapping[str, int] | None = None,
    shares: bool = False,
    words: str = "",
) -> Drawing | None:
    """Return measures with their intervals by the number of rounds trained, a line a run or a measure.

    Args:
        name: of the figure, unique on the page.
        title: what it shows.
        unit: of the vertical axis.
        lines: name -> (rounds trained, measure: value and, where there are any, low and high).
        places: which number each run has on the page; None where the lines are no runs.
        shares: whether values are shares.
        words: the caption; None says where each line begins and ends.
    """  # fmt: skip
    known = {
        label: [(at, one) for at, one in line if is_number((one or {}).get("value"))] for label, line in lines.items()
    }
    if not any(known.values()):
        return None
    shown = percent if shares else number

    def paint(axes: Any) -> None:
        for i, (label, line) in enumerate(known.items()):
            at = i if places is None else places[label]
            x = [round_of for round_of, _ in line]
            y = [one["value"] for _, one in line]
            axes.plot(x, y, color=colour(at), linestyle=dashes(at), marker="osD^vP"[at % 6], markersize=5,
                      label=short(label, 24), gid=f"run{at}")  # fmt: skip
            ends = [(one.get("low"), one.get("high")) for _, one in line]
            if all(is_number(low) and is_number(high) for low, high in ends) and ends:
                low, high = zip(*ends, strict=True)
                band = axes.fill_between(x, low, high, alpha=0.16, color=colour(at), linewidth=0)
                band.set_gid(f"band-run{at}")
        if shares:
            axes.yaxis.set_major_formatter(share_tick)
        whole_ticks(axes)
        axes.set_xlabel("rounds trained")
        axes.set_ylabel(unit)
        if len(known) > 1:
            legend(axes)

    def course(line: Sequence[tuple[float, Mapping[str, Any]]]) -> str:
        first, last = line[0], line[-1]
        if len(line) == 1:
            return f"{shown(first[1]['value'])} {_when(first[0])}"
        return f"{shown(first[1]['value'])} {_when(first[0])}, {shown(last[1]['value'])} {_when(last[0])}"

    told = "; ".join(
        f"{label}: {course(line)}" if len(known) > 1 else course(line) for label, line in known.items() if line
    )
    told = f"{told}." if places else f"{told[0].upper()}{told[1:]}."
    every = "; ".join(
        f"{label}: " + ", ".join(f"{number(at)}: {shown(one['value'])}" for at, one in line)
        for label, line in known.items()
    )
    return Drawing(title, f"{told} {words}".strip(), draw(name, f"{title} by rounds trained. {every}.", paint))


def _when(trained: float) -> str:
    return "at the start" if trained == 0 else f"after {plural(int(trained), 'round')}"


def _told(plot: Plot, rows: Sequence[Json]) -> Sequence[Json]:
    """Leave out the steps of which a plot can't say anything: accuracy where every pair is a tie."""
    return [row for row in rows if plot.name != "accuracy" or row.get("rewards/margins") != 0]


def _at_last(lines: Mapping[str, tuple[Floats, Floats]], shown: Any) -> str:
    """Say where each line ends; the step once, where all end at the same."""
    known = {label: (float(x[-1]), float(y[-1])) for label, (x, y) in lines.items() if len(x)}
    steps = {step for step, _ in known.values()}
    if not known:
        return "Held out alone."
    if len(steps) == 1:
        told = "; ".join(f"{label} {shown(value)}" for label, (_, value) in known.items())
        return f"At step {number(steps.pop())}: {told}."
    told = "; ".join(f"{label} {shown(value)} (step {number(step)})" for label, (step, value) in known.items())
    return f"Last values: {told}."


def _plain_tick(value: float, _: object) -> str:
    return f"{value:g}"


def _figure(
    name: str,
    title: str,
    plot: Plot,
    lines: Mapping[str, tuple[Floats, Floats]],
    marks: Mapping[str, tuple[Floats, Floats]],
    places: Mapping[str, int],
) -> Drawing:
    shown = percent if plot.name == "accuracy" else number
    ends = [float(y[-1]) for _, y in lines.values() if len(y)]
    least = min((float(y.min()) for _, y in lines.values() if len(y)), default=0.0)
    logarithmic = plot.name == "loss" and least > 0 and max(ends) > _FAR * min(ends)

    def paint(axes: Any) -> None:
        if plot.level is not None:
            axes.axhline(plot.level, color=MUTED, linewidth=1, dashes=(3, 3))
        for label, (x, y) in lines.items():
            at = places[label]
            style = {"color": colour(at), "gid": f"run{at}"}
            if len(x):
                axes.plot(x, running_mean(y, _SMOOTH_FROM), linestyle=dashes(at), marker="o" if len(x) == 1 else "",
                          label=short(label, 24), **style)  # fmt: skip
            x, y = marks.get(label, (np.array([]), np.array([])))
            axes.plot(x, y, linestyle="", marker="D", markersize=5, color=colour(at), gid=f"held-out-run{at}")
        if plot.name == "accuracy":
            axes.yaxis.set_major_formatter(share_tick)
        if logarithmic:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_plain_tick)
            axes.yaxis.set_minor_formatter("")
        legend(axes)
        whole_ticks(axes)
        axes.set_xlabel("step")
        axes.set_ylabel(plot.unit)

    words = _at_last(lines, shown)
    if any(len(x) for x, _ in marks.values()):
        words += " Diamonds are held-out pairs."
    if any(len(y) >= _SMOOTH_FROM for _, y in lines.values()):
        words += " Lines are running means."
    if logarithmic:
        words += " The scale is logarithmic: different losses have different units."
    return Drawing(title, words, draw(name, f"{title} over steps, a line a run. {words}", paint))
