"""Tables of a run of rounds: what was measured after each round, and what each round made."""

from __future__ import annotations

from typing import Any

from prefopt.report.read import Json
from prefopt.report.rounds_read import RoundsFiles
from prefopt.report.sections import TablePart
from prefopt.report.tables import Cell, Line
from prefopt.report.words import NONE, duration, interval, number, percent, percent_interval, plural


def value_of(found: Json, key: str) -> Any:
    """Return the middle of a measure; None where there is none."""
    return (found.get(key) or {}).get("value")


def held_out_table(run: RoundsFiles) -> TablePart:
    """Return what was measured at the start and after each round."""
    ks = [found.get("k") for found in run.measures.values()]
    columns = (
        "Measured",
        "Reward",
        "pass@1",
        f"pass@{ks[0]}" if ks else "pass@k",
        "KL, nats",
        "Length, tokens",
        "Ended",
        "Duplicates",
    )
    lines = []
    for one in run.evaluated:
        found = run.measures[one.name]
        shares = [Cell(percent(value_of(found, key)), _note(found, key, True)) for key in ("pass@1", "pass@k")]
        means = [Cell(number(value_of(found, key)), _note(found, key, False)) for key in ("reward", "kl", "length")]
        rest = [Cell(percent(found.get(key))) for key in ("ended", "duplicates")]
        label = "at the start" if one.name == "start" else f"after round {one.name}"
        lines.append(Line(label, "", (means[0], *shares, *means[1:], *rest)))
    return TablePart("Held-out prompts, by round", columns, tuple(lines), "Held-out prompts")


def _note(found: Json, key: str, share: bool) -> str:
    measure = found.get(key)
    said = percent_interval(measure) if share else interval(measure)
    return "" if said == NONE else said


def made_table(run: RoundsFiles) -> TablePart:
    """Return what each round sampled, selected and learned from."""
    columns = (
        "Round", "Answers sampled", "Tokens", "Reward", "Accepted", "Selected", "Trained on", "Accuracy in training",
        "Time",
    )  # fmt: skip
    lines = []
    for one in run.status.rounds:
        if one.name == "start":
            continue
        failed = run.counts.get(one.name, {}).get("score", {}).get("failed")
        lines.append(
            Line(
                f"Round {one.name}",
                "" if "evaluate" in one.done else f"{', '.join(one.done) or 'nothing'} done",
                (
                    Cell(number(one.rollouts), plural(one.prompts, "prompt") if one.prompts is not None else ""),
                    Cell(number(one.tokens)),
                    Cell(number(one.reward), f"{number(failed)} failed" if failed else ""),
                    Cell(percent(one.acceptance)),
                    Cell(number(one.selected)),
                    Cell(number(one.examples)),
                    Cell(percent(one.accuracy)),
                    Cell(duration(one.seconds) if one.seconds else NONE),
                ),
            )
        )
    return TablePart(
        "What each round made, stage by stage",
        columns,
        tuple(lines),
        "What each round sampled, selected and learned from",
    )
