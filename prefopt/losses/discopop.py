"""Discovered Preference Optimization: the log-ratio modulated loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss


class DiscoPOP(PairLoss):
    """Discovered Preference Optimization: logistic for a wrongly ordered pair, exponential for a rightly ordered one.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected)),   gate = sigma(margin / tau)
        loss   = (1 - gate) * -log sigma(margin) + gate * exp(-margin)

    The log-ratio modulated loss (LRML) of arXiv:2406.08414, with its tau of 0.05; the paper's beta is 0.05 too. The
    loss is not convex: it has a local maximum a little above margin 0.

    The gate and the exponential are one exponential of a sum here, exp(log gate - margin), which can't overflow
    while tau <= 1. Above 1 the exponential outgrows its gate and would rule for the wrongly ordered pairs that the
    gate is there to keep it from, so tau stops there.

    Raises RecipeError unless beta > 0 and 0 < tau <= 1.
    """

    name = "discopop"
    paper = "arXiv:2406.08414 (LRML)"

    def __init__(self, *, beta: float = 0.05, tau: float = 0.05) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.tau = self.number("tau", tau, above=0, at_most=1)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        margin = self.beta * (chosen - rejected)
        logistic = -(-margin / self.tau).sigmoid() * logsigmoid(margin)
        return logistic + (logsigmoid(margin / self.tau) - margin).exp()
