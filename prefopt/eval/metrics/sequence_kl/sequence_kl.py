"""Sequence KL of a policy to its reference, as a module of Hugging Face `evaluate`."""

from typing import Any

import datasets
import evaluate

from prefopt.eval.kl import sequence_kl

_DESCRIPTION = """
How far a policy has moved from its reference: KL(policy || reference) of whole completions, in nats, estimated on
samples of the policy at temperature 1 without top-p and top-k. `kl` sums the exact divergence of every sampled token
and has little variance; `kl_log_ratio` is the plain mean of log-ratios, the same in expectation.
"""
_INPUTS = """
Args:
    kl: of each sample the sum over its tokens of KL(policy || reference) of the next token, nats.
    log_ratio: log policy - log reference of each sample, nats.
    prompts: which prompt each sample answers; samples of one prompt count as one cluster.
    length: tokens of each sample.
    truncated: whether each was cut at the longest length.
    resamples: bootstrap resamples of prompts.
    seed: decides the intervals.
Returns:
    kl, kl_log_ratio: {n, value, low, high, standard_error} over prompts.
    length: {n, value, low, high}.
    truncated: share of samples.
    completions: their number.
"""


class SequenceKL(evaluate.Metric):
    """A door to `prefopt.eval.kl.sequence_kl`."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "kl": datasets.Value("float64"),
                    "log_ratio": datasets.Value("float64"),
                    "prompts": datasets.Value("string"),
                    "length": datasets.Value("int64"),
                    "truncated": datasets.Value("bool"),
                }
            ),
        )

    def _compute(
        self,
        kl: list[float],
        log_ratio: list[float],
        prompts: list[str],
        length: list[int],
        truncated: list[bool],
        resamples: int = 2000,
        seed: int = 0,
    ) -> dict[str, Any]:
        found = sequence_kl(kl, log_ratio, prompts, length=length, truncated=truncated, resamples=resamples, seed=seed)
        return found.to_dict()
