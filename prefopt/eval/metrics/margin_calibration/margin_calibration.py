"""Margin calibration: a module of the library `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from prefopt.eval import calibration
from prefopt.eval.calibration import sigmoid

_DESCRIPTION = """\
Whether sigma(margin) is the probability that people prefer the chosen completion: reliability bins of the side that
the model prefers, expected calibration error and Brier score, against raters where they are known, otherwise against
plain outcomes, where the chosen completion is right by definition.
"""

_CITATION = """\
@inproceedings{guo2017calibration,
  title = {On Calibration of Modern Neural Networks},
  author = {Guo, Chuan and Pleiss, Geoff and Sun, Yu and Weinberger, Kilian Q.},
  booktitle = {International Conference on Machine Learning},
  year = {2017}
}
"""

_INPUTS = """
margins: implicit reward (beta included) of chosen minus rejected.
raters: share of raters who prefer the chosen completion, 0 to 1. Without raters give 1.0 for each pair: outcomes.
resamples: bootstrap resamples; default 2000.
seed: decides the bootstrap; default 0.
"""


class MarginCalibration(evaluate.Metric):
    """Margin calibration."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"margins": datasets.Value("float64"), "raters": datasets.Value("float64")}),
        )

    def _compute(
        self, margins: list[float], raters: list[float], resamples: int = 2000, seed: int = 0
    ) -> dict[str, Any]:
        known = None if all(value == 1 for value in raters) else np.asarray(raters, dtype=np.float64)
        found = calibration(sigmoid(np.asarray(margins, dtype=np.float64)), known, resamples=resamples, seed=seed)
        return {
            "expected_calibration_error": found.expected_error,
            "brier": found.brier.value,
            "brier_low": found.brier.low,
            "brier_high": found.brier.high,
            "against": found.against,
            "ties": found.ties,
            "bins": [part.to_dict() for part in found.bins],
        }
