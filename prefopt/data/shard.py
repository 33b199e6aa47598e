"""The packs of a step, shared out among ranks: equally many each, so that no rank waits for one that is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch

from prefopt.data.layout import assemble
from prefopt.errors import DataError
from prefopt.records import Group, GroupLayout, Layout, Pack


def shard(packs: Sequence[Pack], rank: int, world: int) -> list[Pack]:
    """Return the packs of one rank; those of all ranks are the step, whatever their number.

    Every rank gets ceil(packs / world) of them, the longest dealt out first to the rank with the fewest tokens; where
    packs are missing, an empty one stands: a token of padding that no completion belongs to.

    Raises:
        DataError: there is no such rank.
    """
    if not 0 <= rank < world:
        raise DataError(f"Rank {rank} of {world} can't be; ranks count from 0 to {max(world - 1, 0)}.")
    if world == 1 or not packs:
        return list(packs)
    each = -(-len(packs) // world)
    dealt: list[list[int]] = [[] for _ in range(world)]
    tokens = [0] * world
    for at in sorted(range(len(packs)), key=lambda i: (-packs[i].tokens.numel(), i)):
        to = min((r for r in range(world) if len(dealt[r]) < each), key=lambda r: (tokens[r], r))
        dealt[to].append(at)
        tokens[to] += packs[at].tokens.numel()
    own = [packs[i] for i in sorted(dealt[rank])]
    return own + [empty_pack(shared=packs[0].layout is not None)] * (each - len(own))


def empty_pack(*, shared: bool) -> Pack:
    """Return a pack of one token of padding, without completions and examples."""
    pack = assemble([Group((0,), ((0,),))], shared=shared)
    rest: dict[str, Any] = {
        field.name: getattr(pack, field.name)[:0]
        for field in fields(Pack)
        if field.name not in ("tokens", "position", "mask", "layout")
    }
    layout = Layout((GroupLayout(0, 1, ()),)) if shared else None
    mask = None if pack.mask is None else torch.ones(1, 1, dtype=torch.int64)
    return replace(pack, tokens=pack.tokens[:, :1], position=pack.position[:, :1], mask=mask, layout=layout, **rest)
