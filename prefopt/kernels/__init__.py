"""Fused sequence log-probs here; shared-prompt attention in `prefopt.kernels.attention`. No model knowledge."""

from __future__ import annotations

from prefopt.kernels.divergence import token_divergences
from prefopt.kernels.head import Head
from prefopt.kernels.logprobs import (
    PolicyReferenceLogprobs,
    policy_reference_logprobs,
    reduce_segments,
    sequence_logprobs,
    token_statistics,
)
from prefopt.kernels.statistics import TokenStatistics

__all__ = [
    "Head",
    "PolicyReferenceLogprobs",
    "TokenStatistics",
    "policy_reference_logprobs",
    "reduce_segments",
    "sequence_logprobs",
    "token_divergences",
    "token_statistics",
]
