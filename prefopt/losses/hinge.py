"""A hinge on the margin of implicit rewards."""

from __future__ import annotations

from torch import Tensor

from prefopt.losses.base import PairLoss


class Hinge(PairLoss):
    """A hinge: pushes until the margin of implicit rewards is 1, and not at all beyond.

        loss = max(0, 1 - beta * (log_ratio(chosen) - log_ratio(rejected)))

    RSO's normalized hinge (arXiv:2309.06657, whose gamma is our beta). SLiC-HF (arXiv:2305.10425), where it comes
    from, takes log-probs instead of log-ratios, a margin delta instead of 1, and adds a cross-entropy on
    demonstrations; that term is no part of this loss.

    Raises RecipeError unless beta > 0.
    """

    name = "hinge"
    paper = "arXiv:2309.06657 (RSO, hinge-norm)"

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return (1 - self.beta * (chosen - rejected)).relu()
