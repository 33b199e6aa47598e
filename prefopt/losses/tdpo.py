"""Token-level DPO: margins, less what the policy's distributions have left those of the reference."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from prefopt.losses.base import Loss, at_least_float32
from prefopt.records import LossOutput, SequenceLogprobs


class TDPO(Loss):
    """Token-level DPO: the margin is charged with how much further the policy has left the reference on rejected.

        loss = -log sigma(beta * (log_ratio(chosen) - log_ratio(rejected) - alpha * (d(rejected) - d(chosen)))),
        d(y) = sum over the tokens of y of KL(pi_ref(.|x, y before) || pi(.|x, y before))

    arXiv:2404.11999. By default it is the paper's TDPO2, in which d(chosen) is a constant to the gradient;
    `alpha = 1, detach_chosen = false` is its TDPO1. At `alpha = 0` it is DPO.

    d compares whole distributions (`extras`), so the reference must be a model: log-probs alone, as a cache holds them,
    can't give it. It costs a second sweep over the vocabulary.

    Raises RecipeError unless beta > 0, alpha >= 0 and detach_chosen is true or false.
    """

    name = "tdpo"
    form = "paired"
    paper = "arXiv:2404.11999 (TDPO1 and TDPO2)"
    extras = frozenset({"divergence"})

    def __init__(self, *, beta: float = 0.1, alpha: float = 0.5, detach_chosen: bool = True) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.alpha = self.number("alpha", alpha, at_least=0)
        self.detach_chosen = self.switch("detach_chosen", detach_chosen)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        log_ratio = self.log_ratio(seqs)
        divergence = at_least_float32(self.extra(seqs, "divergence"))
        (chosen, rejected), (left, right) = log_ratio[seqs.pair].unbind(-1), divergence[seqs.pair].unbind(-1)
        if self.detach_chosen:
            left = left.detach()
        loss = -logsigmoid(self.beta * (chosen - rejected - self.alpha * (right - left)))
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=self.beta * log_ratio.detach())
