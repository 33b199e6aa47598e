"""Statistics of a token's whole distribution, from sums over everything but its target."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from prefopt.kernels.head import Head, TokenSums, accumulation_dtype
from prefopt.kernels.workspace import slices, target_logits


class TokenStatistics(NamedTuple):
    """Of every scored token, (N,) each: float32, or float64 for float64 input."""

    logprob: Tensor
    """`log p(target)`, nats."""
    entropy: Tensor
    """`-sum p log p`, nats."""
    log_sum_p2: Tensor
    """`log sum p^2`, nats: what WPO weights a token by (arXiv:2406.11827)."""
    top1: Tensor
    """bool, is the target a most probable token? The others' logits are compared as the product rounds them."""


def of_sums(hidden: Tensor, target: Tensor, head: Head, sums: TokenSums) -> TokenStatistics:
    """Bring the target in. In float64, and by terms of one sign, which stay exact where the model is sure of it.

    With `w = 1 - p_y`, `T` the others' total, `M / T` their mean of `z - top`, `Q / T^2` their sum of squares:

        entropy    = -p_y log p_y - w log w + w (log T - M / T)
        log sum p2 = log(p_y^2 + w^2 Q / T^2)
    """
    logit = hidden.new_empty(hidden.shape[0], dtype=torch.float64)
    for rows in slices(hidden.shape[0], 512):  # so that no second (N, H) exists
        weight = head.weight[target[rows]].to(accumulation_dtype(hidden.dtype))
        logit[rows] = target_logits(hidden[rows], target[rows], weight, head)[0].squeeze(1).double()
    top, total, weighted, squares, highest = (x.double() for x in sums)
    none, divisor = total == 0, total.masked_fill(total == 0, 1)
    gap = total.log() + (top - logit)
    logprob, log_miss = -F.softplus(gap, threshold=40), -F.softplus(-gap, threshold=40)
    among = (divisor.log() - weighted / divisor).masked_fill(none, 0)
    entropy = _surprise(logprob) + _surprise(log_miss) + log_miss.exp() * among
    others = (2 * log_miss + (squares / divisor / divisor).log()).masked_fill(none, -torch.inf)
    return TokenStatistics(logprob, entropy, torch.logaddexp(2 * logprob, others), logit >= highest)


def _surprise(log: Tensor) -> Tensor:
    """Return `-p log p`, 0 for p = 0."""
    return torch.where(log == -torch.inf, 0.0, -log.exp() * log)


def naive(logprobs: Tensor, target: Tensor) -> TokenStatistics:
    """Return the same from all log-probs, (N, V) float64."""
    chosen = logprobs.gather(1, target.unsqueeze(1)).squeeze(1)
    entropy = -torch.where(logprobs > -torch.inf, logprobs.exp() * logprobs, 0.0).sum(1)
    return TokenStatistics(chosen, entropy, torch.logsumexp(2 * logprobs, 1), chosen >= logprobs.amax(1))
