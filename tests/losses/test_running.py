"""Losses that remember earlier steps: what they remember, when it moves, and that it is all of their state."""

from __future__ import annotations

import pytest
import torch

from prefopt.losses import Loss, available, build
from prefopt.records import SequenceLogprobs
from tests.losses.toys import gradient, random_sequences, sequences

REMEMBER = ("bco", "bco_unpaired", "beta_dpo")


def two_pairs(first: float = 3.0, second: float = 1.0) -> SequenceLogprobs:
    """Gaps `first` and `second`, all of it in the chosen log-ratios."""
    return sequences([first - 20, -5.0, second - 20, -6.0], [-20.0, -5.0, -20.0, -6.0], pair=[(0, 1), (2, 3)])


def test_only_these_have_state() -> None:
    assert [name for name in available() if build(name).state_dict()] == list(REMEMBER)


def test_beta_dpo_by_hand_over_two_steps() -> None:
    # Gaps 3 and 1, mean 2; the centre goes from 0 to 0.5 * 0 + 0.5 * 2 = 1, so beta = 0.5 * (1 + (2 - 1)) = 1
    # -log sigma(3) = 0.04858735, -log sigma(1) = 0.31326169; sigma(-3) = 0.04742587, sigma(-1) = 0.26894142
    loss, seqs = build("beta_dpo", beta=0.5, alpha=1.0, momentum=0.5, keep=1.0), two_pairs()
    out = loss(seqs)
    torch.testing.assert_close(out.loss, torch.tensor([0.04858735, 0.31326169]))
    torch.testing.assert_close(gradient(loss, seqs), torch.tensor([-0.04742587, 0.04742587, -0.26894142, 0.26894142]))
    assert out.metrics["beta"].item() == pytest.approx(1.0)
    assert out.reward.tolist() == [1.5, 0.0, 0.5, 0.0]  # by the beta that was set
    # The second step: centre 0.5 * 1 + 0.5 * 2 = 1.5, beta = 0.5 * 1.5
    loss.end_step(seqs)
    assert loss(seqs).metrics["beta"].item() == pytest.approx(0.75)
    torch.testing.assert_close(loss(seqs).loss, torch.nn.functional.softplus(-0.75 * torch.tensor([3.0, 1.0])))


def test_beta_dpo_keeps_the_pairs_nearest_to_the_centre() -> None:
    # Centre 1: the gap of 1 is nearer than that of 3. Of the one that is left the mean is the centre, and beta as set.
    loss = build("beta_dpo", beta=0.5, alpha=1.0, momentum=0.5, keep=0.5)
    out = loss(two_pairs())
    assert out.weight.tolist() == [0.0, 1.0]
    assert out.loss.tolist() == pytest.approx([0.0, 0.47407698])
    # Centre 2: both are equally near, and share the one place.
    shared = build("beta_dpo", beta=0.5, alpha=1.0, momentum=0.0, keep=0.5)(two_pairs())
    assert shared.weight.tolist() == [0.5, 0.5]


def test_beta_dpo_never_has_a_beta_below_a_thousandth() -> None:
    # Gaps of -100: the centre is -50 after the first step, so that beta would be 0.1 * (1 - 50)
    out = build("beta_dpo", alpha=1.0, momentum=0.5)(two_pairs(-100.0, -100.0))
    assert out.metrics["beta"].item() == pytest.approx(1e-3)


def test_a_step_of_one_pair_keeps_it() -> None:
    seqs = sequences([-18.0, -5.0], [-20.0, -5.0], pair=[(0, 1)])
    assert build("beta_dpo", keep=0.1)(seqs).weight.tolist() == [1.0]


def test_bcos_shift_is_the_mean_over_all_steps_by_hand() -> None:
    # Rewards 1.5, 0, 0.5, 0 at beta 0.5: shift (1 + 0) / 2 = 0.5
    loss, seqs = build("bco", beta=0.5), two_pairs()
    assert loss(seqs).metrics["reward_shift"].item() == 0.5
    loss.end_step(seqs)
    # With gaps 7 and 5: chosen rewards 3.5 and 2.5; over both steps (1.5 + 0.5 + 3.5 + 2.5) / 4 = 2, shift 1
    later = two_pairs(7.0, 5.0)
    out = loss(later)
    assert out.metrics["reward_shift"].item() == 1.0
    expected = torch.nn.functional.softplus(torch.tensor([-2.5, -1.5])) + torch.nn.functional.softplus(
        torch.tensor(-1.0)
    )
    torch.testing.assert_close(out.loss, expected)
    # The step alone: (3 + 0) / 2
    assert build("bco", beta=0.5, running=False)(later).metrics["reward_shift"].item() == 1.5


def test_unpaired_bcos_shift_is_half_the_sum_of_both_kinds_means_over_all_steps() -> None:
    # Rewards at beta 1: good 4 and 2, bad 0: (3 + 0) / 2
    first = sequences([-6.0, -8.0, -9.0], [-10.0, -10.0, -9.0], labels=[(0, True), (1, True), (2, False)])
    # then bad alone, 1 and 5: bad means over both steps (0 + 1 + 5) / 3 = 2, (3 + 2) / 2
    second = sequences([-6.0, -3.0], [-7.0, -8.0], labels=[(0, False), (1, False)])
    loss = build("bco_unpaired", beta=1.0)
    assert loss(second).metrics["reward_shift"].item() == 3.0  # one kind alone: its mean
    assert loss(first).metrics["reward_shift"].item() == 1.5
    loss.end_step(first)
    assert loss(second).metrics["reward_shift"].item() == 2.5


@pytest.mark.parametrize("name", REMEMBER)
def test_calling_a_loss_changes_nothing_and_evaluation_uses_what_training_left(name: str) -> None:
    loss, seqs, other = build(name), random_sequences(0), random_sequences(1)
    fresh = loss(seqs).loss
    assert torch.equal(loss(seqs).loss, fresh)
    loss.end_step(other)
    loss.eval()
    assert torch.equal(loss(other).loss, loss(other).loss)
    # What the step holds does not move the statistic: the metric is the same whatever is evaluated.
    if name != "beta_dpo":
        assert loss(other).metrics["reward_shift"] == loss(seqs).metrics["reward_shift"]
    loss.train()
    assert not torch.equal(loss(seqs).loss, fresh)


def test_in_evaluation_beta_dpo_counts_every_pair() -> None:
    loss = build("beta_dpo", keep=0.5).eval()
    assert loss(two_pairs()).weight.tolist() == [1.0, 1.0]
    assert loss(two_pairs()).metrics["beta"].item() == pytest.approx(0.1 * (1 + 0.6 * 2))


@pytest.mark.parametrize("formula", [*REMEMBER, "dpo + 0.5*bco", "beta_dpo + bco_unpaired"])
def test_the_state_is_all_that_a_loss_remembers(formula: str) -> None:
    went_on, resumed = build(formula), build(formula)
    for seed in range(3):
        went_on.end_step(random_sequences(seed))
    resumed.load_state_dict(went_on.state_dict())
    assert torch.equal(resumed(random_sequences(9)).loss, went_on(random_sequences(9)).loss)
    assert not torch.equal(build(formula)(random_sequences(9)).loss, went_on(random_sequences(9)).loss)


class Forgetful(Loss):
    """A loss that says it needs its whole step and has nothing to remember."""

    name = "forgetful"
    form = "paired"
    statistics = "step"


def test_a_loss_need_not_remember_anything() -> None:
    Forgetful().end_step(random_sequences(0))
