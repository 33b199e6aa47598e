"""A section of a page: what it says, its tables and its figures."""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.report.figures import Drawing
from prefopt.report.tables import Line


@dataclass(frozen=True)
class TablePart:
    """One table."""

    caption: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    title: str = ""
    loose: bool = False
    """Whether its cells hold text, which may wrap."""


@dataclass(frozen=True)
class Section:
    """One section of tables, figures and sentences."""

    id: str
    title: str
    short: str
    """Its name in the page's navigation."""
    lead: tuple[str, ...] = ()
    tables: tuple[TablePart, ...] = ()
    figures: tuple[Drawing, ...] = ()
    notes: tuple[str, ...] = ()


def section_id(kind: str, stem: str) -> str:
    """Return the id of the section that a file of `eval/` becomes."""
    return f"{kind}--{''.join(c if c.isascii() and c.isalnum() else '-' for c in stem)}"
