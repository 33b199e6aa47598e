"""One tile of logits of the fused linear log-prob, in plain torch operations on any device.

A tile of logits is one matrix product into a reused buffer in the input's dtype. Its exponentials are taken a block of
rows at a time in a reused float32 buffer that stays in the cache, and written back over the logits, where a second
product finds them. The target's column is masked before the maximum is taken, so that everything about the target is
known to full relative precision (see `head.TokenScores`):

    log p_y   = -softplus(lse_others - z_y)
    d log p_y = scale * (1 - p_y) * (g_y W_y - sum over the others of softmax_others(v) g_v W_v),   g = 1 - tanh^2

`z_y` is one dot product a token in float32, which is closer than the tile's rounded logit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from prefopt.kernels.head import Head, TokenScores, TokenSums, accumulation_dtype
from prefopt.kernels.shapes import compiles_by_shape, rounded


@dataclass(frozen=True)
class Tiles:
    """How much of the (N, V) logits is looked at together."""

    rows: int
    """At least 2 where two models are scored in one sweep."""
    columns: int
    block: int
    """Rows whose exponentials are taken together."""

    @classmethod
    def choose(cls, hidden: Tensor) -> Tiles:
        """Choose by measurement for `hidden` (N, H).

        On a CPU, tall tiles spare the product from packing the weight again, and each thread's part of a block is
        1 MiB of float32, which its cache holds.
        """
        if hidden.device.type != "cpu":
            return GPU_TILE
        return cls(rows=2048, columns=4096, block=torch.get_num_threads() * (1 << 18) // 4096)


GPU_TILE = Tiles(rows=4096, columns=8192, block=4096)
"""64 MiB in 16 bits: tall enough for the product to reach its rate, and one of our programs holds a row's columns."""


_DEPTH = 1024
"""Inner size of a 16-bit product on a CPU at most: oneDNN takes twice the time for what is deeper."""
_SAFE = (1e-20, 1e15)
"""Between these a float32 sum of exponentials, and a small gradient over it, lose nothing to the ends of the range."""
_FAR = 30.0
"""Logits up to this size are taken as they are."""


class RowTargets:
    """The targets of the rows of a tile, (n,) int64, and where they lie among the tiles of columns."""

    def __init__(self, target: Tensor, tiles: Tiles, vocabulary: int) -> None:
        self.target = target.contiguous()
        self.tiles = tiles
        self.vocabulary = vocabulary

    def entries(self, tile: Tensor, columns: slice, rows: slice | None = None) -> Tensor:
        """Return the flat indices of the targets' entries in `tile`, the logits of `columns`, or in its `rows` alone.

        One index a target, found by a sort for all tiles together: masks of a tile would cost as much as its sums.
        """
        row, local, bounds = self._sorted
        first = columns.start // self.tiles.columns * self._blocks
        last = first + self._blocks
        if rows is not None:
            first += rows.start // self.tiles.block
            last = first + 1
        here = slice(bounds[first], bounds[last])
        return (row[here] - (0 if rows is None else rows.start)) * tile.shape[1] + local[here]

    @property
    def _blocks(self) -> int:
        return -(-self.target.numel() // self.tiles.block)

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor, list[int]]:
        """Row and column within its tile of every target, by tile and block, and where each block's begin."""
        row = torch.arange(self.target.numel(), device=self.target.device)
        key = self.target // self.tiles.columns * self._blocks + row // self.tiles.block
        key, order = key.sort(stable=True)
        most = -(-self.vocabulary // self.tiles.columns) * self._blocks
        bounds = torch.searchsorted(key, torch.arange(most + 1, device=key.device)).tolist()
        return order, (self.target % self.tiles.columns)[order], bounds


class Workspace:
    """The buffers that every tile of `count` rows reuses, and the operations on one tile."""

    def __init__(self, hidden: Tensor, head: Head, tiles: Tiles, count: int) -> None:
        vocabulary, width = head.weight.shape
        rows, columns = max(1, min(tiles.rows, count)), min(tiles.columns, vocabulary)
        block = min(tiles.block, rows)
        self.head, self.tiles = head, Tiles(rows, columns, block)
        self.low = hidden.new_empty(rows * columns)
        """The tile: logits, then exponentials, in the dtype of the products."""
        self.products = hidden.new_empty(max(rows, columns) * width)
        self.dtype = accumulation_dtype(hidden.dtype)
        self.acc = hidden.new_empty(block * columns, dtype=self.dtype) if self.dtype != hidden.dtype else self.low
        """A block in the accumulation dtype; the tile itself where that is the products' dtype."""
        self.slope = hidden.new_empty(block * columns, dtype=self.dtype) if head.softcap is not None else None
        """A block of `1 - tanh^2`."""

    def logits(self, hidden: Tensor, columns: slice) -> Tensor:
        """Return `h W^T` of one tile, (n, v), as the vendor's product rounds it."""
        weight = self.head.weight[columns]
        tile = self.low[: hidden.shape[0] * weight.shape[0]].view(hidden.shape[0], weight.shape[0])
        return torch.mm(hidden, weight.T, out=tile)

    def add_product(self, total: Tensor, left: Tensor, right: Tensor, sign: int) -> None:
        """Add `sign * left @ right`, as the vendor's product rounds it, to `total` in the accumulation dtype."""
        depth = _DEPTH if compiles_by_shape(left.device, left.dtype) else max(1, left.shape[1])
        out = self.products[: left.shape[0] * right.shape[1]].view(left.shape[0], right.shape[1])
        for part in slices(left.shape[1], depth):
            total.add_(torch.mm(left[:, part], right[part], out=out), alpha=sign)

    def columns_of_weight(self) -> Tensor:
        """Return a tile's columns of the head's weight, (v, H) in the accumulation dtype, with nothing in them.

        One for all tiles: on a CPU fresh memory of that size costs more than what is computed in it.
        """
        weight = self.head.weight
        return weight.new_empty(min(self.tiles.columns, weight.shape[0]), weight.shape[1], dtype=self.dtype)

    def targets(self, target: Tensor) -> RowTargets:
        """Return what is to be known of the targets of one tile of rows."""
        return RowTargets(target, self.tiles, self.head.weight.shape[0])

    def blocks(
        self, tile: Tensor, columns: slice, targets: RowTargets, slopes: bool
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yield (rows, final logits, `1 - tanh^2` if asked and capped) of `tile`, in the accumulation dtype.

        The target's logit is -inf.
        """
        head = self.head
        # Where -inf stays what it is on the way from product to logit, it is set for all rows at once.
        early = head.softcap is None and head.scale > 0
        if early:
            tile.view(-1).index_fill_(0, targets.entries(tile, columns), -torch.inf)
        for rows in slices(tile.shape[0], self.tiles.block):
            low = tile[rows]
            x = low if self.acc is self.low else self.acc[: low.numel()].view_as(low).copy_(low)
            finish_logits(x, head, None if head.bias is None else head.bias[columns])
            slope = None
            if head.softcap is not None:
                if slopes and self.slope is not None:
                    slope = torch.mul(x, x, out=self.slope[: low.numel()].view_as(low)).neg_().add_(1)
                x.mul_(head.softcap)
            if not early:
                x.view(-1).index_fill_(0, targets.entries(tile, columns, rows), -torch.inf)
            yield rows, x, slope

    def store(self, low: Tensor, x: Tensor, slope: Tensor | None) -> None:
        """Write a block `x`, times its `slope`, back over its rows of the tile."""
        if slope is not None:
            x.mul_(slope)
        if self.acc is not self.low:
            low.copy_(x)

    def score_rows(self, hidden: Tensor, target: Tensor, direction: Tensor | None) -> TokenScores:
        """Sweep the vocabulary for one tile of rows, n of them; fills `direction` (m, H) for the first m."""
        top, total = self._sweep(hidden, target, direction)
        if direction is not None:
            count = direction.shape[0]
            direction.div_(total.masked_fill(total == 0, 1)[:count]).neg_()
        target_weight = self.head.weight[target].to(self.dtype)
        target_logit, target_slope = target_logits(hidden, target, target_weight, self.head)
        # A few numbers a token: in float64 none of the differences below rounds.
        gap = total.double().log() + (top.double() - target_logit.double())
        miss = torch.sigmoid(gap).to(self.dtype)
        if direction is not None:
            direction.add_(target_weight[:count].mul_(target_slope[:count])).mul_(miss[:count] * self.head.scale)
        logprob = -F.softplus(gap, threshold=40).to(self.dtype)
        return TokenScores(*(x.squeeze(1) for x in (logprob, miss, top, total)))

    def _sweep(self, hidden: Tensor, target: Tensor, direction: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return (top, total), (n, 1) each, and add the exponentials' products with the weight to `direction`."""
        if hidden.dtype == torch.float16:
            return self._sweep_from_the_top(hidden, target, direction)
        top, total = self._sweep_from_the_start(hidden, target, direction)
        lost = ~((total > _SAFE[0]) & (total < _SAFE[1])).squeeze(1)
        if lost.any():
            (rows,) = lost.nonzero(as_tuple=True)
            again, its_target = padded_rows(hidden[rows], target[rows], most=self.tiles.rows)
            its_direction = None if direction is None else direction.new_zeros(again.shape)
            its_top, its_total = self._sweep_from_the_top(again, its_target, its_direction)
            top[rows], total[rows] = its_top[: rows.numel()], its_total[: rows.numel()]
            if direction is not None and its_direction is not None:
                mine = int((rows < direction.shape[0]).sum())  # ascending
                direction[rows[:mine]] = its_direction[:mine]
        return top, total

    def _sweep_from_the_start(self, hidden: Tensor, target: Tensor, direction: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take exp(z - top), the top being 0, or what the first tile shows where that is far from 0.

        Two passes over a tile fewer than with a top that moves; right where the total ends within `_SAFE`.
        """
        top = hidden.new_zeros(hidden.shape[0], 1, dtype=self.dtype)
        total, shifted, targets = torch.zeros_like(top), True, self.targets(target)
        kept = 0 if direction is None else direction.shape[0]
        for columns in slices(self.head.weight.shape[0], self.tiles.columns):
            tile = self.logits(hidden, columns)
            for rows, x, slope in self.blocks(tile, columns, targets, slopes=direction is not None):
                if columns.start == 0:
                    highest = x.amax(dim=1, keepdim=True)
                    top[rows] = torch.where(highest.isfinite() & (highest.abs() > _FAR), highest, 0.0)
                if shifted:
                    x.sub_(top[rows])
                x.exp_()
                total[rows] += x.sum(dim=1, keepdim=True)
                if rows.start < kept:
                    self.store(tile[rows], x, slope)
            if columns.start == 0:
                shifted = bool((top != 0).any())
            if direction is not None:
                self.add_product(direction, tile[:kept], self.head.weight[columns], 1)
        return top, total

    def _sweep_from_the_top(self, hidden: Tensor, target: Tensor, direction: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take exp(z - top), the top being the largest logit so far."""
        # A finite start keeps `top - top` a number where every entry so far was masked.
        top = hidden.new_full((hidden.shape[0], 1), torch.finfo(self.dtype).min, dtype=self.dtype)
        total, rescale, targets = torch.zeros_like(top), torch.empty_like(top), self.targets(target)
        kept = 0 if direction is None else direction.shape[0]
        for columns in slices(self.head.weight.shape[0], self.tiles.columns):
            tile = self.logits(hidden, columns)
            for rows, x, slope in self.blocks(tile, columns, targets, slopes=direction is not None):
                new_top = torch.maximum(top[rows], x.amax(dim=1, keepdim=True))
                rescale[rows] = torch.exp(top[rows] - new_top)
                top[rows] = new_top
                x.sub_(new_top).exp_()
                total[rows] = total[rows] * rescale[rows] + x.sum(dim=1, keepdim=True)
                if rows.start < kept:
                    self.store(tile[rows], x, slope)
            if direction is not None:
                self.add_product(direction.mul_(rescale[:kept]), tile[:kept], self.head.weight[columns], 1)
        return top, total

    def sum_rows(self, hidden: Tensor, target: Tensor) -> TokenSums:
        """Sweep the vocabulary for one tile of rows, n of them, for the sums of statistics."""
        top = hidden.new_full((hidden.shape[0], 1), torch.finfo(self.dtype).min, dtype=self.dtype)
        total, weighted, squares = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
        targets = self.targets(target)
        for columns in slices(self.head.weight.shape[0], self.tiles.columns):
            tile = self.logits(hidden, columns)
            for rows, x, _ in self.blocks(tile, columns, targets, slopes=False):
                old, new = top[rows], torch.maximum(top[rows], x.amax(dim=1, keepdim=True))
                rescale = torch.exp(old - new)
                e = x.sub_(new).exp()
                moved = torch.where(total[rows] > 0, weighted[rows] + (old - new) * total[rows], 0.0)
                weighted[rows] = moved * rescale + (e * x.masked_fill_(e == 0, 0.0)).sum(dim=1, keepdim=True)
                squares[rows] = squares[rows] * rescale.square() + e.square().sum(dim=1, keepdim=True)
                total[rows] = total[rows] * rescale + e.sum(dim=1, keepdim=True)
                top[rows] = new
        return TokenSums(*(x.squeeze(1) for x in (top, total, weighted, squares, top)))

    def slopes(
        self, hidden: Tensor, targets: RowTargets, others: Others, rows: slice, columns: slice, d_bias: Tensor | None
    ) -> Tensor:
        """Return a tile of `factor * softmax_others(v) g_v`, (n, v), 0 at the target; take it from `d_bias` (V,)."""
        tile = self.logits(hidden, columns)
        top, share = others.top[rows], others.share[rows]
        for block, x, slope in self.blocks(tile, columns, targets, slopes=True):
            x.sub_(top[block]).exp_().mul_(share[block])
            self.store(tile[block], x, slope)
            if d_bias is not None:
                d_bias[columns] -= x.sum(dim=0)
        return tile


class Others:
    """What a backward pass needs of every token, each (N, 1): its gradient is `factor * unit` times the direction."""

    def __init__(self, scores: TokenScores, upstream: Tensor) -> None:
        factor = (upstream.to(scores.miss.dtype) * scores.miss).unsqueeze(1)
        largest = factor.abs().max() if factor.numel() else factor.new_ones(())
        self.unit = torch.where(largest == 0, torch.ones_like(largest), largest)
        """The largest |factor| before the division by it, a scalar: small gradients would be lost in float16."""
        self.factor = factor / self.unit
        """`upstream * (1 - p_y) / unit`."""
        total = scores.total.unsqueeze(1)
        self.share = self.factor / total.masked_fill(total == 0, 1)
        self.top = scores.top.unsqueeze(1)


def padded_rows(hidden: Tensor, target: Tensor, most: int = 1 << 60) -> tuple[Tensor, Tensor]:
    """Return both with zeros at their end, to `most` rows, where a product of a new size would be compiled."""
    count = hidden.shape[0]
    if not count or not compiles_by_shape(hidden.device, hidden.dtype):
        return hidden, target
    extra = max(0, min(rounded(count), most) - count)
    return F.pad(hidden, (0, 0, 0, extra)), F.pad(target, (0, extra))


def target_logits(hidden: Tensor, target: Tensor, target_weight: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Return the targets' logits and their `1 - tanh^2`, (n, 1) each, from `target_weight` (n, H)."""
    logit = (hidden.to(target_weight.dtype) * target_weight).sum(dim=1, keepdim=True)
    finish_logits(logit, head, None if head.bias is None else head.bias[target].unsqueeze(1))
    if head.softcap is None:
        return logit, torch.ones_like(logit)
    return logit * head.softcap, 1 - logit * logit


def finish_logits(x: Tensor, head: Head, bias: Tensor | None) -> None:
    """Turn `h W^T` into logits in place; with a softcap into `tanh(z / c)`, which the slope needs too."""
    if head.scale != 1.0:
        x.mul_(head.scale)
    if bias is not None:
        x.add_(bias)
    if head.softcap is not None:
        x.div_(head.softcap).tanh_()


def slices(length: int, step: int) -> Iterator[slice]:
    """Cut `range(length)` into slices of at most `step`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
