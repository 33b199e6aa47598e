"""Binary Classifier Optimization, on pairs and on labels."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from prefopt.losses.base import Loss
from prefopt.records import LossOutput, SequenceLogprobs


class BCO(Loss):
    """Binary Classifier Optimization: chosen and rejected are told apart by their rewards against a shared shift.

        shift = mean of r over the chosen and rejected completions of the step's pairs,   r = beta * log_ratio
        loss  = -log sigma(r(chosen) - shift) - log sigma(shift - r(rejected))

    The paired form of arXiv:2404.04656, whose delta is our shift: half the sum of the two mean rewards, a constant to
    the gradient. The paper keeps a running mean of it over steps. Ours is that of the step alone
    (`statistics = "step"`): it needs no state beside the model's, so a step stays a function of its examples and a
    resumed run is the run that was never stopped, at the price of more noise in small steps. It is logged as the
    metric `reward_shift`. A step of one pair has only that pair's own mean, and the loss is then twice DPO's at half
    the margin.

    The paper's weights for prompts that differ between good and bad answers concern unpaired data and are not here:
    a pair's two completions share their prompt.

    Raises RecipeError unless beta > 0.
    """

    name = "bco"
    form = "paired"
    paper = "arXiv:2404.04656"
    statistics = "step"

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        chosen, rejected = reward[seqs.pair].unbind(-1)
        shift = reward.detach()[seqs.pair].mean()
        loss = -logsigmoid(chosen - shift) - logsigmoid(shift - rejected)
        return LossOutput(
            loss=loss, weight=torch.ones_like(loss), reward=reward.detach(), metrics={"reward_shift": shift}
        )


class BCOUnpaired(Loss):
    """Binary Classifier Optimization on labels: good and bad completions are told apart by their rewards.

        shift = (mean of r over the step's desirable completions + that over its undesirable ones) / 2
        loss  = -log sigma(r - shift)   where desirable,   -log sigma(shift - r)   elsewhere;   r = beta * log_ratio

    arXiv:2404.04656, whose delta is our shift: a constant to the gradient, and of the step alone, as in `bco`. In a
    step with one kind only, it is that kind's mean. The paper's weights for good and bad answers that belong to
    different kinds of prompts need a classifier of prompts and are not here.

    Raises RecipeError unless beta > 0.
    """

    name = "bco_unpaired"
    form = "unpaired"
    paper = "arXiv:2404.04656"
    statistics = "step"

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        mine = reward[seqs.labelled]
        kinds = [kind for kind in (mine[seqs.label], mine[~seqs.label]) if kind.numel()]
        shift = torch.stack([kind.detach().mean() for kind in kinds]).mean() if kinds else mine.detach().sum()
        advantage = mine - shift
        loss = -logsigmoid(torch.where(seqs.label, advantage, -advantage))
        return LossOutput(
            loss=loss, weight=torch.ones_like(loss), reward=reward.detach(), metrics={"reward_shift": shift}
        )
