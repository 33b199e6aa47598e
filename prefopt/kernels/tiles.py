"""The `torch` backend of the fused linear log-prob: loops over tiles of logits, on any device.

What is done to one tile is `workspace.Workspace`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.kernels.head import BothScores, Head, HeadGradients, TokenScores, TokenSums, accumulation_dtype
from prefopt.kernels.workspace import Others, Tiles, Workspace, padded_rows, slices, target_logits


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
        """Add `factor g_y h` to the target rows that lie in this tile, (v, H), in a fixed order.

        Tokens with other targets add nothing, instead of being left out: how many they are is not known without asking
        the device, which can't be done while a CUDA graph is captured.
        """
        inside = (self.target >= columns.start) & (self.target < columns.start + d_tile.shape[0])
        local = torch.where(inside, self.target - columns.start, 0)
        for part in slices(local.numel(), 2048):
            order = self.order[part]
            values = self.hidden[order] * self.factor[order]
            _add_at(d_tile, local[part], values.masked_fill_(~inside[part, None], 0))

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
        work = self._work(hidden, head, hidden.shape[0])
        scores = TokenScores(*(hidden.new_empty(hidden.shape[0], dtype=work.dtype) for _ in TokenScores._fields))
        for rows in slices(hidden.shape[0], work.tiles.rows):
            into = None if direction is None else direction[rows]
            for whole, part in zip(scores, work.score_rows(hidden[rows], target[rows], into), strict=True):
                whole[rows] = part
        return scores

    def score_both(
        self, policy: Tensor, reference: Tensor, target: Tensor, head: Head, *, with_direction: bool
    ) -> BothScores:
        n, dtype = policy.shape[0], accumulation_dtype(policy.dtype)
        (policy, padded), (reference, _) = padded_rows(policy, target), padded_rows(reference, target)
        rows, most = policy.shape[0], (self.tiles or Tiles.choose(policy)).rows
        direction = policy.new_zeros(policy.shape, dtype=dtype) if with_direction else None
        # Where a row's bits depend on its place in a product (float64 on a CPU), and where tiles of half the rows of
        # each would be as many as for one after the other, they are scored apart.
        if dtype == torch.float64 or not 0 < 2 * rows <= most:
            scores, others = (self._score_all(x, padded, head, d) for x, d in ((policy, direction), (reference, None)))
        else:
            work = self._work(policy, head, 2 * rows)
            both = work.score_rows(torch.cat([policy, reference]), padded.repeat(2), direction)
            scores, others = (TokenScores(*(part[half] for part in both)) for half in (slice(rows), slice(rows, None)))
        # Clones: both are halves of the same tensors, and an operator's results may not share memory.
        scores = TokenScores(*(part[:n].clone() for part in scores))
        return BothScores(scores, None if direction is None else direction[:n], others.logprob[:n].clone())

    def _work(self, hidden: Tensor, head: Head, count: int) -> Workspace:
        return self.workspace(hidden, head, self.tiles or Tiles.choose(hidden), count)

    def sums(self, hidden: Tensor, target: Tensor, head: Head) -> TokenSums:
        count = hidden.shape[0]
        hidden, target = padded_rows(hidden, target)
        work = self._work(hidden, head, hidden.shape[0])
        parts = [work.sum_rows(hidden[rows], target[rows]) for rows in slices(hidden.shape[0], work.tiles.rows)]
        if not parts:
            return TokenSums(*(hidden.new_empty(0, dtype=work.dtype) for _ in TokenSums._fields))
        return TokenSums(*(torch.cat(column)[:count] for column in zip(*parts, strict=True)))

    def gradients(
        self, hidden: Tensor, target: Tensor, head: Head, scores: TokenScores, upstream: Tensor, needs: tuple[bool, ...]
    ) -> HeadGradients:
        work, weight = self._work(hidden, head, hidden.shape[0]), head.weight
        others = Others(scores, upstream)
        parts = [(rows, work.targets(target[rows])) for rows in slices(hidden.shape[0], work.tiles.rows)]
        d_hidden = hidden.new_zeros(hidden.shape, dtype=work.dtype) if needs[0] else None
        d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if needs[1] else None
        d_bias = weight.new_zeros(weight.shape[0], dtype=work.dtype) if needs[2] else None
        targets = _Targets(hidden, target, head, others.factor) if needs[1] or needs[2] else None
        room = work.columns_of_weight() if needs[1] else None
        for columns in slices(weight.shape[0], work.tiles.columns):
            d_tile = None if room is None else room[: weight[columns].shape[0]].zero_()
            for rows, row_targets in parts:
                slopes = work.slopes(hidden[rows], row_targets, others, rows, columns, d_bias)
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


def _add_at(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add `values` to `total[rows]`, rows that stand several times in a fixed order."""
    if total.is_cuda:
        total.index_put_((rows,), values, accumulate=True)  # sorts; `index_add_` adds atomically there
    else:
        total.index_add_(0, rows, values)
