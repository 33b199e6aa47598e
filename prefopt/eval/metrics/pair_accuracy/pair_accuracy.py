"""Pair accuracy: a module of the library `evaluate`."""

from typing import Any

import datasets
import evaluate
import numpy as np

from prefopt.eval import accuracy, auc

_DESCRIPTION = """\
How often the chosen completion of a pair gets the higher number, with Wilson's 95 % interval. Ties are counted apart:
the accuracy is right / (right + wrong). With it the area under the ROC curve that tells all chosen from all rejected
completions.
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
"""


class PairAccuracy(evaluate.Metric):
    """Pair accuracy."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"chosen": datasets.Value("float64"), "rejected": datasets.Value("float64")}),
        )

    def _compute(self, chosen: list[float], rejected: list[float]) -> dict[str, Any]:
        found = accuracy(np.asarray(chosen) - np.asarray(rejected))
        area = auc(chosen, rejected)
        return {
            "accuracy": found.value,
            "low": found.low,
            "high": found.high,
            "right": found.right,
            "wrong": found.wrong,
            "ties": found.ties,
            "auc": area.value,
            "auc_low": area.low,
            "auc_high": area.high,
        }
