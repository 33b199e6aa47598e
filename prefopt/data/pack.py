"""Groups of a step -> packs that fit a token budget.

A pack holds whole groups. The budget only cuts a step into micro-batches: it never changes what is computed.

Two forms. With shared prompts a pack is one unpadded row and costs its tokens. In rows form every completion is a
row behind a copy of its prompt, right-padded, and the pack costs rows x longest row, padding included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import numpy as np

from prefopt.data.bins import few_bins, near_bins
from prefopt.data.dataset import PreferenceData
from prefopt.data.layout import assemble
from prefopt.errors import DataError
from prefopt.records import Group, Pack

OverBudget = Literal["own_pack", "refuse"]
"""What becomes of an example that alone is longer than the budget."""


@dataclass(frozen=True)
class Part:
    """A group inside a pack: the whole group, or the share of it that was split off to fit the budget."""

    index: int
    """Which of the groups that were given."""
    completions: tuple[int, ...]
    """Which completions of that group, in the order in which the pack holds them."""
    group: Group
    """What the pack holds; its examples and `mismatched` index its own completions."""


def build_packs(
    groups: Sequence[Group],
    *,
    token_budget: int,
    shared: bool,
    one_row: bool = False,
    over_budget: OverBudget = "own_pack",
) -> list[Pack]:
    """Cut groups into packs of at most `token_budget` computed tokens; deterministic.

    Sequences of a pack stand in the order of its groups, and in a group in the order of its completions. A group
    that is longer than the budget is split over its examples with the prompt repeated; an example alone that is
    longer than the budget gets a pack of its own. `plan_packs` says where each completion went.

    Args:
        groups: what one step (or one call to score) holds.
        token_budget: tokens a pack may compute, padding included.
        shared: one row with shared prompts, or one padded row a completion.
        one_row: without shared prompts, one example a pack: a labelled completion is one row (R = 1), a pair its two
            rows and a list as many as it is long, for models whose numbers padding or neighbours would change.
        over_budget: "refuse" makes an example alone that is longer than the budget an error.

    Raises:
        DataError: a group without prompt or completion tokens, a budget below 1, or an example that is refused.
    """
    plans = plan_packs(groups, token_budget=token_budget, shared=shared, one_row=one_row, over_budget=over_budget)
    return [assemble([part.group for part in plan], shared=shared) for plan in plans]


def plan_packs(
    groups: Sequence[Group],
    *,
    token_budget: int,
    shared: bool,
    one_row: bool = False,
    over_budget: OverBudget = "own_pack",
    by_prompt: bool = False,
    ends: bool = True,
) -> list[tuple[Part, ...]]:
    """Decide which groups go into which pack, as `build_packs` does; each inner tuple is one pack.

    Args:
        by_prompt: with shared prompts, groups whose prompts are of like length share a pack, and packs are full:
            attention then pads less. It takes some packs more than the fewest where groups are few.
        ends: with `by_prompt`, whether a completion's last token is computed too and counts.

    The other arguments are those of `build_packs`.

    Raises:
        DataError: as `build_packs`.
    """
    if token_budget < 1:
        raise DataError(f"The token budget is {token_budget}; it must be at least 1 token a pack.")
    for index, group in enumerate(groups):
        _check(index, group)
    cost = _shared_cost if shared else _rows_cost
    limit = 0 if one_row and not shared else token_budget
    parts: list[Part] = []
    for index, group in enumerate(groups):
        if cost(group) <= limit:
            parts.append(Part(index, tuple(range(len(group.completions))), group))
        else:
            parts.extend(_split(index, group, cost, limit))
    if over_budget == "refuse" and (longest := max((cost(part.group) for part in parts), default=0)) > token_budget:
        raise DataError(_too_long("An example", longest, token_budget))
    if one_row and not shared:
        return [(part,) for part in parts]
    if not shared:
        chosen = _by_length(parts, limit)
    elif by_prompt:
        parts.sort(key=lambda part: len(part.group.prompt))
        sizes = [part.group.tokens - (0 if ends else len(part.completions)) for part in parts]
        chosen = near_bins(sizes, token_budget)
    else:
        chosen = few_bins([part.group.tokens for part in parts], token_budget).items
    return [tuple(parts[i] for i in bin_) for bin_ in chosen]


def check_longest(data: PreferenceData, *, token_budget: int, shared: bool) -> None:
    """Refuse data with an example that alone is longer than the budget: what "refuse" would find at its step.

    Raises:
        DataError: names how many there are and the first of them.
    """
    prompt, completions = data.prompt_lengths, data.completion_lengths
    cost = prompt + completions.sum(axis=1)
    if not shared:
        cost = data.completion_counts * (prompt + completions.max(axis=1))
    longer = np.flatnonzero(cost > token_budget)
    if longer.size:
        first = data[int(longer[0])].source or f"number {longer[0]}"
        what = f"{longer.size} of {len(data)} examples (the first is {first}): the longest"
        raise DataError(_too_long(what, int(cost.max()), token_budget))


def _too_long(what: str, tokens: int, budget: int) -> str:
    return (
        f"{what} needs {tokens} tokens in one pack, more than train.token_budget = {budget}, and train.over_budget is "
        f"refuse. Raise train.token_budget to {tokens}, lower data.max_length, or write train.over_budget: own_pack."
    )


def _check(index: int, group: Group) -> None:
    if not group.prompt:
        raise DataError(f"Group {index} has an empty prompt: the first completion token would have nothing before it.")
    if not group.completions or not all(group.completions):
        raise DataError(f"Group {index} has no completion or an empty one; every completion needs at least one token.")
    listed = (c for entries in group.lists for c, _ in entries)
    named = chain(chain.from_iterable(group.pairs), (c for c, _ in group.labels), group.mismatched, listed)
    if any(not 0 <= c < len(group.completions) for c in named):
        raise DataError(f"Group {index} names a completion that it doesn't hold (it has {len(group.completions)}).")
    if group.pair_scores and len(group.pair_scores) != len(group.pairs):
        raise DataError(f"Group {index} has scores for {len(group.pair_scores)} of its {len(group.pairs)} pairs.")


def _shared_cost(group: Group) -> int:
    return group.tokens


def _rows_cost(group: Group) -> int:
    return len(group.completions) * _longest_row(group)


def _longest_row(group: Group) -> int:
    return len(group.prompt) + max(map(len, group.completions))


def _split(index: int, group: Group, cost: Callable[[Group], int], limit: int) -> list[Part]:
    """Cut one group over its examples: what a pair or list compares stays together, mismatched ones go anywhere."""
    wholes: dict[tuple[int, ...], None] = {}  # sets of completions that must share a pack, in order
    for compared in (*group.pairs, *([c for c, _ in entries] for entries in group.lists)):
        wholes.setdefault(tuple(sorted(set(compared))))
    together = set(chain.from_iterable(wholes))
    wholes.update({(c,): None for c in range(len(group.completions)) if c not in together})
    parts: list[Part] = []
    held: tuple[int, ...] = ()
    for whole in sorted(wholes, key=len, reverse=True):  # a smaller one may be part of a larger one
        if any({*whole} <= {*done} for done in (held, *(part.completions for part in parts))):
            continue
        grown = tuple(sorted({*held, *whole}))
        if held and cost(Group(group.prompt, tuple(group.completions[c] for c in grown))) > limit:
            parts.append(_part(index, group, held))
            grown = whole
        held = grown
    parts.append(_part(index, group, held))
    return _without_repeats(parts, group)


def _part(index: int, group: Group, held: tuple[int, ...]) -> Part:
    """Return a part with the completions `held` and every example whose completions are all among them."""
    at = {c: i for i, c in enumerate(held)}
    whole = [i for i, pair in enumerate(group.pairs) if at.keys() >= set(pair)]
    own = Group(
        group.prompt,
        tuple(group.completions[c] for c in held),
        pairs=tuple((at[a], at[b]) for a, b in (group.pairs[i] for i in whole)),
        labels=tuple((at[c], desirable) for c, desirable in group.labels if c in at),
        mismatched=tuple(at[c] for c in group.mismatched if c in at),
        pair_scores=tuple(group.pair_scores[i] for i in whole) if group.pair_scores else (),
        lists=tuple(
            tuple((at[c], score) for c, score in entries)
            for entries in group.lists
            if at.keys() >= {c for c, _ in entries}
        ),
    )
    return Part(index, held, own)


def _without_repeats(parts: list[Part], group: Group) -> list[Part]:
    """Let each example count in one part only, where a completion of several examples had to be computed twice."""
    seen: set[tuple[str, tuple[int, ...]]] = set()

    def new(kind: str, names: Sequence[int], completions: Sequence[Sequence[int]]) -> list[int]:
        """Return which of the examples, given by their completions, stand in no part before."""
        keys = [(kind, tuple(names[c] for c in compared)) for compared in completions]
        fresh = [i for i, key in enumerate(keys) if key not in seen]
        seen.update(keys)
        return fresh

    kept: list[Part] = []
    for part in parts:
        own, names = part.group, part.completions
        pairs = new("pair", names, own.pairs)
        labels = new("label", names, [(c,) for c, _ in own.labels])
        mismatched = new("mismatched", names, [(c,) for c in own.mismatched])
        lists = new("list", names, [tuple(c for c, _ in entries) for entries in own.lists])
        once = replace(
            own,
            pairs=tuple(own.pairs[i] for i in pairs),
            labels=tuple(own.labels[i] for i in labels),
            mismatched=tuple(own.mismatched[i] for i in mismatched),
            pair_scores=tuple(own.pair_scores[i] for i in pairs) if own.pair_scores else (),
            lists=tuple(own.lists[i] for i in lists),
        )
        kept.append(Part(part.index, names, once))
    return kept


def _by_length(parts: Sequence[Part], budget: int) -> list[list[int]]:
    """Neighbours in length share a pack, so that little is padding."""
    order = sorted(range(len(parts)), key=lambda i: (-_longest_row(parts[i].group), i))
    bins: list[list[int]] = []
    rows, width = 0, 0
    for item in order:
        own = len(parts[item].group.completions)
        if bins and (rows + own) * width <= budget:
            bins[-1].append(item)
            rows += own
        else:
            bins.append([item])
            rows, width = own, _longest_row(parts[item].group)
    return sorted(sorted(bin_) for bin_ in bins)
