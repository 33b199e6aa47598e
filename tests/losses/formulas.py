"""Every loss once more, in float64 and as naively as the papers write it: what the modules must equal.

Each function takes the loss (for its hyper-parameters) and the step, and returns the sum of the examples' losses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
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


def odpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    gap = (seqs.pair_score[:, 0] - seqs.pair_score[:, 1]).double()
    return -log_sigma_far(margins(loss, seqs) - loss.alpha * (gap.log() if loss.offset == "log" else gap)).sum()


def reward_distance_dpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    a, b = margins(loss, seqs), loss.eta * (seqs.pair_score[:, 0] - seqs.pair_score[:, 1]).double()
    if loss.distance == "squared":
        return ((a - b) ** 2).sum()
    p, q = 1 / (1 + (-b).exp()), 1 / (1 + (-a).exp())
    if loss.distance == "reverse_kl":
        p, q = q, p
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()


def cal_dpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    chosen, rejected = (ratio.log() for ratio in ratios(seqs))
    calibration = (chosen - 0.5 / loss.beta) ** 2 + (rejected + 0.5 / loss.beta) ** 2
    return (-log_sigma(chosen - rejected) + loss.weight * calibration).sum()


def beta_dpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    chosen, rejected = (ratio.log() for ratio in ratios(seqs))
    gaps = (chosen - rejected).tolist()
    centre = (1 - loss.momentum) * sum(gaps) / len(gaps)
    kept = sorted(range(len(gaps)), key=lambda i: abs(gaps[i] - centre))[: int(loss.keep * len(gaps))]
    beta = max(1e-3, loss.beta * (1 + loss.alpha * (sum(gaps[i] for i in kept) / len(kept) - centre)))
    return -log_sigma_far(beta * (chosen - rejected)[kept]).sum()


def ld_dpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    ratio = seqs.token.policy - seqs.token.reference
    total = torch.zeros((), dtype=torch.float64)
    for chosen, rejected in seqs.pair.tolist():
        shorter = min(int(seqs.length[chosen]), int(seqs.length[rejected]))
        own = [ratio[seqs.token.segment == index] for index in (chosen, rejected)]
        w, lose = (part[:shorter].sum() + loss.alpha * part[shorter:].sum() for part in own)
        total = total - log_sigma(loss.beta * (w - lose))
    return total


def tdpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    w, lose = ratios(seqs)
    d_w, d_l = seqs.divergence[seqs.pair[:, 0]], seqs.divergence[seqs.pair[:, 1]]
    if loss.detach_chosen:
        d_w = torch.tensor(d_w.tolist(), dtype=torch.float64)
    return -log_sigma(loss.beta * (w / lose).log() - loss.alpha * (loss.beta * d_l - loss.beta * d_w)).sum()


def lists(loss: Any, seqs: SequenceLogprobs) -> list[tuple[Tensor, list[float]]]:
    """Implicit rewards and scores of every list."""
    reward = loss.beta * (seqs.policy - seqs.reference)
    of = [(seqs.list_index == number).nonzero().flatten() for number in seqs.list_index.unique()]
    return [(reward[seqs.listed[entries]], seqs.list_score[entries].double().tolist()) for entries in of]


def plackett_luce(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for reward, score in lists(loss, seqs):
        for i, own in enumerate(score):
            below = [reward[j].exp() for j, other in enumerate(score) if other < own]
            total = total - (reward[i].exp() / (reward[i].exp() + sum(below))).log()
    return total


def infonca(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for reward, score in lists(loss, seqs):
        q = [math.exp(s / loss.temperature) for s in score]
        for own, target in zip(reward, q, strict=True):
            total = total - target / sum(q) * (own.exp() / reward.exp().sum()).log()
    return total


def nca_listwise(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for reward, score in lists(loss, seqs):
        q = [math.exp(s / loss.temperature) for s in score]
        for own, target in zip(reward, q, strict=True):
            total = total - target / sum(q) * log_sigma(own) - log_sigma(-own) / len(q)
    return total


def lipo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for reward, score in lists(loss, seqs):
        gain = [2 ** ((s - loss.lowest) / (loss.highest - loss.lowest)) - 1 for s in score]
        order = sorted(range(len(score)), key=lambda i: (-reward[i].item(), -score[i], i))
        discount = [1 / math.log(1 + 1 + order.index(i)) for i in range(len(score))]
        for i, first in enumerate(score):
            for j, second in enumerate(score):
                if first > second:
                    weight = abs(gain[i] - gain[j]) * abs(discount[i] - discount[j])
                    total = total + weight * (1 + (reward[j] - reward[i]).exp()).log()
    return total


def wpo(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    """The other formula on every example by itself, times its completions' weights."""
    likely = ((seqs.policy - seqs.log_sum_p2) / seqs.length).exp().tolist()
    none = {"pair": seqs.pair[:0], "pair_score": None, "labelled": seqs.labelled[:0], "label": seqs.label[:0]}
    alone = [
        (pair, replace(seqs, **{**none, "pair": torch.tensor([pair])}))
        for pair in (seqs.pair.tolist() if loss.form != "unpaired" else [])
    ]
    if loss.form != "paired":
        alone += [
            ([index], replace(seqs, **{**none, "labelled": torch.tensor([index]), "label": torch.tensor([label])}))
            for index, label in zip(seqs.labelled.tolist(), seqs.label.tolist(), strict=True)
            if label or loss.form == "unpaired"
        ]
    total = torch.zeros((), dtype=torch.float64)
    for completions, example in alone:
        named = completions[:1] if loss.form == "demonstration" else completions
        weight = min(1.0, math.prod(likely[index] for index in named))
        total = total + weight * FORMULAS[loss.of.name](loss.of, example)
    return total


def sft(loss: Any, seqs: SequenceLogprobs) -> Tensor:
    imitated = [*seqs.pair[:, 0].tolist(), *seqs.labelled[seqs.label].tolist()]
    return -torch.stack([seqs.policy[index] for index in imitated]).sum()


FORMULAS: dict[str, Callable[[Any, SequenceLogprobs], Tensor]] = {
    function.__name__: function
    for function in (
        dpo, ipo, kto, robust_dpo, hinge, exo, nca, apo_zero, apo_down, sppo, discopop, dpo_norm, bco, aot,
        aot_unpaired, simpo, orpo, cpo, sft, dpo_positive, length_regularized_dpo, alphapo,
        apo_zero_unpaired, bco_unpaired, odpo, reward_distance_dpo, cal_dpo, beta_dpo, ld_dpo, tdpo, plackett_luce,
        infonca, nca_listwise, lipo, wpo,
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
    "odpo": [{"alpha": 0.5}, {"offset": "linear"}],
    "reward_distance_dpo": [{"distance": "reverse_kl"}, {"distance": "squared", "eta": 0.5}],
    "cal_dpo": [{"weight": 0.5, "beta": 0.02}],
    "beta_dpo": [{"alpha": 0.0}, {"keep": 1.0}, {"keep": 0.4, "momentum": 0.0}],
    "ld_dpo": [{"alpha": 0.0}, {"alpha": 1.0}],
    "tdpo": [{"alpha": 1.0, "detach_chosen": False}],
    "infonca": [{"temperature": 0.2}],
    "nca_listwise": [{"temperature": 0.2}],
    "lipo": [{"lowest": -1.0, "highest": 3.0}],
    "wpo": [{"of": "simpo"}, {"of": "ipo"}, {"of": "kto"}, {"of": "sft"}],
    "bco": [{"running": False}],
    "bco_unpaired": [{"running": False}],
}
"""Settings beside the defaults that are worth a test of their own."""
