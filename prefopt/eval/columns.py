"""Columns of the evaluation data: as numbers, as shares, and as what slices it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from prefopt.errors import DataError, nearest
from prefopt.eval.intervals import Floats
from prefopt.eval.pairs import Slice, bin_edges, slice_groups, slice_pairs

Slicing = Callable[..., tuple[Slice, ...]]


class Columns:
    """What stands beside the texts of P pairs."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """`rows`: the columns of each pair by name."""
        self._rows = rows

    def numbers(self, name: str, key: str) -> Floats:
        """Return a column, (P,) float64, NaN where a row has no number in it. Raises DataError where no row has one."""
        values = np.array([_number(row.get(name)) for row in self._rows], dtype=np.float64)
        if not np.isfinite(values).any():
            numeric = sorted({c for row in self._rows for c, value in row.items() if np.isfinite(_number(value))})
            raise DataError(
                f"{key} names the column {name!r}, which has no numbers in the evaluation data; columns that have: "
                f"{', '.join(numeric) or 'none'}{nearest(name, numeric)}"
            )
        return values

    def shares(self, name: str, key: str) -> Floats:
        """Return `numbers`, all from 0 to 1. Raises DataError where one is not."""
        values = self.numbers(name, key)
        if np.nanmin(values) < 0 or np.nanmax(values) > 1:
            raise DataError(
                f"{key} names the column {name!r}, which holds {np.nanmin(values):g} to {np.nanmax(values):g}; it must "
                "hold the share of raters who prefer the chosen completion, from 0 to 1."
            )
        return values

    def slicing(self, name: str, edges: Sequence[float] | None) -> Slicing:
        """Return what slices scores by a column: by bins of numbers, or by its values where some are no numbers.

        Raises DataError where no row has a value, or edges are given for words.
        """
        values = [row.get(name) for row in self._rows]
        there = [value for value in values if value is not None]
        if not there:
            known = sorted({column for row in self._rows for column in row})
            raise DataError(
                f"eval.slice_by names the column {name!r}, which the evaluation data doesn't have; columns that can "
                f"slice it: {', '.join(known) or 'none'}{nearest(name, known)}"
            )
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in there):
            if edges is not None:
                raise DataError(
                    f"eval.slice_edges cuts numbers, but the column {name!r} holds words such as "
                    f"{str(there[0])!r:.40}; leave eval.slice_edges out."
                )
            return partial(slice_groups, labels=[None if value is None else _word(value) for value in values])
        numbers = self.numbers(name, "eval.slice_by")
        return partial(slice_pairs, values=numbers, edges=edges or bin_edges(numbers))


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else float("nan")
