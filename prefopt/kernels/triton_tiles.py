"""The `triton` backend of the fused linear log-prob: the vendor's matrix products with our kernels between them.

The loops over tiles are `tiles.TorchTiles`'; here is what is done to one tile: one kernel that reads each logit once
and leaves its exponential in its place. Products of 16-bit tiles are added up in float32 by the product itself.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from prefopt.kernels import triton_kernels as kernels
from prefopt.kernels.head import Head, TokenScores, TokenSums
from prefopt.kernels.tiles import TorchTiles
from prefopt.kernels.workspace import GPU_TILE, Others, RowTargets, Tiles, Workspace

SLACK = 8.0
"""How far a logit may rise above the top before the top moves: exp(8) is far from any dtype's end."""
WIDTH = 1024
"""Elements of a row of hidden size that a program holds at a time."""
_WARPS = ((8192, 32), (4096, 16), (1024, 4), (0, 1))
"""Least block size, warps: few enough elements a thread that none is spilled. With and without gradient the same, or
sums would be added in another order."""


def launch(columns: int) -> dict[str, int]:
    """Return block size and warps of a program that holds `columns` elements."""
    block = max(16, triton.next_power_of_2(columns))
    return {"BLOCK": block, "num_warps": next(warps for least, warps in _WARPS if block >= least)}


class TritonWorkspace(Workspace):
    """The buffers that every tile of `count` rows reuses, and the kernels on one tile."""

    def __init__(self, hidden: Tensor, head: Head, tiles: Tiles, count: int) -> None:
        vocabulary, width = head.weight.shape
        rows, columns = max(1, min(tiles.rows, count)), min(tiles.columns, vocabulary)
        self.head, self.tiles = head, Tiles(rows, columns, rows)
        self.bias = None if head.bias is None else head.bias.contiguous()
        self.low = hidden.new_empty(rows * columns)
        self.dtype = torch.float32
        # The interpreter's products run on the CPU, which can't add 16-bit products up in float32.
        self.adds_up = hidden.dtype == torch.float32 or hidden.is_cuda
        self.products = hidden.new_empty(0 if self.adds_up else max(rows, columns) * width)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, sign: int) -> None:
        """Add `sign * left @ right` to `total`, float32."""
        if not self.adds_up:
            super().add_product(total, left, right, sign)
        elif left.dtype == torch.float32:
            total.addmm_(left, right, alpha=sign)
        else:
            torch.addmm(total, left, right, alpha=sign, out_dtype=torch.float32, out=total)

    def score_rows(self, hidden: Tensor, target: Tensor, direction: Tensor | None) -> TokenScores:
        """Sweep the vocabulary for one tile of rows, n of them; fills `direction` (m, H) for the first m."""
        weight, count, target = self.head.weight, hidden.shape[0], target.contiguous()
        logprob, miss, rescale = hidden.new_empty(3, count, dtype=self.dtype)
        top = torch.full_like(logprob, torch.finfo(self.dtype).min)
        total = torch.zeros_like(logprob)
        kept = 0 if direction is None else direction.shape[0]
        parts = [(slice(start, stop), stop == kept) for start, stop in ((0, kept), (kept, count)) if start < stop]
        for first in range(0, weight.shape[0], self.tiles.columns):
            columns = slice(first, first + self.tiles.columns)
            tile = self.logits(hidden, columns)
            for part, write in parts:
                kernels.fold_kernel[(part.stop - part.start,)](
                    tile[part], self._bias(first), target[part], top[part], total[part], rescale[part], total, total,
                    total, first, tile.shape[1], tile.stride(0), **head_options(self.head), SLACK=SLACK, WRITE=write,
                    STATISTICS=False, **launch(self.tiles.columns),
                )  # fmt: skip
            if direction is not None:
                if first:
                    kernels.rescale_kernel[(kept,)](direction, rescale, direction.shape[1], **by_width(direction))
                self.add_product(direction, tile[:kept], weight[columns], 1)
        hidden = hidden.contiguous()
        for part, write in parts:
            kernels.finish_kernel[(part.stop - part.start,)](
                hidden[part], weight, self._bias(0), target[part], top[part], total[part], logprob[part], miss[part],
                hidden if direction is None else direction, hidden.stride(0), weight.stride(0), weight.stride(1),
                hidden.shape[1], **head_options(self.head), WRITE=write, **by_width(hidden),
            )  # fmt: skip
        return TokenScores(logprob, miss, top, total)

    def sum_rows(self, hidden: Tensor, target: Tensor) -> TokenSums:
        """Sweep the vocabulary for one tile of rows, n of them, for the sums of statistics."""
        count, target = hidden.shape[0], target.contiguous()
        total, weighted, squares, rescale = hidden.new_zeros(4, count, dtype=self.dtype)
        top, highest = hidden.new_full((2, count), torch.finfo(self.dtype).min, dtype=self.dtype)
        for first in range(0, self.head.weight.shape[0], self.tiles.columns):
            tile = self.logits(hidden, slice(first, first + self.tiles.columns))
            kernels.fold_kernel[(count,)](
                tile, self._bias(first), target, top, total, rescale, weighted, squares, highest, first, tile.shape[1],
                tile.stride(0), **head_options(self.head), SLACK=SLACK, WRITE=False, STATISTICS=True,
                **launch(self.tiles.columns),
            )  # fmt: skip
        return TokenSums(top, total, weighted, squares, highest)

    def slopes(
        self, hidden: Tensor, targets: RowTargets, others: Others, rows: slice, columns: slice, d_bias: Tensor | None
    ) -> Tensor:
        """Return a tile of `factor * softmax_others(v) g_v`, (n, v), 0 at the target; take it from `d_bias` (V,)."""
        tile = self.logits(hidden, columns)
        kernels.slope_kernel[(tile.shape[0],)](
            tile, self._bias(columns.start), targets.target, others.top[rows], others.share[rows],
            columns.start, tile.shape[1], tile.stride(0), **head_options(self.head), **launch(self.tiles.columns),
        )  # fmt: skip
        if d_bias is not None:
            d_bias[columns] -= tile.sum(0, dtype=self.dtype)
        return tile

    def _bias(self, first: int) -> Tensor:
        """Return the bias from column `first` on; any tensor where the head has none."""
        return self.low if self.bias is None else self.bias[first:]


class TritonTiles(TorchTiles):
    """`head.Backend` by Triton kernels: bfloat16, float16 and float32 on a GPU; tiles of another size are for tests."""

    workspace = TritonWorkspace

    def __init__(self, tiles: Tiles | None = None) -> None:
        super().__init__(tiles or GPU_TILE)

    def scale_rows(self, rows: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(rows, dtype=dtype)
        if rows.numel():
            kernels.scale_rows_kernel[(rows.shape[0],)](out, rows, factor.contiguous(), rows.shape[1], **by_width(rows))
        return out


def head_options(head: Head) -> dict[str, Any]:
    """Return what every kernel that makes logits asks of the head."""
    return {
        "scale": head.scale,
        "softcap": head.softcap or 1.0,
        "HAS_BIAS": head.bias is not None,
        "HAS_SOFTCAP": head.softcap is not None,
    }


def by_width(rows: Tensor) -> dict[str, int]:
    """Return block size and warps of a program that walks a row of hidden size."""
    return launch(min(WIDTH, rows.shape[1]))
