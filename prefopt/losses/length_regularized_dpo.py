"""DPO with a price on length."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from prefopt.losses.base import Loss
from prefopt.records import LossOutput, SequenceLogprobs


class LengthRegularizedDPO(Loss):
    """Length-regularized DPO (R-DPO): DPO for a reward that charges for every token.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected)) + alpha * (length(chosen) - length(rejected))
        loss   = -log sigma(margin)

    R-DPO of arXiv:2403.19159: maximizing reward - alpha * length under the KL constraint of DPO gives this margin. A
    longer chosen completion starts with part of its margin, so it is pulled less, and a shorter one more. `alpha` is
    in reward a token; its scale depends on the lengths of the data, and 0 is DPO.

    Raises RecipeError unless beta > 0 and alpha >= 0.
    """

    name = "length_regularized_dpo"
    form = "paired"
    paper = "arXiv:2403.19159 (R-DPO)"

    def __init__(self, *, beta: float = 0.1, alpha: float = 0.01) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.alpha = self.number("alpha", alpha, at_least=0)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        chosen, rejected = (reward + self.alpha * seqs.length.to(reward.dtype))[seqs.pair].unbind(-1)
        loss = -logsigmoid(chosen - rejected)
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=reward.detach())
