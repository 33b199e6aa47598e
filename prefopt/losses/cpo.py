"""Contrastive Preference Optimization: no reference."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from prefopt.losses.base import Loss, at_least_float32
from prefopt.records import LossOutput, SequenceLogprobs


class CPO(Loss):
    """Contrastive Preference Optimization: DPO with a uniform reference, and imitation of the chosen completion.

        loss = -log sigma(beta * (log pi(chosen) - log pi(rejected))) - nll_weight * log pi(chosen) / length(chosen)

    The objective of arXiv:2401.08417. The paper writes the second term as the whole sequence's log-prob; the authors'
    code averages it over the batch's tokens, ours over each completion's: the first term pulls a nat of log-prob by
    beta at most, the sum would pull it by 1, so that at beta 0.1 the preference would hardly be heard and long
    completions would decide. As in the paper, both terms count the same by default. The implicit reward is
    beta * log pi.

    Raises RecipeError unless beta > 0 and nll_weight >= 0.
    """

    name = "cpo"
    form = "paired"
    paper = "arXiv:2401.08417"
    needs_reference = False

    def __init__(self, *, beta: float = 0.1, nll_weight: float = 1.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.nll_weight = self.number("nll_weight", nll_weight, at_least=0)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        policy = at_least_float32(seqs.policy)
        chosen, rejected = policy[seqs.pair].unbind(-1)
        imitation = -chosen / seqs.length[seqs.pair[:, 0]]
        loss = -logsigmoid(self.beta * (chosen - rejected)) + self.nll_weight * imitation
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=self.beta * policy.detach())
