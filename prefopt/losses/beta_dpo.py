"""DPO whose beta follows the step: larger where its pairs are told apart more clearly than usual."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import Loss
from prefopt.records import LossOutput, SequenceLogprobs


class BetaDPO(Loss):
    """DPO with a beta that adapts to each step, on the pairs that are least unusual.

        gap    = log_ratio(chosen) - log_ratio(rejected),
        centre = momentum * centre of the step before + (1 - momentum) * mean of gap over the step
        kept   = the share `keep` of the step's pairs whose gap is nearest to the centre
        b      = beta * (1 + alpha * (mean of gap over the kept - centre)),   0.001 at least
        loss   = -log sigma(b * gap) of the kept,   a mean over them

    arXiv:2407.08639. The centre starts at 0 and is kept in checkpoints; evaluation leaves it where it is and keeps all
    pairs. b is a constant to the gradient and is logged as `beta`. As in the authors' code `gap` is not multiplied by
    beta, so that alpha is a share of beta a nat (their runs: 0.6), and the centre takes the step in before it is used.

    The paper draws the kept pairs at random, the likelier the nearer to the centre. Here the nearest ones are kept:
    the same pairs for any packing and after any resume. Pairs that are exactly equally near share what is left.

    Raises RecipeError unless beta > 0, alpha >= 0, 0 <= momentum < 1 and 0 < keep <= 1.
    """

    name = "beta_dpo"
    form = "paired"
    paper = "arXiv:2407.08639"
    statistics = "step"
    centre: Tensor

    def __init__(self, *, beta: float = 0.1, alpha: float = 0.6, momentum: float = 0.9, keep: float = 0.8) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.alpha = self.number("alpha", alpha, at_least=0)
        self.momentum = self.number("momentum", momentum, at_least=0, below=1)
        self.keep = self.number("keep", keep, above=0, at_most=1)
        self.register_buffer("centre", torch.zeros((), dtype=torch.float64))

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        log_ratio = self.log_ratio(seqs)
        chosen, rejected = log_ratio[seqs.pair].unbind(-1)
        gap = chosen - rejected
        fixed = gap.detach().double()
        centre = self._moved(fixed)
        weight = self._nearest((fixed - centre).abs())
        usual = (weight * fixed).sum() / weight.sum().clamp(min=1e-30)
        beta = (self.beta * (1 + self.alpha * (usual - centre))).clamp(min=1e-3).to(gap.dtype)
        weight = weight.to(gap.dtype)
        return LossOutput(
            loss=-weight * logsigmoid(beta * gap),
            weight=weight,
            reward=self.beta * log_ratio.detach(),
            metrics={"beta": beta},
        )

    def end_step(self, seqs: SequenceLogprobs) -> None:
        chosen, rejected = self.log_ratio(seqs)[seqs.pair].unbind(-1)
        self.centre.copy_(self._moved((chosen - rejected).double()))

    def _moved(self, gap: Tensor) -> Tensor:
        """Return the centre with the step's gaps (P,) taken in; in evaluation, and without pairs, the centre."""
        centre = self.centre.to(gap.device)
        return torch.lerp(gap.mean(), centre, self.momentum) if self.training and gap.numel() else centre

    def _nearest(self, distance: Tensor) -> Tensor:
        """Return 1 for the kept ones by their distances (P,) and 0 for the others, a share for ties at the edge."""
        if not distance.numel() or not self.training:
            return torch.ones_like(distance)
        count = max(1, int(self.keep * distance.numel() + 1e-9))
        edge = distance.sort().values[count - 1]
        inside, tied = distance < edge, distance == edge
        return inside.to(distance.dtype) + tied * ((count - inside.sum()).to(distance.dtype) / tied.sum())
