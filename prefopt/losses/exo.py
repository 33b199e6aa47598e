"""Efficient Exact Optimization, on preferences."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss


class EXO(PairLoss):
    """Efficient Exact Optimization: the reverse KL from the policy's choice within a pair to the smoothed label.

        p      = sigma(beta * (log_ratio(chosen) - log_ratio(rejected)))
        loss   = p * log(p / (1 - label_smoothing)) + (1 - p) * log((1 - p) / label_smoothing)

    EXO-pref of arXiv:2402.00856: its objective for preferences, with the pair itself as the K = 2 sampled
    completions. `beta` is the paper's beta_pi, `label_smoothing` its epsilon: 0.001 is what the peers quote from it,
    the authors' code has exp(-10). DPO is the KL the other way round. The loss is 0, its least, where
    p = 1 - label_smoothing; label_smoothing = 0 would make every loss infinite.

    Raises RecipeError unless beta > 0 and 0 < label_smoothing < 0.5.
    """

    name = "exo"
    paper = "arXiv:2402.00856 (EXO-pref)"

    def __init__(self, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.label_smoothing = self.number("label_smoothing", label_smoothing, above=0, below=0.5)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        margin = self.beta * (chosen - rejected)
        right, wrong = logsigmoid(margin), logsigmoid(-margin)
        return margin.sigmoid() * (right - math.log1p(-self.label_smoothing)) + (-margin).sigmoid() * (
            wrong - math.log(self.label_smoothing)
        )
