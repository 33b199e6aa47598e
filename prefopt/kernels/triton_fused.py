"""The `fused` backend: scores alone by one kernel that multiplies and folds, so that no logit reaches memory.

A program takes some rows and a share of the vocabulary (a split). It multiplies one tile after the other with tensor
cores and folds each into the rows' sums while it lies in registers; the splits' sums are put together afterwards in a
fixed order. Letters: N scored tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

import torch
import triton
import triton.language as tl
from torch import Tensor

from prefopt.kernels.backends import scores_alone
from prefopt.kernels.head import Head, HeadGradients, TokenScores, TokenSums
from prefopt.kernels.triton_kernels import final_logits, finish_kernel
from prefopt.kernels.triton_tiles import TritonTiles, by_width, head_options

SQUARE = {"ROWS": 128, "COLUMNS": 128, "DEPTH": 64, "WHOLE": True, "num_warps": 8, "num_stages": 4}
"""96 KiB of shared memory, just what a GPU for consumers has for one block; 128 KiB on Hopper, which has more."""
WIDE = {**SQUARE, "COLUMNS": 256, "num_stages": 3}
"""For Hopper, whose products outrun what its cache gives to smaller tiles. Registers leave no room for a softcap."""
NARROW = {**SQUARE, "COLUMNS": 64, "DEPTH": 32, "WHOLE": False}
"""For float32, whose operands are multiplied from registers, and for rows that can't be read 16 bytes at a time."""
PROGRAMS = 2048
"""About so many, where the vocabulary allows: enough that the last wave of them leaves few multiprocessors idle."""


def shape(dtype: torch.dtype, major: int, *, whole: bool, plain: bool) -> Mapping[str, int]:
    """Return block sizes, warps and stages for a GPU of compute capability `major`.x.

    `whole`: rows of both operands are aligned and end with a block; `plain`: the head has no bias and no softcap.
    """
    if dtype == torch.float32 or not whole:
        return NARROW
    return WIDE if major == 9 and plain else SQUARE


class FusedScores(TritonTiles):
    """`head.Backend` for scores alone, in bfloat16, float16 and float32; blocks of another shape are for tests."""

    def __init__(self, blocks: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.blocks = blocks

    def score(self, hidden: Tensor, target: Tensor, head: Head) -> TokenScores:
        hidden, target = hidden.contiguous(), target.contiguous()
        bias = hidden if head.bias is None else head.bias.contiguous()
        weight, (count, width) = head.weight, hidden.shape
        blocks = self.blocks or _shape(hidden, head)
        row_blocks = ceil(count / blocks["ROWS"])
        share = share_of_a_split(count, weight.shape[0], blocks)
        splits = ceil(weight.shape[0] / share)
        # An operator's results may not share memory.
        logprob, miss, *empty = (hidden.new_empty(count, dtype=torch.float32) for _ in TokenScores._fields)
        if not count:
            return TokenScores(logprob, miss, *empty)
        tops, totals = hidden.new_empty(2, splits, count, dtype=torch.float32)
        fused_kernel[(row_blocks, splits)](
            hidden, weight, bias, target, tops, totals, count, width, weight.shape[0], share, hidden.stride(0),
            weight.stride(0), weight.stride(1), **head_options(head), **blocks,
            UPCAST=hidden.dtype == torch.bfloat16 and triton.knobs.runtime.interpret,
        )  # fmt: skip
        top = tops.amax(0)
        total = (totals * torch.exp(tops - top)).sum(0)
        finish_kernel[(count,)](
            hidden, weight, bias, target, top, total, logprob, miss, hidden, hidden.stride(0), weight.stride(0),
            weight.stride(1), width, **head_options(head), WRITE=False, **by_width(hidden),
        )  # fmt: skip
        return TokenScores(logprob, miss, top, total)

    def score_with_direction(self, hidden: Tensor, target: Tensor, head: Head) -> tuple[TokenScores, Tensor]:
        raise scores_alone("a gradient")

    def sums(self, hidden: Tensor, target: Tensor, head: Head) -> TokenSums:
        raise scores_alone("statistics")

    def gradients(
        self, hidden: Tensor, target: Tensor, head: Head, scores: TokenScores, upstream: Tensor, needs: tuple[bool, ...]
    ) -> HeadGradients:
        raise scores_alone("a gradient")


def _shape(hidden: Tensor, head: Head) -> Mapping[str, int]:
    weight, width = head.weight, hidden.shape[1]
    aligned = weight.stride(0) % 16 == 0 and hidden.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
    whole = aligned and weight.stride(1) == 1 and width % SQUARE["DEPTH"] == 0
    capability = torch.cuda.get_device_capability(hidden.device)[0] if hidden.is_cuda else 0
    return shape(hidden.dtype, capability, whole=whole, plain=head.bias is None and head.softcap is None)


def share_of_a_split(tokens: int, vocabulary: int, blocks: Mapping[str, int]) -> int:
    """Return how many columns a split has, a multiple of a block: a function of sizes alone, or bits would differ."""
    row_blocks, tiles = ceil(max(1, tokens) / blocks["ROWS"]), ceil(vocabulary / blocks["COLUMNS"])
    return ceil(tiles / min(tiles, ceil(PROGRAMS / row_blocks))) * blocks["COLUMNS"]


@triton.jit
def fused_kernel(  # type: ignore[no-untyped-def]
    hidden_ptr,  # (N, H), rows contiguous
    weight_ptr,  # (V, H), any strides
    bias_ptr,  # (V,), or anything without HAS_BIAS
    target_ptr,  # (N,) int64
    tops_ptr,  # (splits, N) float32, written: the largest logit of the others in the split
    totals_ptr,  # (splits, N) float32, written: sum of exp(z - top) over the others in the split
    count,  # N
    width,  # H
    vocabulary,  # V
    share,  # columns of a split, a multiple of COLUMNS
    hidden_stride,
    weight_row_stride,
    weight_column_stride,
    scale,
    softcap,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    WHOLE: tl.constexpr,  # H is a multiple of DEPTH
    HAS_BIAS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    UPCAST: tl.constexpr,  # multiply in float32: the interpreter's bfloat16 products are wrong
):
    """Score some rows over one split, the targets' columns left out."""
    # Rows vary fastest: programs that run at the same time read the same weight, which the cache holds for them.
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # What is read past the end is never stored.
    inside_rows = tl.minimum(rows, count - 1)
    inner = tl.arange(0, DEPTH)
    hidden_at = hidden_ptr + inside_rows.to(tl.int64)[:, None] * hidden_stride + inner[None, :]
    target = tl.load(target_ptr + inside_rows)
    top = tl.full([ROWS], -3.4028234663852886e38, tl.float32)  # finite, so that top - top is a number
    total = tl.zeros([ROWS], tl.float32)
    begin = tl.program_id(1) * share
    for first in range(begin, tl.minimum(begin + share, vocabulary), COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < vocabulary
        weight_rows = tl.minimum(columns, vocabulary - 1).to(tl.int64) * weight_row_stride
        weight_at = weight_ptr + weight_rows[None, :] + (inner.to(tl.int64) * weight_column_stride)[:, None]
        product = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, width, DEPTH):
            if WHOLE:
                h = tl.load(hidden_at + start)
                w = tl.load(weight_at)
            else:
                h = tl.load(hidden_at + start, mask=(start + inner < width)[None, :], other=0.0)
                w = tl.load(weight_at, mask=(start + inner < width)[:, None], other=0.0)
            if UPCAST:
                h, w = h.to(tl.float32), w.to(tl.float32)
            product = tl.dot(h, w, product, input_precision="ieee")
            weight_at += DEPTH * weight_column_stride
        z, _ = final_logits(product, bias_ptr, columns[None, :], inside[None, :], scale, softcap, HAS_BIAS, HAS_SOFTCAP)
        others = inside[None, :] & (columns[None, :] != target[:, None])
        z = tl.where(others, z, -float("inf"))
        new = tl.maximum(top, tl.max(z, axis=1))
        total = total * tl.exp(top - new) + tl.sum(tl.exp(z - new[:, None]), axis=1)
        top = new
    at = tl.program_id(1).to(tl.int64) * count + rows
    tl.store(tops_ptr + at, top, mask=rows < count)
    tl.store(totals_ptr + at, total, mask=rows < count)
