"""Listwise preference optimization with weights that care for the top of the ranking."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.errors import RecipeError
from prefopt.losses.base import ListLoss

STEEPEST = 30.0
"""Largest exponent of a gain: 2^30 still leaves float32 room for a list of them."""


class LiPO(ListLoss):
    """LiPO-lambda: DPO's loss of every two completions, weighed by what their exchange would cost the ranking.

        loss    = -sum over score_i > score_j of w_ij log sigma(r_i - r_j),   r = beta * log_ratio
        w_ij    = |g_i - g_j| * |1 / log(1 + rank_i) - 1 / log(1 + rank_j)|
        g       = 2^((score - lowest) / (highest - lowest)) - 1,   rank = place among the list's rewards, the highest 1

    arXiv:2402.01878, the lambda weights of LambdaRank, whose ranking is the policy's own; the weights are constants to
    the gradient. The paper's scores lie between 0 and 1: say between what yours lie with `lowest` and `highest`.
    Outside, gains go on growing up to 2^30. Equal rewards, as all are at the start, rank in the order of the scores, so
    that a step is a function of its data. A list of equal scores is no example.

    Raises RecipeError unless beta > 0 and highest > lowest.
    """

    name = "lipo"
    paper = "arXiv:2402.01878 (LiPO-lambda)"
    scores = "given"
    needs_preference = True

    def __init__(self, *, beta: float = 0.05, lowest: float = 0.0, highest: float = 1.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.lowest = self.number("lowest", lowest)
        self.highest = self.number("highest", highest)
        if self.highest <= self.lowest:
            raise RecipeError(
                f"highest = {highest!r} is not allowed for the loss lipo: it must be a number greater than lowest "
                f"({self.lowest:g})."
            )

    def value(self, reward: Tensor, score: Tensor, there: Tensor) -> Tensor:
        above = (score[:, :, None] > score[:, None, :]) & there[:, :, None] & there[:, None, :]
        ratio = (score - self.lowest) / (self.highest - self.lowest)
        gain, discount = torch.expm1(ratio.clamp(max=STEEPEST) * math.log(2)), self._discount(reward, score, there)
        weight = (gain[:, :, None] - gain[:, None, :]).abs() * (discount[:, :, None] - discount[:, None, :]).abs()
        loss = -weight * logsigmoid(reward[:, :, None] - reward[:, None, :])
        return loss.masked_fill(~above, 0.0).sum((-1, -2))

    def _discount(self, reward: Tensor, score: Tensor, there: Tensor) -> Tensor:
        """Return 1 / log(1 + rank) of each completion by its reward, (Q, K)."""
        by_score = score.masked_fill(~there, -torch.inf).argsort(dim=-1, descending=True, stable=True)
        rewards = reward.detach().masked_fill(~there, -torch.inf).gather(-1, by_score)
        order = by_score.gather(-1, rewards.argsort(dim=-1, descending=True, stable=True))
        rank = torch.empty_like(order).scatter_(
            -1, order, torch.arange(order.shape[-1], device=order.device).expand_as(order)
        )
        return 1 / torch.log(2.0 + rank.to(reward.dtype))
