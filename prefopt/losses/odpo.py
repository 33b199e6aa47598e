"""DPO with an offset: a pair's margin must exceed what its scores say."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid

from prefopt.losses.base import Loss
from prefopt.records import LossOutput, Scores, SequenceLogprobs


class ODPO(Loss):
    """DPO with an offset: the clearer a pair's scores, the larger the margin that is asked of it.

        loss = -log sigma(beta * (log_ratio(chosen) - log_ratio(rejected)) - alpha * f(gap)),
        gap  = score(chosen) - score(rejected),   f = log or the gap itself

    arXiv:2402.10571. With `offset = "log"`, the paper's choice, a gap of 1 asks for nothing beyond DPO and a smaller
    one for less; so the scale of the scores matters, and chosen must be scored above rejected, which the data are
    checked for before training. With `offset = "linear"` any scores go, as the margin of a reward model.

    Raises RecipeError unless beta > 0, alpha >= 0 and offset is "log" or "linear".
    """

    name = "odpo"
    form = "paired"
    paper = "arXiv:2402.10571"
    scores: Scores = "ordered"

    def __init__(self, *, beta: float = 0.1, alpha: float = 1.0, offset: str = "log") -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.alpha = self.number("alpha", alpha, at_least=0)
        self.offset = self.choice("offset", offset, ("log", "linear"))
        self.scores = "ordered" if offset == "log" else "given"

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        chosen, rejected = reward[seqs.pair].unbind(-1)
        gap = self.score_gap(seqs).to(reward.dtype)
        offset = self.alpha * (gap.log() if self.offset == "log" else gap)
        loss = -logsigmoid(chosen - rejected - offset)
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=reward.detach())
