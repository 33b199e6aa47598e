"""Tokenized preferences in memory: examples as one int32 buffer, and what the losses ask of them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from prefopt.data.summary import DataSummary
from prefopt.errors import DataError

Form = Literal["paired", "unpaired"]


@dataclass(frozen=True)
class Example:
    """What a loss counts: a pair, a labelled completion, or a prompt with completions to score. Token ids."""

    prompt: tuple[int, ...]
    completions: tuple[tuple[int, ...], ...]
    """(chosen, rejected), (completion,), or all completions of a row that is only scored."""
    label: bool | None = None
    """Desirable? None for anything but a labelled completion."""
    source: str = ""
    """Where the row came from, as `file.jsonl:12`."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other scalar columns, for slices of an evaluation."""


class PreferenceData:
    """Examples of one form, tokenized. Read-only; holds 4 bytes a token, and makes an `Example` when asked for it.

    Attributes:
        form: "paired" (chosen and rejected) or "unpaired" (a completion and its label).
        summary: what was read, recognised, rejected and measured.
        fingerprint: sha256 over token ids, labels and order; equal for equal training input.
    """

    def __init__(
        self,
        form: Form,
        examples: Iterable[Example],
        *,
        summary: DataSummary | None = None,
    ) -> None:
        """Copy `examples` into flat buffers.

        Raises:
            DataError: an example that doesn't have the form's completions and label, or has an empty sequence.
        """
        self.form: Form = form
        self._width = 3 if form == "paired" else 2  # sequences an example: the prompt and its completions
        tokens, lengths, labels = array("i"), array("i"), array("b")
        self._sources: list[str] = []
        self._meta: list[Mapping[str, Any] | None] = []
        for example in examples:
            _check(form, example)
            for sequence in (example.prompt, *example.completions):
                tokens.extend(sequence)
                lengths.append(len(sequence))
            labels.append(bool(example.label))
            self._sources.append(example.source)
            self._meta.append(example.meta or None)
        self._tokens: NDArray[np.int32] = np.frombuffer(tokens, dtype=np.int32) if tokens else np.zeros(0, np.int32)
        self._lengths: NDArray[np.int64] = np.array(lengths, dtype=np.int64).reshape(-1, self._width)
        self._stops: NDArray[np.int64] = np.cumsum(self._lengths.reshape(-1))
        self._labels: NDArray[np.bool_] = np.array(labels, dtype=np.bool_)
        self.summary = summary or DataSummary(rows_read=len(self), rows_used=len(self), form=form)

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        first = index * self._width
        prompt, *completions = (self._sequence(first + i) for i in range(self._width))
        label = bool(self._labels[index]) if self.form == "unpaired" else None
        return Example(prompt, tuple(completions), label, self._sources[index], self._meta[index] or {})

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    @property
    def examples(self) -> Sequence[Example]:
        """Every example, in order; each is made when it is looked at."""
        return _Examples(self)

    @property
    def prompt_lengths(self) -> NDArray[np.int64]:
        """Tokens of each example's prompt: (examples,) int64."""
        return self._lengths[:, 0]

    @property
    def completion_lengths(self) -> NDArray[np.int64]:
        """Tokens of each completion: (examples, 2) int64 for pairs, (examples, 1) for labelled completions."""
        return self._lengths[:, 1:]

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Desirable? (examples,) bool; all False for pairs."""
        return self._labels

    @cached_property
    def prompt_ids(self) -> NDArray[np.int64]:
        """Which distinct prompt each example has, numbered in order of appearance: (examples,) int64."""
        return self._identify([0])[:, 0]

    @cached_property
    def completion_ids(self) -> NDArray[np.int64]:
        """Which distinct completion each example has, numbered over the data: (examples, 2 or 1) int64."""
        return self._identify(list(range(1, self._width)))

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"prefopt-data-1:{self.form}:".encode())
        digest.update(self._lengths.astype("<i8").tobytes())
        digest.update(self._tokens.astype("<i4").tobytes())
        if self.form == "unpaired":
            digest.update(self._labels.tobytes())
        return digest.hexdigest()

    def for_loss(self, form: str, *, needs_mismatched: bool = False) -> PreferenceData:
        """Return the data in the form a loss asks for.

        A pair becomes two labelled examples (chosen desirable, rejected not), or one completion to imitate (chosen).
        Of labels the desirable ones are imitated. Labels can't become pairs.

        Raises:
            DataError: labels where pairs are needed; no desirable completion to imitate; an unknown form; or
                `needs_mismatched` and an example for which no other prompt has another completion.
        """
        if form not in ("paired", "unpaired", "demonstration"):
            raise DataError(
                f"'{form}' is no form of preference data; a loss asks for 'paired', 'unpaired' or 'demonstration'."
            )
        if form == "paired" and self.form == "unpaired":
            raise DataError(
                "This loss compares a chosen with a rejected completion, but the data has single completions with a "
                "label, which don't say what each is better than. Use a loss for labels (`prefopt losses` lists them), "
                "or data with chosen and rejected columns."
            )
        data = self
        if form == "demonstration":
            data = self._as_demonstrations()
        elif form != self.form:
            data = self._as_labels()
        if needs_mismatched:
            data._check_mismatched()
        return data

    def _sequence(self, at: int) -> tuple[int, ...]:
        stop = int(self._stops[at])
        start = stop - int(self._lengths.reshape(-1)[at])
        return tuple(self._tokens[start:stop].tolist())

    def _identify(self, columns: list[int]) -> NDArray[np.int64]:
        known: dict[bytes, int] = {}
        ids = np.zeros((len(self), len(columns)), dtype=np.int64)
        starts = self._stops.reshape(-1, self._width) - self._lengths
        for index in range(len(self)):
            for place, column in enumerate(columns):
                start = starts[index, column]
                key = self._tokens[start : start + self._lengths[index, column]].tobytes()
                ids[index, place] = known.setdefault(key, len(known))
        return ids

    def _as_labels(self) -> PreferenceData:
        examples = (
            Example(pair.prompt, (completion,), desirable, pair.source, pair.meta)
            for pair in self
            for completion, desirable in zip(pair.completions, (True, False), strict=True)
        )
        return PreferenceData("unpaired", examples, summary=self.summary)

    def _as_demonstrations(self) -> PreferenceData:
        """Return the completions to imitate, as labelled ones that are all desirable."""
        if self.form == "unpaired" and self.labels.all():
            return self
        wanted = [example for example in self if example.label is not False]
        if not wanted:
            raise DataError(
                "This loss imitates desirable completions, but every completion of the data is labelled undesirable."
            )
        examples = (Example(e.prompt, e.completions[:1], True, e.source, e.meta) for e in wanted)
        return PreferenceData("unpaired", examples, summary=self.summary)

    def _check_mismatched(self) -> None:
        """Every example needs one of another prompt whose completion is none of its own: count them by exclusion."""
        prompt, width = self.prompt_ids, self.completion_ids.max(initial=0) + 1
        drawn = self.completion_ids[:, 0]
        same = np.bincount(prompt)[prompt]
        both, counts = np.unique(prompt * width + drawn, return_counts=True)
        for own in self.completion_ids.T:
            mine = prompt * width + own
            at = np.searchsorted(both, mine).clip(max=both.size - 1)
            same = same + np.bincount(drawn, minlength=width)[own] - np.where(both[at] == mine, counts[at], 0)
        if len(self) and np.unique(prompt).size < 2:
            raise DataError(
                "The data has only one distinct prompt, but this loss measures its shift on completions of other "
                "prompts. Add rows with other prompts, or use a loss that needs none (`prefopt losses` lists them)."
            )
        lacking = np.flatnonzero(same == len(self))
        if lacking.size:
            first = self._sources[lacking[0]] or f"number {int(lacking[0])}"
            raise DataError(
                "This loss pairs each prompt with a completion of another prompt, but every other prompt has the very "
                f"same completion for {lacking.size} of {len(self)} examples (the first is {first}). Add rows with "
                "other completions, or use a loss that needs none (`prefopt losses` lists them)."
            )


class _Examples(Sequence[Example]):
    """The examples of a `PreferenceData` as a sequence."""

    def __init__(self, data: PreferenceData) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._data[i] for i in range(*index.indices(len(self)))]
        return self._data[index + len(self) if index < 0 else index]


def _check(form: Form, example: Example) -> None:
    where = example.source or "an example"
    expected = 2 if form == "paired" else 1
    if len(example.completions) != expected:
        raise DataError(f"{where} has {len(example.completions)} completions; {form} data needs {expected} an example.")
    if form == "unpaired" and example.label is None:
        raise DataError(f"{where} has no label; unpaired data needs True (desirable) or False for every example.")
    if not example.prompt or not all(example.completions):
        raise DataError(f"{where} has an empty prompt or completion; each needs at least one token.")
