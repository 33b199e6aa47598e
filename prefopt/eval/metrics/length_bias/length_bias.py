"""Length bias: a module of the library `evaluate`."""

from typing import Any

import datasets
import evaluate

from prefopt.eval import length_bias

_DESCRIPTION = """\
Accuracy on pairs whose chosen completion is the shorter one, and on those where it is the longer one, each with
Wilson's 95 % interval, and their difference with Newcombe's. Above 0 long completions are favoured.
"""

_CITATION = """\
@article{singhal2023long,
  title = {A Long Way to Go: Investigating Length Correlations in RLHF},
  author = {Singhal, Prasann and Goyal, Tanya and Xu, Jiacheng and Durrett, Greg},
  journal = {arXiv:2310.03716},
  year = {2023}
}
"""

_INPUTS = """
margins: number of the chosen completion minus that of the rejected one.
chosen_length: length of the chosen completion, in tokens or characters.
rejected_length: that of the rejected one.
"""


class LengthBias(evaluate.Metric):
    """Length bias."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "margins": datasets.Value("float64"),
                    "chosen_length": datasets.Value("int64"),
                    "rejected_length": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, margins: list[float], chosen_length: list[int], rejected_length: list[int]) -> dict[str, Any]:
        found = length_bias(margins, chosen_length, rejected_length)
        return {
            "shorter": found.shorter.to_dict(),
            "longer": found.longer.to_dict(),
            "difference": found.difference.value,
            "low": found.difference.low,
            "high": found.difference.high,
        }
