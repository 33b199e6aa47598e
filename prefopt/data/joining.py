"""The rows of a source as tasks: one each, or one for neighbours that make one list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from prefopt.data.encode import Task
from prefopt.data.formats import Format
from prefopt.data.read import RawRow
from prefopt.data.row_error import RowError
from prefopt.data.rows import join, rewritten


def tasks_of(rows: Iterable[RawRow], format_: Format) -> Iterator[tuple[RawRow, Task]]:
    """Yield every row, or rows that are joined, with what is to be done with it.

    A row that can't be read comes before the list that it stands in the middle of; the list's `after` is behind both.
    """
    if format_.joins_neighbours:
        yield from _joined(rows, format_)
        return
    for raw in rows:
        yield raw, Task(raw.row, raw.problem, format_)


def _joined(rows: Iterable[RawRow], format_: Format) -> Iterator[tuple[RawRow, Task]]:
    """Make one row of neighbours with the same prompt."""
    raws: list[RawRow] = []
    parts: list[Mapping[str, Any]] = []
    behind = None

    def whole() -> tuple[RawRow, Task]:
        raw = replace(raws[0], joined=tuple(raws[1:]), after=behind)
        return raw, Task(raw.row, "", format_, join(parts))

    for raw in rows:
        try:
            own = None if raw.row is None else rewritten(raw.row, format_)
        except RowError:
            own = None
        if own is None:
            behind = raw.after
            yield raw, Task(raw.row, raw.problem, format_)  # which says why, as it did here
            continue
        if parts and own["prompt"] != parts[0]["prompt"]:
            yield whole()
            raws, parts = [], []
        behind = raw.after
        raws.append(raw)
        parts.append(own)
    if parts:
        yield whole()
