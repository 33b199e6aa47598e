"""A row of any format -> a record with prefopt's own columns: what `data convert` and `data split` write."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

from prefopt.data.formats import FIELDS, Format
from prefopt.data.read import RawRow
from prefopt.data.rows import Dialogue, Document
from prefopt.errors import DataError

Record = dict[str, Any]

OWN = frozenset(name for fields in FIELDS.values() for name in fields) | {"tools"}
"""Columns that say what a row is; another column of such a name is written as `other_NAME`."""


class OwnForm:
    """Makes records, and keeps the books of what they can't hold."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        """Column that no record keeps -> rows in which it held something."""
        self.renamed: dict[str, str] = {}
        self.mended: Counter[str] = Counter()
        """Column in which half a surrogate pair was replaced -> rows."""
        self._first: tuple[bool, str] | None = None

    def record(self, raw: RawRow, format_: Format, row: Document | Dialogue) -> Record:
        """Return a row's record.

        Raises:
            DataError: it is a conversation and rows before it are plain strings, or the other way round.
        """
        self._check_kind(raw, row)
        prompt: Any = row.prompt
        answers: list[Any] = list(row.completions)
        if isinstance(row, Dialogue):
            prompt, answers = list(row.prompt), [[answer] for answer in row.completions]
        if format_.form == "paired":
            record = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
            if format_.score_columns:
                scores = row.scores or (None, None)
                record |= {"score_chosen": scores[0], "score_rejected": scores[1]}
        elif format_.form == "listwise":
            record = {"prompt": prompt, "completions": answers, "scores": list(row.scores)}
        else:
            record = {"prompt": prompt, "completion": answers[0]}
            if format_.form != "demonstration" and row.label is not None:
                record["label"] = row.label
        if isinstance(row, Dialogue) and row.tools:
            record["tools"] = json.dumps(list(row.tools))
        return record | self._others(raw, format_)

    def notes(self) -> tuple[str, ...]:
        """Say what a record lacks of its row, or has under another name."""
        return (
            *(f"the column '{old}' is written as '{new}'" for old, new in self.renamed.items()),
            *(
                f"the column '{name}' is left out: in {rows} rows it holds no number, truth value or string"
                for name, rows in self.left_out.items()
            ),
            *(
                f"the column '{name}' has half surrogates in {rows} rows, written as '?'"
                for name, rows in self.mended.items()
            ),
        )

    def _check_kind(self, raw: RawRow, row: Document | Dialogue) -> None:
        plain = isinstance(row, Document)
        if self._first is None:
            self._first = (plain, raw.where)
        elif self._first[0] != plain:
            kinds = ("plain strings", "a conversation") if plain else ("a conversation", "plain strings")
            raise DataError(
                f"{raw.where} holds {kinds[0]} and {self._first[1]} {kinds[1]}; a Parquet column holds one of them. "
                "Convert them apart, or take the strings as turns with --as-chat (as_chat=True)."
            )

    def _others(self, raw: RawRow, format_: Format) -> Record:
        """Return the row's other columns that hold scalars."""
        used = {*format_.columns.values(), *format_.score_columns, *format_.read, format_.system, format_.tools}
        kept: Record = {}
        for column, value in (raw.row or {}).items():
            if column in used or value is None:
                continue
            if not isinstance(column, str) or not isinstance(value, bool | int | float | str):
                self.left_out[str(column)] += 1
                continue
            name = self._name(column, raw)
            if isinstance(value, str) and not value.isascii():
                sound = value.encode("utf-8", "replace").decode()
                self.mended[name] += sound != value
                value = sound
            kept[name] = value
        self.mended += Counter()  # forget those that were sound
        return kept

    def _name(self, column: str, raw: RawRow) -> str:
        if column in self.renamed:
            return self.renamed[column]
        name = column.encode("utf-8", "replace").decode()
        while name in OWN or (name != column and name in (raw.row or {})):
            name = f"other_{name}"
        if name != column:
            self.renamed[column] = name
        return name


def row_digest(row: Document | Dialogue) -> bytes:
    """Return 8 bytes that are equal for equal rows."""
    tools = row.tools if isinstance(row, Dialogue) else ()
    parts = [isinstance(row, Dialogue), row.prompt, row.completions, row.label, row.scores, tools]
    text = json.dumps(parts, default=repr, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).digest()
