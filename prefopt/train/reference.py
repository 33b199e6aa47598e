"""What a run asks of its reference: whether anything twice, and whether all of it is stored already."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from prefopt.data import PreferenceData, StepPlan
from prefopt.losses import Loss
from prefopt.models.packed import PackedModel
from prefopt.models.references import Asked, CachedReference, Reference, build_reference, cached, reference_config
from prefopt.train.arguments import PreferenceArguments
from prefopt.train.feed import Feed, StreamFeed

Completion = tuple[Sequence[int], Sequence[int]]
"""A prompt and one of its completions, token ids."""


def reference_of(
    wanted: Any, policy: PackedModel, loss: Loss, feed: Feed | StreamFeed, args: PreferenceArguments, *, tokenizer: Any
) -> Reference:
    """Return the reference that a recipe's section asks for, behind a cache where that is asked for or pays."""
    config = reference_config(wanted)
    built = build_reference(config, policy, needed=loss.needs_reference, tokenizer=tokenizer)
    repeats = _epochs(feed, args) > 1
    return cached(built, config, repeats=repeats, needs_states="divergence" in loss.extras)


def release_if_stored(
    reference: Reference,
    loss: Loss,
    feed: Feed | StreamFeed,
    held_out: PreferenceData | None,
    args: PreferenceArguments,
    autocast: torch.dtype | None,
) -> None:
    """Give back the memory of a cached reference when everything that training and evaluation will ask is stored."""
    if not (isinstance(reference, CachedReference) and reference.inner.holds_memory and isinstance(feed, Feed)):
        return
    per_token = bool(loss.extras)
    asked = [Asked(_completions(feed.plan, math.ceil(_epochs(feed, args))), per_token, autocast)]
    if held_out is not None:
        plan = StepPlan(held_out, examples_per_step=len(held_out), seed=0, mismatched=loss.needs_mismatched)
        # The trainer's evaluation asks as training does, that of pairs for sums without autocast.
        asked += [Asked(_completions(plan, 1), per_token, autocast), Asked(_measured(held_out), False, None)]
    reference.release_if_whole(asked)


def _epochs(feed: Feed | StreamFeed, args: PreferenceArguments) -> float:
    """Return how often the run looks at its examples; never more than once at those of a stream."""
    return args.max_steps / feed.steps_per_epoch if args.max_steps > 0 else args.num_train_epochs


def _measured(held_out: PreferenceData) -> Iterator[Completion]:
    """Yield what the measures before and after training ask for: of lists the best and the worst completion."""
    for example in held_out:
        if held_out.form != "listwise":
            yield from ((example.prompt, completion) for completion in example.completions)
        elif example.scores[0] > example.scores[-1]:
            yield from ((example.prompt, example.completions[place]) for place in (0, -1))


def _completions(plan: StepPlan, epochs: int) -> Iterator[Completion]:
    """Yield every prompt with every completion that steps of so many epochs hold behind it."""
    for example in plan.data:
        yield from ((example.prompt, completion) for completion in example.completions)
    if plan.mismatched:
        for epoch in range(epochs):
            for index, other in enumerate(plan.mismatches(epoch).tolist()):
                yield plan.data[index].prompt, plan.data[other].completions[0]
