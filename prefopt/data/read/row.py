"""One row as it was read, where it came from, and where reading goes on behind it."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

Place: TypeAlias = "Mapping[str, int]"
"""Where reading goes on, as JSON can hold it: `{"byte", "line"}` of a text file, `{"row"}` of anything else."""


@dataclass(frozen=True)
class RawRow:
    """One row as it was read: its columns, or the reason why it has none."""

    source: str
    """The file or dataset."""
    line: int
    """Line of the file, counted from 1; row number where there are no lines."""
    row: Mapping[str, Any] | None
    problem: str = ""
    """Why `row` is None."""
    text: str = ""
    """The line as it stands, where `row` is None."""
    after: Place | None = None
    """Where the next row of the source begins; None for rows in memory."""
    joined: tuple[RawRow, ...] = ()
    """The rows behind this one that make one list with it."""

    @property
    def where(self) -> str:
        return f"{self.source}:{self.line}"


def read_rows(rows: Iterable[Any], source: str = "rows", start: Place | None = None) -> Generator[RawRow, None, None]:
    """Number rows that are in memory already."""
    skipped = 0 if start is None else start["row"]
    for line, row in enumerate(islice(rows, skipped, None), start=skipped + 1):
        yield checked(source, line, row, "", {"row": line})


def read_dataset(dataset: Any, source: str, start: Place | None = None) -> Generator[RawRow, None, None]:
    """Number the rows of a `datasets.Dataset`; rows that are skipped are not decoded."""
    skipped = 0 if start is None else start["row"]
    if skipped >= len(dataset):
        return
    kept = dataset.select(range(skipped, len(dataset))) if skipped else dataset
    for line, row in enumerate(kept, start=skipped + 1):
        yield RawRow(source, line, row, after={"row": line})


def checked(source: str, line: int, value: Any, text: str, after: Place) -> RawRow:
    """Return `value` as a row, or as a row with a problem where it has no columns."""
    if isinstance(value, Mapping):
        return RawRow(source, line, value, after=after)
    problem = f"not an object with columns: {_kind(value)}"
    return RawRow(source, line, None, problem, text or repr(value)[:1000], after)


def _kind(value: Any) -> str:
    names = {str: "a string", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")
