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
from prefopt.data.select import select, tokens_in_order
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
        self._stops = columns.ends
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
        return ~np.isnan(self._scores[self._first_scores])

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
        for tokens in tokens_in_order(self.columns):
            digest.update(tokens.astype("<i4").tobytes())
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

    @property
    def _first_scores(self) -> NDArray[np.int64]:
        """Which score is each example's first: (examples,) int64."""
        return self._prompts - np.arange(len(self))

    def _as_pairs(self) -> PreferenceData:
        """Return the best and the worst completion of each list that prefers one to another."""
        decided = self._decided()
        ends = np.column_stack([np.zeros_like(decided._counts), decided._counts - 1])
        columns = select(
            decided.columns,
            np.arange(len(decided)),
            decided._prompts,
            decided._prompts[:, None] + 1 + ends,
            scores=decided._scores[decided._first_scores[:, None] + ends],
        )
        return PreferenceData.of_columns("paired", columns, summary=decided.summary)

    def _decided(self) -> PreferenceData:
        """Return the lists that prefer one completion to another."""
        best = self._scores[self._first_scores].astype(np.float32)
        worst = self._scores[self._first_scores + self._counts - 1].astype(np.float32)
        decided = np.flatnonzero(best > worst)
        if not decided.size:
            raise DataError(
                "Completions of a list are compared by their scores, but the scores of every list of the data are all "
                "equal. Give lists that prefer one completion to another."
            )
        equal = len(self) - decided.size
        if not equal:
            return self
        places = self._places[decided]
        scores = self._scores[np.where(places < 0, 0, places - 1 - decided[:, None])]
        columns = select(self.columns, decided, self._prompts[decided], places, scores=scores)
        note = f"{equal} of {len(self)} lists are left out: all of their scores are equal"
        return PreferenceData.of_columns("listwise", columns, summary=self._noted(note))

    def _noted(self, note: str) -> DataSummary:
        return replace(self.summary, notes=(*self.summary.notes, note)) if note else self.summary

    def _as_lists(self, scores: Scores) -> PreferenceData:
        if self.form == "listwise":
            return self
        places, values = self._places, np.tile([1.0, 0.0], (len(self), 1))
        if scores != "unused":  # which may prefer the rejected one
            values = self._scores[self._first_scores[:, None] + [0, 1]]
            turned = (values[:, 0] < values[:, 1])[:, None]
            places, values = (np.where(turned, held[:, ::-1], held) for held in (places, values))
        columns = select(self.columns, np.arange(len(self)), self._prompts, places, scores=values)
        return PreferenceData.of_columns("listwise", columns, summary=self.summary)

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
        chosen, rejected = (self._scores[self._first_scores + i].astype(np.float32) for i in range(2))
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
        pair, desirable = np.repeat(np.arange(len(self)), 2), np.tile([True, False], len(self))
        columns = select(self.columns, pair, self._prompts[pair], self._places.reshape(-1, 1), labels=desirable)
        return PreferenceData.of_columns("unpaired", columns, summary=self.summary)

    def _as_demonstrations(self) -> PreferenceData:
        """Return the completions to imitate, as labelled ones that are all desirable: the best of a list."""
        if self.form == "unpaired" and self.labels.all():
            return self
        wanted = np.flatnonzero(self.labels | (self.form != "unpaired"))
        if not wanted.size:
            raise DataError(
                "This loss imitates desirable completions, but every completion of the data is labelled undesirable."
            )
        desirable = np.ones(wanted.size, dtype=bool)
        columns = select(self.columns, wanted, self._prompts[wanted], self._places[wanted, :1], labels=desirable)
        unwanted = len(self) - wanted.size
        note = f"{unwanted} undesirable completions are not imitated" if unwanted else ""
        return PreferenceData.of_columns("unpaired", columns, summary=self._noted(note))

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
