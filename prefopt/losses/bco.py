"""Binary Classifier Optimization, on pairs and on labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import Loss
from prefopt.records import LossOutput, SequenceLogprobs


class _RunningShift(Loss):
    """What both forms share: the shift between good and bad rewards, over all steps so far."""

    paper = "arXiv:2404.04656"
    statistics = "step"
    total: Tensor
    count: Tensor

    def __init__(self, *, beta: float = 0.1, running: bool = True) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.running = self.switch("running", running)
        # Of good and bad answers: the sum of their rewards over the steps before, and how many they were.
        self.register_buffer("total", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(2, dtype=torch.float64))

    def sides(self, seqs: SequenceLogprobs) -> tuple[Tensor, Tensor]:
        """Return which completions are good and which are bad."""
        raise NotImplementedError

    def shift(self, reward: Tensor, seqs: SequenceLogprobs) -> Tensor:
        """Return half the sum of good and bad answers' mean rewards; of one kind alone, its mean; of none, 0.

        In evaluation of the steps of training alone, where there were any.
        """
        total, count = self.total.to(reward.device), self.count.to(reward.device)
        if not self.running:
            total, count = self._sums(reward, seqs)
        elif self.training or not bool(count.any()):
            total, count = (x + y for x, y in zip((total, count), self._sums(reward, seqs), strict=True))
        means = total / count.clamp(min=1)
        return (means.sum() / (count > 0).sum().clamp(min=1)).to(reward.dtype)

    def end_step(self, seqs: SequenceLogprobs) -> None:
        total, count = self._sums(self.beta * self.log_ratio(seqs), seqs)
        self.total.add_(total.to(self.total.device))
        self.count.add_(count.to(self.count.device))

    def _sums(self, reward: Tensor, seqs: SequenceLogprobs) -> tuple[Tensor, Tensor]:
        sides = [reward.detach()[index].double() for index in self.sides(seqs)]
        return torch.stack([side.sum() for side in sides]), reward.new_tensor([side.numel() for side in sides]).double()


class BCO(_RunningShift):
    """Binary Classifier Optimization: chosen and rejected are told apart by their rewards against a shared shift.

        shift = (mean of r over chosen completions + mean of r over rejected ones) / 2,   r = beta * log_ratio
        loss  = -log sigma(r(chosen) - shift) - log sigma(shift - r(rejected))

    The paired form of arXiv:2404.04656, whose delta is our shift: a constant to the gradient. The means are over all
    steps so far, this one included, as in its authors' code; they are kept in checkpoints, and evaluation uses them as
    they are. `running = false` takes them over the step alone: then a step is a function of its examples, at the price
    of more noise in small ones. Both ways the shift is over the whole step (`statistics = "step"`) and is logged as
    `reward_shift`.

    The paper's weights for prompts that differ between good and bad answers concern unpaired data and are not here:
    a pair's two completions share their prompt.

    Raises RecipeError unless beta > 0 and running is true or false.
    """

    name = "bco"
    form = "paired"

    def sides(self, seqs: SequenceLogprobs) -> tuple[Tensor, Tensor]:
        return seqs.pair[:, 0], seqs.pair[:, 1]

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        chosen, rejected = reward[seqs.pair].unbind(-1)
        shift = self.shift(reward, seqs)
        loss = -logsigmoid(chosen - shift) - logsigmoid(shift - rejected)
        return LossOutput(
            loss=loss, weight=torch.ones_like(loss), reward=reward.detach(), metrics={"reward_shift": shift}
        )


class BCOUnpaired(_RunningShift):
    """Binary Classifier Optimization on labels: good and bad completions are told apart by their rewards.

        shift = (mean of r over desirable completions + mean of r over undesirable ones) / 2,   r = beta * log_ratio
        loss  = -log sigma(r - shift)   where desirable,   -log sigma(shift - r)   elsewhere

    arXiv:2404.04656, whose delta is our shift: a constant to the gradient, over all steps so far or, with
    `running = false`, over the step alone, as in `bco`. While there was one kind only, it is that kind's mean. The
    paper's weights for good and bad answers that belong to different kinds of prompts need a classifier of prompts and
    are not here.

    Raises RecipeError unless beta > 0 and running is true or false.
    """

    name = "bco_unpaired"
    form = "unpaired"

    def sides(self, seqs: SequenceLogprobs) -> tuple[Tensor, Tensor]:
        return seqs.labelled[seqs.label], seqs.labelled[~seqs.label]

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        shift = self.shift(reward, seqs)
        advantage = reward[seqs.labelled] - shift
        loss = -logsigmoid(torch.where(seqs.label, advantage, -advantage))
        return LossOutput(
            loss=loss, weight=torch.ones_like(loss), reward=reward.detach(), metrics={"reward_shift": shift}
        )
