"""Honest offline measurements: arrays in, numbers with intervals out, and the scoring that makes the arrays.

What needs a model is resolved on first use, so that measuring arrays or reading a recipe does not load transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefopt.data.statistics import wilson
from prefopt.eval.config import EvalConfig
from prefopt.eval.human import HumanAgreement, human_agreement
from prefopt.eval.intervals import Accuracy, Mean, Share, accuracy, mean, share
from prefopt.eval.pairs import PairEvaluation, PairMetrics, PairScores, Slice, bin_edges, pair_metrics, slice_pairs

if TYPE_CHECKING:
    from prefopt.eval.drift import SampledKL, sampled_kl
    from prefopt.eval.evaluate import evaluate_pairs
    from prefopt.eval.score import held_out_pairs, pair_logprobs, score_completions

_LAZY = {
    "SampledKL": "drift",
    "evaluate_pairs": "evaluate",
    "held_out_pairs": "score",
    "pair_logprobs": "score",
    "sampled_kl": "drift",
    "score_completions": "score",
}

__all__ = [
    "Accuracy",
    "EvalConfig",
    "HumanAgreement",
    "Mean",
    "PairEvaluation",
    "PairMetrics",
    "PairScores",
    "SampledKL",
    "Share",
    "Slice",
    "accuracy",
    "bin_edges",
    "evaluate_pairs",
    "held_out_pairs",
    "human_agreement",
    "mean",
    "pair_logprobs",
    "pair_metrics",
    "sampled_kl",
    "score_completions",
    "share",
    "slice_pairs",
    "wilson",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
