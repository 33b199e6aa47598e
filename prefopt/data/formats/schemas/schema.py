"""A published schema: the columns it is known by, and how a row of it becomes one of the library's own formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefopt.data.config import DataOptions

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Schema:
    """One family of published data sets. Its strings are turns of a conversation."""

    name: str
    variants: tuple[tuple[str, ...], ...]
    """The columns that a row needs, in every spelling of the family."""
    becomes: str
    """Which of the library's own formats a row becomes."""
    rewrite: Callable[[Row, tuple[str, ...], DataOptions], Row]
    """(row, its variant, options) -> the row in the library's own columns; raises RowError."""
    about: str
    """What was recognised, in words."""
    fits: Callable[[Row, tuple[str, ...]], bool] = lambda row, columns: True
    """Whether the values of a row are those of the family."""
    rank: int = 0
    """Considered only where nothing of a lower rank fits; the library's own formats that compare have 0."""
    joins_neighbours: bool = False
    """Neighbouring rows with the same prompt are one list."""
    is_rated: bool = False
    """`data.score` says which rating is the score."""
    rating: str = ""
    """The column that is the score where `data.score` names none; "" where ratings are no columns."""
    for_option: tuple[str, str] | None = None
    """An option and its value, for which alone the schema is considered, unless `data.format` names it."""

    def rewriting(self, variant: tuple[str, ...], options: DataOptions) -> Callable[[Row], Row]:
        """Return what rewrites a row of this spelling."""
        return partial(_rewritten, self.rewrite, variant, options)

    def spellings(self, options: DataOptions) -> list[tuple[str, ...]]:
        """Return the variants, each with the columns of the ratings that make the score."""
        wanted = (options.score or self.rating) if self.rating else {}
        ratings = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        return [(*variant, *ratings) for variant in self.variants]

    def variants_in(self, rows: Sequence[Row], present: set[str], options: DataOptions) -> list[tuple[str, ...]]:
        """Return the spellings that most rows have, by columns and by values."""
        if self.for_option is not None and options.format != self.name:
            name, value = self.for_option
            if getattr(options, name) != value:
                return []
        found = [variant for variant in self.spellings(options) if present >= set(variant)]
        whole = {variant: [row for row in rows if _whole(row, variant)] for variant in found}
        return [own for own, some in whole.items() if 2 * sum(self.fits(row, own) for row in some) > len(some)]


def _rewritten(
    rewrite: Callable[[Row, tuple[str, ...], DataOptions], Row],
    variant: tuple[str, ...],
    options: DataOptions,
    row: Row,
) -> Row:
    """As a function with a name, which other processes find."""
    return rewrite(row, variant, options)


def _whole(row: Row, columns: tuple[str, ...]) -> bool:
    return all(row.get(column) is not None for column in columns)
