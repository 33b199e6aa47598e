"""What the papers, and a little arithmetic, say of each loss beyond its formula."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from prefopt.errors import DataError
from prefopt.losses import DPO, IPO, KTO, Loss, available, build
from prefopt.records import SequenceLogprobs
from tests.losses.toys import gradient, sequences

LOG_2 = math.log(2)
DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")


def double(chosen: float, rejected: float, **extra: Any) -> SequenceLogprobs:
    """A pair with these log-ratios, in float64."""
    return sequences([chosen - 50, rejected - 50], [-50.0, -50.0], pair=[(0, 1)], dtype=torch.float64, **extra)


def slope(loss: Loss, margin: float) -> float:
    """d loss / d chosen log-ratio where the log-ratios are margin and 0."""
    return float(gradient(loss, double(margin, 0.0))[0])


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


AT_THE_REFERENCE = {
    "dpo": LOG_2,
    "robust_dpo": LOG_2,
    "dpo_norm": LOG_2,
    "aot": LOG_2,
    "aot_unpaired": LOG_2,
    "ipo": 25.0,  # (0 - 1 / 0.2)^2
    "sppo": 50.0,  # twice that
    "hinge": 1.0,
    "exo": 0.5 * math.log(0.5 / 0.999) + 0.5 * math.log(0.5 / 0.001),
    "nca": 2 * LOG_2,  # 1 + 1/2 + 1/2
    "bco": 2 * LOG_2,
    "apo_zero": 1.0,  # 1/2 + 1/2
    "apo_down": 1.0,
    "discopop": 0.5 * LOG_2 + 0.5,
    "kto": 0.5,
    "dpo_positive": LOG_2,
    "apo_zero_unpaired": 0.5,
    "bco_unpaired": LOG_2,
    "odpo": 0.5 * (math.log(1 + 2) + math.log(1 + 0.5)),  # gaps of 2 and 0.5
    "reward_distance_dpo": 0.5 * sum(math.log(2) - entropy(1 / (1 + math.exp(-gap))) for gap in (2, 0.5)),
    "cal_dpo": LOG_2 + 50.0,  # as sppo's
    "beta_dpo": LOG_2,
    "ld_dpo": LOG_2,
    "tdpo": LOG_2,
    "wpo": 0.0,  # the policy would never write these: weights of 1e-27 and less
    "plackett_luce": 0.5 * (math.log(3) + math.log(2) + math.log(2)),  # of three, then of the two that are left; of two
    "infonca": 0.5 * (math.log(3) + math.log(2)),
    "nca_listwise": 2 * LOG_2,
    # gains 3, 1, 0 and 1, 0 at ranks 1, 2, 3: exchanges cost 2 * 0.532456, 3 * 0.721347, 0.188891; and 0.532456
    "lipo": 0.5 * (3.417843 + 0.532456) * LOG_2,
    "length_regularized_dpo": 0.5 * (math.log1p(math.exp(-0.06)) + math.log1p(math.exp(0.02))),  # lengths 9, 3 and 1, 3
}


@pytest.mark.parametrize("name", [name for name, kind in available().items() if kind.needs_reference])
def test_the_loss_where_policy_and_reference_agree(name: str) -> None:
    values = [-301.7, -88.2, -5.0, -17.0]
    seqs = sequences(
        values, values, pair=[(0, 1), (2, 1)], labels=[(0, True), (1, False), (2, True)], mismatched=[3],
        length=[9, 3, 1, 7], pair_scores=[(5, 3), (3.5, 3)], lists=[[(0, 2), (1, 1), (2, 0)], [(1, 1), (3, 0)]],
    )  # fmt: skip
    out = build(name)(seqs)
    mean = out.loss.sum() / out.weight.sum()
    torch.testing.assert_close(mean, torch.tensor(AT_THE_REFERENCE[name]))
    assert out.reward.tolist() == [0.0] * 4


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_is_log_2_at_the_reference_whatever_its_divergence(divergence: str, smoothing: float) -> None:
    out = build("dpo", divergence=divergence, label_smoothing=smoothing)(double(0.0, 0.0))
    assert out.loss.item() == pytest.approx(LOG_2, rel=1e-15)
    assert out.reward.tolist() == [0.0, 0.0]


DIFFERENCE_ONLY = [
    "aot",
    "beta_dpo",
    "ld_dpo",
    "length_regularized_dpo",
    "odpo",
    "reward_distance_dpo",
    "discopop",
    "dpo",
    "dpo_norm",
    "exo",
    "hinge",
    "ipo",
    "robust_dpo",
    "simpo",
]
"""A pair's loss is a function of one difference (of averages, for some: at equal lengths)."""


@pytest.mark.parametrize("name", [name for name, kind in available().items() if kind.form == "paired"])
@pytest.mark.parametrize("constant", [-7.0, 3.0])
def test_moving_both_log_ratios_alike_changes_nothing_exactly_where_only_their_difference_counts(
    name: str, constant: float
) -> None:
    loss = build(name)
    ratios, pairs = torch.tensor([-1.0, 2.0, 4.0, -9.0]), [(0, 1), (2, 3)]
    seqs, moved = (
        sequences((ratios + c - 50).tolist(), [-50.0] * 4, length=[5] * 4, pair=pairs, dtype=torch.float64)
        for c in (0.0, constant)
    )
    total, size = gradient(loss, seqs).sum().abs(), gradient(loss, seqs).abs().max()
    if name in DIFFERENCE_ONLY:
        torch.testing.assert_close(loss(seqs).loss, loss(moved).loss)
        assert total < 1e-13 * size
    else:
        assert (total > 1e-3 * size) == (name != "wpo")
        # bco's shift moves along, so that its value stays: it is the gradient that takes the shift for a constant. With
        # wpo it is the other way round: its weights move.
        assert torch.allclose(loss(seqs).loss, loss(moved).loss, rtol=1e-9, atol=0) == (name == "bco")


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_only_reverse_kl_looks_at_nothing_but_the_difference(divergence: str) -> None:
    total = gradient(build("dpo", divergence=divergence), double(-1.0, 2.0)).sum().abs()
    assert (total < 1e-15) == (divergence == "reverse_kl")


@pytest.mark.parametrize("name", ["dpo", "aot", "aot_unpaired"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_label_smoothing_mixes_the_plain_loss_with_that_of_flipped_labels(name: str, rate: float) -> None:
    seqs = sequences(
        [-10.0, -11.0, -5.0, -9.0, -7.0], [-12.0, -10.0, -8.0, -8.0, -7.5], pair=[(0, 1), (2, 3)],
        labels=[(0, True), (1, False), (2, True), (3, False), (4, False)], dtype=torch.float64,
    )  # fmt: skip
    flipped = replace(seqs, pair=seqs.pair.flip(1), label=~seqs.label)
    plain, smoothed = build(name), build(name, label_smoothing=rate)
    expected = (1 - rate) * plain(seqs).loss.sum() + rate * plain(flipped).loss.sum()
    torch.testing.assert_close(smoothed(seqs).loss.sum(), expected)


def test_robust_dpo_without_flipped_labels_is_dpo() -> None:
    seqs = double(1.0, -2.0)
    torch.testing.assert_close(build("robust_dpo", label_smoothing=0)(seqs).loss, DPO()(seqs).loss)


def test_conservative_dpo_is_least_where_sigma_of_the_margin_is_the_share_of_right_labels() -> None:
    # log(0.9 / 0.1) = 2.1972246
    assert abs(slope(DPO(beta=1.0, label_smoothing=0.1), math.log(9.0))) < 1e-15


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    rate, count = 0.2, 200_000
    flipped = torch.rand(count, generator=torch.Generator().manual_seed(0)) < rate
    pairs = torch.where(flipped[:, None], torch.tensor([1, 0]), torch.tensor([0, 1]))
    seqs = double(2.0, -1.0)
    noisy = SequenceLogprobs(**{**vars(seqs), "pair": pairs})
    loss, clean = build("robust_dpo", beta=0.5, label_smoothing=rate), build("dpo", beta=0.5)
    drawn = loss(noisy).loss.detach()
    error = float(drawn.std() / math.sqrt(count))
    assert abs(float(drawn.mean() - clean(seqs).loss.detach())) < 4 * error
    assert abs(float((clean(noisy).loss.mean() - clean(seqs).loss).detach())) > 40 * error  # what the correction is for
    # And exactly, in expectation, value and gradient.
    other = SequenceLogprobs(**{**vars(seqs), "pair": seqs.pair.flip(1)})
    expected = (1 - rate) * loss(seqs).loss + rate * loss(other).loss
    torch.testing.assert_close(expected, clean(seqs).loss)
    mixed = (1 - rate) * gradient(loss, seqs).clone() + rate * gradient(loss, other)
    torch.testing.assert_close(mixed, gradient(clean, seqs))


def test_ipo_is_zero_and_flat_at_a_margin_of_half_the_inverse_beta() -> None:
    # 1 / (2 * 0.1) = 5 nats: as a sum, and as an average over 3 tokens (15 nats in all)
    for loss, margin in ((IPO(beta=0.1, average=False), 5.0), (IPO(beta=0.1), 15.0)):
        seqs = double(margin, 0.0, length=[3, 3])
        assert loss(seqs).loss.item() < 1e-28
        assert gradient(loss, seqs).abs().max() < 1e-13


@pytest.mark.parametrize("name", ["ipo", "dpo_norm", "simpo"])
def test_averaged_losses_do_not_change_when_a_pair_is_repeated_token_for_token(name: str) -> None:
    short = sequences([-10.0, -11.0], [-12.0, -10.0], length=[4, 2], pair=[(0, 1)])
    repeated = sequences([-20.0, -22.0], [-24.0, -20.0], length=[8, 4], pair=[(0, 1)])
    torch.testing.assert_close(build(name)(short).loss, build(name)(repeated).loss)
    assert build("dpo")(short).loss != build("dpo")(repeated).loss


def test_hinge_is_zero_and_flat_beyond_a_margin_of_one_and_linear_before() -> None:
    loss = build("hinge", beta=0.1)
    assert loss(double(10.001, 0.0)).loss.item() == 0
    assert slope(loss, 10.001) == 0
    assert [slope(loss, margin) for margin in (-300.0, 0.0, 9.999)] == pytest.approx([-0.1] * 3)


def test_exo_is_zero_and_flat_where_the_policy_agrees_with_the_smoothed_label() -> None:
    # sigma(margin) = 0.8 at margin log 4
    seqs = double(math.log(4.0) / 0.5, 0.0)
    loss = build("exo", beta=0.5, label_smoothing=0.2)
    assert abs(loss(seqs).loss.item()) < 1e-15
    assert gradient(loss, seqs).abs().max() < 1e-15


def test_nca_holds_the_chosen_reward_at_log_2_and_lowers_the_rejected_one() -> None:
    slopes = gradient(build("nca", beta=0.5), double(LOG_2 / 0.5, -3.0))
    assert abs(slopes[0]) < 1e-15
    assert slopes[1] > 0.01


@pytest.mark.parametrize("log_ratio", [-30.0, 0.0, 30.0])
def test_apo_zero_raises_chosen_and_both_lower_rejected_and_apo_down_lowers_chosen_at_the_reference(
    log_ratio: float,
) -> None:
    zero, down = (gradient(build(name), double(log_ratio, -log_ratio)) for name in ("apo_zero", "apo_down"))
    assert zero[0] < 0 < zero[1]
    assert down[1] > 0
    # Where chosen and rejected are far apart the pull down is all that is left; where they are not, the margin's wins.
    assert gradient(build("apo_down"), double(0.0, -200.0))[0] > 0


def test_sppo_is_zero_at_its_targets_and_nowhere_else() -> None:
    loss = build("sppo", beta=0.1)
    assert loss(double(5.0, -5.0)).loss.item() < 1e-26
    assert loss(double(15.0, 5.0)).loss.item() == pytest.approx(200)  # the margin of 10 alone is not enough


def test_discopop_has_a_bump_at_a_small_positive_margin() -> None:
    loss = build("discopop", beta=1.0, tau=0.05)
    assert slope(loss, -0.3) < 0
    assert slope(loss, 0.0) > 0
    assert slope(loss, 0.3) < 0


def test_length_normalized_dpo_of_single_tokens_is_dpo() -> None:
    torch.testing.assert_close(build("dpo_norm", beta=0.1)(double(3.0, 1.0)).loss, DPO()(double(3.0, 1.0)).loss)


def test_bco_of_one_pair_is_twice_dpo_at_half_the_margin() -> None:
    seqs = double(3.0, 1.0)
    torch.testing.assert_close(build("bco", beta=0.4)(seqs).loss, 2 * DPO(beta=0.2)(seqs).loss)
    torch.testing.assert_close(gradient(build("bco", beta=0.4), seqs), 2 * gradient(DPO(beta=0.2), seqs).clone())


def test_bcos_shift_makes_a_common_offset_of_all_rewards_vanish() -> None:
    near = sequences([1.0, 0.0, -2.0, -4.0], [0.0] * 4, pair=[(0, 1), (2, 3)], dtype=torch.float64)
    far = sequences([41.0, 40.0, 38.0, 36.0], [0.0] * 4, pair=[(0, 1), (2, 3)], dtype=torch.float64)
    torch.testing.assert_close(build("bco")(near).loss, build("bco")(far).loss)
    assert build("bco", beta=1)(far).metrics["reward_shift"] == pytest.approx(38.75)


def test_aot_of_one_pair_is_dpo_and_so_is_its_unpaired_form() -> None:
    seqs = sequences([-10.0, -11.0], [-12.0, -10.0], pair=[(0, 1)], labels=[(1, False), (0, True)])
    torch.testing.assert_close(build("aot")(seqs).loss, DPO()(seqs).loss)
    torch.testing.assert_close(build("aot_unpaired")(seqs).loss.mean(), DPO()(seqs).loss[0])


def test_aot_does_not_care_which_pair_of_the_reference_has_which_margin() -> None:
    policy = [-10.0, -11.0, -5.0, -8.0]
    one = sequences(policy, [-4.0, -9.0, -12.0, -10.0], pair=[(0, 1), (2, 3)])
    other = sequences(policy, [-12.0, -10.0, -4.0, -9.0], pair=[(0, 1), (2, 3)])
    torch.testing.assert_close(build("aot")(one).loss, build("aot")(other).loss)
    assert not torch.allclose(DPO()(one).loss, DPO()(other).loss)


def test_unpaired_aot_weighs_more_examples_of_a_kind_as_one_distribution() -> None:
    """Doubling every desirable example changes no distribution, so not the step's loss."""
    labels = [(0, True), (1, False), (2, True), (3, False), (4, False)]
    values = [-1.0, -3.0, -2.5, -2.0, -4.0]
    once = sequences(values, [-2.0] * 5, labels=labels, dtype=torch.float64)
    twice = sequences(values, [-2.0] * 5, labels=[*labels, (0, True), (2, True)], dtype=torch.float64)
    loss = build("aot_unpaired", beta=0.7)
    torch.testing.assert_close(loss(once).loss.mean(), loss(twice).loss.mean())
    torch.testing.assert_close(gradient(loss, once).clone() / 5, gradient(loss, twice) / 7)


@pytest.mark.parametrize("desirable", [True, False])
def test_unpaired_aot_of_one_kind_compares_nothing_and_says_so(desirable: bool) -> None:
    seqs = sequences([-1.0, -3.0], [-2.0, -2.0], labels=[(0, desirable), (1, desirable)])
    loss = build("aot_unpaired")
    assert loss(seqs).loss.tolist() == [0.0, 0.0]
    assert loss(seqs).metrics["compared"] == 0
    assert gradient(loss, seqs).tolist() == [0.0, 0.0]


def test_unpaired_aot_matches_many_examples_without_a_table_of_all_with_all() -> None:
    count = 60_000
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(count, generator=generator, dtype=torch.float64).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.int64)
    seqs = SequenceLogprobs(
        policy, torch.zeros(count, dtype=torch.float64), torch.ones(count), nothing.reshape(0, 2), torch.arange(count),
        torch.arange(count) % 3 == 0, nothing,
    )  # fmt: skip
    # Two samples of the same distribution: every delta is near 0.
    assert build("aot_unpaired")(seqs).loss.mean().item() == pytest.approx(LOG_2, abs=1e-3)


def test_ktos_shift_is_never_negative() -> None:
    # the mismatched log-ratio is -4, so the shift is 0, not -4
    seqs = sequences([-1.0, -9.0], [-1.0, -5.0], labels=[(0, True)], mismatched=[1])
    out = KTO(beta=1.0)(seqs)
    assert out.metrics["kl"] == 0
    torch.testing.assert_close(out.loss, torch.tensor([0.5]))


def test_kto_without_mismatched_completions_says_how_to_plan_them() -> None:
    with pytest.raises(DataError, match=r"mismatched=True"):
        KTO()(sequences([-1.0], [-1.0], labels=[(0, True)]))


@pytest.mark.parametrize(("alpha", "limit"), [(1e-7, "reverse_kl"), (1 - 1e-9, "forward_kl")])
def test_the_alpha_divergence_tends_to_either_kl(alpha: float, limit: str) -> None:
    seqs = double(1.3, -0.7)
    found, expected = build("dpo", divergence="alpha", alpha_coef=alpha), build("dpo", divergence=limit)
    torch.testing.assert_close(found(seqs).loss, expected(seqs).loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient(found, seqs).clone(), gradient(expected, seqs), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("divergence", "at_reference"), [("reverse_kl", 1), ("forward_kl", 1), ("js", 0.5), ("alpha", 1)]
)
def test_how_steep_a_divergences_score_is_at_the_reference(divergence: str, at_reference: float) -> None:
    # slope of -log sigma at 0 is -1/2
    assert slope(build("dpo", beta=1, divergence=divergence), 0.0) == pytest.approx(-at_reference / 2)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha"])
def test_a_chosen_completion_that_became_very_unlikely_is_still_pulled_back(divergence: str) -> None:
    # Beyond the exponent where a score stops growing exponentially it must not go flat.
    assert slope(build("dpo", divergence=divergence), -1e4) < -1e9


def test_simpo_wants_its_gamma_whatever_beta_is() -> None:
    # gamma is an amount of reward: at a reward margin of gamma the loss is log 2
    for beta in (1.0, 2.5):
        seqs = sequences([-4.0, -5.0], None, pair=[(0, 1)])
        assert build("simpo", beta=beta, gamma=beta)(seqs).loss.item() == pytest.approx(LOG_2)


def test_cpo_without_imitation_is_simpo_without_gamma_on_single_tokens() -> None:
    seqs = sequences([-4.0, -5.0], None, pair=[(0, 1)])
    torch.testing.assert_close(
        build("cpo", beta=0.3, nll_weight=0)(seqs).loss, build("simpo", beta=0.3, gamma=0)(seqs).loss
    )


def test_cpo_is_dpo_with_a_uniform_reference_and_imitation() -> None:
    seqs = sequences([-4.0, -5.0], [-7.0, -7.0], pair=[(0, 1)])
    torch.testing.assert_close(build("cpo", nll_weight=0)(seqs).loss, DPO()(seqs).loss)


def test_orpo_pushes_at_a_completion_that_is_certain_though_its_odds_are_infinite() -> None:
    seqs = sequences([-1.0, 0.0], None, pair=[(0, 1)])
    slopes = gradient(build("orpo", beta=0.1), seqs)
    assert slopes[1].item() == pytest.approx(0.1, rel=1e-4)
    assert slopes[0] < -1


def test_orpos_odds_keep_their_digits_where_p_is_close_to_one() -> None:
    # p = exp(-1e-5): p / (1 - p) = 99999.5
    seqs = sequences([-1e-5, -1e-5], None, pair=[(0, 1)])
    out = build("orpo", beta=1.0)(seqs)
    assert out.loss.item() == pytest.approx(1e-5 + LOG_2, rel=1e-6)
    # d log odds / d log p = 1 / (1 - p); half of it, as both odds are equal
    assert gradient(build("orpo", beta=1.0), seqs)[1].item() == pytest.approx(0.5 / -math.expm1(-1e-5), rel=1e-5)
