"""An inspection in words, by subject: what the terminal and the page say alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prefopt.data.inspection import Inspection
from prefopt.data.near import NearDuplicates
from prefopt.data.statistics import KEPT, Rate

_BIAS = 0.55
"""Share of longer chosen completions from which length is worth a word of advice."""


@dataclass(frozen=True)
class Section:
    """A subject and what is to be said about it, a sentence a line."""

    title: str
    lines: tuple[str, ...]


def findings(inspection: Inspection) -> tuple[Section, ...]:
    """Say an inspection in sentences, without its rows; a subject of which nothing is known has no section."""
    parts = {
        "What it is": _kind,
        "Rows": _rows,
        "Repetition": _repetition,
        "Lengths": _lengths,
        "Scores": _scores,
        "max_length": _max_length,
        "Overlap with the held-out data": _overlap,
    }
    said = (Section(title, tuple(tell(inspection))) for title, tell in parts.items())
    return tuple(section for section in said if section.lines)


def inspect_lines(inspection: Inspection) -> list[str]:
    """Say an inspection in plain lines, without the rows."""
    return [line for section in findings(inspection) for line in section.lines]


def _kind(inspection: Inspection) -> Iterator[str]:
    for found in inspection.summary.recognised:
        yield f"{found.source}: {found.format}, because {found.why}"


def _rows(inspection: Inspection) -> Iterator[str]:
    summary = inspection.summary
    yield f"{summary.rows_read} rows read, {summary.rows_used} used, {summary.rows_rejected} rejected"
    yield from (f"  {count} x {reason}" for reason, count in summary.rejected.items())
    yield from (f"  first: {where}" for where in inspection.rejected)
    yield from (f"{count} rows left out by a rule: {reason}" for reason, count in summary.left_out.items())
    if summary.ties:
        yield f"{summary.ties} ties"
    if summary.completions_per_list is not None:
        yield f"{summary.completions_per_list:.3g} completions a list"
    if summary.desirable is not None:
        yield f"{summary.desirable:.1%} of the completions are desirable"
    if summary.boundary_fallbacks:
        yield f"{summary.boundary_fallbacks} rows where a token would have spanned prompt and completion"
    if summary.altered_prompts:
        yield f"{summary.altered_prompts} rows whose chat template writes an answered prompt otherwise"
    if summary.cut_prompts:
        yield f"{summary.cut_prompts} prompts are cut to their end"
    if summary.cut_completions:
        yield f"{summary.cut_completions} completions are cut and have no end-of-turn"
    yield from summary.notes


def _repetition(inspection: Inspection) -> Iterator[str]:
    summary, found = inspection.summary, inspection.statistics
    yield f"{summary.distinct_prompts} distinct prompts, {summary.duplicates} repeated examples"
    if found.contradicted:
        yield f"{found.contradicted} judgements are contradicted: another row says the opposite of the same texts"
    yield _near(found.near_prompts, "prompts")
    yield _near(found.near_rows, "rows (prompt and completions)")


def _near(found: NearDuplicates, what: str) -> str:
    of = f"{found.distinct} distinct {what}"
    if found.compared < found.distinct:
        of = f"the first {found.compared} of {of}"
    share = found.near / max(found.compared, 1)
    return f"{found.near} of {of} ({share:.1%}) are near-duplicates of another (Jaccard >= {found.threshold:g})"


def _lengths(inspection: Inspection) -> Iterator[str]:
    summary, found = inspection.summary, inspection.statistics
    for name, own in summary.lengths.items():
        yield (
            f"{name}: mean {own.mean:.0f}, median {own.p50}, 90 % {own.p90}, 95 % {own.p95}, 99 % {own.p99}, "
            f"longest {own.longest} {summary.unit}"
        )
    if found.longer is not None:
        lists = summary.form == "listwise"
        text = f"{'the best of a list' if lists else 'chosen'} is the longer one in {_rate(found.longer)}"
        if found.same_length:
            text += f"; {found.same_length} are equally long"
        yield f"{text} (no length bias: 50 %)"
        if found.longer.low > _BIAS:
            yield (
                "longer completions are preferred: a policy learns length from such data; see the losses that "
                "normalise or penalise length (simpo, ld_dpo, length_regularized_dpo)"
            )


def _rate(rate: Rate) -> str:
    return f"{rate.value:.1%} of {rate.n} (95 % interval {100 * rate.low:.1f} to {100 * rate.high:.1f} %)"


def _scores(inspection: Inspection) -> Iterator[str]:
    summary, found = inspection.summary, inspection.statistics.scores
    if found is None:
        return
    low, middle, high = (f"{value:.3g}" for value in found.gap)
    if summary.form == "listwise":
        yield f"{found.scored} lists have scores; in {found.tied} all of them are equal"
        if found.tied_pairs is not None:
            yield f"pairs of a list's completions with equal scores: {_rate(found.tied_pairs)}"
        yield f"best minus worst: median {middle}, 10 % {low}, 90 % {high}"
        return
    yield (
        f"{summary.scored} pairs have scores: {found.against} ({found.against / found.scored:.1%}) score rejected "
        f"higher, {found.tied} ({found.tied / found.scored:.1%}) score both the same"
    )
    yield f"chosen minus rejected: median {middle}, 10 % {low}, 90 % {high}"


def _max_length(inspection: Inspection) -> Iterator[str]:
    found = inspection.statistics
    if found.suggested is None:
        yield "without a tokenizer nothing is known of tokens: name the model's to see what each max_length holds"
        return
    yield f"{found.suggested} holds {KEPT:.0%} of the rows or more; {inspection.max_length} was asked for"
    for one in found.candidates:
        yield (
            f"  {one.max_length}: drops {one.rows_dropped} rows ({one.rows_share:.1%}) with {one.tokens_dropped} "
            f"tokens ({one.tokens_share:.1%})"
        )


def _overlap(inspection: Inspection) -> Iterator[str]:
    found = inspection.statistics.overlap
    if found is None:
        return
    yield (
        f"{found.shared_prompts} of {found.prompts} distinct prompts of {found.source} stand here too, with "
        f"{found.shared_rows} of its {found.rows} rows"
    )
    near = found.near
    of = f"{near.distinct} held-out prompts"
    if near.compared < near.distinct:
        of = f"the first {near.compared} of {of}"
    yield f"{near.near} of {of} are here or have a near-duplicate here (Jaccard >= {near.threshold:g})"
    if found.shared_prompts:
        yield "an evaluation on prompts that were trained on flatters; `prefopt data split` separates by prompt"
