"""A frozen linear layer with a low-rank update, as one autograd function.

Letters: T tokens, I and O the layer's inputs and outputs, r the rank.

    out     = x W^T + b + inner B^T,    inner = scale * x A^T
    d_inner = scale * grad B            dx = grad W + d_inner A
    dB      = grad^T inner              dA = d_inner^T x

The update is added by the product that makes it (addmm, in place), so neither direction holds or passes over a second
(T, O) or (T, I) matrix. Written as a sum of modules, the same layer scales, adds and keeps them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def low_rank_linear(
    x: Tensor, weight: Tensor | Callable[[], Tensor], bias: Tensor | None, down: Tensor, up: Tensor, scale: float
) -> Tensor:
    """Return `x W^T + bias + scale * (x down^T) up^T`, (..., O), in x's dtype.

    Args:
        x: (..., I), of the weight's dtype.
        weight: (O, I), frozen: it gets no gradient. Or a function that gives it, called once in each direction, for
            one that is stored otherwise and never kept.
        bias: (O,) or None, frozen.
        down: (r, I); of another dtype than x it is cast, and its gradient is cast back.
        up: (O, r), likewise.
        scale: multiplies the update.
    """
    out: Tensor = _LowRankLinear.apply(x, weight, bias, down, up, scale)
    return out


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | Callable[[], Tensor],
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scale: float,
    ) -> Tensor:
        ctx.dtypes, ctx.scale = (down.dtype, up.dtype), scale
        down, up = down.to(x.dtype), up.to(x.dtype)
        kept, ctx.stored = (weight, None) if isinstance(weight, Tensor) else (None, weight)
        out = F.linear(x, weight if isinstance(weight, Tensor) else weight(), bias)
        inner = F.linear(x, down).flatten(0, -2).mul_(scale)
        out.view(-1, out.shape[-1]).addmm_(inner, up.t())
        ctx.save_for_backward(x, kept, down, up, inner)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, inner = ctx.saved_tensors
        needs_x, _, _, needs_down, needs_up, _ = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        # (r, T) times (T, O) and turned: quicker on a CPU than its transpose.
        d_up = (inner.t() @ rows).t().to(ctx.dtypes[1]) if needs_up else None
        d_x = d_down = None
        if needs_x or needs_down:
            d_inner = (rows @ up).mul_(ctx.scale)
            if needs_down:
                d_down = (d_inner.t() @ x.reshape(-1, x.shape[-1])).to(ctx.dtypes[0])
            if needs_x:
                dense = weight if ctx.stored is None else ctx.stored()
                d_x = (rows @ dense).addmm_(d_inner, down).view_as(x)
        return d_x, None, None, d_down, d_up, None
