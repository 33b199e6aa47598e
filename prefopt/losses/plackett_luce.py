"""DPO for more than two completions: the Plackett-Luce model of a whole ranking."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import ListLoss


class PlackettLuce(ListLoss):
    """DPO on ranked lists: at every place of the ranking the better completion must win against all that come after.

        loss = -sum over i of log(exp r_i / (exp r_i + sum of exp r_j over j scored below i)),   r = beta * log_ratio

    The Plackett-Luce model of the DPO paper's appendix A.3 (arXiv:2305.18290, Eq. 20): of the scores only the order
    counts, and two completions make it DPO. The paper knows no ties; here completions with equal scores do not compete
    with each other, and a list of equal scores is no example.

    Raises RecipeError unless beta > 0.
    """

    name = "plackett_luce"
    paper = "arXiv:2305.18290, appendix A.3, Eq. 20"
    needs_preference = True

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def value(self, reward: Tensor, score: Tensor, there: Tensor) -> Tensor:
        beaten = (score[:, :, None] > score[:, None, :]) & there[:, :, None] & there[:, None, :]
        wins = beaten.any(-1)
        # An entry that beats none has no rivals: zeros in their place keep its gradient finite.
        rivals = reward[:, None, :].masked_fill(~beaten, -torch.inf).masked_fill(~wins[..., None], 0.0)
        return torch.where(wins, -logsigmoid(reward - rivals.logsumexp(-1)), 0.0).sum(-1)
