"""Every loss once more, in float64 and as naively as the papers write it: what the modules must equal.

Each function takes the loss (for its hyper-parameters) and the step, and returns the sum of the examples' losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prefopt.records import SequenceLogprobs


def log_sigma(x: Tensor) -> Tensor:
    return (1 / (1 + (-x).exp())).log()


def log_sigma_far(x: Tensor) -> Tensor:
    """The same for margins so far below zero that the naive form overflows."""
    return -torch.logaddexp(torch.zeros_like(x), -x)


def ratios(seqs: SequenceLogprobs) -> tuple[Tensor, Tensor]:
    """pi / pi_ref of chosen and rejected."""
    ratio = (seqs.policy - seqs.reference).exp()
    return ratio[seqs.pair[:, 0]], ratio[seqs.pair[:, 1]]


def margins(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    chosen, rejected = ratios(seqs)
    return loss.beta * (chosen / rejected).log()


def rewards(loss: Any, seqs: SequenceLogprobs) -> tuple[Tensor, Tensor]:
    chosen, rejected = ratios(seqs)
    return loss.beta * chosen.log(), loss.beta * rejected.log()


def averages(values: Tensor, seqs: SequenceLogprobs) -> tuple[Tensor, Tensor]:
    mean = values / seqs.length
    return mean[seqs.pair[:, 0]], mean[seqs.pair[:, 1]]


def smoothed(margin: Tensor, epsilon: float) -> Tensor:
    return -(1 - epsilon) * log_sigma(margin) - epsilon * log_sigma(-margin)


def dpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    a = loss.alpha_coef
    derivative: Callable[[Tensor], Tensor] = {
        "reverse_kl": lambda u: u.log() + 1,
        "forward_kl": lambda u: -1 / u,
        "js": lambda u: (2 * u / (1 + u)).log(),
        "alpha": lambda u: (1 - u**-a) / a,
    }[loss.divergence]
    chosen, rejected = ratios(seqs)
    return smoothed(loss.beta * derivative(chosen) - loss.beta * derivative(rejected), loss.label_smoothing).sum()


def ipo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    log_ratio = seqs.policy - seqs.reference
    chosen, rejected = averages(log_ratio, seqs) if loss.average else (log_ratio[seqs.pair[:, i]] for i in (0, 1))
    return ((chosen - rejected - 0.5 / loss.beta) ** 2).sum()


def kto(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    log_ratio = seqs.policy - seqs.reference
    z = max(0.0, log_ratio[seqs.mismatched].mean().item())
    total = torch.zeros((), dtype=torch.float64)
    for index, desirable in zip(seqs.labelled.tolist(), seqs.label.tolist(), strict=True):
        if desirable:
            total = total + loss.desirable_weight * (1 - torch.sigmoid(loss.beta * (log_ratio[index] - z)))
        else:
            total = total + loss.undesirable_weight * (1 - torch.sigmoid(loss.beta * (z - log_ratio[index])))
    return total


def robust_dpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    m, e = margins(loss, seqs), loss.label_smoothing
    return ((-(1 - e) * log_sigma(m) + e * log_sigma(-m)) / (1 - 2 * e)).sum()


def hinge(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    m = margins(loss, seqs)
    return torch.where(m < 1, 1 - m, torch.zeros_like(m)).sum()


def exo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    chosen, rejected = (r**loss.beta for r in ratios(seqs))
    p, q = chosen / (chosen + rejected), rejected / (chosen + rejected)
    return (p * (p / (1 - loss.label_smoothing)).log() + q * (q / loss.label_smoothing).log()).sum()


def nca(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    w, lose = rewards(loss, seqs)
    return -(log_sigma(w) + 0.5 * (log_sigma(-w) + log_sigma(-lose))).sum()


def apo_zero(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    w, lose = rewards(loss, seqs)
    return (1 - 1 / (1 + (-w).exp()) + 1 / (1 + (-lose).exp())).sum()


def apo_down(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    w, lose = rewards(loss, seqs)
    return (1 / (1 + (-w).exp()) + 1 - 1 / (1 + (lose - w).exp())).sum()


def sppo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    eta = 1 / loss.beta
    chosen, rejected = ratios(seqs)
    return ((chosen.log() - eta * (1 - 0.5)) ** 2 + (rejected.log() - eta * (0 - 0.5)) ** 2).sum()


def discopop(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    m = margins(loss, seqs)
    gate = 1 / (1 + (-m / loss.tau).exp())
    return ((1 - gate) * (1 + (-m).exp()).log() + gate * (-m).exp()).sum()


def dpo_norm(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    chosen, rejected = averages(seqs.policy - seqs.reference, seqs)
    return -log_sigma(loss.beta * chosen - loss.beta * rejected).sum()


def bco(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    w, lose = rewards(loss, seqs)
    delta = (w.mean().item() + lose.mean().item()) / 2
    return -(log_sigma(w - delta) + log_sigma(-(lose - delta))).sum()


def aot(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    u = seqs.policy[seqs.pair[:, 0]] - seqs.policy[seqs.pair[:, 1]]
    v = seqs.reference[seqs.pair[:, 0]] - seqs.reference[seqs.pair[:, 1]]
    return smoothed(loss.beta * (u.sort().values - v.sort().values), loss.label_smoothing).sum()


def aot_unpaired(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    log_ratio = (seqs.policy - seqs.reference)[seqs.labelled]
    good, bad = log_ratio[seqs.label].sort().values, log_ratio[~seqs.label].sort().values
    # Repeat both until they are equally many: the quantile functions stay what they are.
    good, bad = good.repeat_interleave(len(bad)), bad.repeat_interleave(len(good))
    return len(log_ratio) * smoothed(loss.beta * (good - bad), loss.label_smoothing).mean()


def simpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    chosen, rejected = averages(seqs.policy, seqs)
    return -log_sigma(loss.beta * chosen - loss.beta * rejected - loss.gamma).sum()


def orpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    chosen, rejected = (mean.exp() for mean in averages(seqs.policy, seqs))
    odds = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    return (-chosen.log() - loss.beta * log_sigma(odds.log())).sum()


def cpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    chosen, rejected = seqs.policy[seqs.pair[:, 0]], seqs.policy[seqs.pair[:, 1]]
    mean, _ = averages(seqs.policy, seqs)
    return (-log_sigma(loss.beta * chosen - loss.beta * rejected) - loss.nll_weight * mean).sum()


def dpo_positive(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    w, lose = ratios(seqs)
    fallen = torch.maximum(torch.zeros_like(w), (1 / w).log())
    return -log_sigma_far(loss.beta * ((w / lose).log() - loss.penalty * fallen)).sum()


def length_regularized_dpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    extra = seqs.length[seqs.pair[:, 0]] - seqs.length[seqs.pair[:, 1]]
    return -log_sigma(margins(loss, seqs) + loss.alpha * extra.double()).sum()


def alphapo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    chosen, rejected = (mean.exp() for mean in averages(seqs.policy, seqs))
    r_w, r_l = (loss.beta * (1 - p**-loss.alpha) / loss.alpha for p in (chosen, rejected))
    return -log_sigma_far(r_w - r_l - loss.gamma).sum()


def apo_zero_unpaired(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    s = 1 / (1 + (-loss.beta * (seqs.policy - seqs.reference)[seqs.labelled]).exp())
    return (1 - s[seqs.label]).sum() + s[~seqs.label].sum()


def bco_unpaired(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    r = loss.beta * (seqs.policy - seqs.reference)[seqs.labelled]
    good, bad = r[seqs.label], r[~seqs.label]
    delta = (good.mean().item() + bad.mean().item()) / 2
    return -(log_sigma(good - delta).sum() + log_sigma(delta - bad).sum())


def sft(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    imitated = [*seqs.pair[:, 0].tolist(), *seqs.labelled[seqs.label].tolist()]
    return -torch.stack([seqs.policy[index] for index in imitated]).sum()


FORMULAS: dict[str, Callable[[Any, SequenceLogprobs], Tensor]] = {
    function.__name__: function
    for function in (
        dpo, ipo, kto, robust_dpo, hinge, exo, nca, apo_zero, apo_down, sppo, discopop, dpo_norm, bco, aot,
        aot_unpaired, simpo, orpo, cpo, sft, dpo_positive, length_regularized_dpo, alphapo,
        apo_zero_unpaired, bco_unpaired,
    )
}  # fmt: skip

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dpo": [
        {"label_smoothing": 0.2},
        {"divergence": "forward_kl"},
        {"divergence": "js", "label_smoothing": 0.1},
        {"divergence": "alpha", "alpha_coef": 0.3},
        {"divergence": "alpha", "alpha_coef": 0.9},
    ],
    "ipo": [{"average": False}],
    "kto": [{"desirable_weight": 1.5, "undesirable_weight": 0.7}],
    "robust_dpo": [{"label_smoothing": 0.0}, {"label_smoothing": 0.4}],
    "exo": [{"label_smoothing": 0.2}],
    "discopop": [{"tau": 1.0}],
    "aot": [{"label_smoothing": 0.2}],
    "aot_unpaired": [{"label_smoothing": 0.2}],
    "simpo": [{"gamma": 0.0}],
    "cpo": [{"nll_weight": 0.0}],
    "dpo_positive": [{"penalty": 0.0}, {"penalty": 2.0}],
    "length_regularized_dpo": [{"alpha": 0.3}],
    "alphapo": [{"alpha": 1.0, "gamma": 0.0}],
}
"""Settings beside the defaults that are worth a test of their own."""
