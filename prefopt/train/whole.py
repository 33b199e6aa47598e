"""The whole of a step, from the parts of it that the ranks hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from prefopt.data.layout import assemble
from prefopt.records import Group, Pack, SequenceLogprobs
from prefopt.train.ranks import Ranks
from prefopt.train.scored import Scored, sequences

Record = TypeVar("Record")


def whole_step(ranks: Ranks, packs: Sequence[Pack], scored: Sequence[Scored], device: torch.device) -> SequenceLogprobs:
    """Return the log-probs of every completion of the step, the same on each rank; gradients reach the own ones.

    Args:
        ranks: all of them call this.
        packs: of this rank; those without completions add nothing.
        scored: what was computed of each.
        device: where it is wanted.
    """
    own = [(pack, numbers) for pack, numbers in zip(packs, scored, strict=True) if pack.num_sequences]
    if ranks.size == 1:
        parts = [own]
    else:
        sent = [(_moved(_examples_of(pack), "cpu"), _moved(numbers, "cpu")) for pack, numbers in own]
        parts = [[(_moved(p, device), _moved(s, device)) for p, s in part] for part in ranks.gather(sent)]
        parts[ranks.rank] = own
    found = [pair for part in parts for pair in part]
    return sequences([pack for pack, _ in found], [numbers for _, numbers in found])


def passable(pack: Pack) -> Pack:
    """Return the pack, or, of an empty one, a pack of one completion token that nobody asks for.

    A rank that must pass through the model beside the others, and has nothing to compute, passes with it: an empty
    pack would not give every weight a gradient, be it 0.
    """
    if pack.num_sequences:
        return pack
    return assemble([Group((0,), ((0,),))], shared=pack.layout is not None).to(pack.tokens.device)


def _examples_of(pack: Pack) -> Pack:
    """Return which completions form examples, without the tokens."""
    nothing = pack.target[:0]
    return replace(
        pack,
        tokens=nothing,
        position=nothing,
        score_at=nothing,
        target=nothing,
        segment=nothing,
        layout=None,
        mask=None,
    )


def _moved(record: Record, device: torch.device | str) -> Record:
    """Return a record with all tensors in it on `device`, detached."""
    found: dict[str, Any] = {}
    for field in fields(record):  # type: ignore[arg-type]
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            found[field.name] = value.detach().to(device)
        elif is_dataclass(value):
            found[field.name] = _moved(value, device)
    return replace(record, **found)  # type: ignore[type-var]
