"""What `prefopt data inspect` finds out: how a source is understood, its counts and statistics, a few rows as cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data import statistics
from prefopt.data.columns import Example
from prefopt.data.config import DataOptions
from prefopt.data.dataset import PreferenceData
from prefopt.data.fit import TooLongError
from prefopt.data.load import load_into, measure, parse_options
from prefopt.data.loading import Loading
from prefopt.data.read import RawRow
from prefopt.data.rejected import RejectedRows
from prefopt.data.rows import Dialogue, Document, RowError
from prefopt.data.sources import Source
from prefopt.data.statistics import Overlap, Statistics
from prefopt.data.summary import DataSummary
from prefopt.data.survey import Survey, texts_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ShownRow:
    """One example as text, cut where the prompt ends."""

    source: str
    prompt: str
    completions: tuple[tuple[str, str], ...]
    """(chosen | rejected | desirable | undesirable | score N, text)."""


@dataclass(frozen=True)
class Inspection:
    """A source, understood."""

    summary: DataSummary
    rows: tuple[ShownRow, ...]
    rejected: tuple[str, ...]
    """For each reason to reject a row, where it was met first."""
    statistics: Statistics
    max_length: int | None = None
    """What rows were held against; None without a tokenizer."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy."""
        return {
            "summary": self.summary.to_dict(),
            "statistics": self.statistics.to_dict(),
            "max_length": self.max_length,
            "rows": [asdict(r) for r in self.rows],
            "rejected": [*self.rejected],
        }


def inspect_source(
    source: Source,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    rows: int = 3,
    held_out: str | Path | tuple[str | Path, ...] | None = None,
    **options: Any,
) -> Inspection:
    """Read a whole source and say what it is, whatever share of its rows is unusable.

    Args:
        source: as for `load_preferences`.
        tokenizer: counts tokens and checks boundaries; without one, lengths are characters and only rows are checked.
        rows: how many to show, spread over the source (the first ones, without a tokenizer).
        held_out: other preferences, whose overlap with these is measured; read with the same options.
        options: as for `load_preferences`; `max_rejected` has no effect.

    Raises:
        DataError: nothing can be read or recognised, or no row can be used.
    """
    tolerant = parse_options({**options, "max_rejected": 1.0, "cache": False})
    again: Any = source if isinstance(source, str | Path) else list(source)  # it is read twice
    books = _Books()
    data = None if tokenizer is None else load_into(books, again, tokenizer, tolerant)
    survey, loading, shown = _survey(again, tolerant, left_out=books.where, rows=rows if data is None else 0)
    if data is None or tokenizer is None:
        summary = _summarise(survey, loading)
        first = tuple(loading.rejected.first.values())
        lengths, totals = survey.lengths(), np.zeros(0, dtype=np.int64)
    else:
        summary, first = data.summary, tuple(books.first.values())
        lengths = data.prompt_lengths, data.completion_lengths
        totals = np.concatenate([lengths[0] + lengths[1].max(axis=1), np.array(books.needed, dtype=np.int64)])
        places = np.linspace(0, len(data) - 1, min(rows, len(data))).astype(int)
        shown = tuple(show(data, int(i), tokenizer) for i in places)
    overlap = None if held_out is None else _overlap(survey, held_out, tolerant)
    measured = replace(_measure(summary.form, survey, lengths, totals), overlap=overlap)
    return Inspection(summary, shown, first, measured, None if data is None else tolerant.max_length)


def show(data: PreferenceData, index: int, tokenizer: PreTrainedTokenizerBase) -> ShownRow:
    """Decode one example, special tokens included."""
    example = data[index]
    prompt, *completions = (
        str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for ids in (example.prompt, *example.completions)
    )
    return ShownRow(example.source, prompt, tuple(zip(_names(data.form, example), completions, strict=True)))


class _Books(RejectedRows):
    """Books that also keep which rows were rejected, and how long the ones that were too long are."""

    def __init__(self) -> None:
        super().__init__()
        self.where: set[str] = set()
        self.needed: list[int] = []

    def add(self, raw: RawRow, error: RowError) -> None:
        super().add(raw, error)
        self.where.add(raw.where)
        if isinstance(error, TooLongError):
            self.needed.append(error.needed)


def _survey(
    source: Source, options: DataOptions, *, left_out: set[str] | frozenset[str] = frozenset(), rows: int = 0
) -> tuple[Survey, Loading, tuple[ShownRow, ...]]:
    """Read the text of every row but those `left_out`, and keep the first ones to show."""
    loading = Loading(source, options, RejectedRows())
    survey = Survey()
    shown: list[ShownRow] = []
    for raw, format_, row in loading.rows():
        if raw.where in left_out:
            continue
        loading.use(raw)
        survey.add(row, format_.form)
        if len(shown) < rows:
            prompt, completions = texts_of(row)
            names = _names(format_.form, row)
            shown.append(ShownRow(raw.where, prompt, tuple(zip(names, completions, strict=True))))
    loading.check_rejected()
    return survey, loading, tuple(shown)


def _names(form: str, row: Example | Document | Dialogue) -> tuple[str, ...]:
    """Say what each completion of a row is; a pair's scores stand beside."""
    scores = [f"score {score:g}" for score in row.scores]
    if form == "listwise":
        return tuple(scores)
    if form != "paired":
        return ("completion" if row.label is None else "desirable" if row.label else "undesirable",)
    sides = ("chosen", "rejected")
    return tuple(f"{side}, {score}" for side, score in zip(sides, scores, strict=True)) if scores else sides


def _summarise(survey: Survey, loading: Loading) -> DataSummary:
    form = loading.form()
    prompt, completions = survey.lengths()
    return replace(
        measure(form, prompt, completions, "characters", scored=survey.scored),
        **loading.counts(),
        distinct_prompts=len(survey.exact_prompts),
        duplicates=survey.duplicates,
        desirable=survey.desirable / survey.rows if form == "unpaired" else None,
    )


def _measure(
    form: str,
    survey: Survey,
    lengths: tuple[NDArray[np.int64], NDArray[np.int64]],
    totals: NDArray[np.int64],
) -> Statistics:
    prompt, completions = lengths
    longer, same = None, 0
    if form == "paired":
        longer, same = statistics.longer_rate(completions[:, 0], completions[:, 1])
    elif form == "listwise":
        decided = np.array([own[0] > own[-1] for own in survey.scores])
        last = (completions > 0).sum(axis=1) - 1
        worst = completions[np.arange(len(completions)), last]
        longer, same = statistics.longer_rate(completions[decided, 0], worst[decided])
    candidates, suggested = statistics.length_candidates(totals)
    return Statistics(
        histogram=statistics.length_histogram({"prompt": prompt, **_series(form, survey, completions)}),
        longer=longer,
        same_length=same,
        contradicted=survey.contradicted,
        scores=statistics.score_statistics(survey.scores, lists=form == "listwise"),
        near_prompts=survey.prompt_texts.near_duplicates(),
        near_rows=survey.texts.near_duplicates(),
        candidates=candidates,
        suggested=suggested,
    )


def _series(form: str, survey: Survey, completions: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]:
    """Return the lengths of completions by what they are."""
    if form == "paired":
        return {"chosen": completions[:, 0], "rejected": completions[:, 1]}
    if form == "unpaired":
        good = np.array(survey.labels, dtype=bool)
        split = {"desirable": completions[good, 0], "undesirable": completions[~good, 0]}
        return {name: values for name, values in split.items() if len(values)}
    return {"completion": completions[completions > 0]}


def _overlap(survey: Survey, held_out: str | Path | tuple[str | Path, ...], options: DataOptions) -> Overlap:
    other, loading, _ = _survey(held_out, options)
    shared = survey.prompts.keys() & other.prompts.keys()
    return Overlap(
        source=", ".join(found.source for found in loading.recognised),
        rows=other.rows,
        shared_rows=sum(other.prompts[key] for key in shared),
        prompts=len(other.prompts),
        shared_prompts=len(shared),
        near=other.prompt_texts.near_in(survey.prompt_texts),
    )
