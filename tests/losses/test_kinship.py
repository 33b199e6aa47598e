"""Losses that are one another for some setting or data: value and gradient."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from prefopt.losses import Loss, build
from prefopt.records import SequenceLogprobs
from tests.losses.toys import gradient, random_sequences


def same(one: Loss, other: Loss, seqs: SequenceLogprobs, *, scale: float = 1.0, rtol: float = 1e-12) -> None:
    torch.testing.assert_close(one(seqs).loss, scale * other(seqs).loss, rtol=rtol, atol=1e-12)
    slope = gradient(one, seqs).clone()
    torch.testing.assert_close(slope, scale * gradient(other, seqs), rtol=rtol, atol=1e-12)
    assert slope.abs().max() > 1e-6


@pytest.mark.parametrize(
    "formula",
    [
        "odpo(beta=0.3, alpha=0)",
        "tdpo(beta=0.3, alpha=0)",
        "ld_dpo(beta=0.3, alpha=1)",
        "beta_dpo(beta=0.3, alpha=0, keep=1)",
        "dpo_positive(beta=0.3, penalty=0)",
        "length_regularized_dpo(beta=0.3, alpha=0)",
        "robust_dpo(beta=0.3, label_smoothing=0)",
    ],
)
def test_these_become_dpo(formula: str) -> None:
    for seed in range(3):
        same(build(formula), build("dpo", beta=0.3), random_sequences(seed))


def test_reward_distance_becomes_dpo_as_scores_grow() -> None:
    seqs = random_sequences(0)
    assert seqs.pair_score is not None
    same(build("reward_distance_dpo", beta=0.3, eta=1e4), build("dpo", beta=0.3), seqs, rtol=1e-9)


def test_squared_reward_distance_is_ipo_where_every_gap_is_its_target() -> None:
    seqs = random_sequences(1)
    # (beta * h - gap / 2)^2 with a gap of 1 is beta^2 * (h - 1 / (2 beta))^2
    even = replace(seqs, pair_score=torch.tensor([[1.0, 0.0]]).expand(7, 2))
    ipo = build("ipo", beta=0.3, average=False)
    same(build("reward_distance_dpo", beta=0.3, eta=0.5, distance="squared"), ipo, even, scale=0.09)


def test_both_tdpos_have_one_value_and_two_gradients() -> None:
    first, second = build("tdpo", alpha=1, detach_chosen=False), build("tdpo", alpha=1)
    seqs = random_sequences(0)
    torch.testing.assert_close(first(seqs).loss, second(seqs).loss)
    assert not torch.allclose(gradient(first, seqs).clone(), gradient(second, seqs))


def test_calibrated_dpo_is_dpo_at_beta_1_and_sppo() -> None:
    seqs = random_sequences(2)
    dpo, sppo, both = build("dpo", beta=1.0), build("sppo", beta=0.2), build("cal_dpo", beta=0.2)
    torch.testing.assert_close(both(seqs).loss, dpo(seqs).loss + sppo(seqs).loss)
    torch.testing.assert_close(gradient(both, seqs).clone(), gradient(dpo, seqs).clone() + gradient(sppo, seqs))


def as_lists(seqs: SequenceLogprobs, chosen: float = 1.0, rejected: float = 0.0) -> SequenceLogprobs:
    """The pairs once more as lists of two."""
    return replace(
        seqs,
        listed=seqs.pair.flatten(),
        list_index=torch.arange(7).repeat_interleave(2),
        list_score=torch.tensor([chosen, rejected]).repeat(7),
    )


@pytest.mark.parametrize("seed", range(3))
def test_plackett_luce_of_two_completions_is_dpo(seed: int) -> None:
    seqs = as_lists(random_sequences(seed))
    same(build("plackett_luce", beta=0.3), build("dpo", beta=0.3), seqs)


@pytest.mark.parametrize(("listwise", "paired"), [("infonca", "dpo"), ("nca_listwise", "nca")])
def test_contrastive_losses_of_two_completions_are_those_of_pairs(listwise: str, paired: str) -> None:
    same(build(listwise, beta=0.3, temperature=1e-3), build(paired, beta=0.3), as_lists(random_sequences(0)))


def test_lipo_of_two_completions_is_dpo_times_what_their_exchange_costs() -> None:
    cost = (2 - 1) * (1 / math.log(2) - 1 / math.log(3))
    same(build("lipo", beta=0.3), build("dpo", beta=0.3), as_lists(random_sequences(0)), scale=cost)


def test_only_the_order_of_scores_counts_for_plackett_luce() -> None:
    seqs, loss = random_sequences(0), build("plackett_luce")
    stretched = replace(seqs, list_score=seqs.list_score**3 * 10 - 2)
    assert torch.equal(loss(seqs).loss, loss(stretched).loss)
    assert not torch.allclose(build("infonca")(seqs).loss, build("infonca")(stretched).loss)


def test_plackett_luce_is_the_probability_of_the_whole_ranking() -> None:
    # Over all rankings of the same rewards the probabilities sum to 1.
    seqs = random_sequences(0)
    total = 0.0
    for order in ((3, 2, 1), (3, 1, 2), (2, 3, 1), (2, 1, 3), (1, 3, 2), (1, 2, 3)):
        one = replace(
            seqs, listed=torch.tensor([0, 5, 7]), list_index=torch.zeros(3, dtype=torch.int64),
            list_score=torch.tensor(order).float(),
        )  # fmt: skip
        total += math.exp(-build("plackett_luce", beta=0.7)(one).loss.item())
    assert total == pytest.approx(1.0, rel=1e-12)


def test_reward_distance_rests_where_the_margin_is_the_gap() -> None:
    seqs = random_sequences(0)
    chosen, rejected = (0.3 * (seqs.policy - seqs.reference))[seqs.pair].detach().unbind(-1)
    settled = replace(seqs, pair_score=torch.stack([chosen, rejected], -1))
    for distance in ("kl", "reverse_kl", "squared"):
        loss = build("reward_distance_dpo", beta=0.3, distance=distance)
        assert loss(settled).loss.abs().max() < 1e-15
        assert gradient(loss, settled).abs().max() < 1e-9
