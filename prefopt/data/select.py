"""Examples made of the sequences of others, whose tokens stay where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from prefopt.data.columns import Columns

Ints = NDArray[np.int64]
Value = TypeVar("Value")

CHUNK = 1 << 22
"""Tokens that are brought together at a time."""


def select(
    columns: Columns,
    examples: Ints,
    prompts: Ints,
    places: Ints,
    *,
    scores: NDArray[np.float64] | None = None,
    labels: NDArray[np.bool_] | None = None,
) -> Columns:
    """Return examples with other completions, scores and labels; no token is copied.

    Args:
        columns: where the sequences are.
        examples: which example each new one says its source and columns of: (E,).
        prompts: which sequence is its prompt: (E,).
        places: which sequences are its completions: (E, the most of one), -1 where there is none.
        scores: as `places`; none without.
        labels: (E,); all False without.
    """
    there = places >= 0
    sequences = np.column_stack([prompts, places])
    order = sequences[np.column_stack([np.ones(len(prompts), dtype=bool), there])]
    return Columns(
        tokens=columns.tokens,
        lengths=columns.lengths[order],
        cut=columns.cut[order],
        counts=there.sum(axis=1),
        scores=np.full(int(there.sum()), np.nan) if scores is None else scores[there],
        labels=np.zeros(len(prompts), dtype=bool) if labels is None else labels,
        sources=_Picked(columns.sources, examples),
        meta=_Picked(columns.meta, examples),
        stops=columns.ends[order],
    )


def tokens_in_order(columns: Columns) -> Iterator[NDArray[np.int32]]:
    """Yield the tokens of all sequences, end to end, in pieces."""
    if columns.stops is None:
        for start in range(0, len(columns.tokens), CHUNK):  # they may lie on disk
            yield columns.tokens[start : start + CHUNK]
        return
    bounds = np.concatenate([[0], np.cumsum(columns.lengths)])
    at = 0
    while at < len(columns.lengths):
        stop = max(at + 1, int(np.searchsorted(bounds, bounds[at] + CHUNK, side="right")) - 1)
        size = columns.lengths[at:stop]
        inside = np.arange(int(size.sum()), dtype=np.int64) - np.repeat(bounds[at:stop] - bounds[at], size)
        yield columns.tokens[inside + np.repeat(columns.stops[at:stop] - size, size)]
        at = stop


class _Picked(Sequence[Value]):
    """Some of a sequence's values, in another order or several times."""

    def __init__(self, held: Sequence[Value], which: Ints) -> None:
        self._held, self._which = held, which

    def __len__(self) -> int:
        return len(self._which)

    @overload
    def __getitem__(self, index: int) -> Value: ...
    @overload
    def __getitem__(self, index: slice) -> list[Value]: ...
    def __getitem__(self, index: int | slice) -> Value | list[Value]:
        if isinstance(index, slice):
            return [self._held[i] for i in self._which[index].tolist()]
        return self._held[int(self._which[index])]
