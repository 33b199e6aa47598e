"""DPO on log-ratios a token."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss
from prefopt.records import SequenceLogprobs


class DPONorm(PairLoss):
    """Length-normalized DPO: a logistic loss on the margin of log-ratios a token, so that length decides nothing.

        loss = -log sigma(beta * (log_ratio(chosen) / length(chosen) - log_ratio(rejected) / length(rejected)))

    The length-normalized DPO of Tulu 3 (arXiv:2411.15124), with its beta of 5: an average over tokens is smaller than
    a sum by the length, so that the 0.1 of `dpo` would hardly hold the policy at all. The implicit reward is
    beta * log_ratio / length.

    Raises RecipeError unless beta > 0.
    """

    name = "dpo_norm"
    paper = "arXiv:2411.15124 (length-normalized DPO)"

    def __init__(self, *, beta: float = 5.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def score(self, seqs: SequenceLogprobs) -> Tensor:
        return self.log_ratio(seqs) / seqs.length

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -logsigmoid(self.beta * (chosen - rejected))
