"""Shares, means and their intervals against published numbers, scipy-free arithmetic and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefopt.eval import accuracy, mean, share, wilson


def test_wilson_by_hand() -> None:
    # p = 0.8, n = 10, z = 1.96: centre (0.8 + 3.8415/20) / 1.38415 = 0.716740,
    # half 1.96 * sqrt(0.16/10 + 3.8415/400) / 1.38415 = 0.226577 -> (0.490162, 0.943318)
    low, high = wilson(8, 10)
    assert low == pytest.approx(0.490162, abs=2e-6)
    assert high == pytest.approx(0.943318, abs=2e-6)


def test_wilson_ends_solve_the_score_equation() -> None:
    # each end p0 satisfies |p - p0| = z sqrt(p0 (1 - p0) / n)
    for count, n in ((1, 7), (30, 31), (950, 1000)):
        for end in wilson(count, n):
            assert abs(count / n - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_wilson_stays_inside_0_and_1_at_the_extremes() -> None:
    assert wilson(0, 5)[0] == 0.0
    assert wilson(5, 5)[1] == 1.0
    assert 0 < wilson(5, 5)[0] < 1
    # at 0 of n the upper end is z^2 / (n + z^2)
    assert wilson(0, 5)[1] == pytest.approx(3.841458820694124 / 8.841458820694124)


def test_wilson_covers_the_truth_about_95_times_of_100() -> None:
    rng = np.random.default_rng(1)
    counts = rng.binomial(250, 0.9, 3000)
    covered = np.mean([low <= 0.9 <= high for low, high in (wilson(int(c), 250) for c in counts)])
    assert covered == pytest.approx(0.95, abs=0.02)


def test_ties_are_no_errors_and_no_successes() -> None:
    # 3 right, 1 wrong, 2 ties: 3 of 4 decided; a third of all are ties
    found = accuracy([0.5, 2.0, -1.0, 0.0, 1e-9, 0.0])
    assert (found.right, found.wrong, found.ties, found.n) == (3, 1, 2, 6)
    assert found.value == 0.75
    assert (found.low, found.high) == wilson(3, 4)
    assert found.tie_share == pytest.approx(1 / 3)


def test_only_ties_have_no_accuracy() -> None:
    found = accuracy(np.zeros(5))
    assert (found.value, found.low, found.high, found.tie_share) == (None, None, None, 1.0)


def test_nothing_to_count_has_no_value() -> None:
    assert accuracy([]).value is None
    assert accuracy([]).tie_share is None
    assert share([]).value is None
    assert mean([]).value is None


def test_a_share_counts_the_true_ones() -> None:
    found = share([True, False, True, True])
    assert (found.count, found.n, found.value) == (3, 4, 0.75)


def test_the_bootstrap_interval_is_close_to_the_normal_one_on_many_values() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    found = mean(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(2000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_the_bootstrap_depends_on_the_seed_alone() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert mean(values, seed=4) == mean(values, seed=4)
    assert mean(values, seed=4) != mean(values, seed=5)


def test_the_bootstrap_is_the_same_whatever_block_it_draws_in(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = mean(values, resamples=700)
    monkeypatch.setattr("prefopt.eval.intervals._BLOCK", 50 * 13)
    assert mean(values, resamples=700) == whole


def test_equal_values_have_a_mean_without_width_and_a_share_with_one() -> None:
    found, never = mean(np.full(30, 0.25)), share(np.zeros(30))
    assert (found.low, found.value, found.high) == (0.25, 0.25, 0.25)
    assert never.high is not None
    # 1.96² / (30 + 1.96²) by Wilson
    assert never.high == pytest.approx(3.8415 / 33.8415, rel=1e-4)


@pytest.mark.parametrize(
    ("values", "sign"),
    [([1.0], 0), ([1.0] * 5, 0), ([1.0] * 6, 1), ([-1.0] * 6, -1), ([0.0] * 6, 0), ([], 0), ([1.0, 2.0, 3.0], 1),
     ([-1.0, 1.0] * 20, 0), ([-3.0, -1.0] * 20, -1)],
)  # fmt: skip
def test_a_mean_has_a_sign_where_its_interval_and_the_number_of_values_leave_no_doubt(
    values: list[float], sign: int
) -> None:
    assert mean(values).sign == sign
