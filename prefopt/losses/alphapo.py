"""AlphaPO: SimPO with another shape of reward."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss, at_least_float32
from prefopt.losses.divergence import divergence_score
from prefopt.records import SequenceLogprobs


class AlphaPO(PairLoss):
    """AlphaPO: SimPO whose reward bends, so that an unlikely completion counts for more than its log-prob says.

        r    = beta * (1 - p ** -alpha) / alpha,   p = exp(log pi / length)
        loss = -log sigma(r(chosen) - r(rejected) - gamma)

    arXiv:2501.03884. It tends to SimPO for alpha -> 0; the paper also tries alpha < 0, which is not here. Defaults are
    those that the paper gives for Mistral-Instruct. Exponents above 40 go on along their tangent. The implicit reward
    is r.

    Raises RecipeError unless beta > 0, alpha > 0 and gamma >= 0.
    """

    name = "alphapo"
    paper = "arXiv:2501.03884"
    needs_reference = False

    def __init__(self, *, beta: float = 2.5, alpha: float = 0.25, gamma: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.alpha = self.number("alpha", alpha, above=0)
        self.gamma = self.number("gamma", gamma, at_least=0)

    def score(self, seqs: SequenceLogprobs) -> Tensor:
        return divergence_score(at_least_float32(seqs.policy) / seqs.length, "alpha", self.alpha)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -logsigmoid(self.beta * (chosen - rejected) - self.gamma)
