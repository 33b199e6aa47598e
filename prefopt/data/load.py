"""Sources -> tokenized preferences, with every row either used or listed as rejected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from prefopt.data.config import DataOptions
from prefopt.data.dataset import Example, Form, PreferenceData
from prefopt.data.formats import SAMPLE, SCORABLE, Format, recognise
from prefopt.data.read import RawRow
from prefopt.data.rejected import RejectedRows
from prefopt.data.rows import Dialogue, Document, RowError, check_list, normalise, scalars
from prefopt.data.sources import Source, open_sources
from prefopt.data.summary import DataSummary, Lengths, Recognised
from prefopt.data.tokenize import Encoded, Encoder, TooLongError
from prefopt.errors import DataError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1024
"""Rows that are rendered and tokenized in one call."""

UsableRow = tuple[RawRow, Format, Document | Dialogue]


def load_preferences(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rejected_to: Path | None = None,
    **options: Any,
) -> PreferenceData:
    """Read, recognise, check and tokenize preferences.

    Args:
        source: a file, a glob, the name of a Hugging Face dataset, a list of these, or rows in memory.
        tokenizer: the policy's.
        rejected_to: file (or directory) that rejected rows are written to, one JSON object a line.
        options: the fields of `DataOptions`: format, columns, config, split, revision, as_chat, max_length,
            truncation, max_rejected.

    Raises:
        DataError: nothing to read, an unknown format, or more rejected rows than `max_rejected` allows.
    """
    return load_into(RejectedRows(rejected_to), source, tokenizer, parse_options(options))


def load_into(
    rejected: RejectedRows, source: Source, tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> PreferenceData:
    """Load as `load_preferences` does, with the books of rejected rows kept by the caller."""
    encoder = Encoder(tokenizer)
    with rejected:
        loading = Loading(source, options, rejected)
        examples = _examples(loading, encoder)
        first = list(islice(examples, 1))  # the form is known once a row is read
        form = loading.form()
        data = PreferenceData(form, chain(first, examples))
    loading.check_rejected()
    data.summary = replace(
        measure(form, data.prompt_lengths, data.completion_lengths, scored=int(data.scored.sum())),
        **loading.counts(),
        boundary_fallbacks=loading.fallbacks,
        altered_prompts=loading.altered,
        distinct_prompts=int(np.unique(data.prompt_ids).size),
        duplicates=_duplicates(data),
        desirable=_desirable(data),
    )
    return data


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
        examples.append(make_example(encoded, read[index], f"rows:{index + 1}", {}))
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


class Loading:
    """One pass over the sources: hands out rows that can be read, and keeps the books."""

    def __init__(self, source: Source, options: DataOptions, rejected: RejectedRows) -> None:
        self.options = options
        self.rejected = rejected
        self.recognised: list[Recognised] = []
        self.read = self.used = self.fallbacks = self.altered = 0
        self._sources = open_sources(source, options)
        self._form: Form | None = None
        self._needed: list[int] = []  # lengths of the rows that were too long

    def rows(self) -> Iterator[UsableRow]:
        """Yield rows that are pairs, labelled completions or scored lists; the others go to the rejected ones."""
        for named in self._sources:
            with closing(named.read(None)) as rows:
                yield from self._of_source(named.name, rows)

    def batches(self) -> Iterator[list[UsableRow]]:
        rows = self.rows()
        while batch := list(islice(rows, BATCH)):
            yield batch

    def reject(self, raw: RawRow, error: RowError) -> None:
        self.rejected.add(raw, error)
        if isinstance(error, TooLongError):
            self._needed.append(error.needed)

    def form(self) -> Form:
        if self._form is None:
            raise DataError("No data was named: the list of sources is empty.")
        return self._form

    def counts(self) -> dict[str, Any]:
        """Return the fields of a summary that are known without looking at tokens."""
        return {
            "rows_read": self.read,
            "rows_used": self.used,
            "rejected": dict(self.rejected.reasons.most_common()),
            "recognised": tuple(self.recognised),
        }

    def check_rejected(self) -> None:
        """Refuse to go on when more rows were rejected than the options allow, or all of them.

        Raises:
            DataError: with the reasons, how often and where first, and what would help.
        """
        count, share = self.rejected.total, self.rejected.total / max(self.read, 1)
        if self.used and share <= self.options.max_rejected:
            return
        reasons = "; ".join(
            f"{reason} ({times}, first at {self.rejected.first[reason]})"
            for reason, times in self.rejected.reasons.most_common(3)
        )
        help_ = ["mend the rows", "raise data.max_rejected"] if self.used else ["mend the rows"]
        if self._needed:
            help_.insert(0, f"raise data.max_length ({max(self._needed)} would hold the longest)")
        listed = f" All of them are listed in {self.rejected.path}." if self.rejected.path else ""
        raise DataError(
            f"{count} of {self.read} rows ({share:.1%}) can't be used, and data.max_rejected allows "
            f"{self.options.max_rejected:.1%}: {reasons}.{listed} To go on, {' or '.join(help_)}."
        )

    def _of_source(self, name: str, rows: Iterator[RawRow]) -> Iterator[UsableRow]:
        head: list[RawRow] = []
        sample: list[Mapping[str, Any]] = []
        for raw in rows:
            head.append(raw)
            if raw.row is not None:
                sample.append(raw.row)
            if len(sample) == SAMPLE:
                break
        if not sample:
            raise DataError(f"{name} has no row that can be read.")
        format_ = recognise(sample, self.options, source=name)
        self._agree(name, format_)
        for raw in chain(head, rows):
            self.read += 1
            if raw.row is None:
                self.reject(raw, RowError(*raw.problem.partition(": ")[::2]))
                continue
            try:
                yield raw, format_, normalise(raw.row, format_, as_chat=self.options.as_chat)
            except RowError as error:
                self.reject(raw, error)

    def _agree(self, source: str, format_: Format) -> None:
        self.recognised.append(Recognised(source, format_.name, format_.why))
        assert format_.form != "scored"  # what is only to be scored is not recognised here
        form: Form = format_.form
        if self._form is not None and self._form != form:
            raise DataError(
                f"{source} holds {form} preferences and {self.recognised[0].source} {self._form} ones; name sources of "
                "one form."
            )
        self._form = form


def _examples(loading: Loading, encoder: Encoder) -> Iterator[Example]:
    for batch in loading.batches():
        read = [row for _, _, row in batch]
        encoded = encoder.encode(read, max_length=loading.options.max_length)
        for (raw, format_, row), ids in zip(batch, encoded, strict=True):
            try:
                if isinstance(ids, RowError):
                    raise ids
                check_tokens(ids, row, format_)
            except RowError as error:
                loading.reject(raw, error)
            else:
                loading.used += 1
                loading.fallbacks += ids.fallback
                loading.altered += ids.altered
                yield make_example(ids, row, raw.where, scalars(raw.row or {}, format_))


def check_tokens(ids: Encoded, row: Document | Dialogue, format_: Format) -> None:
    """Refuse what differed as text and is the same in tokens."""
    if format_.form == "paired" and ids.completions[0] == ids.completions[1]:
        raise RowError("chosen = rejected", "token by token")
    if format_.form == "listwise":
        check_list(ids.completions, row.scores)


def make_example(ids: Encoded, row: Document | Dialogue, source: str, meta: Mapping[str, Any]) -> Example:
    """Return a tokenized row as an example."""
    return Example(tuple(ids.prompt), tuple(map(tuple, ids.completions)), row.label, source, meta, row.scores)


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
