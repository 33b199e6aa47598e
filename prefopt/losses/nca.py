"""Noise Contrastive Alignment, on pairs."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss


class NCA(PairLoss):
    """Noise Contrastive Alignment: each completion's own implicit reward is classified, not their difference.

        loss = -log sigma(r(chosen)) - 1/2 log sigma(-r(chosen)) - 1/2 log sigma(-r(rejected)),   r = beta * log_ratio

    The paper's objective for preference pairs (arXiv:2402.05369). Its objective for K completions with explicit
    rewards weighs each by a softmax of these and is a listwise loss; its InfoNCA on pairs is DPO.

    The chosen reward is pulled to log 2, where sigma is 2/3, the rejected one down without end.

    Raises RecipeError unless beta > 0.
    """

    name = "nca"
    paper = "arXiv:2402.05369 (NCA on pairs)"

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        good, bad = self.beta * chosen, self.beta * rejected
        return -logsigmoid(good) - 0.5 * logsigmoid(-good) - 0.5 * logsigmoid(-bad)
