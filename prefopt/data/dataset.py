"""Tokenized preferences: examples as flat columns, and what the losses ask of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import overload

import numpy as np
from numpy.typing import NDArray

from prefopt.data.columns import Columns, ColumnWriter, Example, Form, check_example
from prefopt.data.identify import number_sequences
from prefopt.data.packed import pack
from prefopt.data.summary import DataSummary
from prefopt.errors import DataError
from prefopt.records import Scores


class PreferenceData:
    """Examples of one form, tokenized. Read-only; holds 4 bytes a token, and makes an `Example` when asked for it.

    Attributes:
        form: "paired" (chosen and rejected), "unpaired" (a completion and its label) or "listwise" (completions with
            scores).
        summary: what was read, recognised, rejected and measured.
        columns: the examples as they lie there.
        fingerprint: sha256 over token ids, labels, scores and order; equal for equal training input.
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
            DataError: an example that doesn't have the form's completions, label and scores, or has an empty sequence.
        """
        writer = ColumnWriter()
        for example in examples:
            check_example(form, example)
            writer.add(
                pack(example.prompt),
                [pack(completion) for completion in example.completions],
                label=example.label,
                scores=example.scores,
                source=example.source,
                meta=example.meta,
                prompt_cut=example.prompt_cut,
                cut=example.cut,
            )
        self._take(form, writer.columns(), summary)

    @classmethod
    def of_columns(cls, form: Form, columns: Columns, *, summary: DataSummary | None = None) -> PreferenceData:
        """Return examples that lie in columns already, which are not copied."""
        data = cls.__new__(cls)
        data._take(form, columns, summary)
        return data

    def _take(self, form: Form, columns: Columns, summary: DataSummary | None) -> None:
        self.form: Form = form
        self.columns = columns
        self._tokens, self._lengths, self._counts = columns.tokens, columns.lengths, columns.counts
        self._stops: NDArray[np.int64] = np.cumsum(self._lengths)
        self._prompts: NDArray[np.int64] = np.cumsum(self._counts + 1) - (self._counts + 1)  # each one's sequence
        self._scores, self._labels = columns.scores, columns.labels
        self._sources, self._meta = columns.sources, columns.meta
        self.summary = summary or DataSummary(rows_read=len(self), rows_used=len(self), form=form)

    def __len__(self) -> int:
        return len(self._counts)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        first, count = int(self._prompts[index]), int(self._counts[index])
        prompt, *completions = (self._sequence(first + i) for i in range(1 + count))
        label = bool(self._labels[index]) if self.form == "unpaired" else None
        scores = tuple(self._scores[first - index : first - index + count].tolist())
        known = () if np.isnan(scores[0]) else scores
        prompt_cut, *cut = self.columns.cut[first : first + 1 + count].tolist()
        return Example(
            prompt,
            tuple(completions),
            label,
            self._sources[index],
            self._meta[index] or {},
            known,
            prompt_cut,
            tuple(cut) if any(cut) else (),
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    @property
    def examples(self) -> Sequence[Example]:
        """Every example, in order; each is made when it is looked at."""
        return _Examples(self)

    @property
    def first_sequences(self) -> NDArray[np.int64]:
        """Which sequence of the columns each example's prompt is: (examples,) int64."""
        return self._prompts

    @property
    def prompt_lengths(self) -> NDArray[np.int64]:
        """Tokens of each example's prompt: (examples,) int64."""
        return self._lengths[self._prompts]

    @property
    def completion_lengths(self) -> NDArray[np.int64]:
        """Tokens of each completion: (examples, 2) int64 for pairs, (examples, 1) for labelled completions.

        For lists (examples, longest list), 0 where a list has no more completions.
        """
        return np.where(self._places < 0, 0, self._lengths[self._places])

    @property
    def sources(self) -> Sequence[str]:
        """Where each example came from, as `file.jsonl:12`."""
        return self._sources

    @property
    def labels(self) -> NDArray[np.bool_]:
        """Desirable? (examples,) bool; all False for pairs and lists."""
        return self._labels

    @property
    def completion_counts(self) -> NDArray[np.int64]:
        """Completions of each example: (examples,) int64."""
        return self._counts

    @cached_property
    def scored(self) -> NDArray[np.bool_]:
        """Has each example scores? (examples,) bool."""
        return ~np.isnan(self._scores[self._prompts - np.arange(len(self))])

    @cached_property
    def prompt_ids(self) -> NDArray[np.int64]:
        """Which distinct prompt each example has, numbered in order of appearance: (examples,) int64."""
        return self._identify(self._prompts[:, None])[:, 0]

    @cached_property
    def completion_ids(self) -> NDArray[np.int64]:
        """Which distinct completion each example has, numbered over the data; as `completion_lengths`, -1 for none."""
        return self._identify(self._places)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"prefopt-data-1:{self.form}:".encode())
        digest.update(self._lengths.astype("<i8").tobytes())
        for start in range(0, len(self._tokens), 1 << 24):  # they may lie on disk
            digest.update(self._tokens[start : start + (1 << 24)].astype("<i4").tobytes())
        if self.form == "listwise":
            digest.update(self._counts.astype("<i8").tobytes())
        if self.scored.any():
            digest.update(self._scores.astype("<f8").tobytes())
        if self.form == "unpaired":
            digest.update(self._labels.tobytes())
        return digest.hexdigest()

    def for_loss(
        self, form: str, *, needs_mismatched: bool = False, scores: Scores = "unused", needs_preference: bool = False
    ) -> PreferenceData:
        """Return the data in the form a loss asks for.

        A list becomes a pair of its best and its worst completion, and a pair a list of two. A pair becomes two
        labelled examples (chosen desirable, rejected not), or one completion to imitate (chosen). Of labels the
        desirable ones are imitated. Labels can't become pairs or lists.

        A pair without scores, or where `scores` is "unused", is a list with the scores 1 and 0. A list whose scores
        are all equal makes no pair, and with `needs_preference` it is no list either; how many examples are left out
        stands in `summary.notes`.

        Raises:
            DataError: labels where completions are compared; no desirable completion to imitate; lists that prefer
                nothing; an unknown form; scores that the loss needs and the data lacks; or `needs_mismatched` and an
                example for which no other prompt has another completion.
        """
        if form not in _FORMS:
            raise DataError(f"'{form}' is no form of preference data; a loss asks for one of {', '.join(_FORMS)}.")
        if form != "demonstration" and self.summary.form == "demonstration":
            raise DataError(
                "This loss learns from what is preferred to what, but the data are demonstrations, which say nothing "
                "of other answers. Use a loss that imitates good answers (`prefopt losses` lists them), or data with "
                "chosen and rejected, labels or scores."
            )
        if form in ("paired", "listwise") and self.form == "unpaired":
            raise DataError(
                "This loss compares completions of a prompt, but the data has single completions with a label, which "
                "don't say what each is better than. Use a loss for labels (`prefopt losses` lists them), or data with "
                "chosen and rejected columns."
            )
        if scores != "unused":
            self._check_scores(scores)
        data = self
        if form == "demonstration":
            data = self._as_demonstrations()
        elif form == "listwise":
            data = self._as_lists(scores)
            if needs_preference:
                data = data._decided()
        elif self.form == "listwise":
            data = self._as_pairs()
        if form == "unpaired" and data.form == "paired":
            data = data._as_labels()
        if needs_mismatched:
            data._check_mismatched()
        return data

    def _sequence(self, at: int) -> tuple[int, ...]:
        stop = int(self._stops[at])
        start = stop - int(self._lengths[at])
        return tuple(self._tokens[start:stop].tolist())

    @cached_property
    def _places(self) -> NDArray[np.int64]:
        """Which sequence each completion is: (examples, the most completions of one) int64, -1 where there is none."""
        widest = int(self._counts.max(initial=2 if self.form == "paired" else 1))
        column = np.arange(widest)
        return np.where(column < self._counts[:, None], self._prompts[:, None] + 1 + column, -1)

    def _identify(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        ids = np.full(places.shape, -1, dtype=np.int64)
        ids[places >= 0] = number_sequences(self._tokens, self._lengths, self._stops, places[places >= 0])
        return ids

    def _as_pairs(self) -> PreferenceData:
        """Return the best and the worst completion of each list that prefers one to another."""
        decided = self._decided()
        pairs = (
            replace(
                e,
                completions=(e.completions[0], e.completions[-1]),
                scores=(e.scores[0], e.scores[-1]),
                cut=(e.cut[0], e.cut[-1]) if e.cut else (),
            )
            for e in decided
        )
        return PreferenceData("paired", pairs, summary=decided.summary)

    def _decided(self) -> PreferenceData:
        """Return the lists that prefer one completion to another."""
        decided = [example for example in self if np.float32(example.scores[0]) > np.float32(example.scores[-1])]
        if not decided:
            raise DataError(
                "Completions of a list are compared by their scores, but the scores of every list of the data are all "
                "equal. Give lists that prefer one completion to another."
            )
        equal = len(self) - len(decided)
        if not equal:
            return self
        note = f"{equal} of {len(self)} lists are left out: all of their scores are equal"
        return PreferenceData("listwise", decided, summary=self._noted(note))

    def _noted(self, note: str) -> DataSummary:
        return replace(self.summary, notes=(*self.summary.notes, note)) if note else self.summary

    def _as_lists(self, scores: Scores) -> PreferenceData:
        if self.form == "listwise":
            return self
        own = scores != "unused"
        return PreferenceData("listwise", (_as_list(pair, own=own) for pair in self), summary=self.summary)

    def _check_scores(self, scores: Scores) -> None:
        """Every example needs scores; "ordered": and a chosen one above the rejected one's."""
        if self.form == "unpaired":
            raise DataError(
                "This loss goes by scores, but the data has single completions with a label. Use a loss for labels "
                "(`prefopt losses` lists them), or data with scores: pairs with score_chosen and score_rejected, or "
                "lists of completions and scores."
            )
        if lacking := np.flatnonzero(~self.scored).tolist():
            raise DataError(
                f"This loss goes by scores, and {len(lacking)} of {len(self)} pairs have none (the first is "
                f"{self._where(lacking[0])}): name their columns with data.columns.score_chosen and "
                "data.columns.score_rejected, or use a loss that needs none (`prefopt losses` lists them)."
            )
        first = self._prompts - np.arange(len(self))
        chosen, rejected = (self._scores[first + i].astype(np.float32) for i in range(2))
        wrong = np.flatnonzero(chosen <= rejected).tolist()
        if scores == "ordered" and self.form == "paired" and wrong:
            raise DataError(
                f"This loss needs chosen to be scored above rejected, and in {len(wrong)} of {len(self)} pairs it "
                f"isn't (the first is {self._where(wrong[0])}): leave these rows out, or choose a loss that takes any "
                "scores (`prefopt losses` lists them)."
            )

    def _where(self, index: int) -> str:
        return self._sources[index] or f"number {index}"

    def _as_labels(self) -> PreferenceData:
        examples = (_labelled(pair, place, desirable) for pair in self for place, desirable in enumerate((True, False)))
        return PreferenceData("unpaired", examples, summary=self.summary)

    def _as_demonstrations(self) -> PreferenceData:
        """Return the completions to imitate, as labelled ones that are all desirable: the best of a list."""
        if self.form == "unpaired" and self.labels.all():
            return self
        wanted = [example for example in self if example.label is not False]
        if not wanted:
            raise DataError(
                "This loss imitates desirable completions, but every completion of the data is labelled undesirable."
            )
        examples = (_labelled(e, 0, True) for e in wanted)
        unwanted = len(self) - len(wanted)
        note = f"{unwanted} undesirable completions are not imitated" if unwanted else ""
        return PreferenceData("unpaired", examples, summary=self._noted(note))

    def _check_mismatched(self) -> None:
        """Every example needs one of another prompt whose completion is none of its own: count them by exclusion."""
        prompt, width = self.prompt_ids, self.completion_ids.max(initial=0) + 1
        drawn = self.completion_ids[:, 0]
        same = np.bincount(prompt)[prompt]
        both, counts = np.unique(prompt * width + drawn, return_counts=True)
        for column, own in enumerate(self.completion_ids.T):
            mine = prompt * width + own
            at = np.searchsorted(both, mine).clip(max=both.size - 1)
            more = np.bincount(drawn, minlength=width)[own] - np.where(both[at] == mine, counts[at], 0)
            # A list may be shorter than others, or hold a completion twice.
            again = (self.completion_ids[:, :column] == own[:, None]).any(axis=1)
            same = same + np.where((own < 0) | again, 0, more)
        if len(self) and np.unique(prompt).size < 2:
            raise DataError(
                "The data has only one distinct prompt, but this loss measures its shift on completions of other "
                "prompts. Add rows with other prompts, or use a loss that needs none (`prefopt losses` lists them)."
            )
        lacking = np.flatnonzero(same == len(self))
        if lacking.size:
            raise DataError(
                "This loss pairs each prompt with a completion of another prompt, but every other prompt has the very "
                f"same completion for {lacking.size} of {len(self)} examples (the first is "
                f"{self._where(int(lacking[0]))}). Add rows with other completions, or use a loss that needs none "
                "(`prefopt losses` lists them)."
            )


_FORMS = ("paired", "unpaired", "listwise", "demonstration")


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


def _labelled(example: Example, place: int, desirable: bool) -> Example:
    """Return one completion of an example with a label."""
    own = slice(place, place + 1)
    return replace(example, completions=example.completions[own], label=desirable, scores=(), cut=example.cut[own])


def _as_list(pair: Example, *, own: bool) -> Example:
    """Return a pair as a list, with its own scores (which may prefer the rejected one) or as ranks."""
    if not own:
        return replace(pair, scores=(1.0, 0.0))
    order = (0, 1) if pair.scores[0] >= pair.scores[1] else (1, 0)
    return replace(
        pair,
        completions=tuple(pair.completions[i] for i in order),
        scores=tuple(pair.scores[i] for i in order),
        cut=tuple(pair.cut[i] for i in order) if pair.cut else (),
    )
