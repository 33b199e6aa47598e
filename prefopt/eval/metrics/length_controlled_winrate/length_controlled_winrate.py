"""Win rate at equal length, as a module of Hugging Face `evaluate`."""

from typing import Any

import datasets
import evaluate

from prefopt.eval.winrate import win_rate

_DESCRIPTION = """
How often completions of A are better than those of B: raw (ties half), and at equal length, by a logistic fit in
theta + phi * tanh(length difference / its standard deviation), reported as sigmoid(theta). Swapping A and B gives 1
minus the rate. There is no term for the instruction and no fixed baseline: this is not the length-controlled win rate
of the AlpacaEval leaderboard and is not to be compared with numbers there.
"""
_CITATION = """
@article{dubois2024length,
  title={Length-Controlled AlpacaEval: A Simple Way to Debias Automatic Evaluators},
  author={Dubois, Yann and Galambosi, Bal{\\'a}zs and Liang, Percy and Hashimoto, Tatsunori B.},
  journal={arXiv:2404.04475},
  year={2024},
  note={where controlling for length by tanh of its difference comes from; the rate here is a simpler one}
}
"""
_INPUTS = """
Args:
    outcomes: 1 where A is better, 0 where B is, 0.5 for a tie, NaN without a verdict.
    length_a: length of A's completions.
    length_b: length of B's.
    prompts: which prompt each comparison is of; every prompt has the same weight.
    resamples: bootstrap resamples of prompts.
    seed: decides the intervals.
Returns:
    raw, length_controlled: {n, value, low, high}, n prompts.
    wins_a, wins_b, ties, failed, prompts: counts.
    length_effect: phi; above 0, the longer one wins more often.
    length_a, length_b: {n, value, low, high}.
"""


class LengthControlledWinrate(evaluate.Metric):
    """A door to `prefopt.eval.winrate.win_rate`."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "outcomes": datasets.Value("float64"),
                    "length_a": datasets.Value("float64"),
                    "length_b": datasets.Value("float64"),
                    "prompts": datasets.Value("string"),
                }
            ),
        )

    def _compute(
        self,
        outcomes: list[float],
        length_a: list[float],
        length_b: list[float],
        prompts: list[str],
        resamples: int = 2000,
        seed: int = 0,
    ) -> dict[str, Any]:
        return win_rate(outcomes, length_a, length_b, prompts, resamples=resamples, seed=seed).to_dict()
