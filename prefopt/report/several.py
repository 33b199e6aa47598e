"""Several runs on one page: curves over one another, a table side by side, and which of them is best, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from prefopt.eval.intervals import Mean, mean
from prefopt.report import tables
from prefopt.report.document import render_page
from prefopt.report.frontier import frontier_figure
from prefopt.report.measured import frontiers
from prefopt.report.overlay import over_steps
from prefopt.report.pairs import column
from prefopt.report.read import Json, RunFiles
from prefopt.report.rounds_figures import rounds_figures
from prefopt.report.rounds_page import is_whole, paired
from prefopt.report.rounds_read import RoundsFiles
from prefopt.report.samples import Sample, Side, is_shaded, kinds_of, text_of
from prefopt.report.shading import answers
from prefopt.report.tables import Cell, cell
from prefopt.report.verdict import Tile, Verdict
from prefopt.report.words import NONE, duration, interval, is_number, number, percent, percent_interval, plural

AnyRun = RunFiles | RoundsFiles
_LETTERS = "abcdef"
_PLACES = ("train.output_dir", "output_dir", "rounds.output_dir", "reference.cache_dir")
"""Settings that say where things lie: they differ and mean nothing."""


@dataclass(frozen=True)
class Row:
    """A run in a table of runs."""

    at: int
    name: str
    colour: str
    """A letter of the page's colours of runs, or nothing behind the sixth."""
    note: str
    cells: tuple[Cell, ...]


def render_several(runs: Sequence[AnyRun]) -> str:
    """Return the page of several runs, of training or of rounds or both."""
    named = _names(runs)
    trained = {name: run for name, run in named.items() if isinstance(run, RunFiles)}
    rounds = {name: run for name, run in named.items() if isinstance(run, RoundsFiles)}
    at = {name: number_of for number_of, name in enumerate(named)}
    samples = _samples(trained)
    curves = over_steps(
        {name: run.metrics for name, run in trained.items()}, {name: run.held_out for name, run in trained.items()}, at
    )
    frontier, left_out = _frontier(named)
    return render_page(
        "several_page.html.j2",
        scripted=True,
        names=[(at[name], name, _colour(at[name])) for name in named],
        heading=f"{plural(len(named), 'run')}, side by side",
        verdict=_verdict(trained, rounds),
        problems=[*(f"{name}: {problem}" for name, run in named.items() for problem in run.problems), *left_out],
        nav=[
            ("runs", "Runs"),
            *((("training", "Training"),) if trained else ()),
            *((("rounds", "Rounds"),) if rounds else ()),
            *((("frontier", "Frontier"),) if frontier else ()),
            *((("samples", "Samples"),) if samples else ()),
            ("recipes", "Recipes"),
        ],
        trained=_known_columns(TRAINED, [_trained_row(at[name], name, run) for name, run in trained.items()]),
        rounds=_known_columns(ROUNDS, [_rounds_row(at[name], name, run) for name, run in rounds.items()]),
        curves=curves,
        measured=any(run.after for run in trained.values()) or any(run.evaluated for run in rounds.values()),
        rounds_curves=rounds_figures(rounds, at) if rounds else [],
        frontier=frontier,
        samples=samples,
        kinds=kinds_of(samples),
        shaded=is_shaded(samples),
        differences=_differences(named),
    )


def _names(runs: Sequence[AnyRun]) -> dict[str, AnyRun]:
    """Return the runs by name; of runs named alike, with as much of their paths as tells them apart."""
    paths = [run.path.resolve() for run in runs]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(names, runs, strict=True))


def _colour(at: int) -> str:
    return _LETTERS[at] if at < len(_LETTERS) else ""


def _verdict(trained: Mapping[str, RunFiles], rounds: Mapping[str, RoundsFiles]) -> Verdict:
    """Say which run is best and how sure that is; of training and rounds, what there is more of speaks first."""
    found = [*_best_trained(trained), *_best_rounds(rounds)]
    if not found:
        return _unmeasured([*trained.values()], [*rounds.values()])
    title, clear, sentences, tiles = found[0]
    rest = [f"{other[0]}. {' '.join(other[2])}" for other in found[1:]]
    return Verdict("good" if clear else "unclear", title, (*sentences, *rest), tiles)


def _unmeasured(trained: Sequence[RunFiles], rounds: Sequence[RoundsFiles]) -> Verdict:
    if not all(run.finished for run in trained) or not all(is_whole(run) for run in rounds):
        said = "No two runs are measured on the same held-out data yet."
        return Verdict("pending", "Nothing to compare yet", (said,), ())
    said = (
        "No two of these runs are measured on the same held-out data, so nothing here says which is better: the "
        "curves are of the data they learned from. Name held-out pairs in the recipes (data.eval), or measure what "
        "the models write with prefopt eval frontier or winrate."
    )
    return Verdict("unclear", "Trained, but not compared", (said,), ())


Best = tuple[str, bool, list[str], tuple[Tile, ...]]


def _best_trained(runs: Mapping[str, RunFiles]) -> list[Best]:
    after = {name: run.after for name, run in runs.items() if run.after and column(run.after, "policy") is not None}
    if len(after) < 2:
        return []
    all_rewarded = all(column(one, "reference") is not None for one in after.values())
    what = "implicit reward" if all_rewarded else "log-probability"
    key = "reward" if all_rewarded else "logprob"
    values = {name: ((one.get("metrics") or {}).get(key) or {}) for name, one in after.items()}
    if len(ranked := _ranked(values)) < 2:
        return []
    best = ranked[0]

    def lead(name: str) -> Mean | None:
        if not after[name].get("fingerprint") or after[name].get("fingerprint") != after[best].get("fingerprint"):
            return None
        return mean(_right(after[best], all_rewarded) - _right(after[name], all_rewarded))

    shown = {name: percent(values[name]["value"]) for name in ranked}
    said, clear, compared = _against_the_rest(shown, lead, "pair", shares=True)
    first = f"{best} ranks {shown[best]} of held-out pairs right by {what}."
    title = f"Best on held-out pairs: {best}" if clear else f"No clear winner; {best} is ahead on held-out pairs"
    if not compared:
        title = f"No comparison: {best} was measured on pairs that no other run was measured on"
    tiles = tuple(Tile(name, shown[name], f"95 % interval {percent_interval(values[name])}") for name in ranked[:6])
    return [(title, clear, [first, *said, *_caution(len(ranked))], tiles)]


def _right(evaluation: Json, rewarded: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return 1 for each pair that is ranked right, 0 for wrong, a half for a tie, (P,)."""
    policy, reference = column(evaluation, "policy"), column(evaluation, "reference")
    assert policy is not None  # whoever asks has looked
    score = policy - reference if rewarded and reference is not None else policy
    return (np.sign(score[:, 0] - score[:, 1]) + 1) / 2


def _best_rounds(runs: Mapping[str, RoundsFiles]) -> list[Best]:
    last = {name: run.evaluated[-1].name for name, run in runs.items() if run.evaluated}
    values = {name: (runs[name].measures[one].get("reward") or {}) for name, one in last.items()}
    if len(ranked := _ranked(values)) < 2:
        return []
    best = ranked[0]

    def lead(name: str) -> Mean | None:
        return paired(runs[best].rewards.get(last[best], {}), runs[name].rewards.get(last[name], {}))

    shown = {name: number(values[name]["value"]) for name in ranked}
    said, clear, compared = _against_the_rest(shown, lead, "prompt", shares=False)
    first = f"{best} has a mean reward of {shown[best]} on held-out prompts after its last round."
    title = f"Highest held-out reward: {best}" if clear else f"No clear winner; {best} has the highest held-out reward"
    if not compared:
        title = "No comparison: the runs were measured on different prompts"
    tiles = tuple(Tile(name, shown[name], f"95 % interval {interval(values[name])}") for name in ranked[:6])
    return [(title, clear, [first, *said, *_caution(len(ranked))], tiles)]


def _ranked(values: Mapping[str, Json]) -> list[str]:
    """Return the names that have a number, the one with the highest first."""
    known = {name: float(one["value"]) for name, one in values.items() if is_number(one.get("value"))}
    return sorted(known, key=lambda name: -known[name])


def _against_the_rest(
    shown: Mapping[str, str], lead: Callable[[str], Mean | None], of: str, *, shares: bool
) -> tuple[list[str], bool, bool]:
    """Say how far the first of `shown` is ahead of each other one, by `lead` over pairs or prompts (`of`).

    Returns:
        The sentences, whether it is clearly ahead of all that it can be compared with, and whether there is any.
    """
    best, *rest = shown
    said, clear, compared = [], True, False
    for name in rest:
        found = lead(name)
        if found is None:
            said.append(f"{name} was measured on other {of}s: its {shown[name]} is no comparison.")
            continue
        compared = True
        clear &= found.sign > 0
        said.append(_ahead(best, name, found, f"of {plural(found.n, of)}", shares=shares))
    return said, clear and compared, compared


def _ahead(best: str, name: str, found: Mean, what: str, *, shares: bool) -> str:
    scale, unit = (100, " points") if shares else (1, "")
    value, low, high = (None if one is None else scale * one for one in (found.value, found.low, found.high))
    sure = "" if found.sign > 0 else ", which may be chance"
    return (
        f"It is {number(value)}{unit} ahead of {name} (95\u00a0% interval {number(low)} to {number(high)} of the "
        f"differences {what}){sure}."
    )


def _caution(runs: int) -> list[str]:
    if runs < 3:
        return []
    return [f"It was picked from {runs} after the fact, so its own number flatters it somewhat."]


TRAINED = (
    "Run",
    "Ranked right, held out",
    "By log-prob. per token",
    "Mean margin",
    "Displaced",
    "Steps",
    "Time",
    "Tokens",
)
ROUNDS = ("Run", "Held-out reward", "pass@1", "KL, nats", "Tokens an answer", "Rounds", "Time")


def _known_columns(columns: Sequence[str], rows: Sequence[Row]) -> tuple[list[str], list[Row]]:
    """Leave out the columns that say nothing of any run."""
    known = [True, *(any(row.cells[i].value != NONE for row in rows) for i in range(len(columns) - 1))]
    return list(compress(columns, known)), [replace(row, cells=tuple(compress(row.cells, known[1:]))) for row in rows]


def _trained_row(at: int, name: str, run: RunFiles) -> Row:
    metrics = (run.after or {}).get("metrics") or {}
    last: Json = run.metrics[-1] if run.metrics else {}
    cells = (
        cell("reward", metrics.get("reward")),
        cell("logprob_per_token", metrics.get("logprob_per_token")),
        cell("margin", metrics.get("margin")),
        cell("displacement", metrics.get("displacement")),
        Cell(number(last.get("step"))),
        Cell(duration(last.get("time"))),
        Cell(number(last.get("tokens"))),
    )
    note = tables.loss(run.recipe.get("loss"))
    note = "" if note == NONE else note
    return Row(at, name, _colour(at), note if run.finished else f"not finished; {note}", cells)


def _rounds_row(at: int, name: str, run: RoundsFiles) -> Row:
    found = run.measures[run.evaluated[-1].name] if run.evaluated else {}
    cells = (
        cell("margin", found.get("reward")),
        cell("pass", found.get("pass@1")),
        cell("margin", found.get("kl")),
        Cell(number((found.get("length") or {}).get("value"))),
        Cell(number(sum(one.name != "start" for one in run.status.rounds))),
        Cell(duration(sum(run.seconds.values())) if run.seconds else NONE),
    )
    note = tables.loss(run.recipe.get("loss"))
    return Row(at, name, _colour(at), note if is_whole(run) else f"not finished; {note}", cells)


def _frontier(runs: Mapping[str, AnyRun]) -> tuple[list[Any], list[str]]:
    """Return the figure of all runs' frontiers, and a sentence for each that could not be read."""
    points: dict[Any, Json] = {}
    problems: list[str] = []
    for name, run in runs.items():
        own, left_out = frontiers(run)
        points |= {(point.get("run"), point.get("step"), point.get("label")): point for point in own}
        problems += [f"{name}: {problem}" for problem in left_out]
    return [frontier_figure("runs", list(points.values()))] if points else [], problems


def _samples(runs: Mapping[str, RunFiles]) -> list[Sample]:
    """Return prompts that at least one run sampled: before training, then each run after it."""
    prompts: dict[str, dict[str, Json]] = {}
    for name, run in runs.items():
        for sample in run.samples:
            prompts.setdefault(text_of(sample.get("prompt")), {})[name] = sample
    found = []
    for at, (prompt, by_run) in enumerate(prompts.items()):
        first = next(iter(by_run.values()))
        sides = [Side("before", "Before training", "before", answers({"before": first.get("before")}, "before"))]
        sides += [Side(f"run-{name}", name, "after", answers(sample, "after")) for name, sample in by_run.items()]
        found.append(Sample(f"Prompt {at + 1}", prompt, tuple(sides)))
    return found


def _differences(runs: Mapping[str, AnyRun]) -> list[tuple[str, list[str]]]:
    """Return the keys of the recipes that are not the same in all runs: (key, a value a run)."""
    flat = [dict(tables.flat(run.recipe)) for run in runs.values()]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, [one.get(key, NONE) for one in flat]) for key in keys if key not in _PLACES]
    sections = list(dict.fromkeys(key.partition(".")[0] for key in keys))
    rows.sort(key=lambda row: sections.index(row[0].partition(".")[0]))
    return [(key, values) for key, values in rows if len(set(values)) > 1]
