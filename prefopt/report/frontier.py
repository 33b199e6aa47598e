"""Reward against divergence: how much reward each run or checkpoint bought with its distance to the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.report.figures import Drawing, legend, short
from prefopt.report.read import Json
from prefopt.report.sections import Section, TablePart, section_id
from prefopt.report.svg import MUTED, RUNS, draw
from prefopt.report.tables import Cell, Line, plain
from prefopt.report.words import interval, is_number, number, percent, plural

Point = Mapping[str, Any]


def frontier_section(stem: str, found: Json) -> Section:
    """Return the section of a frontier.json. Raises KeyError or TypeError for what is none."""
    points = known_points(found)
    best = [point for point in points if point.get("dominating")]
    names = ", ".join(str(point["label"]) for point in best)
    lead = f"{plural(len(points), 'point')}, samples scored by {plain(found.get('scorer'))}."
    if best:
        lead += (
            " None of them beats another on both reward and divergence."
            if len(best) == len(points) > 1
            else f" No other gives more reward at less divergence than {names}."
        )
    lines = [
        Line(
            str(point["label"]),
            "no other beats it on both" if point.get("dominating") else "",
            (
                Cell(number(point["reward"]["value"]), interval(point["reward"])),
                Cell(number(point["kl"]["value"]), interval(point["kl"])),
                Cell(number((point.get("kl_log_ratio") or {}).get("value")), interval(point.get("kl_log_ratio"))),
                Cell(number((point.get("length") or {}).get("value"))),
                Cell(percent(point.get("truncated"))),
            ),
        )
        for point in points
    ]
    columns = ("Model", "Reward", "KL, nats", "KL by log-ratio, nats", "Length, tokens", "Cut at the end")
    notes = []
    if is_number(found.get("prompts")):
        notes.append(
            f"{plural(int(found['prompts']), 'prompt')}, {plain(found.get('samples_per_prompt'))} completions each, at "
            f"most {plain(found.get('max_new_tokens'))} tokens, at temperature 1. KL is the sum over sampled tokens of "
            "the exact divergence at each; the log-ratio of the samples beside it is a noisier estimate of the same."
        )
    return Section(
        id=section_id("frontier", stem),
        title="Reward against distance from the reference",
        short="Frontier",
        lead=(lead,),
        tables=(TablePart("Reward and divergence", columns, tuple(lines)),) if lines else (),
        figures=(frontier_figure(stem, points),) if points else (),
        notes=tuple(notes),
    )


def known_points(found: Json) -> list[Json]:
    """Return the points of a frontier.json whose two numbers are known. Raises as `frontier_section`."""
    return [point for point in found["points"] if _known(point["reward"]) and _known(point["kl"])]


def frontier_figure(name: str, points: Sequence[Point]) -> Drawing:
    """Return the figure: a point a model, bars for its intervals, a line through the frontier."""
    losses = list(dict.fromkeys(_loss(point) for point in points))
    best = sorted((p for p in points if p.get("dominating")), key=lambda p: float(p["kl"]["value"]))

    def paint(axes: Any) -> None:
        axes.plot([p["kl"]["value"] for p in best], [p["reward"]["value"] for p in best], color=MUTED, dashes=(4, 3))
        for number_of, loss in enumerate(losses):
            part = [p for p in points if _loss(p) == loss]
            x, y = ([p[key]["value"] for p in part] for key in ("kl", "reward"))
            axes.errorbar(
                x, y, xerr=_ends(part, "kl"), yerr=_ends(part, "reward"), linestyle="", elinewidth=1.2, markersize=6,
                color=RUNS[number_of % len(RUNS)], marker="osD^vP"[number_of % 6], label=short(loss, 22),
            )  # fmt: skip
        furthest = max((float(p["kl"]["value"]) for p in points), default=0.0)
        for at, p in enumerate(best[:8]):
            # Above and below in turn, and away from the edge, so that neighbours don't cover one another.
            right = float(p["kl"]["value"]) > 0.6 * furthest
            axes.annotate(
                short(p["label"], 18), (p["kl"]["value"], p["reward"]["value"]), parse_math=False, fontsize=10.5,
                xytext=(-6 if right else 6, 7 if at % 2 else -15), textcoords="offset points", color=MUTED,
                ha="right" if right else "left",
            )  # fmt: skip
        axes.set_xlabel("KL to the reference, nats a completion")
        axes.set_ylabel("reward")
        if len(losses) > 1:
            legend(axes)

    told = "; ".join(
        f"{p['label']}: reward {number(p['reward']['value'])} at {number(p['kl']['value'])} nats" for p in points[:40]
    )
    caption = "Bars are 95\u00a0% intervals; the dashed line joins the models that no other beats on both."
    title = "Reward against KL"
    return Drawing(title, caption, draw(f"frontier-{name}", f"{title}. {told}.", paint))


def _loss(point: Point) -> str:
    """Return what a point was trained with; the start of a frontier was not."""
    return "untrained" if point.get("loss") is None else str(point["loss"])


def _ends(points: Sequence[Point], key: str) -> list[list[float]]:
    values = [point[key] for point in points]
    return [[v["value"] - v["low"] for v in values], [v["high"] - v["value"] for v in values]]


def _known(measure: Any) -> bool:
    return all(is_number(measure.get(key)) for key in ("value", "low", "high"))
