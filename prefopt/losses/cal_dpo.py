"""Calibrated DPO: margins as DPO's, and each log-ratio held near a target of its own."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss


class CalDPO(PairLoss):
    """Calibrated DPO: a pair is told apart, and each log-ratio is held at half the inverse of beta, up or down.

        loss = -log sigma(l+ - l-) + weight * ((l+ - 1 / (2 beta))^2 + (l- + 1 / (2 beta))^2),   l = log_ratio

    arXiv:2412.14516; its authors' code halves the squares (`weight = 0.5`). beta stands in the targets alone: they are
    amounts of nats by which a completion's whole log-prob shall move, so they should go with length. The authors' code
    trains long answers with a beta of 0.002, which is 250 nats; the default here, as for `sppo`, whose squares are the
    same, is 5 nats.

    Raises RecipeError unless beta > 0 and weight >= 0.
    """

    name = "cal_dpo"
    paper = "arXiv:2412.14516"

    def __init__(self, *, beta: float = 0.1, weight: float = 1.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.weight = self.number("weight", weight, at_least=0)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        target = 1 / (2 * self.beta)
        calibration = (chosen - target).square() + (rejected + target).square()
        return -logsigmoid(chosen - rejected) + self.weight * calibration
