"""Statistics of a token's whole distribution, from sums over everything but its target."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from prefopt.kernels.head import Head, TokenSums, accumulation_dtype
from prefopt.kernels.tiles import target_logits


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
    """Bring the target in. In float64, and by differences that stay exact where the model is sure of it:

    with `w = 1 - p_y`, `M / T` the others' mean of `z - top` and `Q / T^2` their sum of squared probabilities,

        entropy    = -log p_y + w (z_y - top - M / T)
        log sum p2 = log(p_y^2 + w^2 Q / T^2)
    """
    weight = head.weight[target].to(accumulation_dtype(hidden.dtype))
    logit = target_logits(hidden, target, weight, head)[0].squeeze(1).double()
    top, total, weighted, squares, highest = (x.double() for x in sums)
    gap = total.log() + (top - logit)
    logprob, log_miss = (
        -torch.nn.functional.softplus(gap, threshold=40),
        -torch.nn.functional.softplus(-gap, threshold=40),
    )
    none = total == 0
    total = total.masked_fill(none, 1)
    spread = log_miss.exp() * (logit - top - weighted / total)
    entropy = -logprob + spread.masked_fill(none, 0)
    others = (2 * (log_miss - total.log()) + squares.log()).masked_fill(none, -torch.inf)
    return TokenStatistics(logprob, entropy.clamp_(min=0), torch.logaddexp(2 * logprob, others), logit >= highest)


def naive(logprobs: Tensor, target: Tensor) -> TokenStatistics:
    """Return the same from all log-probs, (N, V) float64."""
    chosen = logprobs.gather(1, target.unsqueeze(1)).squeeze(1)
    entropy = -torch.where(logprobs > -torch.inf, logprobs.exp() * logprobs, 0.0).sum(1)
    return TokenStatistics(chosen, entropy, torch.logsumexp(2 * logprobs, 1), chosen >= logprobs.amax(1))
