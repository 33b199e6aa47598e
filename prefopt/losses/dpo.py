"""Direct Preference Optimization, with label smoothing (conservative DPO) and other divergences (f-DPO)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss
from prefopt.losses.divergence import DIVERGENCES, divergence_score
from prefopt.records import SequenceLogprobs


class DPO(PairLoss):
    """Direct Preference Optimization: a logistic loss on the margin of two implicit rewards.

        margin = beta * (score(chosen) - score(rejected)),   score = log_ratio with reverse_kl
        loss   = -(1 - label_smoothing) * log sigma(margin) - label_smoothing * log sigma(-margin)

    `label_smoothing` is the probability that a label is flipped; 0 is plain DPO (Eq. 7 of arXiv:2305.18290), more
    is conservative DPO (Eq. 3 of Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023),
    whose minimum lies at margin = log((1 - label_smoothing) / label_smoothing) rather than at infinity.

    `divergence` is what holds the policy to the reference: `reverse_kl` (DPO), `forward_kl`, `js` or `alpha` (f-DPO,
    arXiv:2309.16240); the score is then f'(exp(log_ratio)), see `divergence_score`. `alpha_coef` is the alpha of that
    paper, where 0 would be reverse and 1 forward KL; only `alpha` reads it. Other than with reverse KL, adding the
    same amount to both log-ratios changes the loss.

    Raises RecipeError unless beta > 0, 0 <= label_smoothing < 0.5, divergence is one of the four, 0 < alpha_coef < 1.
    """

    name = "dpo"
    paper = "arXiv:2305.18290, Eq. 7"

    def __init__(
        self,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        divergence: str = "reverse_kl",
        alpha_coef: float = 0.5,
    ) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.label_smoothing = self.number("label_smoothing", label_smoothing, at_least=0, below=0.5)
        self.divergence = self.choice("divergence", divergence, DIVERGENCES)
        self.alpha_coef = self.number("alpha_coef", alpha_coef, above=0, below=1)

    def score(self, seqs: SequenceLogprobs) -> Tensor:
        return divergence_score(self.log_ratio(seqs), self.divergence, self.alpha_coef)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return smoothed_logistic(self.beta * (chosen - rejected), self.label_smoothing)


def smoothed_logistic(margin: Tensor, label_smoothing: float) -> Tensor:
    """Return -log sigma(margin), mixed with what it would be for the flipped label; (P,)."""
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
