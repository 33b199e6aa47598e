"""Problems for the fused linear log-prob, and what its results are compared with."""

from __future__ import annotations

import math

import torch

from prefopt.kernels import oracle
from prefopt.kernels.head import Head

try:
    import triton

    INTERPRETED = triton.knobs.runtime.interpret
except ImportError:
    INTERPRETED = False
"""Triton's kernels run on the CPU, some 10 ms a row."""
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def problem(n, h, v, *, dtype=torch.float64, bias=False, seed=0, size=1.0):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, device="cpu", generator=draw, dtype=torch.float64) * size
    weight = torch.randn(v, h, device="cpu", generator=draw, dtype=torch.float64) / math.sqrt(h)
    shift = torch.randn(v, device="cpu", generator=draw, dtype=torch.float64) if bias else None
    target = torch.randint(0, v, (n,), device="cpu", generator=draw)
    return tuple(None if x is None else x.to(torch.get_default_device()) for x in (
        hidden.to(dtype), weight.to(dtype), None if shift is None else shift.to(dtype), target))  # fmt: skip


def full_logits(hidden, weight, target):
    """What the contract compares with: full logits in the input's dtype, a float32 log-softmax, autograd."""
    return torch.log_softmax(hidden @ weight.T, -1, dtype=torch.float32).gather(1, target[:, None])[:, 0]


def truth(hidden, weight, target):
    return oracle.token_logprobs(hidden.double(), target, Head(weight.double()))


def run(score, hidden, weight, target, train_weight=False):
    """Return log-probs (N,) and the gradients of their sum, in float64."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_(train_weight)
    token = score(hidden, weight, target)
    grads = torch.autograd.grad(token.sum(), [hidden, weight][: 1 + train_weight])
    return [token.detach().double(), *(g.double() for g in grads)]


def draw(seed, dtype, *, confidence, weight_size, n=128, h=64, v=2001):
    make = torch.Generator().manual_seed(seed)
    weight = torch.randn(v, h, device="cpu", generator=make) * weight_size
    target = torch.randint(0, v, (n,), device="cpu", generator=make)
    hidden = torch.randn(n, h, device="cpu", generator=make) + confidence * weight[target] / weight_size
    return tuple(x.to(torch.get_default_device()) for x in (hidden.to(dtype), weight.to(dtype), target))


def error_ratios(fused, dtype, *, confidence, weight_size, seeds, **sizes):
    """Return fused errors over those of full logits, against float64, root mean square over all seeds: (5,).

    Of the log-prob, of the gradients of hidden and weight of a head in training, and of that of hidden with a frozen
    head by token and over all.
    """
    squares = torch.zeros(2, 5, dtype=torch.float64)
    for seed in seeds:
        hidden, weight, target = draw(seed, dtype, confidence=confidence, weight_size=weight_size, **sizes)
        exact = run(truth, hidden.double(), weight.double(), target, train_weight=True)
        frozen, trained = run(fused, hidden, weight, target), run(fused, hidden, weight, target, train_weight=True)
        naive = run(full_logits, hidden, weight, target, train_weight=True)
        # Per token, so that the few tokens with the largest gradients don't stand for all: relative to its own size,
        # with a floor below which float16 has no numbers.
        size = exact[1].norm(dim=1, keepdim=True).clamp(min=1e-4)
        for row, (got, hid, wei) in enumerate((trained, naive)):
            squares[row, 0] += (got - exact[0]).square().sum().cpu()
            squares[row, 1] += ((hid - exact[1]) / size).square().sum().cpu()
            squares[row, 2] += (wei - exact[2]).square().sum().cpu()
        for row, hid in ((0, frozen[1]), (1, naive[1])):
            squares[row, 3] += ((hid - exact[1]) / size).square().sum().cpu()
            squares[row, 4] += (hid - exact[1]).square().sum().cpu()
    return (squares[0] / squares[1]).sqrt()
