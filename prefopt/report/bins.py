"""Accuracy by the bins of a column, beside the human ceiling: a table and a figure for each evaluation with bins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

from prefopt.report.figures import Drawing, legend, share_tick, short
from prefopt.report.read import Evaluations, RunFiles
from prefopt.report.svg import AFTER, BEFORE, HUMAN, MUTED, draw
from prefopt.report.tables import Cell, Line, cell
from prefopt.report.words import NONE, is_number, percent, percent_interval, plural

_AGREEMENT = "agreement"

Measure = Mapping[str, Any]
Series = tuple[str, str, str, list[Any]]
"""Label, colour, marker, and a measure or None for each bin."""


@dataclass(frozen=True)
class BinSection:
    """One evaluation by bins."""

    title: str
    summary: str
    """What it says over all its bins; empty for the run's own evaluation, which the page gives in full."""
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    figure: Drawing | None


def bin_sections(run: RunFiles) -> list[BinSection]:
    """Return a section for the run's held-out evaluation and for each further one, where they have bins."""
    own = Evaluations("", run.before, run.after)
    agreement = _agreement(run.after)
    found = [_section(evaluations) for evaluations in (own, *run.further) if _slices(evaluations)]
    if agreement is not None:
        section = _section(Evaluations(_AGREEMENT, None, agreement))
        found.insert(0, replace(section, title="Accuracy by how far raters agree, beside people", summary=""))
    return found


def _agreement(after: Measure | None) -> dict[str, Any] | None:
    """Return the accuracy by rater agreement that an evaluation holds, as slices."""
    parts = [part for part in (after or {}).get("by_agreement") or () if isinstance(part, Mapping)]
    known = [part for part in parts if is_number(part.get("low")) and is_number(part.get("high"))]
    if not known:
        return None
    judged = str(((after or {}).get("metrics") or {}).get("primary") or "reward")
    slices = [
        {"label": f"{100 * part['low']:.0f} to {100 * part['high']:.0f} %", "n": part.get("n", 0),
         judged: part.get("accuracy"), "human": part.get("human")}
        for part in known
    ]  # fmt: skip
    return {"slice_by": "share of raters who prefer the chosen one", "slices": slices}


def _slices(evaluations: Evaluations) -> list[Measure]:
    found = (evaluations.after or evaluations.before or {}).get("slices") or []
    return [part for part in found if isinstance(part, Mapping)]


def _section(evaluations: Evaluations) -> BinSection:
    column = str((evaluations.after or evaluations.before or {}).get("slice_by"))
    before, after = (
        {str(part.get("label")): part for part in (evaluation or {}).get("slices") or []}
        for evaluation in (evaluations.before, evaluations.after)
    )
    judged = "reward" if any(part.get("reward") for part in after.values()) else "logprob"
    lines = []
    for label, part in (after or before).items():
        then, now = before.get(label) or {}, after.get(label) or {}
        cells = (
            cell("logprob_per_token", then.get("logprob_per_token")),
            cell("logprob_per_token", now.get("logprob_per_token")),
            cell(judged, now.get(judged)),
            cell("human", part.get("human")),
        )
        lines.append(Line(label, plural(int(part.get("n", 0)), "pair"), cells))
    known = [any(line.cells[at] != Cell(NONE) for line in lines) for at in range(4)]
    lines = [replace(line, cells=tuple(compress(line.cells, known))) for line in lines]
    judgement = "implicit reward" if judged == "reward" else "log-prob."
    headings = ("Before, per token", "After, per token", f"After, {judgement}", "One rater")
    return BinSection(
        title=_title(evaluations.name, column, people=known[3]),
        summary=_summary(evaluations, judged) if evaluations.name else "",
        columns=(column, *compress(headings, known)),
        lines=tuple(lines),
        figure=_figure(evaluations.name, column, before, after, judged, judgement) if after else None,
    )


def _title(name: str, column: str, *, people: bool) -> str:
    if not name:
        return f"Accuracy by {column}, beside people" if people else f"Accuracy by {column}"
    return f"Further pairs: {name}" + ("" if name.endswith(f"by {column}") else f", by {column}")


def _summary(evaluations: Evaluations, judged: str) -> str:
    measure = ((evaluations.after or {}).get("metrics") or {}).get(judged) or {}
    if not is_number(measure.get("value")):
        return ""
    return (
        f"Other pairs than those above. Over all bins {percent(measure['value'])} are ranked right after "
        f"training (95\u00a0% interval {percent_interval(measure)})."
    )


def _figure(
    name: str, column: str, before: Mapping[str, Measure], after: Mapping[str, Measure], judged: str, judgement: str
) -> Drawing:
    parts = list(after.values())
    then = [before.get(label) or {} for label in after]
    possible: list[Series] = [
        ("before, per token", BEFORE, "s", [part.get("logprob_per_token") for part in then]),
        ("after, per token", AFTER, "s", [part.get("logprob_per_token") for part in parts]),
        (f"after, {judgement}", AFTER, "o", [part.get(judged) for part in parts]),
        ("one rater", HUMAN, "D", [part.get("human") for part in parts]),
    ]
    series = [one for one in possible if any(map(_known, one[3]))]
    ticks = [f"{short(label, 16)}\nn = {part.get('n')}" for label, part in after.items()]
    words = "; ".join(
        f"{label}: " + ", ".join(f"{who} {percent((values[i] or {}).get('value'))}" for who, _, _, values in series)
        for i, label in enumerate(after)
    )
    title = f"Accuracy by {column}"
    caption = _caption(column, list(after), parts, judged)
    identity = f"bins-{''.join(c if c.isascii() and c.isalnum() else '-' for c in name)}"
    return Drawing(
        title,
        caption,
        draw(identity, f"{title}. {words}.", lambda axes: _paint(axes, series, ticks, short(column, 60))),
    )


def _caption(column: str, labels: Sequence[str], parts: Sequence[Measure], judged: str) -> str:
    """Say where it ranks best and where worst."""
    known = [(label, part[judged]["value"]) for label, part in zip(labels, parts, strict=True)
             if _known(part.get(judged))]  # fmt: skip
    said = ""
    if len(known) > 1:
        low, high = (pick(known, key=lambda one: float(one[1])) for pick in (min, max))
        said = (
            f"Most are ranked right where {short(column, 60)} is {short(high[0], 40)} ({percent(high[1])}), fewest "
            f"where it is {short(low[0], 40)} ({percent(low[1])}). "
        )
    return said + "Bars are 95\u00a0% intervals; the dashed line is chance."


def _paint(axes: Any, series: Sequence[Series], ticks: Sequence[str], column: str) -> None:
    lowest = 0.5
    axes.axhline(0.5, color=MUTED, linewidth=1, dashes=(3, 3))
    for i, (label, colour, marker, values) in enumerate(series):
        shift = 0.15 * (i - (len(series) - 1) / 2)
        known = [(at + shift, value) for at, value in enumerate(values) if _known(value)]
        middle = [value["value"] for _, value in known]
        ends = [
            [value["value"] - value["low"] for _, value in known],
            [value["high"] - value["value"] for _, value in known],
        ]
        axes.errorbar(
            [at for at, _ in known],
            middle,
            yerr=ends,
            color=colour,
            marker=marker,
            markersize=5.5,
            # Hollow where the model is asked alone, so that nobody needs the colour.
            markerfacecolor="none" if label.endswith("per token") else colour,
            linestyle="",
            elinewidth=1.6,
            label=label,
        )
        lowest = min([lowest, *(value["low"] for _, value in known)])
    axes.set_ylim(lowest - 0.03, 1.02)
    axes.yaxis.set_major_formatter(share_tick)
    axes.set_xticks(range(len(ticks)), ticks, parse_math=False)
    axes.set_xlabel(column, parse_math=False)
    legend(axes)


def _known(measure: Any) -> bool:
    return isinstance(measure, Mapping) and all(is_number(measure.get(key)) for key in ("value", "low", "high"))
