"""Kahneman-Tversky Optimization, on completions that are labelled desirable or not."""

from __future__ import annotations

import torch

from prefopt.errors import DataError
from prefopt.losses.base import Loss
from prefopt.records import LossOutput, SequenceLogprobs


class KTO(Loss):
    """Kahneman-Tversky Optimization: a labelled completion is a gain or a loss against a shared reference point.

        shift = max(0, mean of log_ratio over the step's mismatched completions)
        loss  = desirable_weight   * (1 - sigma(beta * (log_ratio - shift)))    where desirable
                undesirable_weight * (1 - sigma(beta * (shift - log_ratio)))    elsewhere

    Eq. 8 of arXiv:2402.01306 (Eq. 7 in its early versions), whose z_0 is our shift: an estimate of the divergence
    from the reference, from completions that belong to other prompts.

    The shift is one number for the whole optimizer step (`statistics = "mismatched"`), so `forward` must be given all
    the step's mismatched completions, beside some or all of its examples. As in the paper it is a constant to the
    gradient: mismatched completions get none, and can be scored without a graph. It is logged as the metric `kl`.

    The weights multiply the loss and do not enter the divisor: the step's loss is a mean over examples. Where
    the data are uneven, the paper advises weights that bring (desirable_weight * number of desirable) /
    (undesirable_weight * number of undesirable) to between 1 and 4/3.

    Raises RecipeError unless beta, desirable_weight and undesirable_weight > 0.
    """

    name = "kto"
    paper = "arXiv:2402.01306, Eq. 8"
    form = "unpaired"
    statistics = "mismatched"
    needs_mismatched = True

    def __init__(self, *, beta: float = 0.1, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.desirable_weight = self.number("desirable_weight", desirable_weight, above=0)
        self.undesirable_weight = self.number("undesirable_weight", undesirable_weight, above=0)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        log_ratio = self.log_ratio(seqs)
        if seqs.mismatched.numel() == 0:
            raise DataError(
                "The loss kto measures its shift on completions of other prompts, but the step holds none: "
                "plan the steps with mismatched completions (StepPlan(..., mismatched=True))."
            )
        shift = log_ratio.detach()[seqs.mismatched].mean().clamp(min=0)
        advantage = self.beta * (log_ratio[seqs.labelled] - shift)
        # 1 - sigma(x) is sigma(-x), which keeps its digits where sigma(x) is close to 1.
        gain = self.desirable_weight * torch.sigmoid(-advantage)
        loss = torch.where(seqs.label, gain, self.undesirable_weight * torch.sigmoid(advantage))
        return LossOutput(
            loss=loss,
            weight=torch.ones_like(loss),
            reward=self.beta * log_ratio.detach(),
            metrics={"kl": shift},
        )
