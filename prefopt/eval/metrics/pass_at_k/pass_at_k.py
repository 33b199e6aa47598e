"""pass@k: a module of the library `evaluate`."""

from typing import Any

import datasets
import evaluate

from prefopt.eval import mean, pass_at_k

_DESCRIPTION = """\
The probability that one of k samples of a prompt is right, estimated without bias from n >= k samples, as a mean over
prompts with a 95 % bootstrap interval over prompts.
"""

_CITATION = """\
@article{chen2021evaluating,
  title = {Evaluating Large Language Models Trained on Code},
  author = {Chen, Mark and others},
  journal = {arXiv:2107.03374},
  year = {2021}
}
"""

_INPUTS = """
correct: how many of a prompt's samples are right.
samples: how many there are.
k: samples drawn; default 1.
resamples: bootstrap resamples; default 2000.
seed: decides the bootstrap; default 0.
"""


class PassAtK(evaluate.Metric):
    """pass@k."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"correct": datasets.Value("int64"), "samples": datasets.Value("int64")}),
        )

    def _compute(
        self, correct: list[int], samples: list[int], k: int = 1, resamples: int = 2000, seed: int = 0
    ) -> dict[str, Any]:
        chances = [pass_at_k(n, right, k) for right, n in zip(correct, samples, strict=True)]
        found = mean([chance for chance in chances if chance is not None], resamples=resamples, seed=seed)
        return {f"pass@{k}": found.value, "low": found.low, "high": found.high, "prompts": found.n}
