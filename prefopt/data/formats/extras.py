"""What rows may have beside prompt and answers: the scores of a pair, a system turn, tools."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prefopt.data.config import DataOptions
from prefopt.data.formats.format import PAIR_SCORES, Format
from prefopt.data.formats.values import is_number, listed, share
from prefopt.data.row_error import RowError
from prefopt.errors import DataError

SCORE_SPELLINGS = (
    PAIR_SCORES,
    ("chosen_score", "rejected_score"),
    ("rating_chosen", "rating_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("reward_chosen", "reward_rejected"),
    ("chosen_reward", "rejected_reward"),
)
"""Columns in which published pairs hold the scores of chosen and rejected."""
SYSTEM_SPELLINGS = ("system", "system_prompt")
TOOLS = "tools"


def with_extras(
    format_: Format,
    rows: Sequence[Mapping[str, Any]],
    rewritten: Sequence[Mapping[str, Any]],
    found: Collection[str],
    options: DataOptions,
    source: str,
) -> Format:
    """Add what the rows have besides; `rewritten` are the rows in the columns that `format_` reads.

    Raises:
        DataError: one of two score columns is missing, or two columns could be the system turn.
    """
    if format_.form == "paired":
        format_ = _with_scores(format_, rewritten, found, options, source)
    named: dict[str, str] = {str(name): column for name, column in options.columns.items()}
    system = named.get("system") or _system(format_, rows, found, source)
    tools = named.get("tools") or (TOOLS if _holds_tools(rows) else None)
    if system is not None:
        format_ = replace(format_, system=system, is_chat=True, why=f"{format_.why}; '{system}' is the first turn")
    if tools is not None:
        format_ = replace(format_, tools=tools, is_chat=True, why=f"{format_.why}; '{tools}' holds its tools")
    return format_


def _with_scores(
    format_: Format, rows: Sequence[Mapping[str, Any]], found: Collection[str], options: DataOptions, source: str
) -> Format:
    """Add the columns of a pair's scores where most rows have numbers in both, or where the options name them."""
    named: dict[str, str] = {str(name): column for name, column in options.columns.items() if name in PAIR_SCORES}
    spellings: Sequence[tuple[str, ...]] = SCORE_SPELLINGS
    if named:
        spellings = [tuple(named.get(name, name) for name in PAIR_SCORES)]
        if lacking := [column for column in spellings[0] if column not in found]:
            raise DataError(
                f"data.columns names where the scores of pairs are, but {source} lacks {listed(lacking)}; it has the "
                f"columns {listed(found)}. Name both, with data.columns.score_chosen and data.columns.score_rejected."
            )
    columns = next((own for own in spellings if named or _numbers(rows, own) >= 0.5), ())
    if not columns:
        return format_
    words = f"{format_.why}; their scores are in the columns {listed(columns)}"
    if format_.rewrite is not None and not set(columns) <= set(found):
        words = f"{format_.why}; they have scores"
    if options.ties == "as_lists":
        return replace(format_, form="listwise", score_columns=columns, why=f"{words}, and each is a list of two")
    return replace(format_, score_columns=columns, scores_named=bool(named), why=words)


def _numbers(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> float:
    return share(rows, lambda r: all(is_number(r.get(c)) for c in columns))


def _system(format_: Format, rows: Sequence[Mapping[str, Any]], found: Collection[str], source: str) -> str | None:
    """Return the column with the system turn: text wherever it holds anything."""
    used = {*format_.columns.values(), *format_.read}
    holding = [
        name
        for name in SYSTEM_SPELLINGS
        if name in found
        and name not in used
        and any(row.get(name) for row in rows)
        and all(isinstance(row.get(name), str | None) for row in rows)
    ]
    if len(holding) > 1:
        raise DataError(
            f"{source} has the columns {listed(holding)}, and either could be the system turn; say which with "
            f"data.columns.system={holding[0]}."
        )
    return holding[0] if holding else None


def _holds_tools(rows: Sequence[Mapping[str, Any]]) -> bool:
    held = [row[TOOLS] for row in rows if row.get(TOOLS)]
    if not held:
        return False
    try:
        return all(tools_of(value) is not None for value in held)
    except RowError:
        return False


def tools_of(value: Any) -> tuple[Mapping[str, Any], ...]:
    """Return the schemas of a conversation's tools: a list of them, or one written as JSON.

    Raises:
        RowError: the column holds something else.
    """
    if value is None or value == "":
        return ()
    is_text = isinstance(value, str)
    if is_text:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError("wrong type", f"the tools are a string that is not JSON: {error}") from error
    if not isinstance(value, list | tuple) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError("wrong type", "the tools are no list of objects, one for each tool")
    return tuple(value if is_text else map(without_nulls, value))


def without_nulls(value: Any) -> Any:
    """Return `value` without the keys that hold null: a table with types fills in those that a row lacks."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value
