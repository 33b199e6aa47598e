"""Odds Ratio Preference Optimization: no reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefopt.losses.base import PairLoss, at_least_float32
from prefopt.records import SequenceLogprobs


class ORPO(PairLoss):
    """Odds Ratio Preference Optimization: imitates the chosen completion and sets its odds above the rejected one's.

        p(y) = exp(log pi(y) / length(y)),   odds(y) = p(y) / (1 - p(y))
        loss = -log p(chosen) - beta * log sigma(log(odds(chosen) / odds(rejected)))

    Eqs. 6 and 7 of arXiv:2403.07691, whose lambda is our beta: probabilities are geometric means over tokens. The
    first term is the mean over the chosen completion's tokens, then over pairs, as the paper writes it; the prompt
    is no part of it. The implicit reward is beta * log p.

    Raises RecipeError unless beta > 0.
    """

    name = "orpo"
    paper = "arXiv:2403.07691, Eqs. 6 and 7"
    needs_reference = False

    def __init__(self, *, beta: float = 0.1) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)

    def score(self, seqs: SequenceLogprobs) -> Tensor:
        return at_least_float32(seqs.policy) / seqs.length

    def value(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        return -chosen - self.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(log_p: Tensor) -> Tensor:
    """Return log(p / (1 - p)) from log p, finite and with a slope of at least 1 wherever log p is.

    1 - p is -expm1(log p), which keeps its digits where p is close to 1. It is held at the type's resolution, below
    which no p but 1 itself is left: there the odds would be infinite, and a model that is sure of every token would
    turn a rejected completion's gradient into NaN.
    """
    return log_p - (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).eps).log()
