"""Simple Preference Optimization: no reference."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss, at_least_float32
from prefopt.records import SequenceLogprobs


class SimPO(PairLoss):
    """Simple Preference Optimization: a logistic loss on log-probs a token, which must differ by a set margin.

        loss = -log sigma(beta * (log pi(chosen) / length(chosen) - log pi(rejected) / length(rejected)) - gamma)

    Eq. 6 of arXiv:2405.14734. `gamma` is the paper's: an amount of reward, not of log-prob. The authors' code takes
    gamma / beta instead (`gamma_beta_ratio`); ours is beta times that. Both defaults lie in the ranges that the paper
    searches. The implicit reward is beta * log pi / length.

    Raises RecipeError unless beta > 0 and gamma >= 0.
    """

    name = "simpo"
    paper = "arXiv:2405.14734, Eq. 6"
    needs_reference = False

    def __init__(self, *, beta: float = 2.0, gamma: float = 1.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.gamma = self.number("gamma", gamma, at_least=0)

    def score(self, seqs: SequenceLogprobs) -> Tensor:
        return at_least_float32(seqs.policy) / seqs.length

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -logsigmoid(self.beta * (chosen - rejected) - self.gamma)
