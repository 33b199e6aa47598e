"""What stands for a log-ratio in DPO's margin when another divergence than reverse KL holds the policy back."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")

_STEEPEST = 40.0
"""Exponent from which an exponential goes on along its tangent. exp(40) = 2e17, times a log-ratio of 1e4 and any sane
beta, is far inside float32, and a slope of 2e17 asks no less of a gradient that is clipped than a larger one."""


def divergence_score(log_ratio: Tensor, divergence: str, alpha: float) -> Tensor:
    """Return f'(ratio) up to a constant that a margin does not see, so that it is 0 where policy and reference agree.

    With u = exp(log_ratio), and f as in arXiv:2309.16240:

        reverse_kl   log u
        forward_kl   1 - 1 / u
        js           log(2 u / (1 + u))
        alpha        (1 - u ** -alpha) / alpha,   which tends to reverse_kl for alpha -> 0 and is forward_kl at 1

    Args:
        log_ratio: (S,) float, nats.
        divergence: one of `DIVERGENCES`.
        alpha: of the alpha divergence, above 0; not read for the others.
    """
    if divergence == "forward_kl":
        return -_expm1(-log_ratio)
    if divergence == "js":
        return logsigmoid(log_ratio) + math.log(2)
    if divergence == "alpha":
        return -_expm1(-alpha * log_ratio) / alpha
    return log_ratio


def _expm1(exponent: Tensor) -> Tensor:
    """Return exp(exponent) - 1, along its tangent beyond the steepest exponent: finite, and never without slope."""
    bounded = exponent.clamp(max=_STEEPEST)
    return bounded.expm1() + bounded.exp() * (exponent - bounded)
