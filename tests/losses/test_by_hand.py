"""Every loss against arithmetic written out by hand.

Most use one pair with log-ratios 2 and -1: at beta 0.5 the rewards are 1 and -0.5, and the margin is 1.5.

    x                0.5         1           1.5         2
    sigma(x)         0.62245933  0.73105858  0.81757448  0.88079708
    -log sigma(x)    0.47407698  0.31326169  0.20141328  0.12692801
    -log sigma(-x)   0.97407698  1.31326169  1.70141328  2.12692801
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from prefopt.losses import DPO, IPO, KTO, Loss, build
from prefopt.records import SequenceLogprobs
from tests.losses.toys import gradient, sequences


def pair() -> SequenceLogprobs:
    return sequences([-10.0, -11.0], [-12.0, -10.0], length=[4, 2], pair=[(0, 1)])


def close(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-6, atol=2e-7)


def check(loss: Loss, seqs: SequenceLogprobs, value: list[float], slope: list[float]) -> None:
    out = loss(seqs)
    close(out.loss, value)
    close(out.weight, [1.0] * len(value))
    close(gradient(loss, seqs), slope)


def test_dpo_by_hand() -> None:
    # log-ratios: chosen -10 + 12 = 2, rejected -11 + 10 = -1; margin 0.5 * (2 + 1) = 1.5
    # loss = log(1 + exp(-1.5)) = log(1.22313016) = 0.20141328
    # gradient: -beta * sigma(-1.5) = -0.5 * 0.18242552 = -0.09121276 on chosen, the opposite on rejected
    seqs = sequences([-10.0, -11.0], [-12.0, -10.0], pair=[(0, 1)])
    out = DPO(beta=0.5)(seqs)
    torch.testing.assert_close(out.loss, torch.tensor([0.20141328]))
    torch.testing.assert_close(out.weight, torch.tensor([1.0]))
    torch.testing.assert_close(out.reward, torch.tensor([1.0, -0.5]))
    torch.testing.assert_close(gradient(DPO(beta=0.5), seqs), torch.tensor([-0.09121276, 0.09121276]))


def test_conservative_dpo_by_hand() -> None:
    # margin 1.5 as above; -log sigma(1.5) = 0.20141328, -log sigma(-1.5) = 1.70141328
    # loss = 0.9 * 0.20141328 + 0.1 * 1.70141328 = 0.35141328
    seqs = sequences([-10.0, -11.0], [-12.0, -10.0], pair=[(0, 1)])
    torch.testing.assert_close(DPO(beta=0.5, label_smoothing=0.1)(seqs).loss, torch.tensor([0.35141328]))


def test_ipo_by_hand_for_sums_and_averages() -> None:
    # log-ratios 2 and -1 over 4 and 2 tokens; target 1 / (2 * 0.25) = 2
    # sums: (3 - 2)^2 = 1; averages: h = 0.5 + 0.5 = 1, (1 - 2)^2 = 1; gradients 2 * (h - 2) * dh
    seqs = sequences([-10.0, -11.0], [-12.0, -10.0], length=[4, 2], pair=[(0, 1)])
    torch.testing.assert_close(IPO(beta=0.25, average=False)(seqs).loss, torch.tensor([1.0]))
    torch.testing.assert_close(IPO(beta=0.25)(seqs).loss, torch.tensor([1.0]))
    torch.testing.assert_close(gradient(IPO(beta=0.25, average=False), seqs), torch.tensor([2.0, -2.0]))
    torch.testing.assert_close(gradient(IPO(beta=0.25), seqs), torch.tensor([-0.5, 1.0]))
    torch.testing.assert_close(IPO(beta=0.25)(seqs).reward, torch.tensor([0.5, -0.25]))


def test_kto_by_hand() -> None:
    # log-ratios: desirable 3, undesirable 1, mismatched 0.5 and 1.5; shift = 1; beta 0.5
    # loss of the desirable one is 2 * (1 - sigma(0.5 * (3 - 1))) = 2 * (1 - sigma(1)) = 2 * 0.26894142 = 0.53788284
    # and for the undesirable one 1 - sigma(0.5 * (1 - 1)) = 0.5
    # gradients: -2 * 0.5 * sigma(1) * sigma(-1) = -0.19661193; +0.5 * 0.25 = 0.125; mismatched none
    seqs = sequences(
        [-7.0, -9.0, -3.5, -2.5], [-10.0, -10.0, -4.0, -4.0], labels=[(0, True), (1, False)], mismatched=[2, 3]
    )
    loss = KTO(beta=0.5, desirable_weight=2.0)
    out = loss(seqs)
    torch.testing.assert_close(out.loss, torch.tensor([0.53788284, 0.5]))
    torch.testing.assert_close(out.weight, torch.ones(2))
    torch.testing.assert_close(out.metrics["kl"], torch.tensor(1.0))
    torch.testing.assert_close(gradient(loss, seqs), torch.tensor([-0.19661193, 0.125, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("divergence", "value", "slope"),
    [
        # ratios 2 and 1/2, beta 1. forward_kl: scores 1 - 1/2 and 1 - 2, margin 1.5, d score / d log-ratio 1/2 and 2
        ("forward_kl", 0.20141328, [-0.18242552 / 2, 0.18242552 * 2]),
        # js: log(4/3) - log(2/3) = log 2, -log sigma(log 2) = log(3/2), sigma(-log 2) = 1/3; slopes 1 / (1 + u)
        ("js", 0.40546511, [-1 / 9, 2 / 9]),
        # alpha 1/2: 2 (1 - 1/sqrt 2) - 2 (1 - sqrt 2) = sqrt 2, log(1 + exp(-sqrt 2)) = 0.21762150; slopes u^(-1/2),
        # sigma(-sqrt 2) = 0.19557037
        ("alpha", 0.21762150, [-0.19557037 / math.sqrt(2), 0.19557037 * math.sqrt(2)]),
    ],
)
def test_other_divergences_by_hand(divergence: str, value: float, slope: list[float]) -> None:
    seqs = sequences([-3 + math.log(2), -3 - math.log(2)], [-3.0, -3.0], pair=[(0, 1)])
    check(build("dpo", beta=1, divergence=divergence), seqs, [value], slope)


def test_robust_dpo_by_hand() -> None:
    # (0.9 * 0.20141328 - 0.1 * 1.70141328) / 0.8 = 0.01391328
    # slope in the margin (-0.9 * 0.18242552 - 0.1 * 0.81757448) / 0.8 = -0.30742552, times beta -0.15371276
    check(build("robust_dpo", beta=0.5, label_smoothing=0.1), pair(), [0.01391328], [-0.15371276, 0.15371276])


def test_hinge_by_hand() -> None:
    # beta 0.2: 1 - 0.2 * 3 = 0.4; beta 0.5: 1 - 1.5 < 0
    check(build("hinge", beta=0.2), pair(), [0.4], [-0.2, 0.2])
    check(build("hinge", beta=0.5), pair(), [0.0], [0.0, 0.0])


def test_exo_by_hand() -> None:
    # p = 0.81757448, log(p / 0.8) = 0.02173027; 1 - p = 0.18242552, log((1 - p) / 0.2) = -0.09197537
    # loss = 0.01776612 - 0.01677866; slope p (1 - p) (0.02173027 + 0.09197537) * 0.5 = 0.00847940
    check(build("exo", beta=0.5, label_smoothing=0.2), pair(), [0.00098746], [0.00847940, -0.00847940])


def test_nca_by_hand() -> None:
    # 0.31326169 + 1.31326169 / 2 + 0.47407698 / 2 = 1.20693103
    # slopes 0.5 * (-0.26894142 + 0.73105858 / 2), 0.5 * 0.37754067 / 2
    check(build("nca", beta=0.5), pair(), [1.20693103], [0.04829394, 0.09438517])


def test_apo_zero_by_hand() -> None:
    # 0.26894142 for chosen and 0.37754067 for rejected
    # slopes -0.5 * 0.73105858 * 0.26894142 and 0.5 * 0.62245933 * 0.37754067
    check(build("apo_zero", beta=0.5), pair(), [0.64648209], [-0.09830597, 0.11750186])


def test_apo_down_by_hand() -> None:
    # 0.73105858 + (1 - 0.81757448); slopes 0.5 * (0.19661193 - 0.14914645), 0.5 * 0.14914645
    check(build("apo_down", beta=0.5), pair(), [0.91348410], [0.02373274, 0.07457323])


def test_sppo_by_hand() -> None:
    # targets 1 and -1: (2 - 1)^2 + (-1 + 1)^2; beta 0.25, targets 2 and -2: 0 + 1, slope 2 * (-1 + 2)
    check(build("sppo", beta=0.5), pair(), [1.0], [2.0, 0.0])
    check(build("sppo", beta=0.25), pair(), [1.0], [0.0, 2.0])


def test_discopop_by_hand() -> None:
    # tau 0.5: gate = sigma(3) = 0.95257413; 0.04742587 * 0.20141328 + 0.95257413 * exp(-1.5) = 0.22210022
    # slope in the margin: gate' = 0.04517666 / 0.5 = 0.09035332;
    # 0.09035332 * (0.22313016 - 0.20141328) - 0.04742587 * 0.18242552 - 0.95257413 * 0.22313016 = -0.21923752
    check(build("discopop", beta=0.5, tau=0.5), pair(), [0.22210022], [-0.10961876, 0.10961876])


def test_length_normalized_dpo_by_hand() -> None:
    # 2 nats over 4 tokens, -1 over 2: margin 2 * (0.5 + 0.5) = 2; slopes -2 * 0.11920292 / 4 and / 2
    loss = build("dpo_norm", beta=2)
    check(loss, pair(), [0.12692801], [-0.05960146, 0.11920292])
    close(loss(pair()).reward, [1.0, -1.0])


def test_bco_by_hand() -> None:
    # rewards 1 and -0.5, 0 and 1.5; shift (1 - 0.5 + 0 + 1.5) / 4 = 0.5
    # 0.47407698 + 0.31326169, 0.97407698 + 1.31326169; the shift has no slope
    seqs = sequences([-10.0, -11.0, -4.0, -2.0], [-12.0, -10.0, -4.0, -5.0], pair=[(0, 1), (2, 3)])
    loss = build("bco", beta=0.5)
    check(loss, seqs, [0.78733867, 2.28733867], [-0.18877034, 0.13447071, -0.31122967, 0.36552929])
    close(loss(seqs).metrics["reward_shift"], 0.5)


def test_aot_by_hand() -> None:
    # policy's margins 1 and 3, the reference's 5 and -2: sorted, 1 meets -2 and 3 meets 5; delta 1.5 and -1
    seqs = sequences([-10.0, -11.0, -5.0, -8.0], [-4.0, -9.0, -12.0, -10.0], pair=[(0, 1), (2, 3)])
    slope = [-0.09121276, 0.09121276, -0.36552929, 0.36552929]
    check(build("aot", beta=0.5), seqs, [0.20141328, 1.31326169], slope)


def test_unpaired_aot_by_hand_where_there_are_more_good_than_bad() -> None:
    # good -1 and 2, each on half of the quantiles, against bad 0 on all: delta -0.5 and 1
    # integral (0.97407698 + 0.31326169) / 2 = 0.64366933; an example has half of 3 times its part of it
    seqs = sequences([-3.0, -6.0, -5.0], [-5.0, -5.0, -5.0], labels=[(0, True), (2, False), (1, True)])
    loss = build("aot_unpaired", beta=0.5)
    # d / d log-ratio of the sum: 3 * 0.5 * beta = 0.75 times -sigma(-1), -sigma(0.5), and both for the bad one
    slope = [-0.75 * 0.26894142, -0.75 * 0.62245933, 0.75 * (0.26894142 + 0.62245933)]
    check(loss, seqs, [0.75 * 0.31326169, 0.75 * (0.97407698 + 0.31326169), 0.75 * 0.97407698], slope)
    assert loss(seqs).loss.mean().item() == pytest.approx(0.64366933)
    assert loss(seqs).metrics["compared"] == 1


def test_simpo_by_hand() -> None:
    # -10 over 4 tokens, -11 over 2: 0.5 * (-2.5 + 5.5) - 0.5 = 1; slopes -0.5 * 0.26894142 / 4 and / 2
    loss = build("simpo", beta=0.5, gamma=0.5)
    check(loss, pair(), [0.31326169], [-0.03361768, 0.06723536])
    close(loss(pair()).reward, [-1.25, -2.75])


def test_orpo_by_hand() -> None:
    # p = 1/2 over 2 tokens and 1/5 over 1: odds 1 and 1/4, sigma(log 4) = 0.8
    # loss = log 2 - 0.1 * log 0.8; slopes (-1 - 0.1 * 0.2 / (1 - 0.5)) / 2, 0.1 * 0.2 / (1 - 0.2)
    seqs = sequences([2 * math.log(0.5), math.log(0.2)], None, length=[2, 1], pair=[(0, 1)])
    check(build("orpo", beta=0.1), seqs, [0.71546154], [-0.52, 0.025])


def test_cpo_by_hand() -> None:
    # 0.5 * (-10 + 11) = 0.5; 0.47407698 + 10 / 4; slopes -0.5 * 0.37754067 - 1/4, 0.5 * 0.37754067
    check(build("cpo", beta=0.5), pair(), [2.97407698], [-0.43877034, 0.18877034])


def test_dpo_positive_by_hand() -> None:
    # chosen rose by 2: DPO. The other way round it fell by 1: margin 0.5 * (-1 - 2 - 1 * 1) = -2, loss 2.12692801;
    # slope of chosen -sigma(2) * 0.5 * (1 + 1), of rejected sigma(2) * 0.5
    loss = build("dpo_positive", beta=0.5, penalty=1.0)
    check(loss, pair(), [0.20141328], [-0.09121276, 0.09121276])
    check(loss, replace(pair(), pair=torch.tensor([[1, 0]])), [2.12692801], [0.44039854, -0.88079708])


def test_length_regularized_dpo_by_hand() -> None:
    # margin 1.5 + 0.25 * (4 - 2) = 2; slope 0.5 * sigma(-2) = 0.5 * 0.11920292
    check(build("length_regularized_dpo", beta=0.5, alpha=0.25), pair(), [0.12692801], [-0.05960146, 0.05960146])


def test_alphapo_by_hand() -> None:
    # log-probs a token -2.5 and -5.5; at alpha 0.2 scores (1 - exp(0.5)) / 0.2 = -3.24360635 and (1 - exp(1.1)) / 0.2 =
    # -10.02083012; margin 0.1 * 6.77722377 - 0.1 = 0.57772238, loss log(1 + exp(-0.57772238)) = 0.44543878
    # slopes: sigma(-0.57772238) = 0.35945684 times beta * exp(-alpha * p) / length, which is 0.1 * 1.64872127 / 4 and
    # 0.1 * 3.00416602 / 2
    loss = build("alphapo", beta=0.1, alpha=0.2, gamma=0.1)
    check(loss, pair(), [0.44543878], [-0.01481610, 0.05399340])


def test_unpaired_apo_zero_and_bco_by_hand() -> None:
    # rewards 1 and -0.5: APO 1 - sigma(1) and sigma(-0.5); slopes -+0.5 sigma (1 - sigma)
    seqs = sequences([-10.0, -11.0], [-12.0, -10.0], labels=[(0, True), (1, False)])
    check(build("apo_zero_unpaired", beta=0.5), seqs, [0.26894142, 0.37754067], [-0.09830597, 0.11750186])
    # BCO: shift (1 - 0.5) / 2 = 0.25, both are 0.75 from it: log(1 + exp(-0.75)) = 0.38687150; slope 0.5 * 0.32082130
    check(build("bco_unpaired", beta=0.5), seqs, [0.38687150] * 2, [-0.16041065, 0.16041065])
