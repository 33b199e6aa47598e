"""Self-Play Preference Optimization, with hard preferences."""

from __future__ import annotations

from torch import Tensor

from prefopt.losses.base import PairLoss


class SPPO(PairLoss):
    """Self-Play Preference Optimization: pulls each log-ratio of a pair to its own target, up or down alike.

        loss = (log_ratio(chosen) - 1 / (2 * beta)) ** 2 + (log_ratio(rejected) + 1 / (2 * beta)) ** 2

    The square loss of arXiv:2405.00675, whose eta is 1 / beta, with hard preferences: the probability of winning is 1
    for chosen and 0 for rejected, where the paper estimates it by a preference model. The paper's eta of 1e3 (beta
    0.001) puts the targets at 500 nats, far beyond reach; our default puts them at 5. The two squares are added, as the
    peers do; the authors' code takes half of that. In the paper the
    reference is the policy of the round before, which a recipe's `reference` can name.

    Raises RecipeError unless beta > 0.
    """

    name = "sppo"
    paper = "arXiv:2405.00675 (hard preferences)"

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        target = 1 / (2 * self.beta)
        return (chosen - target).square() + (rejected + target).square()
