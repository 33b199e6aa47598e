"""The autograd functions of a decoder's layers against their formulas, in float64 and as they round in bfloat16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import functional as F

from prefopt.kernels.low_rank import low_rank_linear
from prefopt.kernels.rms_norm import rms_norm
from prefopt.kernels.rotary import rotary


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def norm_formula(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * (x * (x.square().mean(-1, keepdim=True) + eps).rsqrt())


def rotary_formula(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, -1)
    return x * cos + torch.cat([-x2, x1], -1) * sin


@pytest.mark.parametrize("bias", [True, False])
def test_a_low_rank_linear_is_its_formula_and_so_are_its_gradients(bias: bool) -> None:
    weight, offset = normal(5, 6), normal(5, seed=1) if bias else None
    x, down, up = (normal(*s, seed=n).requires_grad_() for n, s in enumerate([(2, 3, 6), (4, 6), (5, 4)], 2))
    expected = F.linear(x, weight, offset) + 0.7 * (x @ down.t()) @ up.t()
    torch.testing.assert_close(low_rank_linear(x, weight, offset, down, up, 0.7), expected)
    assert gradcheck(lambda x, down, up: low_rank_linear(x, weight, offset, down, up, 0.7), (x, down, up))


def test_a_low_rank_linear_computes_in_its_inputs_dtype_and_gives_gradients_in_the_weights() -> None:
    weight, x = normal(64, 32, dtype=torch.bfloat16), normal(50, 32, dtype=torch.bfloat16, seed=1)
    down, up = (normal(*s, dtype=torch.float32, seed=2).requires_grad_() for s in [(4, 32), (64, 4)])
    out = low_rank_linear(x, weight, None, down, up, 2.0)
    exact = x.double() @ weight.double().t() + 2 * (x.double() @ down.double().t()) @ up.double().t()
    assert out.dtype == torch.bfloat16
    assert float(((out - exact).norm() / exact.norm()).detach()) < 2**-7
    out.sum().backward()
    assert [x.grad is not None and x.grad.dtype for x in (down, up)] == [torch.float32] * 2


def test_a_low_rank_linear_leaves_out_gradients_that_nobody_asked_for() -> None:
    weight, x, down = normal(5, 6), normal(3, 6), normal(4, 6)
    up = normal(5, 4).requires_grad_()
    low_rank_linear(x, weight, None, down, up, 0.7).square().sum().backward()
    (expected,) = torch.autograd.grad((x @ weight.t() + 0.7 * (x @ down.t()) @ up.t()).square().sum(), up)
    assert up.grad is not None
    torch.testing.assert_close(up.grad, expected)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 100.0])  # the first is small beside eps
def test_an_rms_norm_is_its_formula_and_so_is_its_gradient(scale: float) -> None:
    x, weight = (normal(2, 3, 8) * scale).requires_grad_(), normal(8, seed=1)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), norm_formula(x, weight, 1e-6), rtol=1e-12, atol=0)
    grad = normal(2, 3, 8, seed=2)
    (ours,) = torch.autograd.grad(rms_norm(x, weight, 1e-6), x, grad)
    (expected,) = torch.autograd.grad(norm_formula(x, weight, 1e-6), x, grad)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9 / scale)


def test_an_rms_norm_in_bfloat16_rounds_as_llamas_does() -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    module = LlamaRMSNorm(96, eps=1e-5).to(torch.bfloat16)
    with torch.no_grad():
        module.weight.copy_(1 + normal(96) / 4)
    x = normal(200, 96, dtype=torch.bfloat16, seed=1)
    theirs, ours = module(x), rms_norm(x, module.weight.detach(), 1e-5)
    # The mean of squares comes by another sum: now and then the last bit of a quotient falls the other way.
    assert float((theirs == ours).double().mean()) > 0.999
    torch.testing.assert_close(theirs, ours, rtol=2**-7, atol=0)


def test_a_rotation_is_its_formula_and_so_is_its_gradient() -> None:
    x = normal(1, 3, 5, 8).requires_grad_()
    cos, sin = normal(1, 1, 5, 8, seed=1), normal(1, 1, 5, 8, seed=2)  # no angle's: every entry must find its place
    torch.testing.assert_close(rotary(x, cos, sin), rotary_formula(x, cos, sin))
    assert gradcheck(lambda x: rotary(x, cos, sin), (x,))


def test_a_rotation_takes_heads_that_lie_token_by_token() -> None:
    x = normal(1, 5, 3, 8).transpose(1, 2)
    cos, sin = normal(1, 1, 5, 8, seed=1), normal(1, 1, 5, 8, seed=2)
    torch.testing.assert_close(rotary(x, cos, sin), rotary_formula(x, cos, sin))
