"""Honest offline measurements: arrays in, numbers with intervals out, and the scoring that makes the arrays.

What needs a model is resolved on first use, so that measuring arrays or reading a recipe does not load transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefopt.data.statistics import wilson
from prefopt.eval.agreement import AgreementBin, accuracy_by_agreement
from prefopt.eval.auc import auc
from prefopt.eval.calibration import Calibration, calibration
from prefopt.eval.compare import Comparison, Contrast, compare_evaluations, contrast, mcnemar
from prefopt.eval.config import EvalConfig
from prefopt.eval.human import HumanAgreement, human_agreement
from prefopt.eval.intervals import (
    Accuracy,
    Estimate,
    Mean,
    Share,
    accuracy,
    mean,
    paired_difference,
    share,
    share_difference,
)
from prefopt.eval.length_bias import LengthBias, length_bias
from prefopt.eval.metrics import metric_names, metric_path
from prefopt.eval.pairs import (
    PairEvaluation,
    PairMetrics,
    PairScores,
    Slice,
    bin_edges,
    pair_metrics,
    slice_groups,
    slice_pairs,
)
from prefopt.eval.pass_at import pass_at_k

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
    "AgreementBin",
    "Calibration",
    "Comparison",
    "Contrast",
    "Estimate",
    "EvalConfig",
    "HumanAgreement",
    "LengthBias",
    "Mean",
    "PairEvaluation",
    "PairMetrics",
    "PairScores",
    "SampledKL",
    "Share",
    "Slice",
    "accuracy",
    "accuracy_by_agreement",
    "auc",
    "bin_edges",
    "calibration",
    "compare_evaluations",
    "contrast",
    "evaluate_pairs",
    "held_out_pairs",
    "human_agreement",
    "length_bias",
    "mcnemar",
    "mean",
    "metric_names",
    "metric_path",
    "pair_logprobs",
    "pair_metrics",
    "paired_difference",
    "pass_at_k",
    "sampled_kl",
    "score_completions",
    "share",
    "share_difference",
    "slice_groups",
    "slice_pairs",
    "wilson",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
