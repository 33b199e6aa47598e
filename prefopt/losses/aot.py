"""Alignment via Optimal Transport: distributions over a step are compared, not pair by pair."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.losses.base import Loss, at_least_float32
from prefopt.losses.dpo import smoothed_logistic
from prefopt.records import LossOutput, SequenceLogprobs


class AOT(Loss):
    """Alignment via Optimal Transport, paired: the policy's sorted margins must exceed the reference's sorted margins.

        u     = log pi(chosen) - log pi(rejected), v = log pi_ref(chosen) - log pi_ref(rejected), each sorted
        delta = beta * (u sorted - v sorted),   over the pairs of the step
        loss  = -(1 - label_smoothing) * log sigma(delta) - label_smoothing * log sigma(-delta)

    AOT paired of arXiv:2406.05882 with the logistic loss: sorting is optimal transport in one dimension, so the loss
    asks that the distribution of margins dominates the reference's at first order. Without sorting it would be DPO.
    The step is the sample whose quantiles are compared (`statistics = "step"`), so a larger step is a better one.

    A pair's loss is that at its own rank among the policy's margins.

    Raises RecipeError unless beta > 0 and 0 <= label_smoothing < 0.5.
    """

    name = "aot"
    form = "paired"
    paper = "arXiv:2406.05882 (AOT paired)"
    statistics = "step"

    def __init__(self, *, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.label_smoothing = self.number("label_smoothing", label_smoothing, at_least=0, below=0.5)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        policy, reference = at_least_float32(seqs.policy), self.reference(seqs)
        margin, frozen = _margins(policy, seqs.pair), _margins(reference, seqs.pair)
        rank = margin.argsort().argsort()
        loss = smoothed_logistic(self.beta * (margin - frozen.sort().values[rank]), self.label_smoothing)
        reward = self.beta * (policy.detach() - reference)
        return LossOutput(loss=loss, weight=torch.ones_like(loss), reward=reward)


class AOTUnpaired(Loss):
    """Alignment via Optimal Transport, unpaired: quantiles of good log-ratios must exceed those of bad ones.

        Q+, Q- = quantile functions of log_ratio over the step's desirable (good) and undesirable (bad) completions
        loss   = integral over q in (0, 1) of -(1 - label_smoothing) * log sigma(delta(q))
                                              - label_smoothing * log sigma(-delta(q))
        delta  = beta * (Q+(q) - Q-(q))

    AOT unpaired of arXiv:2406.05882 with the logistic loss. With as many desirable completions as undesirable ones,
    the integral is the mean over the two sorted lists, matched rank by rank. Otherwise each stretch of q on which
    both quantile functions are constant counts as much as it is wide, so nothing is dropped or repeated.

    An example's loss is half of the losses that it takes part in, for the matched examples carry the other half; the
    step's mean is the integral. A step with one kind only compares nothing: its loss is 0, and the metric `compared`,
    which is 1 otherwise, is 0 for it.

    Raises RecipeError unless beta > 0 and 0 <= label_smoothing < 0.5.
    """

    name = "aot_unpaired"
    form = "unpaired"
    paper = "arXiv:2406.05882 (AOT unpaired)"
    statistics = "step"

    def __init__(self, *, beta: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.beta = self.number("beta", beta, above=0)
        self.label_smoothing = self.number("label_smoothing", label_smoothing, at_least=0, below=0.5)

    def forward(self, seqs: SequenceLogprobs) -> LossOutput:
        log_ratio = self.log_ratio(seqs)
        value = log_ratio[seqs.labelled]
        order = value.argsort()
        good, bad = order[seqs.label[order]], order[~seqs.label[order]]
        loss = value * 0  # keeps the graph where nothing is compared
        if compared := bool(good.numel() and bad.numel()):
            above, below, mass = _matched(good, bad)
            part = smoothed_logistic(self.beta * (value[above] - value[below]), self.label_smoothing)
            half = 0.5 * loss.numel() * mass.to(part.dtype) * part
            loss = loss.index_add(0, above, half).index_add(0, below, half)
        return LossOutput(
            loss=loss,
            weight=torch.ones_like(loss),
            reward=self.beta * log_ratio.detach(),
            metrics={"compared": torch.tensor(float(compared))},
        )


def _margins(values: Tensor, pair: Tensor) -> Tensor:
    """Return (P,) chosen minus rejected."""
    chosen, rejected = values[pair].unbind(-1)
    return chosen - rejected


def _matched(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Match two sorted samples by quantile: return who meets whom, and on how much of (0, 1), which adds up to 1.

    Counted in units of 1 / (F * G) for samples of F and G, so that the borders are whole numbers.
    """
    f, g = first.numel(), second.numel()
    borders = torch.cat([torch.arange(0, f * g + 1, g), torch.arange(0, f * g + 1, f)]).unique().to(first.device)
    start = borders[:-1]
    return first[start // g], second[start // f], borders.diff().double() / (f * g)
