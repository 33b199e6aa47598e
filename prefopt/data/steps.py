"""Which examples a step holds, and the groups they form: a function of (data, seed, epoch) and options alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.columns import Example, Form
from prefopt.data.dataset import PreferenceData
from prefopt.data.mixing import Share, Weighted, parts_of, shares
from prefopt.data.order import shuffled, together
from prefopt.errors import DataError
from prefopt.records import Group

# Rounds of drawing anew, for all examples at once, before the rest is drawn from an explicit list.
REDRAWS = 32
UNSCORED = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Saving:
    """Tokens that an epoch computes with shared prompts."""

    computed: int
    apart: int
    """What it would be without `group_prompts`."""

    def __str__(self) -> str:
        share = 1 - self.computed / self.apart
        return (
            f"equal prompts in one step save {share:.1%} of the tokens ({self.computed:,} computed in an epoch, "
            f"{self.apart:,} without data.group_prompts)"
        )


class StepPlan:
    """The order of examples, cut into steps of a fixed number of examples.

    Every epoch is a new permutation. It and the mismatched draws depend on the data's fingerprint, the seed, the epoch
    and the options below only: not on packs, ranks, workers or the process.
    """

    def __init__(
        self,
        data: PreferenceData,
        *,
        examples_per_step: int,
        seed: int,
        mismatched: bool = False,
        group_prompts: bool = True,
        weights: Sequence[Weighted] = (),
    ) -> None:
        """Plan steps over `data`.

        Args:
            data: what to train on.
            examples_per_step: examples of one optimizer step; the last step of an epoch may be smaller.
            seed: any integer.
            mismatched: give every example a completion of another prompt (`Group.mismatched`), its chosen or best one.
            group_prompts: let examples of one prompt stand in one step, where they fit.
            weights: the sources of the data and how much of an epoch each makes; without, every example comes once.

        Raises:
            DataError: no data, a step of less than one example, no possible mismatch for an example, or weights that
                don't name the sources of the data.
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
        self.group_prompts = group_prompts
        self.weights = tuple(weights)
        self._parts = parts_of(data.sources, self.weights) if self.weights else np.zeros(len(data), np.int64)
        self._drawn = [len(data)]
        if self.weights:
            self._drawn = shares(np.bincount(self._parts).tolist(), [weighted.weight for weighted in self.weights])
        self._order: tuple[int, NDArray[np.int64]] | None = None
        self._draw: tuple[int, NDArray[np.int64]] | None = None

    @property
    def examples_per_epoch(self) -> int:
        return sum(self._drawn)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.examples_per_epoch // self.examples_per_step)

    @property
    def shares(self) -> list[Share]:
        """What each weighted source is of an epoch; none without weights."""
        sizes = np.bincount(self._parts).tolist()
        return [
            Share(weighted.names, size, drawn)
            for weighted, size, drawn in zip(self.weights, sizes, self._drawn, strict=False)
        ]

    def identity(self) -> dict[str, Any]:
        """Return what the order is a function of, JSON-able: a place in the data is one in this order alone."""
        return {
            "data": self.data.fingerprint,
            "seed": self.seed,
            "examples_per_step": self.examples_per_step,
            "mismatched": self.mismatched,
            "group_prompts": self.group_prompts,
            "weights": [[list(weighted.names), weighted.weight] for weighted in self.weights],
        }

    def examples(self, epoch: int, index: int) -> list[int]:
        """Return which examples step `index` of `epoch` holds; without weights an epoch holds each example once."""
        if not 0 <= index < self.steps_per_epoch:
            raise IndexError(f"step {index} of an epoch of {self.steps_per_epoch} steps")
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, self._ordered(epoch, grouped=self.group_prompts))
        first = index * self.examples_per_step
        return [int(i) for i in self._order[1][first : first + self.examples_per_step]]

    def saving(self, epoch: int = 0) -> Saving | None:
        """Return what `group_prompts` saves in an epoch; None where it is off or no two examples share a prompt."""
        if not self.group_prompts or np.unique(self.data.prompt_ids).size == len(self.data):
            return None
        grouped, apart = (self._tokens(self._ordered(epoch, grouped=on), epoch) for on in (True, False))
        return Saving(grouped, apart)

    def _ordered(self, epoch: int, *, grouped: bool) -> NDArray[np.int64]:
        """Return the examples of an epoch in order: (examples_per_epoch,) int64."""
        example, come = self._entries(epoch)
        keys = self._raw("order", epoch, 0, example.size)
        if not grouped:
            return example[shuffled(keys)]
        # What comes again comes for itself: two of a kind in one step would count that example twice.
        prompt = self.data.prompt_ids[example] * (int(come.max()) + 1) + come
        return example[together(keys, prompt, self.examples_per_step)]

    def _entries(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the examples of an epoch, unordered, and which time each comes: two of (examples_per_epoch,) int64."""
        found: list[NDArray[np.int64]] = []
        times: list[NDArray[np.int64]] = []
        keys = self._raw("share", epoch, 0) if self.weights else None
        for part, drawn in enumerate(self._drawn):
            own = np.flatnonzero(self._parts == part)
            whole, rest = divmod(drawn, own.size)
            again = own[:0] if keys is None else np.sort(own[shuffled(keys[own])[:rest]])
            found += [np.tile(own, whole), again]
            times += [np.repeat(np.arange(whole), own.size), np.full(again.size, whole)]
        return np.concatenate(found), np.concatenate(times)

    def _tokens(self, order: NDArray[np.int64], epoch: int) -> int:
        """Count the tokens of an epoch's groups: a prompt once a step, and behind it each completion once."""
        data = self.data
        step = np.arange(order.size) // self.examples_per_step
        group = step * (int(data.prompt_ids.max()) + 1) + data.prompt_ids[order]
        _, first = np.unique(group, return_index=True)
        total = int(data.prompt_lengths[order[first]].sum())
        held, length = data.completion_ids[order], data.completion_lengths[order]
        if self.mismatched:
            other = self.mismatches(epoch)[order]
            held = np.column_stack([held, data.completion_ids[other, 0]])
            length = np.column_stack([length, data.completion_lengths[other, 0]])
        _, first = np.unique((group[:, None] * (int(held.max()) + 1) + held)[held >= 0], return_index=True)
        return total + int(length[held >= 0][first].sum())

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

    def _raw(self, purpose: str, epoch: int, attempt: int, count: int | None = None) -> NDArray[np.uint64]:
        """One random 64-bit number an example, or `count` of them.

        The raw output of a bit generator is the only numpy stream that is promised to stay the same.
        """
        name = f"prefopt-steps-1:{self.data.fingerprint}:{self.seed}:{epoch}:{purpose}:{attempt}"
        key = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], dtype="<u8").astype(np.uint64)
        return np.asarray(
            np.random.Philox(key=key).random_raw(len(self.data) if count is None else count), dtype=np.uint64
        )


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
