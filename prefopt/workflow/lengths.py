"""How long the examples of a run are: as its data says, or as somebody guesses before there is any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from prefopt.errors import PrefoptError
from prefopt.losses import Loss
from prefopt.models.plan.policy import planned_tokenizer
from prefopt.recipe import Recipe
from prefopt.records import Group
from prefopt.train.arguments import PreferenceArguments
from prefopt.train.feed import Feed, feed_of
from prefopt.workflow.inputs import load_data, weights_of

_STEPS = 4
"""Steps of the data that are looked at."""
_LISTED = 4
"""Completions of a list, where nobody knows."""


@dataclass(frozen=True)
class Lengths:
    """The groups of a few steps, and how many steps there are."""

    groups: tuple[Group, ...]
    step_tokens: float
    """Of a step, on average."""
    longest: int
    """Tokens of the longest pack that can't be cut: one example."""
    longest_step: int
    """Tokens of the longest step there can be."""
    steps: int | None
    """Of the whole run; None where nobody knows."""
    steps_per_epoch: int | None
    source: str
    """Half a sentence: where this is known from."""


def read_lengths(recipe: Recipe, loss: Loss, args: PreferenceArguments) -> Lengths:
    """Tokenize the recipe's data, which the cache may know, and look at its first steps.

    Raises:
        PrefoptError: no tokenizer or no data, or the data is a stream.
    """
    if recipe.data.streaming:
        raise PrefoptError("the data is a stream")
    tokenizer = planned_tokenizer(recipe.model)
    alone = recipe.model_copy(update={"data": recipe.data.model_copy(update={"eval": None})})
    with TemporaryDirectory() as folder:
        data, _ = load_data(alone, tokenizer, Path(folder))
    feed = feed_of(data, loss, args, group_prompts=recipe.data.group_prompts, weights=weights_of(recipe), workers=0)
    assert isinstance(feed, Feed)
    return lengths_of(feed, args)


def lengths_of(feed: Feed, args: PreferenceArguments) -> Lengths:
    """Look at the first steps of data in memory."""
    steps = [feed.plan.groups(0, step) for step in range(min(_STEPS, feed.steps_per_epoch))]
    tokens = [sum(group.tokens for group in step) for step in steps]
    # No step has more than as many of the longest examples.
    size = feed.data.prompt_lengths + feed.data.completion_lengths.sum(axis=1)
    if feed.plan.mismatched:
        size = size + feed.data.completion_lengths.max()
    longest = int(size.max())
    bound = int(np.sort(size)[-args.examples_per_step :].sum())
    whole = args.max_steps if args.max_steps > 0 else int(args.num_train_epochs * feed.steps_per_epoch)
    return Lengths(
        tuple(group for step in steps for group in step),
        sum(tokens) / len(tokens),
        longest,
        bound,
        whole,
        feed.steps_per_epoch,
        f"the first {len(steps)} steps of the data",
    )


def guessed_lengths(recipe: Recipe, loss: Loss, tokens: int) -> Lengths:
    """Take every example to have `tokens` tokens, a third of them the prompt's where it has two completions."""
    count = recipe.train.examples_per_step
    group = shaped(loss, tokens)
    return Lengths((group,), float(count * tokens), tokens, count * tokens, None, None, f"examples of {tokens} tokens")


def shaped(loss: Loss, tokens: int) -> Group:
    """Return an example of `loss` with about so many tokens, equally many of its prompt and of each completion."""
    if loss.form == "unpaired":
        half = max(1, tokens // (3 if loss.needs_mismatched else 2))
        own = _text(half)
        if loss.needs_mismatched:
            return Group(own, (own, own), labels=((0, True),), mismatched=(1,))
        return Group(own, (own,), labels=((0, True),))
    count = _LISTED if loss.form == "listwise" else 2
    own = _text(max(1, tokens // (1 + count)))
    return Group(own, (own,) * count, pairs=((0, 1),))


def filled(groups: Sequence[Group], tokens: int) -> list[Group]:
    """Return groups like these, one after the other and over again, of `tokens` tokens together."""
    pack: list[Group] = []
    room, turn = tokens, 0
    while room > 0:
        group = groups[turn % len(groups)]
        if group.tokens > room:
            group = _cut(group, room)
        pack.append(group)
        room -= group.tokens
        turn += 1
    return pack


def _cut(group: Group, tokens: int) -> Group:
    """Return the group with its sequences shortened in proportion to `tokens`, a token each at least."""
    share = tokens / group.tokens
    return replace(
        group,
        prompt=_text(max(1, int(len(group.prompt) * share))),
        completions=tuple(_text(max(1, int(len(c) * share))) for c in group.completions),
    )


def _text(tokens: int) -> tuple[int, ...]:
    return (1,) * tokens
