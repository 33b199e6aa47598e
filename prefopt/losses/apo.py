"""Anchored Preference Optimization: which way the chosen completion should move is said, not left to the margin."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses.base import Loss, PairLoss
from prefopt.records import LossOutput, SequenceLogprobs


class APOZero(PairLoss):
    """Anchored Preference Optimization, zero: raises the chosen completion and lowers the rejected one, each by itself.

        loss = (1 - sigma(r(chosen))) + sigma(r(rejected)),   r = beta * log_ratio

    APO-zero of arXiv:2408.06266, for chosen completions that are better than what the model writes itself. The paper
    leaves out the constant 1: gradients are the same, and with it the loss is never negative. (Not Adversarial
    Preference Optimization, arXiv:2311.08045, which is abbreviated alike and trains a reward model beside.)

    Raises RecipeError unless beta > 0.
    """

    name = "apo_zero"
    paper = "arXiv:2408.06266 (APO-zero)"

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        # 1 - sigma(x) is sigma(-x), which keeps its digits where sigma(x) is close to 1.
        return (-self.beta * chosen).sigmoid() + (self.beta * rejected).sigmoid()


class APODown(PairLoss):
    """Anchored Preference Optimization, down: lowers the chosen completion, and the rejected one more.

        loss = sigma(r(chosen)) + (1 - sigma(r(chosen) - r(rejected))),   r = beta * log_ratio

    APO-down of arXiv:2408.06266, for chosen completions that are worse than what the model writes itself. The paper
    leaves out the constant 1: gradients are the same, and with it the loss is never negative.

    Raises RecipeError unless beta > 0.
    """

    name = "apo_down"
    paper = "arXiv:2408.06266 (APO-down)"

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (self.beta * chosen).sigmoid() + (self.beta * (rejected - chosen)).sigmoid()


class APOZeroUnpaired(Loss):
    """Anchored Preference Optimization, zero, on labels: raises desirable completions and lowers undesirable ones.

        loss = 1 - sigma(r)   where desirable,   sigma(r)   elsewhere;   r = beta * log_ratio

    APO-zero of arXiv:2408.06266 a completion at a time: each of its two terms looks at one completion, so labels say
    as much as pairs. It is KTO without a shift.

    Raises RecipeError unless beta > 0.
    """

    name = "apo_zero_unpaired"
    form = "unpaired"
    paper = "arXiv:2408.06266 (APO-zero, by terms)"

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        mine = reward[seqs.labelled]
        loss = torch.where(seqs.label, -mine, mine).sigmoid()
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=reward.detach())
