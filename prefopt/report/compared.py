"""What stands side by side in a run's `eval/`: another run, the model as it began, and tasks of other benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from prefopt.report.figures import Drawing, short
from prefopt.report.read import Json
from prefopt.report.sections import Section, TablePart, section_id
from prefopt.report.svg import AFTER, MUTED, REJECTED, draw
from prefopt.report.tables import Cell, Line
from prefopt.report.words import NONE, interval, is_number, number, percent, percent_interval, plural

Measure = Mapping[str, Any]
Difference = tuple[str, float, float | None, float | None]
"""Of what, and how much with its interval."""

_SURE = 0.05
_MOST_TASKS = 14
_JUDGED = {"reward": "implicit reward", "logprob": "log-prob.", "logprob_per_token": "log-prob. per token"}


def compare_section(stem: str, found: Json) -> Section:
    """Return the section of a compare.json. Raises KeyError or TypeError for what is none."""
    a, b, contrasts = str(found["a"]), str(found["b"]), list(found["contrasts"])
    lines = [
        Line(
            f"By {_JUDGED.get(one['measure'], one['measure'])}",
            "chosen preferred",
            (
                Cell(percent(one["a"]["value"]), percent_interval(one["a"])),
                Cell(percent(one["b"]["value"]), percent_interval(one["b"])),
                Cell(points(one["accuracy"]["value"]), _points_interval(one["accuracy"])),
                Cell(number(one["only_a"])),
                Cell(number(one["only_b"])),
                Cell(_probability(one["p"])),
            ),
        )
        for one in contrasts
    ]
    shown = [(_JUDGED.get(c["measure"], c["measure"]), *_three(c["accuracy"])) for c in contrasts]
    return Section(
        id=section_id("compare", stem),
        title=f"{a} against {b}, on the same pairs",
        short="Compared",
        lead=(_compare_words(a, b, contrasts[0], int(found["n"])),),
        tables=(
            TablePart(
                "Both runs on the same pairs",
                ("Measure", a, b, f"{b} − {a}", f"Only {a} right", f"Only {b} right", "p"),
                tuple(lines),
            ),
        ),
        figures=(
            difference_figure(f"compare-{stem}", f"How much more often {b} prefers the chosen completion", shown),
        ),
        notes=(
            "p is of McNemar’s exact test: how likely by chance the pairs that only one run gets right split so "
            "unevenly. The test is paired, so pairs that are hard for both runs cancel.",
        ),
    )


def _compare_words(a: str, b: str, first: Measure, pairs: int) -> str:
    one, other = float(first["a"]["value"]), float(first["b"]["value"])
    told = (
        f"by {_JUDGED.get(first['measure'], first['measure'])} {a} prefers the chosen completion in {percent(one)} and "
        f"{b} in {percent(other)} of the same {plural(pairs, 'pair')} (p {_probability(first['p'], sign=True)})."
    )
    if first["p"] >= _SURE:
        return f"No clear difference: {told}"
    return f"{b if other > one else a} is better: {told}"


_TEXT = (
    ("perplexity", "Perplexity", "of held-out chosen completions; lower is likelier", number),
    ("entropy", "Entropy", "nats a token; lower is less varied", number),
    ("distinct_1", "distinct-1", "share of different tokens", percent),
    ("distinct_2", "distinct-2", "share of different pairs of tokens", percent),
    ("distinct_3", "distinct-3", "share of different triples of tokens", percent),
    ("duplicates", "Repeats", "completions that repeat another one to the same prompt", percent),
    ("refusals", "Refusals", "completions that begin like one, in English", percent),
    ("length", "Length", "tokens a completion", number),
    ("truncated", "Cut", "completions that reached the longest length", percent),
)


def text_section(stem: str, found: Json) -> Section:
    """Return the section of a text.json. Raises KeyError or TypeError for what is none."""
    base, tuned = found["base"], found["tuned"]
    lines: list[Line] = []
    moved: list[str] = []
    still: list[str] = []
    for key, label, meaning, shown in _TEXT:
        then, now = _measure(base.get(key)), _measure(tuned.get(key))
        if not is_number(then.get("value")) and not is_number(now.get("value")):
            continue
        lines.append(Line(label, meaning, tuple(_cell(side, shown) for side in (then, now))))
        if all(is_number(side.get(end)) for side in (then, now) for end in ("low", "high")):
            apart = (then["high"] < now["low"] or now["high"] < then["low"]) and (
                shown(then["value"]) != shown(now["value"])
            )
            way = "rose" if now["value"] > then["value"] else "fell"
            name = label if label.startswith("distinct") else label.lower()
            told = f"{name} {way} from {shown(then['value'])} to {shown(now['value'])}"
            (moved if apart else still).append(told if apart else name)
    said = []
    if moved:
        said.append(f"{moved[0][0].upper()}{'; '.join(moved)[1:]}.")
    if still:
        said.append(f"No clear change: {', '.join(still)}.")
    about = [f"{plural(int(found['prompts']), 'prompt')}"] if is_number(found.get("prompts")) else []
    if is_number(found.get("samples_per_prompt")):
        about.append(f"{plural(int(found['samples_per_prompt']), 'completion')} each")
    if is_number(found.get("max_new_tokens")):
        about.append(f"at most {plural(int(found['max_new_tokens']), 'token')}")
    notes = ["A change is called clear where the two 95\u00a0% intervals, below the values, don’t touch."]
    if about:
        notes.insert(0, f"{', '.join(about)}, with the same seeds for both models.")
    return Section(
        id=section_id("text", stem),
        title="How its text changed",
        short="Text",
        lead=(" ".join(said),) if said else (),
        tables=(TablePart("Text before and after training", ("Measure", "Before", "After"), tuple(lines)),),
        notes=tuple(notes),
    )


def harness_section(stem: str, found: Json) -> Section:
    """Return the section of a harness.json. Raises KeyError or TypeError for what is none."""
    measures = list(found["measures"])
    lines, shown = [], []
    better: list[str] = []
    worse: list[str] = []
    for one in measures:
        kind = "" if one.get("filter") in (None, "none") else f", {one['filter']}"
        gap = one["difference"]
        label = f"{one['task']}, {one['metric']}{kind}"
        lines.append(
            Line(
                str(one["task"]),
                f"{one['metric']}{kind}, {plural(int(one.get('documents') or 0), 'document')}"
                + {True: "; higher is better", False: "; lower is better"}.get(one.get("higher_is_better"), ""),
                (
                    Cell(number(one["base"]["value"]), _error(one["base"])),
                    Cell(number(one["tuned"]["value"]), _error(one["tuned"])),
                    Cell(_signed(gap["value"]), _signed_interval(gap)),
                ),
            )
        )
        value, low, high = _three(gap)
        if one.get("higher_is_better") is not False and abs(value) <= 1:
            shown.append((label, value, low, high))
        if low is not None and high is not None and (low > 0 or high < 0) and one.get("higher_is_better") is not None:
            (better if (low > 0) == one["higher_is_better"] else worse).append(label)
    if better or worse:
        said = ". ".join(
            f"{way} after training: {'; '.join(names)}"
            for way, names in (("Better", better), ("Worse", worse))
            if names
        )
    else:
        said = "No clear difference on any of these tasks"
    about = [f"lm-evaluation-harness {found['lm_eval']}"] if found.get("lm_eval") else []
    if is_number(found.get("limit")):
        limit = float(found["limit"])
        about.append(f"the first {percent(limit) if limit < 1 else number(int(limit))} of each task’s documents")
    figure = difference_figure(f"harness-{stem}", "Change by training, task by task", shown[:_MOST_TASKS])
    return Section(
        id=section_id("harness", stem),
        title="Other tasks, before and after",
        short="Other tasks",
        lead=(f"{said}.",),
        tables=(TablePart("Tasks before and after training", ("Task", "Before", "After", "Change"), tuple(lines)),),
        figures=(figure,) if shown else (),
        notes=(
            f"{', '.join(about)}. Below a value stands its standard error, below a change its 95\u00a0% interval."
            if about
            else "Below a value stands its standard error, below a change its 95\u00a0% interval.",
        ),
    )


def difference_figure(name: str, title: str, shown: Sequence[Difference]) -> Drawing:
    """Return differences of shares under one another, each with its interval, beside a line at 0."""

    def paint(axes: Any) -> None:
        axes.axvline(0, color=MUTED, linewidth=1, dashes=(3, 3))
        for at, (_, value, low, high) in enumerate(shown):
            ends = [[value - (value if low is None else low)], [(value if high is None else high) - value]]
            sure = high is not None and high < 0
            axes.errorbar([value], [at], xerr=ends, color=REJECTED if sure else AFTER, marker="D" if sure else "o",
                          markersize=6, elinewidth=1.8)  # fmt: skip
        axes.set_yticks(range(len(shown)), [short(label, 22) for label, *_ in shown], parse_math=False)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}".replace("-", "−"))
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("percentage points")

    told = "; ".join(
        f"{label} {points(value)}" + ("" if low is None or high is None else f" ({points(low)} to {points(high)})")
        for label, value, low, high in shown
    )
    caption = (
        "Right of the dashed line is more. Bars are 95\u00a0% intervals; one that crosses the line shows no clear "
        "difference."
    )
    return Drawing(title, caption, draw(name, f"{title}. {told}.", paint))


def last_name(path: Any) -> str:
    """Return the last name of a path, or of several: a page may be shown to people who need not know the rest."""
    if isinstance(path, (list, tuple)):
        return ", ".join(map(last_name, path))
    return PurePosixPath(str(path)).name or str(path)


def points(share: Any) -> str:
    """0.031 -> `+3.1 points`."""
    return f"{_sign(share)}{abs(100 * share):.1f}\u00a0points" if is_number(share) else NONE


def _sign(value: float) -> str:
    return "+" if value > 0 else "−" if value < 0 else "±"


def _points_interval(found: Measure) -> str:
    low, high = found.get("low"), found.get("high")
    return f"{_sign(low)}{abs(100 * low):.1f} to {points(high)}" if is_number(low) and is_number(high) else ""


def _signed(value: Any) -> str:
    return f"{_sign(value)}{number(abs(value))}" if is_number(value) else NONE


def _signed_interval(found: Measure) -> str:
    low, high = found.get("low"), found.get("high")
    return f"{_signed(low)} to {_signed(high)}" if is_number(low) and is_number(high) else ""


def _error(found: Measure) -> str:
    error = found.get("standard_error")
    return f"± {number(error, 2)}" if is_number(error) else ""


def _probability(p: float, *, sign: bool = False) -> str:
    if p < 0.001:
        return "< 0.001"
    return f"{'= ' if sign else ''}{number(float(p), 2) if p < 1 else '1'}"


def _three(found: Measure) -> tuple[float, float | None, float | None]:
    low, high = found.get("low"), found.get("high")
    known = is_number(low) and is_number(high)
    return (
        float(found["value"]),
        float(low) if known and low is not None else None,
        (float(high) if known and high is not None else None),
    )


def _measure(value: Any) -> Measure:
    return value if isinstance(value, Mapping) else {"value": value}


def _cell(found: Measure, shown: Any) -> Cell:
    note = (percent_interval if shown is percent else interval)(found)
    return Cell(shown(found.get("value")), "" if note == NONE else note)
