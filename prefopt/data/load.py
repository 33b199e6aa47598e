"""Sources -> tokenized preferences, with every row either used or listed as rejected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from prefopt.data import cache
from prefopt.data.arrow import write_columns
from prefopt.data.columns import ColumnWriter, Example, Form
from prefopt.data.config import DataOptions
from prefopt.data.dataset import PreferenceData
from prefopt.data.encode import RowEncoder, make_example
from prefopt.data.formats import SAMPLE, SCORABLE, Format, recognise
from prefopt.data.loading import Loading
from prefopt.data.rejected import FILE_NAME, RejectedRows
from prefopt.data.rows import Dialogue, Document, RowError, normalise
from prefopt.data.sources import Identity, Source
from prefopt.data.summary import DataSummary, Lengths
from prefopt.data.tokenize import Encoder
from prefopt.errors import DataError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_preferences(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rejected_to: Path | None = None,
    **options: Any,
) -> PreferenceData:
    """Read, recognise, check and tokenize preferences.

    Args:
        source: a file, a glob, a URL, a saved dataset, the name of a Hugging Face dataset, a list of these, or rows in
            memory.
        tokenizer: the policy's.
        rejected_to: file (or directory) that rejected rows are written to, one JSON object a line.
        options: the fields of `DataOptions`.

    Raises:
        DataError: nothing to read, an unknown format, or more rejected rows than `max_rejected` allows.
    """
    return load_into(RejectedRows(rejected_to), source, tokenizer, parse_options(options))


def load_into(
    rejected: RejectedRows, source: Source, tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> PreferenceData:
    """Load as `load_preferences` does, with the books of rejected rows kept by the caller."""
    encoder = RowEncoder(tokenizer, options)
    loading = Loading(source, options, rejected)
    sources = loading.identities() if options.cache and tokenizer.is_fast else None
    if sources is None or sum(identity.size for _, identity in sources) < cache.SMALL:
        with rejected:
            return _read(loading, encoder)
    key = cache.entry_key([(name, identity.content) for name, identity in sources], tokenizer, options)
    entry = cache.Entry(cache.default_folder(), key)
    with rejected:
        return _restore(loading, entry) or _read_and_keep(loading, encoder, entry, dict(sources))


def _read(loading: Loading, encoder: RowEncoder) -> PreferenceData:
    writer = ColumnWriter()
    read_into(writer, loading, encoder)
    loading.check_rejected()
    data = PreferenceData.of_columns(loading.form(), writer.columns())
    data.summary = summarise(data, loading)
    return data


def _restore(loading: Loading, entry: cache.Entry) -> PreferenceData | None:
    """Return what an earlier load has kept, with everything that it reported."""
    found = entry.read()
    if found is None:
        return None
    columns, record = found
    loading.restore(record["loading"])
    loading.rejected.restore(record["reasons"], record["first"], record["left_out"], entry.rejected)
    loading.check_rejected()
    data = PreferenceData.of_columns(record["form"], columns, summary=DataSummary.from_dict(record["summary"]))
    data.__dict__["fingerprint"] = record["fingerprint"]
    return data


def _read_and_keep(
    loading: Loading, encoder: RowEncoder, entry: cache.Entry, sources: Mapping[str, Identity]
) -> PreferenceData:
    with entry.filling() as draft:
        if draft is None:
            return _read(loading, encoder)
        loading.rejected.start_copy(draft / FILE_NAME)
        writer = ColumnWriter(draft)
        try:
            read_into(writer, loading, encoder)
            loading.rejected.stop_copy()
            loading.check_rejected()
            columns = write_columns(writer, draft)
        finally:
            writer.close()
        data = PreferenceData.of_columns(loading.form(), columns)
        data.summary = summarise(data, loading)
        if loading.changed(sources):  # a source was written to while it was read
            return data
        record = {
            "form": data.form,
            "fingerprint": data.fingerprint,
            "summary": data.summary.to_dict(),
            "reasons": dict(loading.rejected.reasons),
            "first": loading.rejected.first,
            "left_out": dict(loading.rejected.left_out),
            "loading": loading.state(),
        }
        entry.keep(draft, record)
        return data


def read_into(writer: ColumnWriter, loading: Loading, encoder: RowEncoder) -> None:
    """Tokenize all rows; those that can't be used go to the rejected ones."""
    for raw, outcome in loading.outcomes(encoder):
        ids = outcome.ids
        assert ids is not None
        writer.add(
            ids.prompt,
            ids.completions,
            label=outcome.label,
            scores=outcome.scores,
            source=raw.where,
            meta=outcome.meta,
            prompt_cut=ids.prompt_cut,
            cut=ids.cut,
        )


def summarise(data: PreferenceData, loading: Loading) -> DataSummary:
    """Count and measure what was loaded."""
    cut = np.flatnonzero(data.columns.cut)
    prompts = int(np.isin(cut, data.first_sequences).sum())
    return replace(
        measure(data.form, data.prompt_lengths, data.completion_lengths, scored=int(data.scored.sum())),
        **loading.counts(),
        boundary_fallbacks=loading.fallbacks,
        altered_prompts=loading.altered,
        cut_prompts=prompts,
        cut_completions=len(cut) - prompts,
        distinct_prompts=int(data.prompt_ids.max(initial=-1)) + 1,
        duplicates=_duplicates(data),
        desirable=_desirable(data),
    )


def tokenize_rows(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int | None = None,
    as_chat: bool = False,
) -> list[Example]:
    """Tokenize rows to be scored, each with all of its completions; chosen stands before rejected.

    Rows are pairs, labelled completions, or a prompt with `completion` or `completions`; they needn't be alike.

    Raises:
        DataError: a row that can't be used, named by its number from 0, and why.
    """
    encoder = Encoder(tokenizer)
    options = DataOptions(as_chat=as_chat)
    listed = list(rows)
    formats: dict[frozenset[str], Format] = {}
    read: list[Document | Dialogue] = []
    for index, row in enumerate(listed):
        if not isinstance(row, Mapping):
            raise DataError(f"Row {index} is a {type(row).__name__}; it must be a mapping from columns to values.")
        kind = frozenset(name for name, value in row.items() if value is not None)
        if kind not in formats:
            alike = [r for r in listed if isinstance(r, Mapping) and {n for n, v in r.items() if v is not None} == kind]
            found = recognise(alike[:SAMPLE], options, source=f"row {index}", allowed=SCORABLE)
            formats[kind] = replace(found, form="scored")
        try:
            read.append(normalise(row, formats[kind], as_chat=as_chat))
        except RowError as error:
            raise DataError(f"Row {index} can't be scored: {error}.") from error
    examples: list[Example] = []
    for index, encoded in enumerate(encoder.encode(read, max_length=max_length)):
        if isinstance(encoded, RowError):
            raise DataError(f"Row {index} can't be scored: {encoded}.")
        examples.append(make_example(encoded, read[index].label, read[index].scores, f"rows:{index + 1}"))
    return examples


def parse_options(options: Mapping[str, Any]) -> DataOptions:
    """Validate keyword options.

    Raises:
        DataError: an unknown option, or a value that isn't allowed.
    """
    known = DataOptions.model_fields
    for name in options:
        if name not in known:
            raise DataError(
                f"'{name}' is no option of the data; the options are {', '.join(known)}{nearest(name, known)}."
            )
    try:
        return DataOptions(**options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"The data option {where} = {first['input']!r} is wrong: {first['msg']}.") from error


def measure(
    form: Form,
    prompt: NDArray[np.int64],
    completions: NDArray[np.int64],
    unit: str = "tokens",
    *,
    scored: int = 0,
) -> DataSummary:
    """Summarise lengths in `unit`: prompt (examples,), completions (examples, the most of one) int64, 0 for none."""
    lengths = {"prompt": _lengths(prompt)}
    longer = per_list = None
    if form == "paired":
        lengths.update({name: _lengths(completions[:, i]) for i, name in enumerate(("chosen", "rejected"))})
        longer = float((np.sign(completions[:, 0] - completions[:, 1]) / 2 + 0.5).mean())
    else:
        lengths["completion"] = _lengths(completions[completions > 0])
    if form == "listwise":
        per_list = float((completions > 0).sum(axis=1).mean())
    return DataSummary(
        form=form, unit=unit, lengths=lengths, chosen_longer=longer, scored=scored, completions_per_list=per_list
    )


def _lengths(values: NDArray[np.int64]) -> Lengths:
    p50, p90, p95, p99 = (int(p) for p in np.percentile(values, (50, 90, 95, 99), method="higher"))
    return Lengths(float(values.mean()), p50, p90, p95, p99, int(values.max()))


def _duplicates(data: PreferenceData) -> int:
    seen = np.column_stack([data.prompt_ids, data.completion_ids, data.labels])
    if data.form == "listwise":  # the same completions with other scores say something else
        return len(data) - len({(*row, *example.scores) for row, example in zip(seen.tolist(), data, strict=True)})
    return len(data) - len(np.unique(seen, axis=0))


def _desirable(data: PreferenceData) -> float | None:
    return float(data.labels.mean()) if data.form == "unpaired" else None
