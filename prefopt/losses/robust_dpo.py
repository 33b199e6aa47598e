"""DPO corrected for a known share of flipped labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss


class RobustDPO(PairLoss):
    """Robust DPO: in expectation over labels that are flipped at a known rate, the DPO loss of the true labels.

        margin = beta * (log_ratio(chosen) - log_ratio(rejected))
        loss   = -((1 - label_smoothing) * log sigma(margin) - label_smoothing * log sigma(-margin))
                 / (1 - 2 * label_smoothing)

    The unbiased estimate of arXiv:2403.00409, whose epsilon, the probability that a label is flipped, is our
    `label_smoothing` (the peers' name, and the same number as in `dpo`; here it sharpens rather than smooths). It
    equals -log sigma(margin) - label_smoothing / (1 - 2 * label_smoothing) * margin, which is how it is computed:
    no difference of large terms. So it falls for ever as the margin grows, below zero; 0 is plain DPO.

    The paper leaves the rate to the user, and so does the default: 0.1 is an assumption about your data.

    Raises RecipeError unless beta > 0 and 0 <= label_smoothing < 0.5.
    """

    name = "robust_dpo"
    paper = "arXiv:2403.00409"

    def __init__(self, *, beta: float = 0.1, label_smoothing: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.label_smoothing = self.number("label_smoothing", label_smoothing, at_least=0, below=0.5)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        margin = self.beta * (chosen - rejected)
        return -logsigmoid(margin) - self.label_smoothing / (1 - 2 * self.label_smoothing) * margin
