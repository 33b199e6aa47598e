"""Direct Preference Optimization, with label smoothing (conservative DPO)."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from prefopt.losses.base import Loss
from prefopt.records import LossOutput, SequenceLogprobs


class DPO(Loss):
    """Direct Preference Optimization.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected))
        loss   = -(1 - label_smoothing) * log sigma(margin) - label_smoothing * log sigma(-margin)

    `label_smoothing` is the probability that a label is flipped; 0 is plain DPO (Eq. 7 of arXiv:2305.18290), more
    is conservative DPO (Eq. 3 of Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023),
    whose minimum lies at margin = log((1 - label_smoothing) / label_smoothing) rather than at infinity.

    Raises RecipeError unless beta > 0 and 0 <= label_smoothing < 0.5.
    """

    name = "dpo"
    form = "paired"

    def __init__(self, *, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.label_smoothing = self.number("label_smoothing", label_smoothing, at_least=0, below=0.5)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        chosen, rejected = reward[seqs.pair].unbind(-1)
        margin = chosen - rejected
        loss = -(1 - self.label_smoothing) * logsigmoid(margin) - self.label_smoothing * logsigmoid(-margin)
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=reward.detach())
