"""Losses that go by scores, against arithmetic written out by hand.

Pairs have log-ratios 2 and -1 and scores 3 and 1: at beta 0.5 the margin is 1.5, and the gap of scores is 2. Lists have
log-ratios 2, 1 and 0: at beta 0.5 the rewards are 1, 0.5 and 0. Values of sigma stand in test_by_hand.
"""

from __future__ import annotations

import math

import pytest
import torch

from prefopt.errors import ModelError, RecipeError
from prefopt.losses import BradleyTerry, Loss, PairRewards, build
from prefopt.records import SequenceLogprobs
from tests.losses.toys import gradient, sequences


def pair(**scores: object) -> SequenceLogprobs:
    return sequences([-10.0, -11.0], [-12.0, -10.0], length=[4, 2], pair=[(0, 1)], **scores)  # type: ignore[arg-type]


def ranked(*scores: float) -> SequenceLogprobs:
    return sequences([-8.0, -9.0, -4.0], [-10.0, -10.0, -4.0], lists=[list(enumerate(scores))])


def check(loss: Loss, seqs: SequenceLogprobs, value: float, slope: list[float], weight: float = 1.0) -> None:
    out = loss(seqs)
    torch.testing.assert_close(out.loss, torch.tensor([value]), rtol=2e-6, atol=2e-7)
    torch.testing.assert_close(out.weight, torch.tensor([weight]))
    torch.testing.assert_close(gradient(loss, seqs), torch.tensor(slope), rtol=3e-6, atol=2e-7)
    torch.testing.assert_close(out.reward, loss.beta * (seqs.policy.detach() - seqs.reference))


def test_odpo_by_hand() -> None:
    # offset log 2: the loss is log(1 + 2 exp(-1.5)) = log(1.44626032) = 0.36898111
    # slope -0.5 * 0.44626032 / 1.44626032 = -0.15428078
    check(build("odpo", beta=0.5), pair(), 0.36898111, [-0.15428078, 0.15428078])
    # alpha 0.5: log(1 + sqrt(2) exp(-1.5)) = log(1.31555370) = 0.27425764; slope -0.5 * 0.31555370 / 1.31555370
    check(build("odpo", beta=0.5, alpha=0.5), pair(), 0.27425764, [-0.11993189, 0.11993189])


def test_odpo_with_a_linear_offset_by_hand() -> None:
    # margin 1.5 - 0.25 * 2 = 1; a pair whose rejected completion is scored higher: 1.5 + 0.25 * 2 = 2
    loss = build("odpo", beta=0.5, alpha=0.25, offset="linear")
    check(loss, pair(), 0.31326169, [-0.13447071, 0.13447071])
    check(loss, pair(pair_scores=[(1.0, 3.0)]), 0.12692801, [-0.05960146, 0.05960146])


def test_reward_distance_by_hand() -> None:
    # b = 0.5 * 2 = 1, a = 1.5
    # 0.73105858 * (-0.31326169 + 0.20141328) + 0.26894142 * (-1.31326169 + 1.70141328) = 0.02262224
    # slope 0.5 * (sigma(1.5) - sigma(1)) = 0.5 * 0.0865159 = 0.04325795
    check(build("reward_distance_dpo", beta=0.5, eta=0.5), pair(), 0.02262224, [0.04325795, -0.04325795])
    # the other way round: 0.81757448 * (-0.20141328 + 0.31326169) + 0.18242552 * (-1.70141328 + 1.31326169)
    # = 0.09144441 - 0.07080876 = 0.02063565; slope 0.5 * sigma'(1.5) * (a - b) = 0.5 * 0.14914645 * 0.5 = 0.03728661
    loss = build("reward_distance_dpo", beta=0.5, eta=0.5, distance="reverse_kl")
    check(loss, pair(), 0.02063565, [0.03728661, -0.03728661])
    # (1.5 - 1)^2; slope 2 * 0.5 * 0.5
    check(build("reward_distance_dpo", beta=0.5, eta=0.5, distance="squared"), pair(), 0.25, [0.5, -0.5])


def test_plackett_luce_by_hand() -> None:
    # first place: log(e + sqrt(e) + 1) - 1 = log(5.36700310) - 1 = 0.68026949; second: -log sigma(0.5) = 0.47407698
    # softmax of the three: 0.50648039, 0.30719589, 0.18632372; sigma(-0.5) = 0.37754067
    # slopes 0.5 * (0.50648039 - 1, 0.30719589 - 0.37754067, 0.18632372 + 0.37754067)
    check(build("plackett_luce", beta=0.5), ranked(3, 2, 1), 1.15434647, [-0.24675981, -0.03517239, 0.2819322])


def test_plackett_luce_lets_equal_scores_alone() -> None:
    # The first two only compete with the third: -log sigma(1) - log sigma(0.5)
    value, slope = 0.31326169 + 0.47407698, [-0.13447071, -0.18877033, 0.32324105]
    check(build("plackett_luce", beta=0.5), ranked(3, 3, 1), value, slope)
    # The first against both others, which don't compete: 0.68026949
    check(build("plackett_luce", beta=0.5), ranked(3, 1, 1), 0.68026949, [-0.24675981, 0.15359795, 0.09316186])
    check(build("plackett_luce", beta=0.5), ranked(2, 2, 2), 0.0, [0.0, 0.0, 0.0], weight=0.0)


def test_infonca_by_hand() -> None:
    # q = softmax(3, 2, 1) = 0.66524096, 0.24472847, 0.09003057; -log p = 0.68026949, 1.18026949, 1.68026949, p as above
    # loss = 0.66524096 * 0.68026949 + 0.24472847 * 1.18026949 + 0.09003057 * 1.68026949 = 0.89266430
    check(build("infonca", beta=0.5), ranked(3, 2, 1), 0.8926643, [-0.07938029, 0.03123371, 0.04814658])
    # Equal scores are something to say too: the mean of -log p, and rewards are brought together.
    check(build("infonca", beta=0.5), ranked(1, 1, 1), 1.18026949, [0.08657353, -0.01306872, -0.07350481])


def test_listwise_nca_by_hand() -> None:
    # q as above; -log sigma(1, 0.5, 0) = 0.31326169, 0.47407698, 0.69314718; of -1, -0.5, 0: 1.31326169, 0.97407698
    # 0.66524096 * 0.31326169 + 0.24472847 * 0.47407698 + 0.09003057 * 0.69314718 = 0.38681846
    # + (1.31326169 + 0.97407698 + 0.69314718) / 3 = 0.99349528
    # slopes 0.5 * (-q sigma(-r) + sigma(r) / 3)
    slope = [
        0.5 * (-0.66524096 * 0.26894142 + 0.73105858 / 3),
        0.5 * (-0.24472847 * 0.37754067 + 0.62245933 / 3),
        0.5 * (-0.09003057 * 0.5 + 0.5 / 3),
    ]
    check(build("nca_listwise", beta=0.5), ranked(3, 2, 1), 1.38031374, slope)


def test_lipo_by_hand() -> None:
    # gains of 1, 0.5, 0: 1, 0.41421356, 0; discounts of ranks 1, 2, 3: 1.44269504, 0.91023923, 0.72134752
    # w01 = 0.58578644 * 0.53245581 = 0.31190540, w02 = 1 * 0.72134752, w12 = 0.41421356 * 0.18889171 = 0.07824151
    # loss = (w01 + w12) * 0.47407698 + w02 * 0.31326169 = 0.18495966 + 0.22597054
    # pulls 0.37754067 * w01 = 0.11775697, 0.26894142 * w02 = 0.19400023, 0.37754067 * w12 = 0.02953935; times beta
    pulls = (0.11775697, 0.19400023, 0.02953935)
    slope = [-0.5 * (pulls[0] + pulls[1]), 0.5 * (pulls[0] - pulls[2]), 0.5 * (pulls[1] + pulls[2])]
    check(build("lipo", beta=0.5), ranked(1, 0.5, 0), 0.41093021, slope)
    check(build("lipo", beta=0.5, lowest=1, highest=9), ranked(9, 5, 1), 0.41093021, slope)


def test_lipo_ranks_by_the_policys_rewards_and_equal_ones_by_their_scores() -> None:
    # Scores rise where rewards fall: the best has rank 3. Gains 0, 0.41421356, 1, the exchanges as above mirrored.
    # w(2 over 1) = 0.58578644 * 0.18889171, w(2 over 0) = 0.72134752, w(1 over 0) = 0.41421356 * 0.53245581
    # each loses by 0.5, 1 and 0.5: -log sigma(-0.5) = 0.97407698, -log sigma(-1) = 1.31326169
    value = (0.11065020 + 0.22055042) * 0.97407698 + 0.72134752 * 1.31326169
    loss = build("lipo", beta=0.5)
    torch.testing.assert_close(loss(ranked(0, 0.5, 1)).loss, torch.tensor([value]))
    equal = [sequences([-9.0] * 3, [-9.0] * 3, lists=[entries]) for entries in (
        [(0, 1.0), (1, 0.5), (2, 0.0)], [(2, 0.0), (0, 1.0), (1, 0.5)]
    )]  # fmt: skip
    expected = (0.31190540 + 0.72134752 + 0.07824151) * math.log(2)
    for seqs in equal:
        torch.testing.assert_close(loss(seqs).loss, torch.tensor([expected]))


@pytest.mark.parametrize("name", ["infonca", "nca_listwise"])
def test_scores_may_be_far_larger_than_the_temperature(name: str) -> None:
    seqs = ranked(1e36, 1e35, -1e36)
    out = build(name, temperature=1e-3)(seqs)
    assert out.loss.isfinite().all()
    assert gradient(build(name, temperature=1e-3), seqs).isfinite().all()


def test_lists_of_any_lengths_stand_side_by_side() -> None:
    both = sequences(
        [-8.0, -9.0, -4.0, -3.0], [-10.0, -10.0, -4.0, -3.5],
        lists=[[(0, 3.0), (1, 2.0), (2, 1.0)], [(3, 1.0), (2, 0.0)]],
    )  # fmt: skip
    # The second: rewards 0.25 and 0, log(1 + exp(-0.25)) = 0.57593942
    torch.testing.assert_close(build("plackett_luce", beta=0.5)(both).loss, torch.tensor([1.15434647, 0.57593942]))


def test_a_step_without_lists_has_no_loss() -> None:
    for name in ("plackett_luce", "infonca", "nca_listwise", "lipo"):
        out = build(name)(pair())
        assert out.loss.shape == out.weight.shape == (0,)


@pytest.mark.parametrize("scores", [[(math.nan, math.nan)], None])
@pytest.mark.parametrize("name", ["odpo", "reward_distance_dpo"])
def test_pairs_without_scores_are_refused_where_scores_are_needed(name: str, scores: list | None) -> None:
    seqs = pair(pair_scores=scores)
    if scores is None:
        seqs = SequenceLogprobs(**{**vars(seqs), "pair_score": None})
    with pytest.raises(ModelError, match=rf"The loss {name} goes by the scores of pairs, and some have none"):
        build(name)(seqs)


def test_bradley_terry_by_hand() -> None:
    # differences 1.5 and -0.5; with margins 0.5 and 0: 1 and -0.5
    rewards = PairRewards(torch.tensor([2.0, 0.5]), torch.tensor([0.5, 1.0]))
    with_margin = PairRewards(rewards.chosen, rewards.rejected, torch.tensor([0.5, 0.0]))
    torch.testing.assert_close(BradleyTerry()(rewards).loss, torch.tensor([0.20141328, 0.97407698]))
    torch.testing.assert_close(BradleyTerry()(with_margin).loss, torch.tensor([0.31326169, 0.97407698]))
    # center 0.1: plus 0.1 * 2.5^2 and 0.1 * 1.5^2
    out = BradleyTerry(center=0.1)(rewards)
    torch.testing.assert_close(out.loss, torch.tensor([0.82641328, 1.19907698]))
    assert out.weight.tolist() == [1.0, 1.0]
    assert out.reward.tolist() == [2.0, 0.5, 0.5, 1.0]


def test_bradley_terry_stays_finite_and_in_float32() -> None:
    chosen = torch.tensor([1e4, -1e4, 0.0], dtype=torch.bfloat16, requires_grad=True)
    loss = BradleyTerry(center=0.01)(PairRewards(chosen, chosen.detach().flip(0))).loss
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_bradley_terry_is_no_loss_of_a_policy() -> None:
    with pytest.raises(RecipeError, match=r"bradley_terry is that of a reward model, .* a policy takes dpo"):
        build("bradley_terry")
    with pytest.raises(RecipeError, match=r"center = -1 is not allowed for the loss bradley_terry"):
        BradleyTerry(center=-1)
