"""Divergences in plain torch operations: one tile of both models' logits at a time, on any device.

Letters: n rows of a tile, H hidden, V vocabulary; p is the policy's distribution and r the reference's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from prefopt.kernels.head import Head
from prefopt.kernels.workspace import Tiles, Workspace, finish_logits, slices

Direction = Literal["reference_policy", "policy_reference"]


class PairSums(NamedTuple):
    """What a divergence is made from. All (n,), in the accumulation dtype."""

    top_p: Tensor
    """The policy's largest logit."""
    total_p: Tensor
    """`sum of exp(z_p - top_p)`."""
    top_r: Tensor
    """The reference's largest logit."""
    total_r: Tensor
    """`sum of exp(z_r - top_r)`."""
    gaps: Tensor
    """`sum of exp(z - top)` of the distribution that averages, times how far its logit is above the other's."""


class TorchPair:
    """The operations on both models' tiles of the same rows and columns."""

    workspace: type[Workspace] = Workspace
    """What multiplies; another backend does it its own way."""

    def __init__(
        self,
        policy: Tensor,
        reference: Tensor,
        head: Head,
        other: Head,
        direction: Direction,
        tiles: Tiles | None = None,
    ) -> None:
        tiles = tiles or Tiles.choose(policy)
        count = policy.shape[0]
        self.policy = self.workspace(policy, head, tiles, count)
        self.reference = self.workspace(reference, other, tiles, count)
        self.tiles, self.dtype = self.policy.tiles, self.policy.dtype
        self.forward = direction == "reference_policy"

    def logits(self, policy: Tensor, reference: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
        """Return both models' `h W^T` of one tile, (n, v) each, as the vendor's product rounds them."""
        return self.policy.logits(policy, columns), self.reference.logits(reference, columns)

    def sums(self, policy: Tensor, reference: Tensor) -> PairSums:
        """Sweep the vocabulary for one tile of rows, n of them."""
        # A finite start keeps `top - top` a number where every entry so far was -inf.
        top_p, top_r = policy.new_full((2, policy.shape[0], 1), torch.finfo(self.dtype).min, dtype=self.dtype)
        total_p, total_r, gaps = policy.new_zeros((3, policy.shape[0], 1), dtype=self.dtype)
        for columns in slices(self.policy.head.weight.shape[0], self.tiles.columns):
            both = self.logits(policy, reference, columns)
            for rows, x, y, _ in self._blocks(*both, columns):
                e_p, shrunk_p = _exponentials(x, top_p[rows])
                e_r, shrunk_r = _exponentials(y, top_r[rows])
                total_p[rows] = total_p[rows] * shrunk_p + e_p.sum(1, keepdim=True)
                total_r[rows] = total_r[rows] * shrunk_r + e_r.sum(1, keepdim=True)
                first, ahead, behind, shrunk = (e_r, y, x, shrunk_r) if self.forward else (e_p, x, y, shrunk_p)
                # Where both logits are -inf (a padded vocabulary) their difference is no number: it counts for nothing.
                terms = torch.where(first > 0, first * (ahead - behind), 0.0)
                gaps[rows] = gaps[rows] * shrunk + terms.sum(1, keepdim=True)
        return PairSums(*(x.squeeze(1) for x in (top_p, total_p, top_r, total_r, gaps)))

    def gradient(self, policy: Tensor, reference: Tensor, lse_p: Tensor, lse_r: Tensor, value: Tensor) -> Tensor:
        """Return `sum over v of d KL / d z_p(v) g_v W_v`, (n, H) in the accumulation dtype; (n,) each of the three."""
        weight = self.policy.head.weight
        lse_p, lse_r, value = (x.unsqueeze(1) for x in (lse_p, lse_r, value))
        total = policy.new_zeros(policy.shape, dtype=self.dtype)
        # Differences of probabilities are below what float16 holds.
        wide = policy.dtype == torch.float16
        for columns in slices(weight.shape[0], self.tiles.columns):
            both = self.logits(policy, reference, columns)
            slopes = torch.empty_like(both[0], dtype=self.dtype) if wide else both[0]
            for rows, x, y, slope in self._blocks(*both, columns):
                p = torch.exp(x - lse_p[rows])
                if self.forward:
                    d = p - torch.exp(y - lse_r[rows])
                else:
                    d = torch.where(p > 0, p * ((x - lse_p[rows]) - (y - lse_r[rows]) - value[rows]), 0.0)
                slopes[rows] = d if slope is None else d * slope
            if wide:
                total.addmm_(slopes, weight[columns].to(self.dtype))
            else:
                self.policy.add_product(total, slopes, weight[columns], 1)
        return total

    def _blocks(
        self, tile_p: Tensor, tile_r: Tensor, columns: slice
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """Yield rows, the policy's logits, the reference's, and if capped the policy's `1 - tanh^2`."""
        head, other = self.policy.head, self.reference.head
        for rows in slices(tile_p.shape[0], self.tiles.block):
            x, y = tile_p[rows].to(self.dtype, copy=True), tile_r[rows].to(self.dtype, copy=True)
            for logits, side in ((x, head), (y, other)):
                finish_logits(logits, side, None if side.bias is None else side.bias[columns])
            slope = None if head.softcap is None else 1 - x * x
            for logits, side in ((x, head), (y, other)):
                if side.softcap is not None:
                    logits.mul_(side.softcap)
            yield rows, x, y, slope


def _exponentials(x: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(x - top) with the new `top`, which is moved in place, and what older sums shrink by."""
    new = torch.maximum(top, x.amax(1, keepdim=True))
    shrunk = torch.exp(top - new)
    top.copy_(new)
    return torch.exp(x - new), shrunk
