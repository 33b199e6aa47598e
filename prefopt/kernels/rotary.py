"""Rotary position embedding as one autograd function that keeps only the angles.

The halves x1, x2 of a head turn together (the half-split form of RoFormer's equation 34, as Llama has it):

    y1 = x1 cos1 - x2 sin1,    y2 = x2 cos2 + x1 sin2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` (..., D) turned by the angles whose `cos` and `sin` (..., D) broadcast to it and are of its dtype."""
    y: Tensor = _Rotary.apply(x, cos, sin)
    return y


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        x1, x2 = x.chunk(2, -1)
        sin1, sin2 = sin.chunk(2, -1)
        y = x * cos
        y1, y2 = y.chunk(2, -1)
        y1.addcmul_(x2, sin1, value=-1)
        y2.addcmul_(x1, sin2)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        grad1, grad2 = grad.chunk(2, -1)
        sin1, sin2 = sin.chunk(2, -1)
        d_x = grad * cos
        d1, d2 = d_x.chunk(2, -1)
        d1.addcmul_(grad2, sin2)
        d2.addcmul_(grad1, sin1, value=-1)
        return d_x, None, None
