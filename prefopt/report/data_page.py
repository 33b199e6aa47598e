"""An inspection of preference data -> one HTML page that needs nothing else, and runs nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.errors import DataError
from prefopt.report.document import render_page
from prefopt.report.figures import Drawing, legend
from prefopt.report.svg import CHOSEN, INK, MUTED, REJECTED, draw
from prefopt.report.tables import Cell, Line
from prefopt.report.words import number, percent, plural

if TYPE_CHECKING:
    from prefopt.data import Inspection
    from prefopt.data.statistics import Histogram, Rate

_MOST_CHARACTERS = 6000
"""Characters of a text that are shown; the rest is counted."""
_COLOURS = {"prompt": MUTED, "chosen": CHOSEN, "desirable": CHOSEN, "rejected": REJECTED, "undesirable": REJECTED}


def write_data_page(inspection: Inspection, path: Path) -> Path:
    """Write an inspection as a page and return its path; an older one is replaced whole.

    Raises:
        DataError: it can't be written.
    """
    final = Path(path)
    draft = final.with_name(f".{final.name}.{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(render_data(inspection), encoding="utf-8", errors="replace")
        draft.replace(final)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise DataError(f"The page can't be written to {final}: {error.strerror or error}.") from error
    return final


def render_data(inspection: Inspection) -> str:
    """Return the page. All text that comes from data is escaped by the template."""
    from prefopt.data.findings import findings

    sources = [found.source for found in inspection.summary.recognised]
    figures = {"Lengths": [_length_figure(inspection)], "Scores": list(_score_figures(inspection))}
    return render_page(
        "data_page.html.j2",
        name=Path(sources[0]).name if len(sources) == 1 else plural(len(sources), "source"),
        facts=_facts(inspection),
        tiles=list(_tiles(inspection)),
        sections=[
            {
                "id": f"part-{index}",
                "title": section.title,
                "lines": section.lines,
                "figures": figures.get(section.title, []),
            }
            for index, section in enumerate(findings(inspection))
        ],
        candidates=_candidates(inspection),
        rows=[
            {
                "source": row.source,
                "prompt": _cut(row.prompt),
                "completions": [(name, _side(name), _cut(text)) for name, text in row.completions],
            }
            for row in inspection.rows
        ],
    )


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    summary = inspection.summary
    return [
        ("Form", summary.form),
        ("Format", ", ".join(dict.fromkeys(found.format for found in summary.recognised))),
        ("Rows read", number(summary.rows_read)),
        ("Lengths in", summary.unit),
    ]


def _tiles(inspection: Inspection) -> Iterator[dict[str, str]]:
    """Yield the few numbers by which data is judged."""
    summary, found = inspection.summary, inspection.statistics
    yield _tile("Rows used", number(summary.rows_used), f"{number(summary.rows_rejected)} rejected")
    if found.longer is not None:
        label = "Best is the longer one" if summary.form == "listwise" else "Chosen is the longer one"
        yield _tile(label, percent(found.longer.value), _interval(found.longer))
    near = found.near_rows
    yield _tile(
        "Rows with a near-duplicate",
        percent(near.near / max(near.compared, 1)),
        f"Jaccard from {number(near.threshold)}",
    )
    yield _tile("Judgements contradicted", number(found.contradicted), "by another row of the same texts")
    if found.scores is not None:
        off = found.scores.against + found.scores.tied
        yield _tile("Scores that don't prefer", percent(off / found.scores.scored), plural(found.scores.tied, "tie"))
    if found.overlap is not None:
        share = found.overlap.shared_rows / max(found.overlap.rows, 1)
        yield _tile("Held-out rows seen here", percent(share), plural(found.overlap.shared_prompts, "prompt"))
    if found.suggested is not None:
        yield _tile("max_length to hold 99 %", number(found.suggested), f"asked for: {number(inspection.max_length)}")


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _interval(rate: Rate) -> str:
    return f"{100 * rate.low:.1f} to {percent(rate.high)}"


def _candidates(inspection: Inspection) -> list[Line]:
    return [
        Line(
            number(one.max_length),
            "the smallest that holds 99 %" if one.max_length == inspection.statistics.suggested else "",
            (
                Cell(number(one.rows_dropped), percent(one.rows_share)),
                Cell(number(one.tokens_dropped), percent(one.tokens_share)),
            ),
        )
        for one in inspection.statistics.candidates
    ]


def _length_figure(inspection: Inspection) -> Drawing:
    unit = inspection.summary.unit
    histogram = inspection.statistics.histogram
    labels = [number(int(low)) for low in histogram.edges[:-1]]
    words = f"Each group of bars counts the texts with as many {unit} as it says, up to the next group's."
    return _figure("lengths", f"Lengths in {unit}", words, histogram, labels, f"{unit}, from")


def _score_figures(inspection: Inspection) -> Iterator[Drawing]:
    scores = inspection.statistics.scores
    if scores is None:
        return
    labels = [f"{number(low)}" for low in scores.gaps.edges[:-1]]
    words = "How far apart the scores of what is compared are; left of 0 the scores prefer what the pair does not."
    yield _figure("gaps", "Differences of scores", words, scores.gaps, labels, "difference, from")


def _figure(name: str, title: str, words: str, histogram: Histogram, labels: list[str], axis: str) -> Drawing:
    series = list(histogram.counts.items())

    def paint(axes: Any) -> None:
        width = 0.84 / len(series)
        for at, (label, counts) in enumerate(series):
            places = [i + (at - (len(series) - 1) / 2) * width for i in range(len(counts))]
            axes.bar(places, counts, width * 0.94, color=_COLOURS.get(label, INK), label=label)
        step = -(-len(labels) // 9)
        axes.set_xticks(range(0, len(labels), step), labels[::step], parse_math=False)
        axes.set_xlabel(axis)
        axes.set_ylabel("rows")
        if len(series) > 1:
            legend(axes)

    told = "; ".join(
        f"{label}: " + ", ".join(f"{number(low)} to {number(high)}: {count}" for (low, high), count in zip(
            pairwise(histogram.edges), counts, strict=True) if count)
        for label, counts in series
    )  # fmt: skip
    return Drawing(title, words, draw(name, f"Histogram. {title}. {told}.", paint))


def _side(name: str) -> str:
    return "rejected" if name.partition(",")[0] in ("rejected", "undesirable") else "chosen"


def _cut(text: str) -> str:
    left = len(text) - _MOST_CHARACTERS
    return text if left <= 0 else f"{text[:_MOST_CHARACTERS]} … {number(left)} more characters"
