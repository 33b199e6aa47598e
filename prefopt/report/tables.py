"""The report's tables: rows of text, ready to print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from prefopt.report.read import RunFiles
from prefopt.report.words import NONE, interval, is_number, number, percent, percent_interval, plural

Measure = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A value and, smaller, its interval or count."""

    value: str
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A row: what is measured, what it means, and a cell a column."""

    label: str
    meaning: str
    cells: tuple[Cell, ...]


_MEASURES = (
    (
        "reward",
        "Implicit-reward accuracy",
        "raised chosen above rejected, compared with the reference",
    ),
    ("logprob", "Log-prob. accuracy", "finds the chosen completion more likely"),
    ("logprob_per_token", "Log-prob. accuracy per token", "the same, with length taken out"),
    ("reward_per_token", "Implicit-reward accuracy per token", "the first measure, with length taken out"),
    ("auc", "AUC", "a chosen completion above any rejected one, over all pairs"),
    ("margin", "Mean margin", "implicit reward of chosen minus that of rejected"),
    ("chosen_log_ratio", "Log-ratio of chosen", "log-prob. against the reference, nats"),
    ("rejected_log_ratio", "Log-ratio of rejected", "log-prob. against the reference, nats"),
    ("displacement", "Displaced", "pairs whose chosen completion became less likely"),
    ("shorter_chosen", "Accuracy, shorter one chosen", "the first measure above, on these pairs only"),
    ("longer_chosen", "Accuracy, longer one chosen", "far from the row above: length bias"),
)
_MEANS = {"margin", "chosen_log_ratio", "rejected_log_ratio"}


def held_out(run: RunFiles) -> list[Line]:
    """Return every measure before and after training."""
    return measures([(evaluation or {}).get("metrics") or {} for evaluation in (run.before, run.after)])


def measures(columns: Sequence[Measure]) -> list[Line]:
    """Return every measure of pairs that there is, a cell for each of several `metrics`."""
    return [
        Line(label, meaning, tuple(cell(key, column.get(key)) for column in columns))
        for key, label, meaning in _MEASURES
        if any(column.get(key) for column in columns)
    ]


def cell(key: str, measure: Measure | None) -> Cell:
    """Return a measure with its interval below it; `key` says whether it is a share or a mean."""
    if not measure:
        return Cell(NONE)
    if key in _MEANS:
        return Cell(number(measure.get("value")), interval(measure))
    ties = measure.get("ties")
    if not is_number(measure.get("value")):
        return Cell(NONE, "all ties" if ties else "no pairs")
    note = percent_interval(measure)
    return Cell(percent(measure["value"]), note + (f", {plural(int(ties), 'tie')}" if ties else ""))


def data_lines(run: RunFiles) -> list[Line]:
    """Return what was read, used and rejected, for training and held-out data."""
    parts = _data_parts(run)
    keys = [
        ("rows_read", "Rows read"),
        ("rows_used", "Rows used"),
        ("rows_rejected", "Rows rejected"),
        ("rows_left_out", "Rows left out by a rule"),
        ("form", "Form"),
        ("distinct_prompts", "Distinct prompts"),
        ("duplicates", "Repeated examples"),
    ]
    lines = [
        Line(label, "", tuple(Cell(plain(part.get(key))) for part in parts.values()))
        for key, label in keys
        if any(part.get(key) is not None for part in parts.values())
    ]
    for key, label in (("chosen_longer", "Chosen is the longer one"), ("desirable", "Desirable")):
        if any(is_number(part.get(key)) for part in parts.values()):
            lines.append(Line(label, "", tuple(Cell(percent(part.get(key))) for part in parts.values())))
    names = dict.fromkeys(name for part in parts.values() for name in part.get("lengths") or {})
    for name in names:
        cells = [_length(part, name) for part in parts.values()]
        lines.append(Line(f"Length of {name}", "median", tuple(cells)))
    return lines


def data_columns(run: RunFiles) -> list[str]:
    """Return the headings of `data_lines`."""
    return [{"train": "Training", "eval": "Held out"}.get(name, name) for name in _data_parts(run)]


def data_notes(run: RunFiles) -> list[str]:
    """Return the sentences that the data summary holds: what was recognised and why, reasons for rejection."""
    notes: list[str] = []
    for part in _data_parts(run).values():
        recognised = [found for found in part.get("recognised") or () if isinstance(found, Mapping)]
        notes += [f"{found.get('source')}: {found.get('format')} ({found.get('why')})" for found in recognised]
        for key, what in (("rejected", "rejected"), ("left_out", "left out by a rule")):
            reasons = part.get(key)
            if isinstance(reasons, Mapping):
                notes += [f"{plural(int(count), 'row')} {what}: {reason}" for reason, count in reasons.items()]
        notes += [str(note) for note in part.get("notes") or ()]
    return list(dict.fromkeys(notes))


def _data_parts(run: RunFiles) -> dict[str, Measure]:
    """Return {"train": summary, "eval": summary}; a summary that stands alone is that of training."""
    data = run.data or {}
    if "rows_read" in data:
        return {"train": data}
    return {name: part for name, part in data.items() if isinstance(part, Mapping)}


def _length(part: Measure, name: str) -> Cell:
    found = (part.get("lengths") or {}).get(name)
    if not isinstance(found, Mapping):
        return Cell(NONE)
    unit = part.get("unit") or "tokens"
    return Cell(
        f"{plain(found.get('p50'))} {unit}",
        f"mean {number(found.get('mean'))}, longest {plain(found.get('longest'))}",
    )


def flat(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted key, value) pairs, in order."""
    if isinstance(tree, Mapping) and tree:
        return [pair for key, child in tree.items() for pair in flat(child, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(tree, Sequence) and not isinstance(tree, str):
        return [(prefix, ", ".join(map(plain, tree)) or NONE)]
    return [(prefix, plain(tree))]


def plain(value: Any) -> str:
    """Return a setting as a reader writes it: yes or no, a dash for nothing."""
    if value is None or value == {} or value == "":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return number(value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def named(section: Any, key: str) -> str:
    """Return a setting that stands alone or in a section, as text."""
    value = section.get(key) if isinstance(section, Mapping) else section
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return NONE if value is None else str(value)


def place(section: Any, key: str) -> str:
    """Return a setting that may hold paths, as text; of a path of a machine the last name alone."""
    value = section.get(key) if isinstance(section, Mapping) else section
    listed = value if isinstance(value, (list, tuple)) else [value]
    known = [one.get("source") if isinstance(one, Mapping) and "source" in one else one for one in listed]
    names = [PurePosixPath(str(one)).name if str(one).startswith(("/", "~")) else str(one) for one in known]
    return NONE if value is None else ", ".join(names)


def loss(section: Any) -> str:
    """Return a loss and its settings in a line."""
    if not isinstance(section, Mapping):
        return named(section, "name")
    rest = {key: value for key, value in section.items() if key != "name"}
    return ", ".join(
        [named(section, "name"), *(f"{key.replace('_', ' ')} {_flag(value)}" for key, value in rest.items())]
    )


def _flag(value: Any) -> str:
    return value.replace("_", " ") if isinstance(value, str) else plain(value)
