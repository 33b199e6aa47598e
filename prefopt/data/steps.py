"""Which examples a step holds, and the groups they form: a function of (data, seed, epoch) alone."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from prefopt.data.columns import Example, Form
from prefopt.data.dataset import PreferenceData
from prefopt.errors import DataError
from prefopt.records import Group

# Rounds of drawing anew, for all examples at once, before the rest is drawn from an explicit list.
REDRAWS = 32
UNSCORED = (float("nan"), float("nan"))


class StepPlan:
    """The order of examples, cut into steps of a fixed number of examples.

    Every epoch is a new permutation. It and the mismatched draws depend on the data's fingerprint, the seed and the
    epoch only: not on packs, ranks, workers or the process.
    """

    def __init__(self, data: PreferenceData, *, examples_per_step: int, seed: int, mismatched: bool = False) -> None:
        """Plan steps over `data`.

        Args:
            data: what to train on.
            examples_per_step: examples of one optimizer step; the last step of an epoch may be smaller.
            seed: any integer.
            mismatched: give every example a completion of another prompt (`Group.mismatched`), its chosen or best one.

        Raises:
            DataError: no data, a step of less than one example, or no possible mismatch for an example.
        """
        if not len(data):
            raise DataError("There is no example to train on.")
        if examples_per_step < 1:
            raise DataError(f"A step of {examples_per_step} examples can't be made; it needs at least 1.")
        if mismatched:
            data.for_loss(data.form, needs_mismatched=True)
        self.data = data
        self.examples_per_step = examples_per_step
        self.seed = seed
        self.mismatched = mismatched
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._draw: tuple[int, NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.data) // self.examples_per_step)

    def examples(self, epoch: int, index: int) -> list[int]:
        """Return which examples step `index` of `epoch` holds; the steps of an epoch hold each example once."""
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"step {index} of an epoch of {self.steps_per_epoch} steps")
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, np.argsort(self._raw("order", epoch, 0), kind="stable"))
        first = index * self.examples_per_step
        return [int(i) for i in self._order[1][first : first + self.examples_per_step]]

    def groups(self, epoch: int, index: int) -> list[Group]:
        """Return the step's examples as groups: equal prompts merged, identical completions held once."""
        members = self.examples(epoch, index)
        builders: dict[tuple[int, ...], _Builder] = {}
        for i in members:
            example = self.data[i]
            builder = builders.setdefault(example.prompt, _Builder(example.prompt))
            builder.add(example, self.data.form)
            if self.mismatched:
                builder.add_mismatched(self.data[int(self.mismatches(epoch)[i])].completions[0])
        return [builder.build() for builder in builders.values()]

    def mismatches(self, epoch: int) -> NDArray[np.int64]:
        """For every example, one of another prompt whose (chosen) completion is none of its own: (examples,) int64.

        Uniform over all that do. Drawn for the whole epoch at once, and drawn anew where the draw doesn't differ.
        """
        if self._draw is None or self._draw[0] != epoch:
            self._draw = (epoch, self._draw_mismatches(epoch))
        return self._draw[1]

    def _draw_mismatches(self, epoch: int) -> NDArray[np.int64]:
        prompt, own = self.data.prompt_ids, self.data.completion_ids
        completion = own[:, 0]
        n = len(self.data)
        drawn = np.zeros(n, dtype=np.int64)
        open_ = np.arange(n)
        for attempt in range(REDRAWS):
            drawn[open_] = (self._raw("mismatched", epoch, attempt) % np.uint64(n)).astype(np.int64)[open_]
            found = drawn[open_]
            wrong = (prompt[found] == prompt[open_]) | (completion[found, None] == own[open_]).any(axis=1)
            open_ = open_[wrong]
            if not open_.size:
                return drawn
        raw = self._raw("mismatched", epoch, REDRAWS)
        for i in open_:
            able = np.flatnonzero((prompt != prompt[i]) & ~np.isin(completion, own[i]))
            drawn[i] = able[int(raw[i] % np.uint64(able.size))]
        return drawn

    def _raw(self, purpose: str, epoch: int, attempt: int) -> NDArray[np.uint64]:
        """One random 64-bit number an example.

        The raw output of a bit generator is the only numpy stream that is promised to stay the same.
        """
        name = f"prefopt-steps-1:{self.data.fingerprint}:{self.seed}:{epoch}:{purpose}:{attempt}"
        key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u8").astype(np.uint64)
        return np.asarray(np.random.Philox(key=key).random_raw(len(self.data)), dtype=np.uint64)


class _Builder:
    """Collects the examples of one prompt."""

    def __init__(self, prompt: tuple[int, ...]) -> None:
        self._prompt = prompt
        self._at: dict[tuple[int, ...], int] = {}
        self._pairs: list[tuple[int, int]] = []
        self._scores: list[tuple[float, float]] = []
        self._scored = False
        self._labels: list[tuple[int, bool]] = []
        self._lists: list[tuple[tuple[int, float], ...]] = []
        self._mismatched: list[int] = []

    def add(self, example: Example, form: Form) -> None:
        held = [self._hold(completion) for completion in example.completions]
        if form == "listwise":
            self._lists.append(tuple(zip(held, example.scores, strict=True)))
        elif form == "paired":
            self._pairs.append((held[0], held[1]))
            self._scores.append((example.scores[0], example.scores[1]) if example.scores else UNSCORED)
            self._scored |= bool(example.scores)
        else:
            self._labels.append((held[0], bool(example.label)))

    def add_mismatched(self, completion: tuple[int, ...]) -> None:
        self._mismatched.append(self._hold(completion))

    def build(self) -> Group:
        return Group(
            self._prompt,
            tuple(self._at),
            pairs=tuple(self._pairs),
            labels=tuple(self._labels),
            mismatched=tuple(self._mismatched),
            pair_scores=tuple(self._scores) if self._scored else (),
            lists=tuple(self._lists),
        )

    def _hold(self, completion: tuple[int, ...]) -> int:
        return self._at.setdefault(completion, len(self._at))
