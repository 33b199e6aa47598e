"""Groups of a step -> packs that fit a token budget.

A pack holds whole groups. The budget only cuts a step into micro-batches: it never changes what is computed.

Two forms. With shared prompts a pack is one unpadded row and costs its tokens. In rows form every completion is a
row behind a copy of its prompt, right-padded, and the pack costs rows x longest row, padding included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.errors import DataError
from prefopt.records import Group, GroupLayout, Layout, Pack

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """A group inside a pack: the whole group, or the share of it that was split off to fit the budget."""

    index: int
    """Which of the groups that were given."""
    completions: tuple[int, ...]
    """Which completions of that group, in the order in which the pack holds them."""
    group: Group
    """What the pack holds; its examples and `mismatched` index its own completions."""


def build_packs(groups: Sequence[Group], *, token_budget: int, shared: bool, one_row: bool = False) -> list[Pack]:
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

    Raises:
        DataError: a group without prompt or completion tokens, or a budget below 1.
    """
    plans = plan_packs(groups, token_budget=token_budget, shared=shared, one_row=one_row)
    return [assemble([part.group for part in plan], shared=shared) for plan in plans]


def plan_packs(
    groups: Sequence[Group], *, token_budget: int, shared: bool, one_row: bool = False
) -> list[tuple[Part, ...]]:
    """Decide which groups go into which pack, as `build_packs` does; each inner tuple is one pack.

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
    if one_row and not shared:
        return [(part,) for part in parts]
    chosen = _first_fit([part.group.tokens for part in parts], token_budget) if shared else _by_length(parts, limit)
    return [tuple(parts[i] for i in bin_) for bin_ in chosen]


def assemble(groups: Sequence[Group], *, shared: bool) -> Pack:
    """Lay groups out as one pack, in the given order, whatever its size."""
    return _shared_pack(groups) if shared else _rows_pack(groups)


def only(pack: Pack, completions: Tensor) -> Pack:
    """Return the pack with these completions alone, behind their prompts; without any there is nothing to compute.

    Args:
        pack: as `build_packs` makes it.
        completions: (K,) int64, ascending, each once, K > 0. Completion i of the result is `completions[i]`.

    Returns:
        A pack of K completions that names no examples.
    """
    scored = torch.isin(pack.segment, completions)
    number = torch.empty_like(pack.length)
    number[completions] = torch.arange(completions.numel(), device=number.device)
    nothing = completions[:0]
    rest: dict[str, Any] = {
        "target": pack.target[scored],
        "segment": number[pack.segment[scored]],
        "length": pack.length[completions],
        "pair": nothing.reshape(0, 2),
        "labelled": nothing,
        "label": nothing.bool(),
        "mismatched": nothing,
        "pair_score": pack.pair_score[:0],
        "listed": nothing,
        "list_index": nothing,
        "list_score": pack.list_score[:0],
    }
    score_at = pack.score_at[scored]
    if pack.layout is None:
        assert pack.mask is not None
        old, width = pack.tokens.shape[1], int(pack.mask[completions].sum(1).max())
        tokens, position, mask = (x[completions, :width] for x in (pack.tokens, pack.position, pack.mask))
        score_at = number[score_at // old] * width + score_at % old
        return Pack(tokens=tokens, position=position, mask=mask, score_at=score_at, **rest)
    layout, kept = _layout_of(pack.layout, set(completions.tolist()))
    at = torch.tensor(kept, device=pack.tokens.device)
    place = torch.empty(pack.tokens.shape[1], dtype=torch.int64, device=at.device)
    place[at] = torch.arange(at.numel(), device=at.device)
    return Pack(
        tokens=pack.tokens[:, at], position=pack.position[:, at], layout=layout, score_at=place[score_at], **rest
    )


def _layout_of(layout: Layout, completions: set[int]) -> tuple[Layout, list[int]]:
    """Return the layout with these completions alone, and which tokens of the row stay."""
    groups: list[GroupLayout] = []
    kept: list[int] = []
    number = 0
    for group in layout.groups:
        stop = group.start + group.prompt
        start, lengths, tokens = len(kept), [], list(range(group.start, stop))
        for length in group.completions:
            if number in completions:
                lengths.append(length)
                tokens += range(stop, stop + length)
            stop += length
            number += 1
        if lengths:
            groups.append(GroupLayout(start, group.prompt, tuple(lengths)))
            kept += tokens
    return Layout(tuple(groups)), kept


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


def _first_fit(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """First-fit-decreasing; bins in the order of their first member, members in the given order."""
    bins: list[list[int]] = []
    free = np.zeros(len(sizes), dtype=np.int64)
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fits = np.flatnonzero(free[: len(bins)] >= sizes[item])
        if fits.size:
            at = int(fits[0])
            bins[at].append(item)
        else:
            at = len(bins)
            bins.append([item])
            free[at] = budget
        free[at] -= sizes[item]
    return sorted(sorted(bin_) for bin_ in bins)


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


def _flat(sequences: Iterable[Sequence[int]], count: int) -> IntArray:
    return np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=count)


def _within(lengths: IntArray) -> IntArray:
    """0..l-1 for each length, end to end: (sum,) int64."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)


def _shared_pack(groups: Sequence[Group]) -> Pack:
    """`prompt_1 c_11 c_12 prompt_2 c_21 ...` in one row; every completion restarts at its prompt's length."""
    pieces = [piece for group in groups for piece in (group.prompt, *group.completions)]
    length = np.array([len(piece) for piece in pieces], dtype=np.int64)
    start = np.cumsum(length) - length
    total = int(length.sum())
    k = np.array([len(group.completions) for group in groups], dtype=np.int64)
    heads = np.cumsum(k + 1) - (k + 1)  # which piece is each group's prompt
    is_completion = np.ones(len(pieces), dtype=bool)
    is_completion[heads] = False

    tokens = _flat(pieces, total)
    first = np.zeros(len(pieces), dtype=np.int64)
    first[is_completion] = np.repeat(length[heads], k)
    position = np.arange(total, dtype=np.int64) - np.repeat(start - first, length)

    lengths, starts = length[is_completion], start[is_completion]
    inside = _within(lengths)
    at = inside + np.repeat(starts, lengths)
    last_of_prompt = np.repeat(np.repeat(start[heads] + length[heads] - 1, k), lengths)
    score_at = np.where(inside == 0, last_of_prompt, at - 1)
    layout = Layout(
        tuple(
            GroupLayout(int(start[head]), len(group.prompt), tuple(map(len, group.completions)))
            for head, group in zip(heads, groups, strict=True)
        )
    )
    return _pack(groups, tokens[None], position[None], score_at, tokens[at], lengths, layout=layout)


def _rows_pack(groups: Sequence[Group]) -> Pack:
    """One row a completion behind a copy of its prompt; padding is token 0 at mask 0, positions run on."""
    prompts = np.array([len(g.prompt) for g in groups for _ in g.completions], dtype=np.int64)
    lengths = np.array([len(c) for g in groups for c in g.completions], dtype=np.int64)
    whole = prompts + lengths
    rows, width = len(whole), int(whole.max())
    mask = np.arange(width, dtype=np.int64)[None] < whole[:, None]
    tokens = np.zeros((rows, width), dtype=np.int64)
    tokens[mask] = _flat((p for g in groups for c in g.completions for p in (g.prompt, c)), int(whole.sum()))
    position = np.broadcast_to(np.arange(width, dtype=np.int64), (rows, width)).copy()
    score_at = _within(lengths) + np.repeat(np.arange(rows) * width + prompts - 1, lengths)
    target = tokens.reshape(-1)[score_at + 1]
    return _pack(groups, tokens, position, score_at, target, lengths, mask=mask.astype(np.int64))


def _pack(
    groups: Sequence[Group],
    tokens: IntArray,
    position: IntArray,
    score_at: IntArray,
    target: IntArray,
    lengths: IntArray,
    *,
    layout: Layout | None = None,
    mask: IntArray | None = None,
) -> Pack:
    pairs: list[tuple[int, int]] = []
    pair_scores: list[tuple[float, float]] = []
    labels: list[tuple[int, bool]] = []
    mismatched: list[int] = []
    lists: list[list[tuple[int, float]]] = []
    first = 0
    for group in groups:
        pairs += [(first + a, first + b) for a, b in group.pairs]
        pair_scores += group.pair_scores or [(math.nan, math.nan)] * len(group.pairs)
        labels += [(first + c, desirable) for c, desirable in group.labels]
        mismatched += [first + c for c in group.mismatched]
        lists += [[(first + c, score) for c, score in entries] for entries in group.lists]
        first += len(group.completions)
    return Pack(
        tokens=torch.from_numpy(tokens),
        position=torch.from_numpy(position),
        score_at=torch.from_numpy(score_at),
        target=torch.from_numpy(target),
        segment=torch.from_numpy(np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)),
        length=torch.from_numpy(lengths),
        pair=_long(pairs).reshape(-1, 2),
        labelled=_long([c for c, _ in labels]),
        label=torch.tensor([desirable for _, desirable in labels], dtype=torch.bool),
        mismatched=_long(mismatched),
        pair_score=torch.tensor(pair_scores, dtype=torch.float32).reshape(-1, 2),
        listed=_long([c for entries in lists for c, _ in entries]),
        list_index=_long([number for number, entries in enumerate(lists) for _ in entries]),
        list_score=torch.tensor([score for entries in lists for _, score in entries], dtype=torch.float32),
        layout=layout,
        mask=None if mask is None else torch.from_numpy(mask),
    )


def _long(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
