"""What rows are, told by their columns and values over a sample, with the reason in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from prefopt.data.config import DataOptions
from prefopt.errors import DataError, nearest
from prefopt.records import LARGEST_SCORE

SAMPLE = 200
"""Rows that are looked at."""
TRANSCRIPT_ANSWER = "\n\nAssistant:"

FormName = Literal["paired", "unpaired", "listwise", "scored"]

FIELDS: dict[str, tuple[str, ...]] = {
    "pairs": ("prompt", "chosen", "rejected"),
    "implicit_pairs": ("chosen", "rejected"),
    "labels": ("prompt", "completion", "label"),
    "completion": ("prompt", "completion"),
    "lists": ("prompt", "completions", "scores"),
    "completions": ("prompt", "completions"),
}
FORMS: dict[str, FormName] = {
    "pairs": "paired",
    "implicit_pairs": "paired",
    "labels": "unpaired",
    "lists": "listwise",
    "completion": "scored",
    "completions": "scored",
}
PAIR_SCORES = ("score_chosen", "score_rejected")
"""Fields that a pair may have beside the others."""
TRAINABLE = ("pairs", "implicit_pairs", "labels", "lists")
SCORABLE = tuple(name for name in FIELDS if name != "lists")
"""Of a row that is only to be scored its completions count, in the order in which they stand."""


@dataclass(frozen=True)
class Format:
    """What the rows of a source are."""

    name: str
    form: FormName
    """What one row makes: a pair, a labelled completion, a scored list, or completions that are only to be scored."""
    columns: Mapping[str, str]
    """Field -> the column that holds it."""
    score_columns: tuple[str, ...] = ()
    """Of pairs: the columns that hold the scores of chosen and rejected; () where there are none."""
    repeats_prompt: bool = False
    """Plain strings: the completions begin with the prompt."""
    transcript: bool = False
    """Plain strings without a prompt column: transcripts with `Human:` and `Assistant:` turns."""
    why: str = field(default="", compare=False)


def recognise(
    rows: Sequence[Mapping[str, Any]], options: DataOptions, *, source: str, allowed: Sequence[str] = TRAINABLE
) -> Format:
    """Tell what `rows`, a sample of a source, are.

    Raises:
        DataError: the rows fit no format, or several; or `options` name a format or column that isn't there.
    """
    found = sorted({name for row in rows for name in row})
    renamed: dict[str, str] = {str(name): column for name, column in options.columns.items()}
    columns = {name: renamed.get(name, name) for fields in (*FIELDS.values(), PAIR_SCORES) for name in fields}
    for name, column in renamed.items():
        if column not in found:
            raise DataError(
                f"data.columns says that '{name}' is in the column '{column}', but {source} has the columns "
                f"{_list(found)}{nearest(column, found)}."
            )
    present = {
        name for name, column in columns.items() if _share(rows, lambda r, c=column: r.get(c) is not None) >= 0.5
    }
    name = _choose(options.format, present, found, columns, source, allowed)
    held = {field_: columns[field_] for field_ in FIELDS[name]}
    format_ = _by_values(name, held, rows, "data.format says so" if options.format != "auto" else "")
    named = bool(renamed.keys() & {*PAIR_SCORES})
    return _with_scores(format_, rows, tuple(columns[name] for name in PAIR_SCORES), found, source, named=named)


def _with_scores(
    format_: Format,
    rows: Sequence[Mapping[str, Any]],
    columns: tuple[str, ...],
    found: Collection[str],
    source: str,
    *,
    named: bool,
) -> Format:
    """Add the columns of a pair's scores where most rows have numbers in both, or where the options name them."""
    if format_.form != "paired":
        return format_
    if named and (lacking := [column for column in columns if column not in found]):
        raise DataError(
            f"data.columns names where the scores of pairs are, but {source} lacks {_list(lacking)}; it has the "
            f"columns {_list(found)}. Name both, with data.columns.score_chosen and data.columns.score_rejected."
        )
    if not named and _share(rows, lambda r: all(is_number(r.get(c)) for c in columns)) < 0.5:
        return format_
    return replace(
        format_, score_columns=columns, why=f"{format_.why}; their scores are in the columns {_list(columns)}"
    )


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that float32 can hold, and no truth value."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(-LARGEST_SCORE <= value <= LARGEST_SCORE)


def _choose(
    wanted: str, present: set[str], found: list[str], columns: Mapping[str, str], source: str, allowed: Sequence[str]
) -> str:
    if wanted != "auto":
        lacking = [columns[f] for f in FIELDS[wanted] if f not in present]
        if lacking:
            raise DataError(
                f"data.format is {wanted}, which needs {_list(FIELDS[wanted])}, but {source} lacks {_list(lacking)} in "
                f"most rows; it has the columns {_list(found)}. Rename with data.columns, for instance "
                f"data.columns.{lacking[0]}={found[0] if found else 'NAME'}."
            )
        return wanted
    fitting = [name for name in allowed if present >= set(FIELDS[name])]
    fitting = [a for a in fitting if not any(set(FIELDS[a]) < set(FIELDS[b]) for b in fitting)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"{source} could be {' or '.join(fitting)}: it has the columns {_list(found)}. Say which with data.format."
        )
    closest = min(allowed, key=lambda name: (len(set(FIELDS[name]) - present), -len(FIELDS[name])))
    lacking = [columns[f] for f in FIELDS[closest] if f not in present]
    known = "; ".join(f"{name} ({', '.join(FIELDS[name])})" for name in allowed)
    hint = nearest(lacking[0], [f for f in found if f not in FIELDS[closest]])
    raise DataError(
        f"{source} is not recognised: it has the columns {_list(found)}, and the formats known are {known}. The "
        f"nearest is {closest}, which lacks {_list(lacking)}{hint or ';'} name the column that holds it with "
        f"data.columns, for instance data.columns.{lacking[0]}=NAME."
    )


def _by_values(name: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], reason: str) -> Format:
    """Look at what the columns hold: strings or messages, with the prompt repeated or not."""
    answers = [columns[f] for f in ("chosen", "rejected", "completion") if f in columns]
    prompt = columns.get("prompt")
    strings = [row for row in rows if all(isinstance(row.get(c), str) for c in answers)]
    plain = len(strings) * 2 > len(rows)
    if name in ("lists", "completions"):
        return Format(name, FORMS[name], dict(columns), why=reason or f"it has the columns {_list(columns.values())}")
    repeats = transcript = False
    words = [reason or f"it has the columns {_list(columns.values())}"]
    if plain and prompt is not None:
        asked = [row for row in strings if isinstance(row.get(prompt), str) and row[prompt]]
        repeats = bool(asked) and _share(asked, lambda r: all(r[c].startswith(r[prompt]) for c in answers)) >= 0.9
        words.append("the completions are strings" + (" that begin with the prompt" if repeats else ""))
    elif plain:
        transcript = _share(strings, lambda r: all(TRANSCRIPT_ANSWER in r[c] for c in answers)) >= 0.9
        words.append(
            "they are transcripts, and the prompt ends with their last 'Assistant:'"
            if transcript
            else "they are strings, and the prompt is what both begin with, cut at a space"
        )
    else:
        listed = _share(rows, lambda r: all(isinstance(r.get(c), list | tuple) for c in answers))
        words.append("the completions are messages" if listed > 0.5 else "they hold strings and messages")
    why = "; ".join(words)
    return Format(name, FORMS[name], dict(columns), repeats_prompt=repeats, transcript=transcript, why=why)


def _share(rows: Sequence[Mapping[str, Any]], test: Callable[..., bool]) -> float:
    return sum(map(test, rows)) / len(rows) if rows else 0.0


def _list(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"
