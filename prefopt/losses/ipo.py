"""Identity Preference Optimization."""

from __future__ import annotations

import torch

from prefopt.losses.base import Loss
from prefopt.records import LossOutput, SequenceLogprobs


class IPO(Loss):
    """Identity Preference Optimization: a squared distance to a margin that can be reached.

        h    = s(chosen) - s(rejected),   s = log_ratio / length (average=True) or log_ratio (average=False)
        loss = (h - 1 / (2 * beta)) ** 2

    Eq. 17 of arXiv:2310.12036, whose tau is our beta. The paper writes sequence log-probs, which is
    `average=False`. The default averages over completion tokens instead, because the target 1 / (2 * beta) is one
    fixed number of nats: a sum of log-ratios grows with length, so with sums a long pair starts far from (or past)
    a target that a short one can hardly reach, and the square lets the longest pairs of a step decide its gradient.
    Averages make beta mean the same at every length, and are what the paper's authors used for its results
    (they confirmed it when the peers' implementations were corrected). With averages the target is in nats a
    token, so a beta that suits DPO asks for a lot: at 0.1, 5 nats on every token.

    The implicit reward is beta * log_ratio, never averaged, so that it compares across losses.

    Raises RecipeError unless beta > 0.
    """

    name = "ipo"
    paper = "arXiv:2310.12036, Eq. 17"
    form = "paired"

    def __init__(self, *, beta: float = 0.1, average: bool = True) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.average = self.switch("average", average)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        log_ratio = self.log_ratio(seqs)
        score = log_ratio / seqs.length if self.average else log_ratio
        chosen, rejected = score[seqs.pair].unbind(-1)
        loss = (chosen - rejected - 1 / (2 * self.beta)).square()
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=self.beta * log_ratio.detach())
