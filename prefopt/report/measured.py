"""What `prefopt eval` measured of a run: a section for each kind of file, from whichever are there."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import RunError
from prefopt.report.calibration import calibration_figure
from prefopt.report.compared import compare_section, harness_section, last_name, text_section
from prefopt.report.frontier import frontier_section, known_points
from prefopt.report.read import Json, RunFiles
from prefopt.report.rounds_read import RoundsFiles
from prefopt.report.sections import Section, TablePart, section_id
from prefopt.report.tables import Cell, Line, measures, plain
from prefopt.report.words import NONE, interval, is_number, number, percent, percent_interval, plural

Measure = Mapping[str, Any]
_NOT_OF_ITS_KIND = (TypeError, KeyError, ValueError, AttributeError, IndexError)
"""What a section raises when the file holds something else than its kind says."""
_LEFT_OUT = "eval/{}.json holds something else than its kind says and is left out."


def measured_sections(run: RunFiles | RoundsFiles) -> tuple[list[Section], list[str]]:
    """Return the sections of a run's further evaluations, and a sentence for each file that holds something else."""
    made: list[Section] = []
    problems: list[str] = []
    for stem, found in run.evals.items():
        maker = _KINDS.get(str(found.get("kind")))
        if maker is None:
            continue
        try:
            made.append(maker(stem, found))
        except _NOT_OF_ITS_KIND:
            problems.append(_LEFT_OUT.format(stem))
    kinds = list(_KINDS)
    made.sort(key=lambda one: kinds.index(one.id.partition("--")[0]))
    return made, problems


def frontiers(run: RunFiles | RoundsFiles) -> tuple[list[Json], list[str]]:
    """Return the points of a run's frontiers, and a sentence for each file of one that holds something else."""
    points: list[Json] = []
    problems: list[str] = []
    for stem, found in run.evals.items():
        if found.get("kind") != "frontier":
            continue
        try:
            frontier_section(stem, found)
        except _NOT_OF_ITS_KIND:
            problems.append(_LEFT_OUT.format(stem))
        else:
            points += known_points(found)
    return points, problems


def with_measured(evals: Mapping[str, Json], paths: Iterable[Path], *, several: bool = False) -> dict[str, Json]:
    """Return a run's evaluations and behind them those that `prefopt eval` wrote elsewhere, each by a name of its own.

    Args:
        evals: what stands in the run.
        paths: files of `prefopt eval`, or folders of a frontier.
        several: for a page of several runs, which has a place for frontiers alone.

    Raises:
        RunError: one can't be read, is not what an evaluation writes, or has no place on the page.
    """
    found = dict(evals)
    for path in paths:
        file = path / "frontier.json" if path.is_dir() else path
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunError(
                f"{file} can't be read ({error.strerror}): name a file of `prefopt eval`, or a frontier's folder."
            ) from error
        except ValueError as error:
            raise RunError(f"{file} is no JSON: name a file that `prefopt eval` wrote.") from error
        kind = str(value.get("kind")) if isinstance(value, dict) else ""
        if kind not in _KINDS:
            raise RunError(f"{file} is not what `prefopt eval` writes: its kind is none of {', '.join(_KINDS)}.")
        if several and kind != "frontier":
            raise RunError(
                f"{file} is of kind {kind}, but a page of several runs shows frontiers alone: "
                "report the run that it measured by itself."
            )
        try:
            _KINDS[kind](file.stem, value)
        except _NOT_OF_ITS_KIND as error:
            raise RunError(f"{file} holds something else than its kind, {kind}, says: measure it again.") from error
        names = itertools.chain([file.stem], (f"{file.stem}-{number_of}" for number_of in itertools.count(2)))
        found[next(name for name in names if name not in found)] = value
    return found


def _winrate(stem: str, found: Json) -> Section:
    a, b = last_name(found["a"]), last_name(found["b"])
    raw, controlled = found["raw"], found.get("length_controlled") or {}
    prompts, samples = int(found["prompts"]), found.get("samples_per_prompt")
    decided = controlled if is_number(controlled.get("value")) else raw
    value = decided["value"]
    if decided["low"] > 0.5:
        said = f"{a} is better than {b}: it wins {percent(value)} of comparisons"
    elif decided["high"] < 0.5:
        said = f"{a} is worse than {b}: it wins {percent(value)} of comparisons"
    else:
        said = f"No clear winner: {a} wins {percent(value)} of comparisons with {b}"
    what = " at equal length" if decided is controlled else ""
    lines = [
        Line("Win rate", "a tie counts as half", (Cell(percent(raw["value"]), percent_interval(raw)),)),
        Line(
            "Win rate at equal length",
            "what a length difference explains is taken out",
            (Cell(percent(controlled.get("value")), percent_interval(controlled)),),
        ),
        Line(f"Wins of {a}", "", (Cell(plain(found.get("wins_a"))),)),
        Line(f"Wins of {b}", "", (Cell(plain(found.get("wins_b"))),)),
        Line("Ties", "", (Cell(plain(found.get("ties"))),)),
        Line("Failed", "no judgement came of them", (Cell(plain(found.get("failed"))),)),
        *(
            Line(f"Length of {name}", "tokens", (Cell(number(found[key].get("value")), interval(found[key])),))
            for name, key in ((a, "length_a"), (b, "length_b"))
            if found.get(key)
        ),
        *_position(found.get("position") or {}),
    ]
    return Section(
        id=section_id("winrate", stem),
        title=f"Win rate: {a} against {b}",
        short="Win rate",
        lead=(
            f"{said}{what} (95\u00a0% interval {percent_interval(decided)}; a tie counts half). Judged by "
            f"{plain(found.get('scorer'))} on {plural(prompts, 'prompt')}"
            + (f" with {plural(samples, 'completion')} of each side." if isinstance(samples, int) else "."),
        ),
        tables=(TablePart("Win rate", ("Measure", "Value"), tuple(lines)),),
        notes=(
            "Intervals come from a bootstrap over prompts. The rate at equal length is of this comparison alone, "
            "not a leaderboard’s.",
        ),
    )


def _position(found: Measure) -> Iterator[Line]:
    """Yield what a judge that saw both orders says about itself."""
    for key, label, meaning in (
        ("first", "Judge: prefers what stands first", "far from 50 %: it judges the place"),
        ("agree", "Judge: agrees with itself", "both orders lead to the same preference"),
    ):
        if (part := found.get(key)) and is_number(part.get("value")):
            yield Line(label, meaning, (Cell(percent(part["value"]), percent_interval(part)),))


def _rewardbench(stem: str, found: Json) -> Section:
    missing, partial = found.get("missing") or {}, found.get("partial") or {}
    sections = [
        Line(
            name,
            f"no score: {plural(len(missing[name]), 'subset')} without rows" if missing.get(name) else "",
            (Cell(percent(score)),),
        )
        for name, score in (found.get("sections") or {}).items()
    ]
    subsets = [
        Line(
            name,
            str(part.get("section") or ""),
            (
                Cell(percent(part.get("accuracy")), "" if percent_interval(part) == NONE else percent_interval(part)),
                Cell(number(part.get("n")), f"of {number(partial[name][1])} published" if name in partial else ""),
            ),
        )
        for name, part in found["subsets"].items()
    ]
    overall = found.get("overall")
    said = (
        f"It prefers the chosen answer in {percent(overall)} of RewardBench, the mean of its sections."
        if is_number(overall)
        else "No overall score: the file has no rows of some subsets, and each section needs all of its own."
    )
    mode = plain(found.get("mode"))
    return Section(
        id=section_id("rewardbench", stem),
        title="RewardBench" + (f": {percent(overall)}" if is_number(overall) else ""),
        short="RewardBench",
        lead=(said + ("" if mode == NONE else f" Judged by {mode}."),),
        tables=(
            *((TablePart("Sections", ("Section", "Score"), tuple(sections), "Sections"),) if sections else ()),
            TablePart("Subsets", ("Subset", "Accuracy", "Pairs"), tuple(subsets), "Subsets"),
        ),
        notes=("Equal scores count as wrong. A section weighs its subsets by their published numbers of rows.",),
    )


def _pairs(stem: str, found: Json) -> Section:
    metrics = found["metrics"]
    name = stem.removeprefix("pairs").strip("_").replace("_", " ")
    figure = calibration_figure(section_id("calibration", stem), found)
    source = found.get("source")
    primary = metrics.get(metrics.get("primary") or "reward") or {}
    said = f"{plural(int(metrics['n']), 'pair')}" + (f" of {last_name(source)}" if source else "")
    if is_number(primary.get("value")):
        said += f": {percent(primary['value'])} ranked right (95\u00a0% interval {percent_interval(primary)})"
    return Section(
        id=section_id("pairs", stem),
        title=f"Further pairs: {name}" if name else "Held-out pairs, measured again",
        short=f"Pairs: {name}" if name else "Pairs again",
        lead=(f"{said}.",),
        tables=(TablePart("Measures", ("Measure", "Value"), tuple(measures([metrics]))),),
        figures=() if figure is None else (figure,),
    )


_KINDS: Mapping[str, Callable[[str, Json], Section]] = {
    "pairs": _pairs,
    "compare": compare_section,
    "winrate": _winrate,
    "frontier": frontier_section,
    "text": text_section,
    "rewardbench": _rewardbench,
    "harness": harness_section,
}
