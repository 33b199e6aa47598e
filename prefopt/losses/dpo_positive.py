"""DPO that punishes a chosen completion which becomes less likely."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss


class DPOPositive(PairLoss):
    """DPO-Positive: DPO that also pays for every nat by which the chosen completion falls below the reference.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected) - penalty * max(0, -log_ratio(chosen)))
        loss   = -log sigma(margin)

    DPOP of arXiv:2402.13228 (Smaug), whose lambda is our `penalty`, with its value. Where the chosen completion is as
    likely as under the reference or more, it is DPO.

    Raises RecipeError unless beta > 0 and penalty >= 0.
    """

    name = "dpo_positive"
    paper = "arXiv:2402.13228 (DPOP)"

    def __init__(self, *, beta: float = 0.1, penalty: float = 50.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.penalty = self.number("penalty", penalty, at_least=0)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -logsigmoid(self.beta * (chosen - rejected - self.penalty * (-chosen).relu()))
