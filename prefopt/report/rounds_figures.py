"""Figures of a run of rounds: what changes by round, and the training of all rounds behind one another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefopt.report import figures
from prefopt.report.figures import Drawing
from prefopt.report.overlay import by_round
from prefopt.report.rounds_read import RoundsFiles
from prefopt.report.words import number

Measure = Mapping[str, Any]

_BY_ROUND = (
    ("reward", "Held-out reward", "mean reward", False, "Bands are 95\u00a0% intervals."),
    ("pass@1", "pass@1", "right answers", True, "How often one answer is right."),
    ("pass@k", "pass@k", "prompts solved", True, "How often at least one of several answers is right."),
    ("kl", "KL to the first reference", "nats an answer", False, "How far it has moved from the model as it began."),
    ("length", "Length of answers", "tokens", False, ""),
)


def rounds_figures(runs: Mapping[str, RoundsFiles], places: Mapping[str, int] | None = None) -> list[Drawing]:
    """Return what changes by round: on the page of one run, several measures in a figure where they belong together.

    `places`: which number each run has on a page of several; None: the page is that of the only one.
    """
    found: list[Drawing | None] = []
    for key, title, unit, shares, words in _BY_ROUND:
        lines = {name: _line(run, key) for name, run in runs.items()}
        if key == "reward" and places is None:
            [run] = runs.values()
            lines = {"held out": next(iter(lines.values())), "in training": _sampled(run)}
        if key == "pass@k":
            ks = {number(found.get("k")) for run in runs.values() for found in run.measures.values() if found.get("k")}
            title = f"pass@{ks.pop()}" if len(ks) == 1 else title
        found.append(
            by_round(f"rounds-{key.replace('@', '')}", title, unit, lines, places=places, shares=shares, words=words)
        )
    accepted = {name: _status_line(run, "acceptance") for name, run in runs.items()}
    words = "The share of sampled answers that was selected to learn from."
    found.append(
        by_round("rounds-acceptance", "Acceptance", "answers", accepted, places=places, shares=True, words=words)
    )
    words = "Answers that repeat another one to the same prompt."
    if places is None:
        [run] = runs.values()
        both = {"duplicates": _line(run, "duplicates"), "distinct-2": _line(run, "distinct_2")}
        words = (
            "Duplicates are answers that repeat another one to the same prompt; distinct-2 is the share of different "
            "pairs of tokens."
        )
        found.append(by_round("rounds-variety", "Variety of answers", "share", both, shares=True, words=words))
    else:
        lines = {name: _line(run, "duplicates") for name, run in runs.items()}
        found.append(by_round("rounds-variety", "Duplicates", "share", lines, places=places, shares=True, words=words))
    return [one for one in found if one is not None]


def _at(name: str) -> float:
    """Return how many rounds have trained what a round's evaluation measures."""
    return 0 if name == "start" else int(name) + 1


def _line(run: RoundsFiles, key: str) -> list[tuple[float, Measure]]:
    found = [(_at(one.name), run.measures[one.name].get(key)) for one in run.evaluated]
    return [(at, value if isinstance(value, Mapping) else {"value": value}) for at, value in found]


def _sampled(run: RoundsFiles) -> list[tuple[float, Measure]]:
    """A round samples from what the rounds before it trained."""
    return [(_at(one.name) - 1, {"value": one.reward}) for one in run.status.rounds if one.reward is not None]


def _status_line(run: RoundsFiles, key: str) -> list[tuple[float, Measure]]:
    return [(_at(one.name), {"value": getattr(one, key)}) for one in run.status.rounds if one.name != "start"]


def rounds_training(run: RoundsFiles) -> list[Drawing]:
    """Return the training curves of all rounds behind one another."""
    if not run.training:
        return []
    rows, breaks, before = [], [], 0.0
    for _, found in run.training:
        if before and found.metrics:
            breaks.append(before + 0.5)
        rows += [{**row, "step": row["step"] + before} for row in found.metrics]
        before = rows[-1]["step"] if rows else 0.0
    joined = replace(run.training[0][1], metrics=tuple(rows), held_out=())
    return figures.training_curves(joined, breaks)
