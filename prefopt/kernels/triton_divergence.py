"""Divergences by Triton kernels: the vendor's products, and one kernel that reads both models' tiles once.

One program does one row, in float32 whatever the tile's dtype, without atomics: the same input gives the same bits.
Letters: n rows of a tile, v columns, H hidden, V vocabulary; p is the policy's distribution and r the reference's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from prefopt.kernels.divergence_tiles import PairSums, TorchPair
from prefopt.kernels.head import Head
from prefopt.kernels.triton_kernels import final_logits, rescale_kernel
from prefopt.kernels.triton_tiles import TritonWorkspace, by_width, launch
from prefopt.kernels.workspace import slices

LEAST = 1e-30
"""Where the unit of a row of slopes starts: none is measured in less."""


@triton.jit
def _both(  # type: ignore[no-untyped-def]
    policy_at, reference_at, bias_p_ptr, bias_r_ptr, columns, inside, scale_p, scale_r, softcap_p, softcap_r,
    HAS_BIAS_P: tl.constexpr, HAS_BIAS_R: tl.constexpr, HAS_SOFTCAP_P: tl.constexpr, HAS_SOFTCAP_R: tl.constexpr,
):  # fmt: skip
    """Load a row of both tiles as logits, -inf past the end; return them and the policy's `1 - tanh^2`."""
    x = tl.load(policy_at, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(reference_at, mask=inside, other=0.0).to(tl.float32)
    x, slope = final_logits(x, bias_p_ptr, columns, inside, scale_p, softcap_p, HAS_BIAS_P, HAS_SOFTCAP_P)
    y, _ = final_logits(y, bias_r_ptr, columns, inside, scale_r, softcap_r, HAS_BIAS_R, HAS_SOFTCAP_R)
    return tl.where(inside, x, -float("inf")), tl.where(inside, y, -float("inf")), slope


@triton.jit
def pair_fold_kernel(  # type: ignore[no-untyped-def]
    policy_ptr,  # (n, v) the policy's products `h W^T`
    reference_ptr,  # (n, v) the reference's
    bias_p_ptr,  # (V,) shifted to the tile's first column, or anything without HAS_BIAS_P
    bias_r_ptr,  # (V,) the same of the reference
    top_p_ptr,  # (n,) float32, carried from tile to tile, as are the four below
    total_p_ptr,
    top_r_ptr,
    total_r_ptr,
    gaps_ptr,  # sum of exp(z - top) of the distribution that averages, times its logit less the other's
    width,  # v
    row_stride,
    scale_p,
    scale_r,
    softcap_p,
    softcap_r,
    BLOCK: tl.constexpr,
    FORWARD: tl.constexpr,  # the reference averages
    HAS_BIAS_P: tl.constexpr,
    HAS_BIAS_R: tl.constexpr,
    HAS_SOFTCAP_P: tl.constexpr,
    HAS_SOFTCAP_R: tl.constexpr,
):
    """Fold a tile of both models into the sums of its rows."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    at = row.to(tl.int64) * row_stride + columns
    x, y, _ = _both(policy_ptr + at, reference_ptr + at, bias_p_ptr, bias_r_ptr, columns, columns < width,
                    scale_p, scale_r, softcap_p, softcap_r,
                    HAS_BIAS_P, HAS_BIAS_R, HAS_SOFTCAP_P, HAS_SOFTCAP_R)  # fmt: skip
    old_p, old_r = tl.load(top_p_ptr + row), tl.load(top_r_ptr + row)
    top_p, top_r = tl.maximum(old_p, tl.max(x, axis=0)), tl.maximum(old_r, tl.max(y, axis=0))
    e_p, e_r = tl.exp(x - top_p), tl.exp(y - top_r)
    shrunk_p, shrunk_r = tl.exp(old_p - top_p), tl.exp(old_r - top_r)
    # Where both logits are -inf their difference is no number: it counts for nothing.
    if FORWARD:
        terms, shrunk = tl.where(e_r > 0, e_r * (y - x), 0.0), shrunk_r
    else:
        terms, shrunk = tl.where(e_p > 0, e_p * (x - y), 0.0), shrunk_p
    tl.store(gaps_ptr + row, tl.load(gaps_ptr + row) * shrunk + tl.sum(terms, axis=0))
    tl.store(total_p_ptr + row, tl.load(total_p_ptr + row) * shrunk_p + tl.sum(e_p, axis=0))
    tl.store(total_r_ptr + row, tl.load(total_r_ptr + row) * shrunk_r + tl.sum(e_r, axis=0))
    tl.store(top_p_ptr + row, top_p)
    tl.store(top_r_ptr + row, top_r)


@triton.jit
def pair_slope_kernel(  # type: ignore[no-untyped-def]
    policy_ptr,  # (n, v) the policy's products; overwritten by d KL / d z_p (1 - tanh^2), in units with SCALED
    reference_ptr,
    bias_p_ptr,
    bias_r_ptr,
    lse_p_ptr,  # (n,) float32
    lse_r_ptr,  # (n,) float32
    value_ptr,  # (n,) float32, the divergence
    unit_ptr,  # (n,) float32, carried with SCALED: the largest |slope| of the row so far
    rescale_ptr,  # (n,) float32, written with SCALED: what a sum taken in the old unit is multiplied by
    width,
    row_stride,
    scale_p,
    scale_r,
    softcap_p,
    softcap_r,
    BLOCK: tl.constexpr,
    FORWARD: tl.constexpr,
    SCALED: tl.constexpr,
    HAS_BIAS_P: tl.constexpr,
    HAS_BIAS_R: tl.constexpr,
    HAS_SOFTCAP_P: tl.constexpr,
    HAS_SOFTCAP_R: tl.constexpr,
):
    """Turn a tile of both models into the slopes that the gradient's product multiplies with the weight."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = row.to(tl.int64) * row_stride + columns
    x, y, slope = _both(policy_ptr + at, reference_ptr + at, bias_p_ptr, bias_r_ptr, columns, inside,
                        scale_p, scale_r, softcap_p, softcap_r,
                        HAS_BIAS_P, HAS_BIAS_R, HAS_SOFTCAP_P, HAS_SOFTCAP_R)  # fmt: skip
    log_p, log_r = x - tl.load(lse_p_ptr + row), y - tl.load(lse_r_ptr + row)
    p = tl.exp(log_p)
    if FORWARD:
        d = (p - tl.exp(log_r)) * slope
    else:
        d = tl.where(p > 0, p * (log_p - log_r - tl.load(value_ptr + row)), 0.0) * slope
    if SCALED:
        old = tl.load(unit_ptr + row)
        unit = tl.maximum(old, tl.max(tl.abs(d), axis=0))
        tl.store(unit_ptr + row, unit)
        tl.store(rescale_ptr + row, old / unit)
        d = d / unit
    tl.store(policy_ptr + at, d.to(policy_ptr.dtype.element_ty), mask=inside)


class TritonPair(TorchPair):
    """The operations on both models' tiles, in bfloat16, float16 and float32; tiles of another size are for tests."""

    workspace = TritonWorkspace

    def sums(self, policy: Tensor, reference: Tensor) -> PairSums:
        total_p, total_r, gaps = policy.new_zeros(3, policy.shape[0], dtype=self.dtype)
        top_p, top_r = policy.new_full((2, policy.shape[0]), torch.finfo(self.dtype).min, dtype=self.dtype)
        sums = PairSums(top_p, total_p, top_r, total_r, gaps)
        for columns in slices(self.policy.head.weight.shape[0], self.tiles.columns):
            self._launch(pair_fold_kernel, policy, reference, columns, *sums)
        return sums

    def gradient(self, policy: Tensor, reference: Tensor, lse_p: Tensor, lse_r: Tensor, value: Tensor) -> Tensor:
        weight = self.policy.head.weight
        total = policy.new_zeros(policy.shape, dtype=self.dtype)
        # Differences of probabilities are below what float16 holds: each row gets a unit of its own there.
        scaled = policy.dtype == torch.float16
        unit, rescale = (torch.full_like(value, LEAST) for _ in range(2)) if scaled else (value, value)
        for columns in slices(weight.shape[0], self.tiles.columns):
            tile = self._launch(
                pair_slope_kernel, policy, reference, columns, lse_p, lse_r, value, unit, rescale, SCALED=scaled
            )
            if scaled and columns.start:
                rescale_kernel[(tile.shape[0],)](total, rescale, total.shape[1], **by_width(total))
            self.policy.add_product(total, tile, weight[columns], 1)
        return total.mul_(unit.unsqueeze(1)) if scaled else total

    def _launch(
        self, kernel: Any, policy: Tensor, reference: Tensor, columns: slice, *rows: Tensor, **options: bool
    ) -> Tensor:
        """Run a kernel on both tiles and what it knows of their rows; return the policy's tile."""
        head, other = self.policy.head, self.reference.head
        tile, its_tile = self.logits(policy, reference, columns)
        kernel[(tile.shape[0],)](
            tile, its_tile, _bias(head, columns, tile), _bias(other, columns, tile), *rows, tile.shape[1],
            tile.stride(0), head.scale, other.scale, head.softcap or 1.0, other.softcap or 1.0,
            FORWARD=self.forward, HAS_BIAS_P=head.bias is not None, HAS_BIAS_R=other.bias is not None,
            HAS_SOFTCAP_P=head.softcap is not None, HAS_SOFTCAP_R=other.softcap is not None, **options,
            **launch(self.tiles.columns),
        )  # fmt: skip
        return tile


def _bias(head: Head, columns: slice, anything: Tensor) -> Tensor:
    """Return the bias of these columns; anything where the head has none."""
    return anything if head.bias is None else head.bias[columns].contiguous()
