"""Noise Contrastive Alignment of lists: rewards follow the scores, not only their order."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import ListLoss


class _Contrastive(ListLoss):
    """What both losses of the paper share: targets from a softmax of scores."""

    scores = "given"

    def __init__(self, *, beta: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.temperature = self.number("temperature", temperature, above=0)

    def target(self, score: Tensor, there: Tensor) -> Tensor:
        """Return the share of each completion, (Q, K)."""
        held = score.masked_fill(~there, -torch.inf)
        # The largest goes first: scores may be larger than the temperature by more than float32 can hold.
        return ((held - held.amax(-1, keepdim=True)) / self.temperature).softmax(-1)


class InfoNCA(_Contrastive):
    """InfoNCA: the softmax of a list's implicit rewards is brought to the softmax of its scores.

        loss = -sum over k of q_k log p_k,   q = softmax(score / temperature),   p = softmax(beta * log_ratio)

    arXiv:2402.05369. As the temperature falls only the best completion counts; for a pair that is DPO. A list of equal
    scores is an example too: its rewards are to be equal. The authors' code divides scores from 1 to 10 by 0.001, which
    leaves the best alone; the temperature here is in the units of the scores, so set it to a difference that matters.

    Raises RecipeError unless beta > 0 and temperature > 0.
    """

    name = "infonca"
    paper = "arXiv:2402.05369 (InfoNCA)"

    def value(self, reward: Tensor, score: Tensor, there: Tensor) -> Tensor:
        surprise = -reward.masked_fill(~there, -torch.inf).log_softmax(-1)
        return (self.target(score, there) * surprise.masked_fill(~there, 0.0)).sum(-1)


class NCAListwise(_Contrastive):
    """Noise Contrastive Alignment on lists: each implicit reward is classified by itself, the better the more so.

        loss = -sum over k of (q_k log sigma(r_k) + log sigma(-r_k) / K),   q = softmax(score / temperature)

    The paper's NCA for K completions with rewards (arXiv:2402.05369), r = beta * log_ratio. With two completions and a
    small temperature it is `nca`. Unlike `infonca` it says where each reward shall be, not only their differences.

    Raises RecipeError unless beta > 0 and temperature > 0.
    """

    name = "nca_listwise"
    paper = "arXiv:2402.05369 (NCA)"

    def value(self, reward: Tensor, score: Tensor, there: Tensor) -> Tensor:
        noise = logsigmoid(-reward) / there.sum(-1, keepdim=True)
        return -(self.target(score, there) * logsigmoid(reward) + noise.masked_fill(~there, 0.0)).sum(-1)
