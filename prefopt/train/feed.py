"""What a trainer is fed with: the steps of data in memory, or of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from prefopt.data import Packing, PreferenceData, PreferenceStream, StepLoader, StepPlan, StreamLoader, Weighted
from prefopt.data.pack import check_longest
from prefopt.errors import RecipeError
from prefopt.losses import Loss
from prefopt.train.arguments import PreferenceArguments

Tokens = tuple[int, ...]
Data = TypeVar("Data", PreferenceData, PreferenceStream)


class Feed:
    """Data in memory: epochs of a known length."""

    def __init__(
        self,
        data: PreferenceData,
        loss: Loss,
        args: PreferenceArguments,
        *,
        group_prompts: bool,
        weights: Sequence[Weighted],
        workers: int,
    ) -> None:
        self.data = for_loss(data, loss)
        self.plan = StepPlan(
            self.data,
            examples_per_step=args.examples_per_step,
            seed=args.seed,
            mismatched=loss.needs_mismatched,
            group_prompts=group_prompts,
            weights=weights,
        )
        self._args = args
        self._workers = workers

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    @property
    def examples_per_epoch(self) -> int:
        return self.plan.examples_per_epoch

    def check_longest(self, *, shared: bool) -> None:
        """Refuse an example that is longer than the budget before the first step, where that is asked for."""
        if self._args.over_budget == "refuse":
            check_longest(self.data, token_budget=self._args.token_budget, shared=shared)

    def loader(self, *, shared: bool, one_row: bool) -> StepLoader:
        args = self._args
        return StepLoader(
            self.plan,
            token_budget=args.token_budget,
            shared=shared,
            one_row=one_row,
            over_budget=args.over_budget,
            workers=self._workers,
        )

    def identity(self) -> dict[str, Any]:
        """Return what the steps are a function of; JSON-able."""
        return self.plan.identity()

    def sources(self, step: int) -> dict[tuple[Tokens, Tokens], str]:
        """Return which row each (prompt, completion) of a step came from; `step` counts from 0 over all epochs."""
        examples = [self.data[i] for i in self.plan.examples(*divmod(step, self.steps_per_epoch))]
        return {(example.prompt, c): example.source for example in examples for c in example.completions}


class StreamFeed:
    """A stream: an epoch is all of `max_steps`."""

    def __init__(self, stream: PreferenceStream, loss: Loss, args: PreferenceArguments, *, group_prompts: bool) -> None:
        if args.max_steps < 1:
            raise RecipeError(
                "The data is a stream, and nobody knows how long it is: write train.max_steps, the number of steps to "
                "train."
            )
        self.data = for_loss(stream, loss)
        self._mismatched = loss.needs_mismatched
        self._group_prompts = group_prompts
        self._args = args

    @property
    def steps_per_epoch(self) -> int:
        return self._args.max_steps

    @property
    def examples_per_epoch(self) -> int:
        return self._args.max_steps * self._args.examples_per_step

    def check_longest(self, *, shared: bool) -> None:
        """Nothing is known before it is read: a step that holds too long an example is refused when it comes."""

    def loader(self, *, shared: bool, one_row: bool) -> StreamLoader:
        args = self._args
        return StreamLoader(
            self.data,
            Packing(args.token_budget, shared, one_row, args.over_budget),
            examples_per_step=args.examples_per_step,
            seed=args.seed,
            mismatched=self._mismatched,
            group_prompts=self._group_prompts,
        )

    def identity(self) -> dict[str, Any]:
        """Return what the steps are a function of; JSON-able."""
        return self.loader(shared=True, one_row=False).identity()

    def sources(self, step: int) -> dict[tuple[Tokens, Tokens], str]:
        """Return nothing: rows that have been read are not kept."""
        return {}


def feed_of(
    data: PreferenceData | PreferenceStream,
    loss: Loss,
    args: PreferenceArguments,
    *,
    group_prompts: bool,
    weights: Sequence[Weighted],
    workers: int,
) -> Feed | StreamFeed:
    """Return what feeds a trainer with `data`.

    Raises:
        DataError: the data can't serve the loss, or the weights don't name its sources.
        RecipeError: a stream without `max_steps`, or with weights or workers that are not its own.
    """
    if isinstance(data, PreferenceData):
        return Feed(data, loss, args, group_prompts=group_prompts, weights=weights, workers=workers)
    if weights or workers:
        raise RecipeError("A stream has weights and workers of its own: give them to PreferenceStream.")
    return StreamFeed(data, loss, args, group_prompts=group_prompts)


def for_loss(data: Data, loss: Loss) -> Data:
    """Return data or a stream in the form that `loss` asks for."""
    return data.for_loss(
        loss.form,
        needs_mismatched=loss.needs_mismatched,
        scores=loss.scores,
        needs_preference=loss.needs_preference,
    )
