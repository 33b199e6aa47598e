"""A pack that turned out to be too large, cut in two: each example lies in one half, and so does each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prefopt.data.layout import only
from prefopt.records import Pack


def cut(pack: Pack, most: int) -> list[Pack]:
    """Return the pack in parts of at most `most` computed tokens, where groups are not larger, in its own order."""
    if cost(pack) <= most or (halves := _halves(pack)) is None:
        return [pack]
    return [part for half in halves for part in cut(half, most)]


def cost(pack: Pack) -> int:
    """Return the tokens that are computed, padding included."""
    return int(pack.tokens.numel())


def units(pack: Pack) -> list[list[int]]:
    """Return the completions that stay together, ascending: those of a prompt, or of one alone those compared."""
    if pack.layout is not None and sum(bool(group.completions) for group in pack.layout.groups) > 1:
        found, first = [], 0
        for group in pack.layout.groups:
            found.append(list(range(first, first + len(group.completions))))
            first += len(group.completions)
        return [unit for unit in found if unit]
    together = list(range(pack.num_sequences))  # the first completion of each one's unit
    compared = [*pack.pair.tolist(), *(_members(pack, index) for index in range(pack.num_lists))]
    for completions in compared:
        old, new = {together[c] for c in completions}, min(together[c] for c in completions)
        together = [new if unit in old else unit for unit in together]
    return [[c for c, unit in enumerate(together) if unit == first] for first in sorted(set(together))]


def _members(pack: Pack, index: int) -> list[int]:
    return [int(c) for c in pack.listed[pack.list_index == index]]


def _halves(pack: Pack) -> tuple[Pack, Pack] | None:
    """Return two packs of about half the completions' tokens each, or None for one that can't be cut."""
    parts = units(pack)
    if len(parts) < 2:
        return None
    sizes = torch.tensor([int(pack.length[unit].sum()) for unit in parts]).cumsum(0)
    # The cut is where both sides differ the least, and never at an end.
    at = int((2 * sizes[:-1] - sizes[-1]).abs().argmin()) + 1
    first, second = ([c for unit in side for c in unit] for side in (parts[:at], parts[at:]))
    return _part(pack, sorted(first)), _part(pack, sorted(second))


def _part(pack: Pack, completions: Sequence[int]) -> Pack:
    """Return the pack with these completions and the examples that are of them alone."""
    device = pack.length.device
    kept = torch.tensor(completions, device=device)
    number = torch.full((pack.num_sequences,), -1, device=device)
    number[kept] = torch.arange(kept.numel(), device=device)

    def here(which: Tensor) -> Tensor:
        return number[which] >= 0

    pairs, labels, entries = here(pack.pair[:, 0]), here(pack.labelled), here(pack.listed)
    lists = pack.list_index[entries]
    return replace(
        only(pack, kept),
        pair=number[pack.pair[pairs]],
        pair_score=pack.pair_score[pairs],
        labelled=number[pack.labelled[labels]],
        label=pack.label[labels],
        mismatched=number[pack.mismatched[here(pack.mismatched)]],
        listed=number[pack.listed[entries]],
        list_index=torch.unique(lists, return_inverse=True)[1] if lists.numel() else lists,
        list_score=pack.list_score[entries],
    )
