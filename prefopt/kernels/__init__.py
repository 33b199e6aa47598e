"""Fused sequence log-probs here; shared-prompt attention in `prefopt.kernels.attention`. No model knowledge."""

from __future__ import annotations

from prefopt.kernels.logprobs import sequence_logprobs, token_statistics
from prefopt.kernels.statistics import TokenStatistics

__all__ = ["TokenStatistics", "sequence_logprobs", "token_statistics"]
