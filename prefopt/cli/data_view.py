"""An inspection of preference data in the terminal: sentences, bar histograms, rows cut where their prompt ends.

Colours repeat what words and marks say already, so that nothing is lost without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from prefopt.data import Inspection, ShownRow
    from prefopt.data.statistics import Histogram

COLOURS = {"chosen": "blue", "desirable": "blue", "rejected": "yellow", "undesirable": "yellow", "prompt": "cyan"}
MOST_CHARACTERS = 1200
"""Characters of a text that are shown; the rest is counted."""
_EIGHTHS = "▏▎▍▌▋▊▉█"


def show_inspection(console: Console, inspection: Inspection) -> None:
    """Print everything that was found out."""
    from prefopt.data.findings import findings

    drawn = {"Lengths": _length_histogram, "Scores": _gap_histogram}
    for section in findings(inspection):
        console.print(Text(section.title, style="bold"))
        for line in section.lines:
            _show_line(console, line)
        if section.title in drawn:
            drawn[section.title](console, inspection)
    for row in inspection.rows:
        show_row(console, row)


def show_row(console: Console, row: ShownRow) -> None:
    """Print one row: the prompt, and each completion behind a mark where it begins."""
    utf = _is_utf(console)
    console.rule(row.source, align="left", characters="─" if utf else "-")
    _show_text(console, "prompt", row.prompt, "")
    for name, text in row.completions:
        _show_text(console, name, text, "▸" if utf else ">")


def bar(share: float, width: int, *, utf: bool = True) -> str:
    """Return a bar of at most `width` characters; anything above nothing shows."""
    if not utf:
        return "#" * (max(1, round(share * width)) if share > 0 else 0)
    eighths = max(1, round(share * width * 8)) if share > 0 else 0
    return "█" * (eighths // 8) + (_EIGHTHS[eighths % 8 - 1] if eighths % 8 else "")


def _show_line(console: Console, line: str) -> None:
    """Print a sentence: folded behind its margin for a reader, in one line for a program."""
    if console.is_terminal:
        margin = 2 + len(line) - len(line.lstrip())
        console.print(Padding(Text(line.lstrip()), (0, 0, 0, margin)))
    else:
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def _show_text(console: Console, name: str, text: str, mark: str) -> None:
    colour = COLOURS.get(name.partition(",")[0], "blue")
    left = len(text) - MOST_CHARACTERS
    console.print(Text(name, style=f"bold {colour}"))
    shown = Text(mark, style=f"reverse {colour}") if mark else Text()
    shown.append(text[:MOST_CHARACTERS], style=colour)
    if left > 0:
        shown.append(f" ... {left} more characters")
    console.print(shown)


def _length_histogram(console: Console, inspection: Inspection) -> None:
    histogram = inspection.statistics.histogram
    edges = [int(edge) for edge in histogram.edges]
    labels = [str(low) if high == low + 1 else f"{low} to {high - 1}" for low, high in pairwise(edges)]
    _histogram(console, histogram, labels, inspection.summary.unit)


def _gap_histogram(console: Console, inspection: Inspection) -> None:
    found = inspection.statistics.scores
    if found is not None:
        edges = found.gaps.edges
        labels = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
        _histogram(console, found.gaps, labels, "difference of scores")


def _histogram(console: Console, histogram: Histogram, labels: Sequence[str], unit: str) -> None:
    """Print bars side by side, a column a series, each to its own highest bin."""
    utf = _is_utf(console)
    series = list(histogram.counts.items())
    numbers = max(len(str(max(counts))) for _, counts in series)
    room = min(console.width, 100) - 2 - max(len(unit), *map(len, labels)) - len(series) * (numbers + 3)
    width = max(4, min(30, room // len(series)))
    table = Table(box=None, show_header=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column(f"  {unit}", justify="right", no_wrap=True)
    for name, _ in series:
        table.add_column(Text(name, style=COLOURS.get(name, "")), no_wrap=True)
    for index, label in enumerate(labels):
        cells = []
        for name, counts in series:
            count = counts[index]
            text = Text(f"{count:>{numbers}} " if count else " " * (numbers + 1))
            text.append(bar(count / max(1, *counts), width, utf=utf), style=COLOURS.get(name, ""))
            cells.append(text)
        table.add_row(f"  {label}", *cells)
    console.print(table)


def _is_utf(console: Console) -> bool:
    return console.encoding.startswith("utf")
