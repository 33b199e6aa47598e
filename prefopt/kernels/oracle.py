"""Log-probs and divergences the naive way: all logits at once in float64, plain autograd. For tests only."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prefopt.kernels.head import Head


def token_logprobs(hidden: Tensor, target: Tensor, head: Head) -> Tensor:
    """Return `log p(target)`, (N,) float64, nats; differentiable in hidden (N, H), weight and bias."""
    return all_logprobs(hidden, head).gather(1, target.unsqueeze(1)).squeeze(1)


def all_logprobs(hidden: Tensor, head: Head) -> Tensor:
    """Return the log-softmax over the vocabulary, (N, V) float64, nats."""
    logits = head.scale * (hidden.double() @ head.weight.double().T)
    if head.bias is not None:
        logits = logits + head.bias.double()
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits, dim=-1)


def token_divergences(policy: Tensor, reference: Tensor, head: Head, other: Head, direction: str) -> Tensor:
    """Return `divergence.token_divergences`, (N,) float64, nats; differentiable in `policy` (N, H) alone."""
    heads = [
        replace(h, weight=h.weight.detach(), bias=None if h.bias is None else h.bias.detach()) for h in (head, other)
    ]
    p, r = (all_logprobs(hidden, h) for hidden, h in zip((policy, reference.detach()), heads, strict=True))
    ahead, behind = (r, p) if direction == "reference_policy" else (p, r)
    # What neither can say counts for nothing.
    return torch.where(ahead > -torch.inf, ahead.exp() * (ahead - behind), 0.0).sum(1)


def reduce_segments(token: Tensor, segment: Tensor, num_segments: int, reduction: str) -> Tensor:
    """Sum or average `token` (N,) over each of the segments by one mask a segment; (S,)."""
    if reduction == "none":
        return token
    rows = []
    for index in range(num_segments):
        mine = token[segment == index]
        rows.append(mine.sum() / max(1, mine.numel()) if reduction == "mean" else mine.sum())
    return torch.stack(rows) if rows else token[:0]
