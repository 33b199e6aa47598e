"""Pair measures by hand on six pairs, and against an independent loop on random ones."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prefopt.eval import PairEvaluation, PairScores, bin_edges, pair_metrics, slice_groups, slice_pairs

# pair        chosen            rejected        length   log-ratios        reward margin
#   0     -10 (ref -12)     -20 (ref -18)       5, 9      2, -2             4
#   1     -30 (ref -29)     -20 (ref -15)      20, 5     -1, -5             4
#   2     -12 (ref -12)     -12 (ref -12)       6, 6      0,  0             0, a tie
#   3     -15 (ref -10)     -14 (ref -13)       5, 7     -5, -1            -4
#   4      -9 (ref -10)     -18 (ref -19)       3, 6      1,  1             0, a tie
#   5     -21 (ref -24)     -20 (ref -20)       7, 2      3,  0             3
SCORES = PairScores(
    policy=np.array([[-10, -20], [-30, -20], [-12, -12], [-15, -14], [-9, -18], [-21, -20]], dtype=np.float64),
    reference=np.array([[-12, -18], [-29, -15], [-12, -12], [-10, -13], [-10, -19], [-24, -20]], dtype=np.float64),
    length=np.array([[5, 9], [20, 5], [6, 6], [5, 7], [3, 6], [7, 2]]),
)


def test_implicit_reward_by_hand() -> None:
    found = pair_metrics(SCORES, beta=0.5)
    assert (found.reward.right, found.reward.wrong, found.reward.ties) == (3, 1, 2)
    assert found.reward.value == 0.75
    assert found.margin.value == pytest.approx(0.5 * (4 + 4 + 0 - 4 + 0 + 3) / 6)
    assert found.chosen_log_ratio.value == pytest.approx(0.0)  # (2 - 1 + 0 - 5 + 1 + 3) / 6
    assert found.rejected_log_ratio.value == pytest.approx(-7 / 6)  # (-2 - 5 + 0 - 1 + 1 + 0) / 6
    assert (found.displacement.count, found.displacement.n) == (2, 6)  # pairs 1 and 3
    assert found.primary == "reward"


def test_log_prob_accuracies_by_hand() -> None:
    found = pair_metrics(SCORES)
    # sums: right in 0 and 4, wrong in 1, 3 and 5, a tie in 2
    assert (found.logprob.right, found.logprob.wrong, found.logprob.ties) == (2, 3, 1)
    # per token: -2 / -2.2, -1.5 / -4, -2 / -2, -3 / -2, -3 / -3, -3 / -10: right in 0, 1, 5; wrong in 3; ties 2, 4
    per_token = found.logprob_per_token
    assert (per_token.right, per_token.wrong, per_token.ties) == (3, 1, 2)


def test_length_bias_by_hand() -> None:
    found = pair_metrics(SCORES)
    # shorter chosen in 0 (right), 3 (wrong), 4 (tie); longer chosen in 1 and 5 (both right)
    assert (found.shorter_chosen.right, found.shorter_chosen.wrong, found.shorter_chosen.ties) == (1, 1, 1)
    assert (found.longer_chosen.right, found.longer_chosen.wrong, found.longer_chosen.ties) == (2, 0, 0)


def test_beta_scales_the_margin_and_no_accuracy() -> None:
    one, half = pair_metrics(SCORES, beta=1.0), pair_metrics(SCORES, beta=0.5)
    assert half.margin.value == pytest.approx(one.margin.value / 2)
    assert half.reward == one.reward
    assert half.chosen_log_ratio == one.chosen_log_ratio


def test_a_model_against_itself_is_all_ties_but_has_its_own_preference() -> None:
    same = PairScores(SCORES.policy, SCORES.policy, SCORES.length)
    found = pair_metrics(same)
    assert (found.reward.value, found.reward.tie_share) == (None, 1.0)
    assert (found.margin.value, found.margin.low, found.margin.high) == (0.0, 0.0, 0.0)
    assert found.displacement.count == 0
    assert found.logprob.value == pytest.approx(2 / 5)


def test_without_a_reference_the_model_is_judged_by_its_log_probs() -> None:
    found = pair_metrics(PairScores(SCORES.policy, None, SCORES.length))
    assert found.primary == "logprob"
    assert found.reward is found.margin is found.displacement is None
    assert found.logprob.right == 2
    # shorter chosen in 0 and 4 (right) and 3 (wrong), by log-prob
    assert (found.shorter_chosen.right, found.shorter_chosen.wrong) == (2, 1)


def test_random_pairs_against_a_loop() -> None:
    rng = np.random.default_rng(3)
    policy, reference = np.round(rng.normal(-30, 6, (2, 400, 2)))  # rounded, so that ties happen
    length = rng.integers(3, 30, (400, 2))
    found = pair_metrics(PairScores(policy, reference, length), beta=0.2)
    right = wrong = ties = fell = 0
    for (pc, pr), (rc, rr) in zip(policy, reference, strict=True):
        margin = (pc - rc) - (pr - rr)
        right, wrong, ties = right + (margin > 0), wrong + (margin < 0), ties + (margin == 0)
        fell += pc < rc
    assert ties > 5
    assert (found.reward.right, found.reward.wrong, found.reward.ties) == (right, wrong, ties)
    assert found.displacement.count == fell
    assert found.margin.low < found.margin.value < found.margin.high


def test_bins_hold_their_lower_edge_and_the_last_also_its_upper_one() -> None:
    column = [0.0, 1.0, 1.0, 2.0, 3.0, np.nan]
    slices = slice_pairs(SCORES, column, [0, 1, 2, 3], human=[0.5, 0.8, 1.0, np.nan, 0.9, 0.0])
    assert [part.label for part in slices] == ["0 to 1", "1 to 2", "2 to 3"]
    assert [part.n for part in slices] == [1, 2, 2]  # the pair without a value is in no bin
    assert [part.reward.right for part in slices] == [1, 1, 0]
    assert slices[1].human.value == pytest.approx(0.9)
    assert slices[2].human.n == 1


def test_an_empty_bin_has_no_accuracy() -> None:
    slices = slice_pairs(SCORES, np.zeros(6), [0, 1, 2])
    assert [part.n for part in slices] == [6, 0]
    assert slices[1].reward.value is None
    assert slices[1].human is None


def test_edges_cut_a_column_into_equal_numbers() -> None:
    values = np.arange(100.0)
    edges = bin_edges(values, 4)
    assert np.histogram(values, edges)[0].tolist() == [25, 25, 25, 25]
    assert bin_edges([2.0, 2.0, np.nan]) == [2.0, 2.0]
    assert slice_pairs(SCORES, np.full(6, 2.0), [2.0, 2.0])[0].n == 6


def test_every_record_turns_into_strict_json() -> None:
    text = json.dumps(
        {
            "metrics": pair_metrics(SCORES).to_dict(),
            "slices": [part.to_dict() for part in slice_pairs(SCORES, np.zeros(6), [0, 1, 2])],
            "pairs": SCORES.to_dict(),
        },
        allow_nan=False,
    )
    back = json.loads(text)
    assert back["metrics"]["primary"] == "reward"
    assert back["metrics"]["reward"]["tie_share"] == pytest.approx(1 / 3)
    assert back["pairs"]["policy"][1] == [-30.0, -20.0]
    assert back["slices"][1]["reward"]["value"] is None


def test_per_token_measures_by_hand() -> None:
    found = pair_metrics(SCORES, beta=0.5)
    # log-ratios per token: 2/5 + 2/9, -1/20 + 5/5, 0, -5/5 + 1/7, 1/3 - 1/6, 3/7 - 0
    margins = [2 / 5 + 2 / 9, -1 / 20 + 1, 0, -1 + 1 / 7, 1 / 3 - 1 / 6, 3 / 7]
    assert (found.reward_per_token.right, found.reward_per_token.wrong, found.reward_per_token.ties) == (4, 1, 1)
    assert found.margin_per_token.value == pytest.approx(0.5 * sum(margins) / 6)
    assert found.logprob_margin.value == pytest.approx((10 - 10 + 0 - 1 + 9 - 1) / 6)
    per_token = [-2 + 20 / 9, -1.5 + 4, 0, -3 + 2, 0, -3 + 10]
    assert found.logprob_per_token_margin.value == pytest.approx(sum(per_token) / 6)


def test_the_area_is_of_log_ratios_and_without_a_reference_of_log_probs() -> None:
    # chosen 2, -1, 0, -5, 1, 3 against rejected -2, -5, 0, -1, 1, 0: beaten 6, 2.5, 4, 0.5, 5.5, 6 of 6
    assert pair_metrics(SCORES).auc.value == pytest.approx(24.5 / 36)
    # chosen -10, -30, -12, -15, -9, -21 against -20, -20, -12, -14, -18, -20: 6, 0, 5.5, 4, 6, 0
    assert pair_metrics(PairScores(SCORES.policy, None, SCORES.length)).auc.value == pytest.approx(21.5 / 36)


def test_words_slice_too_the_most_frequent_first_and_the_rest_together() -> None:
    slices = slice_groups(SCORES, ["b", "a", "b", None, "c", "a"], human=[0.5, 1, 0.7, 1, 1, 1])
    assert [(part.label, part.n) for part in slices] == [("a", 2), ("b", 2), ("c", 1)]
    assert (slices[1].reward.right, slices[1].reward.ties) == (1, 1)
    assert slices[1].human.value == pytest.approx(0.6)
    few = slice_groups(SCORES, ["b", "a", "b", "b", "c", "d"], most=2)
    assert [(part.label, part.n) for part in few] == [("b", 3), ("other (3 values)", 3)]


def test_a_file_of_an_earlier_version_is_read_and_what_it_lacks_is_computed_from_its_pairs() -> None:
    metrics = pair_metrics(SCORES, beta=0.5)
    now = PairEvaluation(metrics, None, (), None, SCORES, "f").to_dict()
    new = ("logprob_margin", "logprob_per_token_margin", "reward_per_token", "margin_per_token", "auc", "length_bias")
    old = {key: now[key] for key in ("metrics", "slice_by", "slices", "human", "fingerprint", "pairs")}
    old["metrics"] = {key: value for key, value in now["metrics"].items() if key not in new}
    old["metrics"]["margin"] = {"n": 6, "value": 0.5, "low": -7.0, "high": 7.0}
    back = PairEvaluation.from_dict(json.loads(json.dumps(old)))
    assert (back.metrics.auc, back.metrics.length_bias) == (metrics.auc, metrics.length_bias)
    assert back.metrics.margin.high == 7.0, "what stands in it is kept"
    assert (back.calibration, back.by_agreement) == (None, ())
    again = PairEvaluation.from_dict(json.loads(json.dumps(now)))
    assert again.metrics == metrics
