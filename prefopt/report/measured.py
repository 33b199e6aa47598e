"""What `prefopt eval` left in a run's `eval/`: a section for each kind of file, from whichever are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prefopt.report.calibration import calibration_figure
from prefopt.report.frontier import frontier_section
from prefopt.report.read import Json, RunFiles
from prefopt.report.sections import Section, TablePart
from prefopt.report.tables import Cell, Line, flat, measures, plain
from prefopt.report.words import NONE, interval, is_number, number, percent, percent_interval, plural

Measure = Mapping[str, Any]
_SHARES = (
    "accuracy", "share", "win", "rate", "truncated", "duplicates", "distinct", "refus", "ended", "broken",
    "displacement", "auc", "human", "pass@",
)  # fmt: skip
"""What the name of a share has in it."""


def measured_sections(run: RunFiles) -> tuple[list[Section], list[str]]:
    """Return the sections of a run's further evaluations, and a sentence for each file that holds something else."""
    made: list[Section] = []
    problems: list[str] = []
    for stem, found in run.evals.items():
        maker = _KINDS.get(str(found.get("kind")))
        if maker is None:
            continue
        try:
            made.append(maker(stem, found))
        except (TypeError, KeyError, ValueError, AttributeError, IndexError):
            problems.append(f"eval/{stem}.json holds something else than its kind says and is left out.")
    kinds = list(_KINDS)
    made.sort(key=lambda one: kinds.index(one.id.partition("--")[0]))
    return made, problems


def _winrate(stem: str, found: Json) -> Section:
    a, b = _last(found["a"]), _last(found["b"])
    raw, controlled = found["raw"], found.get("length_controlled") or {}
    prompts, samples = int(found["prompts"]), found.get("samples_per_prompt")
    decided = controlled if is_number(controlled.get("value")) else raw
    if decided["low"] > 0.5:
        said = f"{a} wins: its answers are preferred to {b}’s in {percent(decided['value'])} of comparisons"
    elif decided["high"] < 0.5:
        said = f"{a} loses: its answers are preferred to {b}’s in {percent(decided['value'])} of comparisons"
    else:
        said = f"No clear winner: {a}’s answers are preferred to {b}’s in {percent(decided['value'])} of comparisons"
    what = " with length taken out" if decided is controlled else ""
    lines = [
        Line("Win rate", "a tie counts as half", (Cell(percent(raw["value"]), percent_interval(raw)),)),
        Line(
            "Win rate, length-controlled",
            "at a length difference of 0",
            (Cell(percent(controlled.get("value")), percent_interval(controlled)),),
        ),
        Line(f"Wins of {a}", "", (Cell(plain(found.get("wins_a"))),)),
        Line(f"Wins of {b}", "", (Cell(plain(found.get("wins_b"))),)),
        Line("Ties", "", (Cell(plain(found.get("ties"))),)),
        Line("Failed", "no judgement came of them", (Cell(plain(found.get("failed"))),)),
        *(
            Line(f"Length of {name}", "", (_value(key, found[key]),))
            for name, key in ((a, "length_a"), (b, "length_b"))
            if found.get(key)
        ),
        *(Line(f"Position: {key}", "", (Cell(value),)) for key, value in flat(found.get("position") or {}) if key),
    ]
    return Section(
        id=f"winrate--{_id(stem)}",
        title=f"Win rate: {a} against {b}",
        short="Win rate",
        lead=(
            f"{said}{what} (95\u00a0% interval {percent_interval(decided)}), over {plural(prompts, 'prompt')}"
            + (f" with {plural(samples, 'sample')} each" if isinstance(samples, int) else "")
            + f", as {plain(found.get('scorer'))} judges.",
        ),
        tables=(TablePart("Win rate", ("Measure", "Value"), tuple(lines)),),
        notes=("Intervals come from a bootstrap over prompts. The length-controlled rate is no leaderboard’s.",),
    )


def _rewardbench(stem: str, found: Json) -> Section:
    sections = [Line(name, "", (Cell(percent(score)),)) for name, score in (found.get("sections") or {}).items()]
    subsets = [
        Line(name, str(part.get("section") or ""), (Cell(percent(part.get("accuracy"))), Cell(number(part.get("n")))))
        for name, part in found["subsets"].items()
    ]
    return Section(
        id=f"rewardbench--{_id(stem)}",
        title="RewardBench",
        short="RewardBench",
        lead=(f"Overall {percent(found.get('overall'))}, the mean of its sections.",),
        tables=(
            *((TablePart("Sections", ("Section", "Score"), tuple(sections), "Sections"),) if sections else ()),
            TablePart("Subsets", ("Subset", "Accuracy", "Pairs"), tuple(subsets), "Subsets"),
        ),
        notes=(f"Rewards: {plain(found.get('mode'))}.",) if found.get("mode") else (),
    )


def _sides(stem: str, found: Json, kind: str, title: str, lead: str) -> Section:
    """Return what compares sides (base and tuned, a and b) measure by measure, whatever it measures."""
    sides = {key: value for key, value in found.items() if isinstance(value, Mapping) and _is_side(value)}
    rest = {key: value for key, value in found.items() if key not in (*sides, "kind", "prefopt")}
    names = dict.fromkeys(name for side in sides.values() for name, _ in _leaves(side))
    known = {side: dict(_leaves(value)) for side, value in sides.items()}
    lines = [Line(_words(name), "", tuple(_value(name, known[side].get(name)) for side in sides)) for name in names]
    other = [Line(_words(name), "", (_value(name, value),)) for name, value in _leaves(rest)]
    columns = ("Measure", *(_words(side).capitalize() for side in sides))
    return Section(
        id=f"{kind}--{_id(stem)}",
        title=title,
        short=title,
        lead=(lead,),
        tables=(
            *((TablePart(title, columns, tuple(lines), loose=True),) if lines else ()),
            *((TablePart(f"{title}: how", ("", "Value"), tuple(other), loose=True),) if other else ()),
        ),
    )


def _text(stem: str, found: Json) -> Section:
    said = "The same prompts and seeds, answered by the model before and after training: how its text has changed."
    return _sides(stem, found, "text", "Text", said)


def _harness(stem: str, found: Json) -> Section:
    said = "lm-evaluation-harness, on the base model and on the tuned one: what training cost elsewhere."
    return _sides(stem, found, "harness", "Other tasks", said)


def _compare(stem: str, found: Json) -> Section:
    said = "Two runs on the same held-out pairs; the test is paired, so pairs that are hard for both cancel."
    return _sides(stem, found, "compare", "Compared with another run", said)


def _pairs(stem: str, found: Json) -> Section:
    metrics = found["metrics"]
    name = stem.removeprefix("pairs").strip("_").replace("_", " ")
    figure = calibration_figure(f"calibration-{_id(stem)}", found)
    source = plain(found.get("source"))
    return Section(
        id=f"pairs--{_id(stem)}",
        title=f"Further pairs: {name}" if name else "Held-out pairs, measured again",
        short=f"Pairs: {name}" if name else "Pairs again",
        lead=(f"{plural(int(metrics['n']), 'pair')}" + ("" if source == NONE else f" of {_last(source)}") + ".",),
        tables=(TablePart("Measures", ("Measure", "Value"), tuple(measures([metrics]))),),
        figures=() if figure is None else (figure,),
    )


_KINDS: Mapping[str, Callable[[str, Json], Section]] = {
    "pairs": _pairs,
    "compare": _compare,
    "winrate": _winrate,
    "frontier": frontier_section,
    "text": _text,
    "rewardbench": _rewardbench,
    "harness": _harness,
}


def _leaves(tree: Measure, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, number, text, or a measure with its interval)."""
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and "value" not in value:
            yield from _leaves(value, name)
        elif not isinstance(value, Sequence) or isinstance(value, str):
            yield name, value


def _is_side(tree: Measure) -> bool:
    return "value" not in tree and any(isinstance(value, Mapping) or is_number(value) for value in tree.values())


def _value(name: str, value: Any) -> Cell:
    """Return a number or a measure as a share where its name says that it is one."""
    last = name.rpartition(".")[2].lower()
    is_share = any(word in last for word in _SHARES) and not last.endswith(("margin", "ratio"))
    if isinstance(value, Mapping):
        middle = value.get("value")
        counted = is_share or "tie_share" in value or "count" in value
        fits = counted and is_number(middle) and 0 <= middle <= 1
        return Cell(percent(middle), percent_interval(value)) if fits else Cell(number(middle), interval(value))
    if is_share and isinstance(value, float) and 0 <= value <= 1:
        return Cell(percent(value))
    return Cell(number(value)) if is_number(value) else Cell(plain(value))


def _words(name: str) -> str:
    return name.replace("_", " ").replace(".", ": ")


def _last(path: Any) -> str:
    """Return the last name of a path: a page may be shown to people who need not know the rest."""
    return str(path).rstrip("/").rpartition("/")[2] or str(path)


def _id(stem: str) -> str:
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in stem)
