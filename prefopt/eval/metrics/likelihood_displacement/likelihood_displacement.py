"""Likelihood displacement: a module of the library `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from prefopt.eval import mean, share

_DESCRIPTION = """\
How often training made the chosen completion less likely: the share of pairs whose log-prob under the policy is below
that under the reference, with Wilson's 95 % interval, and the mean log-ratio with a bootstrap interval.
"""

_CITATION = """\
@inproceedings{razin2025unintentional,
  title = {Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization},
  author = {Razin, Noam and Malladi, Sadhika and Bhaskar, Adithya and Chen, Danqi and Arora, Sanjeev and Hanin, Boris},
  booktitle = {International Conference on Learning Representations},
  year = {2025}
}
"""

_INPUTS = """
policy: log-probs of the chosen completions under the trained policy, nats.
reference: those under the model it started from.
resamples: bootstrap resamples; default 2000.
seed: decides the bootstrap; default 0.
"""


class LikelihoodDisplacement(evaluate.Metric):
    """Likelihood displacement."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"policy": datasets.Value("float64"), "reference": datasets.Value("float64")}),
        )

    def _compute(
        self, policy: list[float], reference: list[float], resamples: int = 2000, seed: int = 0
    ) -> dict[str, Any]:
        ratios = np.asarray(policy) - np.asarray(reference)
        fell, average = share(ratios < 0), mean(ratios, resamples=resamples, seed=seed)
        return {
            "displacement": fell.value,
            "low": fell.low,
            "high": fell.high,
            "log_ratio": average.value,
            "log_ratio_low": average.low,
            "log_ratio_high": average.high,
        }
