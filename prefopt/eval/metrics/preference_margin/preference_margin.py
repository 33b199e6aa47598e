"""Preference margin: a module of the library `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from prefopt.eval import mean

_DESCRIPTION = """\
Mean difference of a number (a reward, an implicit reward, a log-prob) between the chosen and the rejected completion
of a pair, with a 95 % bootstrap interval over pairs.
"""

_CITATION = """\
@inproceedings{rafailov2023direct,
  title = {Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author = {Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Manning, Christopher D. and
    Ermon, Stefano and Finn, Chelsea},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}
}
"""

_INPUTS = """
chosen: a number for each chosen completion, such as its reward or its log-prob.
rejected: that of the rejected completion of the same pair.
beta: what the differences are multiplied by; default 1.
resamples: bootstrap resamples; default 2000.
seed: decides the bootstrap; default 0.
"""


class PreferenceMargin(evaluate.Metric):
    """Preference margin."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"chosen": datasets.Value("float64"), "rejected": datasets.Value("float64")}),
        )

    def _compute(
        self, chosen: list[float], rejected: list[float], beta: float = 1.0, resamples: int = 2000, seed: int = 0
    ) -> dict[str, Any]:
        margins = beta * (np.asarray(chosen) - np.asarray(rejected))
        found = mean(margins, resamples=resamples, seed=seed)
        return {"margin": found.value, "low": found.low, "high": found.high}
