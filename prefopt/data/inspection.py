"""What `prefopt data inspect` shows: how a source is understood, its counts, lengths, and a few rows as cut."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.data.columns import Example
from prefopt.data.config import DataOptions
from prefopt.data.dataset import PreferenceData
from prefopt.data.load import Loading, load_into, measure, parse_options
from prefopt.data.rejected import RejectedRows
from prefopt.data.rows import Dialogue, Document
from prefopt.data.sources import Source
from prefopt.data.summary import DataSummary

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

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able copy."""
        return {"summary": self.summary.to_dict(), "rows": [asdict(r) for r in self.rows], "rejected": [*self.rejected]}


def inspect_source(
    source: Source, tokenizer: PreTrainedTokenizerBase | None = None, *, rows: int = 3, **options: Any
) -> Inspection:
    """Read a whole source and say what it is, whatever share of its rows is unusable.

    Args:
        source: as for `load_preferences`.
        tokenizer: counts tokens and checks boundaries; without one, lengths are characters and only rows are checked.
        rows: how many to show, spread over the source (the first ones, without a tokenizer).
        options: as for `load_preferences`; `max_rejected` has no effect.

    Raises:
        DataError: nothing can be read or recognised, or no row can be used.
    """
    tolerant = parse_options({**options, "max_rejected": 1.0})
    rejected = RejectedRows()
    if tokenizer is None:
        return _inspect_text(source, rows, tolerant, rejected)
    data = load_into(rejected, source, tokenizer, tolerant)
    shown = np.linspace(0, len(data) - 1, min(rows, len(data))).astype(int)
    return Inspection(data.summary, tuple(show(data, int(i), tokenizer) for i in shown), tuple(rejected.first.values()))


def show(data: PreferenceData, index: int, tokenizer: PreTrainedTokenizerBase) -> ShownRow:
    """Decode one example, special tokens included."""
    example = data[index]
    prompt, *completions = (
        str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        for ids in (example.prompt, *example.completions)
    )
    return ShownRow(example.source, prompt, tuple(zip(_names(data.form, example), completions, strict=True)))


def inspect_lines(inspection: Inspection) -> list[str]:
    """Say an inspection in plain lines, without the rows."""
    summary = inspection.summary
    lines = [f"{r.source}: {r.format}, because {r.why}" for r in summary.recognised]
    lines.append(f"{summary.rows_read} rows read, {summary.rows_used} used, {summary.rows_rejected} rejected")
    lines += [f"  {count} x {reason}" for reason, count in summary.rejected.items()]
    lines += [f"  first: {where}" for where in inspection.rejected]
    lines.append(f"{summary.distinct_prompts} distinct prompts, {summary.duplicates} repeated examples")
    if summary.chosen_longer is not None:
        lines.append(f"chosen is the longer one in {summary.chosen_longer:.1%} (no length bias: 50 %)")
    if summary.completions_per_list is not None:
        lines.append(f"{summary.completions_per_list:.3g} completions a list")
    elif summary.scored:
        lines.append(f"{summary.scored} pairs have scores")
    if summary.desirable is not None:
        lines.append(f"{summary.desirable:.1%} of the completions are desirable")
    if summary.boundary_fallbacks:
        lines.append(f"{summary.boundary_fallbacks} rows where a token would have spanned prompt and completion")
    if summary.altered_prompts:
        lines.append(f"{summary.altered_prompts} rows whose chat template writes an answered prompt otherwise")
    if summary.cut_prompts:
        lines.append(f"{summary.cut_prompts} prompts are cut to their end")
    if summary.cut_completions:
        lines.append(f"{summary.cut_completions} completions are cut and have no end-of-turn")
    lines += [
        f"{name}: mean {own.mean:.0f}, median {own.p50}, 90 % {own.p90}, 95 % {own.p95}, 99 % {own.p99}, "
        f"longest {own.longest} {summary.unit}"
        for name, own in summary.lengths.items()
    ]
    return lines


def _names(form: str, row: Example | Document | Dialogue) -> tuple[str, ...]:
    """Say what each completion of a row is; a pair's scores stand beside."""
    scores = [f"score {score:g}" for score in row.scores]
    if form == "listwise":
        return tuple(scores)
    if form == "unpaired":
        return ("desirable" if row.label else "undesirable",)
    sides = ("chosen", "rejected")
    return tuple(f"{side}, {score}" for side, score in zip(sides, scores, strict=True)) if scores else sides


def _inspect_text(source: Source, rows: int, options: DataOptions, rejected: RejectedRows) -> Inspection:
    loading = Loading(source, options, rejected)
    shown: list[ShownRow] = []
    widths: list[list[int]] = []
    seen: set[tuple[str, ...]] = set()
    prompts: set[str] = set()
    desirable = scored = 0
    for raw, format_, row in loading.rows():
        loading.used += 1
        prompt, completions = _texts(row)
        widths.append([len(prompt), *map(len, completions)])
        seen.add((prompt, *completions, str(row.label), *(map(str, row.scores) if format_.form == "listwise" else ())))
        prompts.add(prompt)
        scored += bool(row.scores)
        desirable += bool(row.label)
        if len(shown) < rows:
            names = _names(format_.form, row)
            shown.append(ShownRow(raw.where, prompt, tuple(zip(names, completions, strict=True))))
    loading.check_rejected()
    longest = max(map(len, widths))
    lengths = np.array([width + [0] * (longest - len(width)) for width in widths], dtype=np.int64)
    form = loading.form()
    summary = replace(
        measure(form, lengths[:, 0], lengths[:, 1:], "characters", scored=scored),
        **loading.counts(),
        distinct_prompts=len(prompts),
        duplicates=len(widths) - len(seen),
        desirable=desirable / len(widths) if form == "unpaired" else None,
    )
    return Inspection(summary, tuple(shown), tuple(rejected.first.values()))


def _texts(row: Document | Dialogue) -> tuple[str, tuple[str, ...]]:
    if isinstance(row, Document):
        return row.prompt, row.completions
    prompt = "\n\n".join(f"{message['role']}: {message['content']}" for message in row.prompt)
    return prompt, tuple(str(message["content"]) for message in row.completions)
