"""Root-mean-square normalization with a frozen weight, as one autograd function that keeps only its input.

    y  = w * (r x),                     r = (mean(x^2) + eps)^(-1/2), one a row
    dx = r u - r^3 mean(u x) x,         u = w * grad

Rows are scaled by `_scale_rows`, one pass over them; what a model's own module does passes over float32 copies, and
autograd keeps those.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return `weight * x / sqrt(mean(x^2) + eps)` over the last dimension of `x` (..., H), in x's dtype.

    The mean and the scale are float32 (float64 for float64), and the normalized row is rounded before the weight
    multiplies it, as Llama's norm does. `weight` (H,) has x's dtype and gets no gradient.
    """
    y: Tensor = _RMSNorm.apply(x, weight, eps)
    return y


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        norm = torch.linalg.vector_norm(rows, dim=1, dtype=torch.promote_types(x.dtype, torch.float32))
        rstd = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, rstd)
        return _scale_rows(rows, rstd).mul_(weight).view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, weight, rstd = ctx.saved_tensors
        rows = x.reshape(-1, x.shape[-1])
        u = grad.reshape(rows.shape) * weight
        mean = (u * rows).sum(1, dtype=rstd.dtype).div_(rows.shape[1])
        return _scale_rows(u, rstd).sub_(_scale_rows(rows, mean.mul_(rstd**3))).view_as(x), None, None


def _scale_rows(rows: Tensor, scale: Tensor) -> Tensor:
    """Return `rows` (T, H) times `scale` (T,), computed in scale's dtype and rounded once to that of rows.

    Evaluation-mode batch norm of T channels with mean 0 and variance 1 is that, without the float32 copies of type
    promotion.
    """
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.native_batch_norm(rows[None], scale, None, zero, one, False, 0.0, 0.0)[0][0]
