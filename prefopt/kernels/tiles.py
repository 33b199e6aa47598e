"""The `torch` backend of the fused linear log-prob: one tile of logits at a time, on any device.

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

import torch
from torch import Tensor
from torch.nn import functional as F

from prefopt.kernels.head import Head, HeadGradients, TokenScores, TokenSums, accumulation_dtype
from prefopt.kernels.shapes import compiles_by_shape, rounded


@dataclass(frozen=True)
class Tiles:
    """How much of the (N, V) logits is looked at together."""

    rows: int
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


class Workspace:
    """The buffers that every tile reuses, and the operations on one tile."""

    def __init__(self, hidden: Tensor, head: Head, tiles: Tiles) -> None:
        vocabulary, width = head.weight.shape
        rows, columns = max(1, min(tiles.rows, hidden.shape[0])), min(tiles.columns, vocabulary)
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

    def blocks(
        self, tile: Tensor, columns: slice, target: Tensor, slopes: bool
    ) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Yield (rows, final logits, `1 - tanh^2` if asked and capped) of `tile`, in the accumulation dtype.

        The target's logit is -inf.
        """
        head = self.head
        local, inside = _within(target, columns)
        # Where -inf stays what it is on the way from product to logit, it is set for all rows at once.
        early = head.softcap is None and head.scale > 0
        if early:
            _replace(tile, local, inside, -torch.inf)
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
                _replace(x, local[rows], inside[rows], -torch.inf)
            yield rows, x, slope

    def store(self, low: Tensor, x: Tensor, slope: Tensor | None) -> None:
        """Write a block `x`, times its `slope`, back over its rows of the tile."""
        if slope is not None:
            x.mul_(slope)
        if self.acc is not self.low:
            low.copy_(x)

    def score_rows(self, hidden: Tensor, target: Tensor, direction: Tensor | None) -> TokenScores:
        """Sweep the vocabulary for one tile of rows, n of them; fills `direction` (n, H)."""
        top, total = self._sweep(hidden, target, direction)
        if direction is not None:
            direction.div_(total.masked_fill(total == 0, 1)).neg_()
        target_weight = self.head.weight[target].to(self.dtype)
        target_logit, target_slope = target_logits(hidden, target, target_weight, self.head)
        # A few numbers a token: in float64 none of the differences below rounds.
        gap = total.double().log() + (top.double() - target_logit.double())
        miss = torch.sigmoid(gap).to(self.dtype)
        if direction is not None:
            direction.add_(target_weight.mul_(target_slope)).mul_(miss * self.head.scale)
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
                direction[rows] = its_direction[: rows.numel()]
        return top, total

    def _sweep_from_the_start(self, hidden: Tensor, target: Tensor, direction: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take exp(z - top), the top being 0, or what the first tile shows where that is far from 0.

        Two passes over a tile fewer than with a top that moves; right where the total ends within `_SAFE`.
        """
        top = hidden.new_zeros(hidden.shape[0], 1, dtype=self.dtype)
        total, shifted = torch.zeros_like(top), True
        for columns in slices(self.head.weight.shape[0], self.tiles.columns):
            tile = self.logits(hidden, columns)
            for rows, x, slope in self.blocks(tile, columns, target, slopes=direction is not None):
                if columns.start == 0:
                    highest = x.amax(dim=1, keepdim=True)
                    top[rows] = torch.where(highest.isfinite() & (highest.abs() > _FAR), highest, 0.0)
                if shifted:
                    x.sub_(top[rows])
                x.exp_()
                total[rows] += x.sum(dim=1, keepdim=True)
                if direction is not None:
                    self.store(tile[rows], x, slope)
            if columns.start == 0:
                shifted = bool((top != 0).any())
            if direction is not None:
                self.add_product(direction, tile, self.head.weight[columns], 1)
        return top, total

    def _sweep_from_the_top(self, hidden: Tensor, target: Tensor, direction: Tensor | None) -> tuple[Tensor, Tensor]:
        """Take exp(z - top), the top being the largest logit so far."""
        # A finite start keeps `top - top` a number where every entry so far was masked.
        top = hidden.new_full((hidden.shape[0], 1), torch.finfo(self.dtype).min, dtype=self.dtype)
        total, rescale = torch.zeros_like(top), torch.empty_like(top)
        for columns in slices(self.head.weight.shape[0], self.tiles.columns):
            tile = self.logits(hidden, columns)
            for rows, x, slope in self.blocks(tile, columns, target, slopes=direction is not None):
                new_top = torch.maximum(top[rows], x.amax(dim=1, keepdim=True))
                rescale[rows] = torch.exp(top[rows] - new_top)
                top[rows] = new_top
                x.sub_(new_top).exp_()
                total[rows] = total[rows] * rescale[rows] + x.sum(dim=1, keepdim=True)
                if direction is not None:
                    self.store(tile[rows], x, slope)
            if direction is not None:
                self.add_product(direction.mul_(rescale), tile, self.head.weight[columns], 1)
        return top, total

    def sum_rows(self, hidden: Tensor, target: Tensor) -> TokenSums:
        """Sweep the vocabulary for one tile of rows, n of them, for the sums of statistics."""
        top = hidden.new_full((hidden.shape[0], 1), torch.finfo(self.dtype).min, dtype=self.dtype)
        total, weighted, squares = torch.zeros_like(top), torch.zeros_like(top), torch.zeros_like(top)
        for columns in slices(self.head.weight.shape[0], self.tiles.columns):
            tile = self.logits(hidden, columns)
            for rows, x, _ in self.blocks(tile, columns, target, slopes=False):
                old, new = top[rows], torch.maximum(top[rows], x.amax(dim=1, keepdim=True))
                rescale = torch.exp(old - new)
                e = x.sub_(new).exp()
                moved = torch.where(total[rows] > 0, weighted[rows] + (old - new) * total[rows], 0.0)
                weighted[rows] = moved * rescale + (e * x.masked_fill_(e == 0, 0.0)).sum(dim=1, keepdim=True)
                squares[rows] = squares[rows] * rescale.square() + e.square().sum(dim=1, keepdim=True)
                total[rows] = total[rows] * rescale + e.sum(dim=1, keepdim=True)
                top[rows] = new
        return TokenSums(*(x.squeeze(1) for x in (top, total, weighted, squares, top)))

    def slopes(self, hidden: Tensor, others: Others, rows: slice, columns: slice, d_bias: Tensor | None) -> Tensor:
        """Return a tile of `factor * softmax_others(v) g_v`, (n, v), 0 at the target; take it from `d_bias` (V,)."""
        tile = self.logits(hidden, columns)
        top, share = others.top[rows], others.share[rows]
        for block, x, slope in self.blocks(tile, columns, others.target[rows], slopes=True):
            x.sub_(top[block]).exp_().mul_(share[block])
            self.store(tile[block], x, slope)
            if d_bias is not None:
                d_bias[columns] -= x.sum(dim=0)
        return tile


class Others:
    """What a backward pass needs of every token, each (N, 1): its gradient is `factor * unit` times the direction."""

    def __init__(self, target: Tensor, scores: TokenScores, upstream: Tensor) -> None:
        factor = (upstream.to(scores.miss.dtype) * scores.miss).unsqueeze(1)
        largest = factor.abs().max() if factor.numel() else factor.new_ones(())
        self.unit = torch.where(largest == 0, torch.ones_like(largest), largest)
        """The largest |factor| before the division by it, a scalar: small gradients would be lost in float16."""
        self.factor = factor / self.unit
        """`upstream * (1 - p_y) / unit`."""
        total = scores.total.unsqueeze(1)
        self.share = self.factor / total.masked_fill(total == 0, 1)
        self.target, self.top = target, scores.top.unsqueeze(1)


class _Targets:
    """The targets' own part of the head's gradients, in the accumulation dtype; tokens sorted by target."""

    def __init__(self, hidden: Tensor, target: Tensor, head: Head, factor: Tensor) -> None:
        self.target, self.order = target.sort(stable=True)
        self.hidden = hidden
        self.factor = factor.clone()
        if head.softcap is not None:
            for rows in slices(hidden.shape[0], 512):
                target_weight = head.weight[target[rows]].to(factor.dtype)
                self.factor[rows] *= target_logits(hidden[rows], target[rows], target_weight, head)[1]

    def add_to_weight(self, d_tile: Tensor, columns: slice) -> None:
        """Add `factor g_y h` to the target rows that lie in this tile, (v, H), in a fixed order."""
        bounds = self.target.new_tensor([columns.start, columns.stop])
        first, last = torch.searchsorted(self.target, bounds).tolist()
        order = self.order[first:last]
        _add_at(d_tile, self.target[first:last] - columns.start, self.hidden[order] * self.factor[order])

    def add_to_bias(self, d_bias: Tensor) -> Tensor:
        """Add `factor g_y`, (V,)."""
        _add_at(d_bias, self.target, self.factor[self.order].squeeze(1))
        return d_bias


class TorchTiles:
    """`head.Backend` in plain torch operations; tiles of another size are for tests."""

    workspace: type[Workspace] = Workspace
    """What is done to one tile; another backend does it by kernels of its own."""

    def __init__(self, tiles: Tiles | None = None) -> None:
        self.tiles = tiles

    def score(self, hidden: Tensor, target: Tensor, head: Head) -> TokenScores:
        return self._score(hidden, target, head, None)

    def score_with_direction(self, hidden: Tensor, target: Tensor, head: Head) -> tuple[TokenScores, Tensor]:
        direction = hidden.new_zeros(hidden.shape, dtype=accumulation_dtype(hidden.dtype))
        return self._score(hidden, target, head, direction), direction

    def _score(self, hidden: Tensor, target: Tensor, head: Head, direction: Tensor | None) -> TokenScores:
        count = hidden.shape[0]
        hidden, target = padded_rows(hidden, target)
        if hidden.shape[0] == count:
            return self._score_all(hidden, target, head, direction)
        padded = None if direction is None else direction.new_zeros(hidden.shape)
        scores = self._score_all(hidden, target, head, padded)
        if direction is not None and padded is not None:
            direction.copy_(padded[:count])
        return TokenScores(*(part[:count] for part in scores))

    def _score_all(self, hidden: Tensor, target: Tensor, head: Head, direction: Tensor | None) -> TokenScores:
        work = self.workspace(hidden, head, self.tiles or Tiles.choose(hidden))
        scores = TokenScores(*(hidden.new_empty(hidden.shape[0], dtype=work.dtype) for _ in TokenScores._fields))
        for rows in slices(hidden.shape[0], work.tiles.rows):
            into = None if direction is None else direction[rows]
            for whole, part in zip(scores, work.score_rows(hidden[rows], target[rows], into), strict=True):
                whole[rows] = part
        return scores

    def sums(self, hidden: Tensor, target: Tensor, head: Head) -> TokenSums:
        count = hidden.shape[0]
        hidden, target = padded_rows(hidden, target)
        work = self.workspace(hidden, head, self.tiles or Tiles.choose(hidden))
        parts = [work.sum_rows(hidden[rows], target[rows]) for rows in slices(hidden.shape[0], work.tiles.rows)]
        if not parts:
            return TokenSums(*(hidden.new_empty(0, dtype=work.dtype) for _ in TokenSums._fields))
        return TokenSums(*(torch.cat(column)[:count] for column in zip(*parts, strict=True)))

    def gradients(
        self, hidden: Tensor, target: Tensor, head: Head, scores: TokenScores, upstream: Tensor, needs: tuple[bool, ...]
    ) -> HeadGradients:
        work, weight = self.workspace(hidden, head, self.tiles or Tiles.choose(hidden)), head.weight
        others = Others(target, scores, upstream)
        d_hidden = hidden.new_zeros(hidden.shape, dtype=work.dtype) if needs[0] else None
        d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needs[1] else None
        d_bias = weight.new_zeros(weight.shape[0], dtype=work.dtype) if needs[2] else None
        targets = _Targets(hidden, target, head, others.factor) if needs[1] or needs[2] else None
        for columns in slices(weight.shape[0], work.tiles.columns):
            d_tile = weight.new_zeros(weight[columns].shape, dtype=work.dtype) if d_weight is not None else None
            for rows in slices(hidden.shape[0], work.tiles.rows):
                slopes = work.slopes(hidden[rows], others, rows, columns, d_bias)
                if d_hidden is not None:
                    work.add_product(d_hidden[rows], slopes, weight[columns], -1)
                if d_tile is not None:
                    work.add_product(d_tile, slopes.T, hidden[rows], -1)
            if d_weight is not None and d_tile is not None and targets is not None:
                targets.add_to_weight(d_tile, columns)
                d_weight[columns] = d_tile.mul_(others.unit * head.scale)
        if d_hidden is not None:
            for rows in slices(hidden.shape[0], work.tiles.rows):
                target_weight = weight[target[rows]].to(work.dtype)
                slope = target_logits(hidden[rows], target[rows], target_weight, head)[1]
                d_hidden[rows].add_(target_weight.mul_(slope * others.factor[rows]))
            d_hidden = d_hidden.mul_(others.unit * head.scale).to(hidden.dtype)
        if d_bias is not None and targets is not None:
            d_bias = targets.add_to_bias(d_bias).mul_(others.unit).to(weight.dtype)
        return HeadGradients(d_hidden, d_weight, d_bias)

    def scale_rows(self, rows: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
        out = torch.empty_like(rows, dtype=dtype)
        # Rows at a time, so that no second (N, H) in the accumulation dtype exists.
        for part in slices(rows.shape[0], 512):
            out[part] = rows[part] * factor[part].unsqueeze(1)
        return out


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


def _add_at(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add `values` to `total[rows]`, rows that stand several times in a fixed order."""
    if total.is_cuda:
        total.index_put_((rows,), values, accumulate=True)  # sorts; `index_add_` adds atomically there
    else:
        total.index_add_(0, rows, values)


def _within(target: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Return each target's place within `columns`, clamped, and whether it lies there; (n,) each."""
    inside = (target >= columns.start) & (target < columns.stop)
    return (target - columns.start).clamp_(0, columns.stop - columns.start - 1), inside


def _replace(x: Tensor, local: Tensor, inside: Tensor, value: float) -> None:
    """Set the targets' entries of a contiguous block to `value`, in place and without asking the device where they are.

    By flat index: `gather` and `scatter_` of 16-bit tensors copy them whole on a CPU.
    """
    flat = x.view(-1)
    at = torch.arange(0, flat.numel(), x.shape[1], device=x.device) + local
    flat.index_put_((at,), torch.where(inside, value, flat[at]).to(x.dtype))


def slices(length: int, step: int) -> Iterator[slice]:
    """Cut `range(length)` into slices of at most `step`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
