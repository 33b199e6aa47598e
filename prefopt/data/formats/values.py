"""What columns hold: numbers, choices and lists, in rows with types and in cells without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prefopt.data.read import plain
from prefopt.data.row_error import RowError
from prefopt.records import LARGEST_SCORE


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number that float32 can hold, or a cell that is written like one."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(-LARGEST_SCORE <= value <= LARGEST_SCORE)


def number(value: Any, column: str) -> float:
    """Return a score as a number.

    Raises:
        RowError: it is missing or no number.
    """
    if value is None:
        raise RowError("field missing", f"'{column}'")
    if not is_number(value):
        raise RowError("wrong type", f"'{column}' holds {value!r:.40}; a score must be a finite number (of float32)")
    return float(plain(value))


def choice(row: Mapping[str, Any], column: str) -> int:
    """Return the column that says which of two is preferred: 0 or 1.

    Raises:
        RowError: it is missing or another value.
    """
    value = plain(field(row, column))
    if not isinstance(value, int | float) or value not in (0, 1):
        raise RowError("wrong type", f"'{column}' is {value!r:.40}; it must be 0 or 1")
    return int(value)


def field(row: Mapping[str, Any], column: str) -> Any:
    """Return what a row holds in a column that it needs.

    Raises:
        RowError: it holds nothing there.
    """
    value = row.get(column)
    if value is None:
        raise RowError("field missing", f"'{column}'" + (" is null" if column in row else ""))
    return value


def share(rows: Sequence[Mapping[str, Any]], test: Callable[..., bool]) -> float:
    """Return the share of rows that pass `test`."""
    return sum(map(test, rows)) / len(rows) if rows else 0.0


def listed(names: Iterable[object]) -> str:
    """Write names in quotes, or 'none'."""
    return ", ".join(f"'{name}'" for name in names) or "none"
