"""Reward-aware preference optimization: margins are brought to the gap of scores, not as far as they go."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import Loss
from prefopt.records import LossOutput, SequenceLogprobs


class RewardDistanceDPO(Loss):
    """Reward-aware DPO: the distance of a pair's margin from the gap of its scores.

        a    = beta * (log_ratio(chosen) - log_ratio(rejected)),   b = eta * (score(chosen) - score(rejected))
        loss = sigma(b) log(sigma(b) / sigma(a)) + sigma(-b) log(sigma(-b) / sigma(-a))     distance = "kl"
               the same with a and b exchanged                                              distance = "reverse_kl"
               (a - b)^2                                                                    distance = "squared"

    "kl" is the loss of Nemotron-4 340B (arXiv:2406.11704), where it is called RPO; arXiv:2502.00203 adds the other two
    under that name. RPO is also what arXiv:2404.19733 and arXiv:2405.16436 call DPO with an imitation term, here
    `dpo + sft`: hence our name. "squared" at `eta = 1` is the distillation loss of arXiv:2405.19316.

    The gradient of "kl" is sigma(a) - sigma(b): it ends at the margin a = b, where DPO's never does, and a pair that
    hardly differs is hardly pulled apart. As eta grows it becomes DPO. The scores may prefer the rejected completion.

    Raises RecipeError unless beta > 0, eta > 0 and distance is one of these three.
    """

    name = "reward_distance_dpo"
    form = "paired"
    paper = "arXiv:2406.11704 (RPO of Nemotron-4), arXiv:2502.00203"
    scores = "given"

    def __init__(self, *, beta: float = 0.1, eta: float = 1.0, distance: str = "kl") -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.eta = self.number("eta", eta, above=0)
        self.distance = self.choice("distance", distance, ("kl", "reverse_kl", "squared"))

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        reward = self.beta * self.log_ratio(seqs)
        chosen, rejected = reward[seqs.pair].unbind(-1)
        margin, target = chosen - rejected, self.eta * self.score_gap(seqs).to(reward.dtype)
        if self.distance == "squared":
            loss = (margin - target).square()
        elif self.distance == "kl":
            loss = _bernoulli_kl(target, margin)
        else:
            loss = _bernoulli_kl(margin, target)
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=reward.detach())


def _bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """Return the KL divergence of two coins whose log-odds are p and q."""
    heads = torch.sigmoid(p) * (logsigmoid(p) - logsigmoid(q))
    return heads + torch.sigmoid(-p) * (logsigmoid(-p) - logsigmoid(-q))
