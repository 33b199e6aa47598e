"""Shared-prompt attention on a GPU: torch's FlexAttention over a block mask made from the row's layout.

A block of `BLOCK` queries by `BLOCK` keys is skipped where no query may look at any key, computed without a mask where
every one may look at all, and masked entry by entry otherwise. The row is padded to whole blocks; the padding is one
more group, whose tokens see each other.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from prefopt.records import GroupLayout, Layout

BLOCK = 128
LEAST_HEAD = 16
"""Elements of a head that FlexAttention needs at least."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Members:
    """Where every token of a padded row belongs; each (T,) int32."""

    group: Tensor
    sequence: Tensor
    """Completion of the group; -1 in its prompt."""
    position: Tensor

    def mask(self, window: int | None, device: torch.device) -> Callable[..., Tensor]:
        """Return the mask function: a token sees its own prompt and its own sequence, behind it, in the window."""
        group, sequence, position = (x.to(device) for x in (self.group, self.sequence, self.position))
        # Numbers in a closure are symbols to the compiler, which it can't place everywhere; tensors it loads.
        reach = torch.tensor(torch.iinfo(torch.int32).max if window is None else window - 1, dtype=torch.int32)
        reach = reach.to(device)

        def may_look(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            distance = position[query] - position[key]
            related = (sequence[key] == -1) | (sequence[key] == sequence[query])
            return (group[query] == group[key]) & related & (distance >= 0) & (distance <= reach)

        return may_look


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: BlockMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    compiled: bool = True,
) -> Tensor:
    """Attend by `mask`: query (1, Hq, T, D), key (1, Hkv, T, D), value (1, Hkv, T, Dv), sinks (Hq,); (1, T, Hq, Dv).

    Uncompiled it is torch's reference, which builds all T x T scores: for tests.
    """
    tokens = query.shape[2]
    # One memory order whether there is padding or not, or each would compile.
    padded = (F.pad(x, (0, 0, 0, mask.seq_lengths[0] - tokens)).contiguous() for x in (query, key, value))
    attention = _attention(compiled)
    options: dict[str, Any] = {
        "score_mod": None if softcap is None else _capped(softcap, query.device),
        "block_mask": mask,
        "scale": scale,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    if sinks is None:
        out = attention(*padded, **options)
    else:
        out, aux = attention(*padded, **options, return_aux=AuxRequest(lse=True))
        # One more logit takes its share of the probability: exp(lse) / (exp(lse) + exp(sink)).
        out = out * torch.sigmoid(aux.lse - sinks.view(1, -1, 1).to(aux.lse.dtype)).unsqueeze(-1).to(out.dtype)
    return out[:, :, :tokens].transpose(1, 2)


def build_block_mask(layout: Layout, window: int | None, device: torch.device, block: int = BLOCK) -> BlockMask:
    """Return the mask of a row padded to whole blocks; `window` slides over positions, None is none."""
    padding = -layout.tokens % block
    groups = [*layout.groups, *([GroupLayout(layout.tokens, padding, ())] if padding else [])]
    members = _members(groups)
    touched, full = _touched(groups, window, block), _full(members, window, block)
    kept = [_indices(blocks, device) for blocks in (touched & ~full, full)]
    tokens = layout.tokens + padding
    return BlockMask.from_kv_blocks(
        *kept[0],
        *kept[1],
        BLOCK_SIZE=block,
        mask_mod=members.mask(window, device),
        seq_lengths=(tokens, tokens),
    )


def unavailable(device: torch.device) -> str:
    """Return why FlexAttention can't be used on `device`; empty when it can."""
    if device.type != "cuda":
        return f"it is made for CUDA GPUs, not for {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return _fails(device)


@functools.cache
def _fails(device: torch.device) -> str:
    """Try it once with a tiny row; return why it can't be compiled, empty when it can."""
    # More than one head and block: what has one of something is compiled for just one.
    layout = Layout((GroupLayout(0, BLOCK, (3, 4)),))
    try:
        # It may be asked for the first time where nothing is differentiated.
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.ones(1, 2, layout.tokens, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
            attend(x, x, x, build_block_mask(layout, None, device), scale=1.0).sum().backward()
    except Exception as error:  # noqa: BLE001  (a compiler fails in many ways; attention in tiles does without it)
        _log.warning(
            "FlexAttention can't be compiled here (%s: %s), so attention runs in tiles of padded products: slower, the "
            "same numbers. It needs a C compiler and a triton that fits torch.",
            type(error).__name__,
            str(error).splitlines()[0] if str(error) else "no message",
        )
        return f"it can't be compiled here ({type(error).__name__})"
    return ""


@functools.cache
def _attention(compiled: bool) -> Any:
    if not compiled:
        return flex_attention
    # Gradients asked or not, dtypes, softcaps and masks of one block compile once each; past torch's limit of 8 it
    # would go on uncompiled, with all T x T scores.
    options: dict[str, Any] = {"dynamic": True, "fullgraph": True, "recompile_limit": 64}
    return torch.compile(flex_attention, **options)


@functools.cache
def _capped(softcap: float, device: torch.device) -> Callable[..., Tensor]:
    """Return the score function of a softcap, the same object for the same cap, so that nothing compiles again."""
    cap = torch.tensor(softcap, device=device)  # a tensor, as in `Members.mask`

    def score(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    return score


def _members(groups: list[GroupLayout]) -> Members:
    group, sequence, position = [], [], []
    for index, g in enumerate(groups):
        lengths = (g.prompt, *g.completions)
        group.append(torch.full((sum(lengths),), index))
        sequence += [torch.full((length,), at - 1) for at, length in enumerate(lengths)]
        position += [torch.arange(length) + (g.prompt if at else 0) for at, length in enumerate(lengths)]
    return Members(*(torch.cat(parts).int() for parts in (group, sequence, position)))


def _touched(groups: list[GroupLayout], window: int | None, block: int) -> Tensor:
    """Return (query blocks, key blocks) bool: is there a query that may look at a key?"""
    count = groups[-1].stop // block
    touched = torch.zeros(count, count, dtype=torch.bool)
    back = groups[-1].stop if window is None else window - 1
    for g in groups:
        prompt_stop = stop = g.start + g.prompt
        runs = [(g.start, stop, 0)]
        for length in g.completions:
            runs.append((stop, stop + length, 1))
            stop += length
        for start, end, behind_prompt in runs:
            for row in range(start // block, -(-end // block) if end > start else start // block):
                first, last = max(start, row * block), min(end, (row + 1) * block)
                touched[row, max(start, first - back) // block : (last - 1) // block + 1] = True
                seen = max(g.start, prompt_stop + (first - start) - back)
                if behind_prompt and seen < prompt_stop:
                    touched[row, seen // block : (prompt_stop - 1) // block + 1] = True
    return touched


def _full(members: Members, window: int | None, block: int) -> Tensor:
    """Return (query blocks, key blocks) bool: may every query look at every key? Some that are full may be left out."""

    def ends(x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = x.view(-1, block).aminmax(dim=1)
        return low, high

    (group, group_high), (sequence, sequence_high), (first, last) = map(
        ends, (members.group, members.sequence, members.position)
    )
    one_group = group == group_high
    one_sequence = one_group & (sequence == sequence_high)
    same_group = one_group[:, None] & one_group & (group[:, None] == group)
    same_sequence = one_sequence[:, None] & one_sequence & (sequence[:, None] == sequence)
    prompt_keys = one_sequence & (sequence == -1)
    full = same_group & (same_sequence | prompt_keys) & (first[:, None] >= last)
    return full if window is None else full & (last[:, None] - first < window)


def _indices(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many key blocks each query block has and which, (1, 1, rows) and (1, 1, rows, columns) int32."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None].to(device), order.int()[None, None].to(device)
