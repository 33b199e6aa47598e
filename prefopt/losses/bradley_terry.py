"""Bradley and Terry's model of pairs, on the scalar rewards of a reward model; for policies there is `dpo`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import at_least_float32
from prefopt.losses.hyper import Hyperparameters
from prefopt.records import LossOutput


@dataclass(frozen=True, eq=False)
class PairRewards:
    """What a reward model says of the completions of P pairs."""

    chosen: Tensor
    """(P,) any float dtype, in the model's own unit."""
    rejected: Tensor
    """(P,)"""
    margin: Tensor | None = None
    """(P,) by how much chosen is better, in units of the reward; None where it is not known."""


class BradleyTerry(Hyperparameters):
    """The loss of a reward model on pairs: chosen shall win, by its margin where there is one.

        loss = -log sigma(r(chosen) - r(rejected) - margin) + center * (r(chosen) + r(rejected))^2

    Bradley and Terry's model as in InstructGPT; `margin` is Llama 2's (arXiv:2307.09288), and `center`, which keeps the
    rewards near zero, of arXiv:2312.09244, whose authors take 0.01. It is no loss for a policy, whose implicit rewards
    are `dpo`'s: a recipe can't name it.

    Raises RecipeError unless center >= 0.
    """

    name = "bradley_terry"
    paper = "arXiv:2307.09288 (margin), arXiv:2312.09244 (center)"

    def __init__(self, *, center: float = 0.0) -> None:
        super().__init__()
        self.center = self.number("center", center, at_least=0)

    def forward(self, rewards: PairRewards) -> LossOutput:
        """Return the loss of every pair, (P,); `reward` is (2P,), all chosen before all rejected."""
        chosen, rejected = at_least_float32(rewards.chosen), at_least_float32(rewards.rejected)
        margin = 0.0 if rewards.margin is None else rewards.margin.to(chosen.dtype)
        loss = -logsigmoid(chosen - rejected - margin) + self.center * (chosen + rejected).square()
        reward = torch.cat([chosen, rejected]).detach()
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=reward)
