"""Accuracy by length, and the interval of its difference against statsmodels."""

from __future__ import annotations

import pytest
from statsmodels.stats.proportion import confint_proportions_2indep

from prefopt.eval import length_bias, share, share_difference


def test_pairs_are_told_apart_by_which_completion_is_longer() -> None:
    margins = [1.0, -1.0, 0.0, 2.0, 3.0, -2.0]
    found = length_bias(margins, chosen=[1, 1, 1, 5, 5, 4], rejected=[2, 2, 2, 4, 4, 4])
    assert (found.shorter.right, found.shorter.wrong, found.shorter.ties) == (1, 1, 1)
    assert (found.longer.right, found.longer.wrong) == (2, 0)
    assert (found.same.right, found.same.wrong) == (0, 1)
    assert found.difference.value == 0.5
    assert found.difference.n == 4


@pytest.mark.parametrize(("a", "n", "b", "m"), [(40, 100, 70, 130), (0, 20, 20, 20), (7, 9, 3, 11)])
def test_the_difference_of_two_shares_against_statsmodels(a: int, n: int, b: int, m: int) -> None:
    first, second = share([True] * a + [False] * (n - a)), share([True] * b + [False] * (m - b))
    found = share_difference(first, second)
    low, high = confint_proportions_2indep(b, m, a, n, method="newcomb", compare="diff")
    assert found.value == pytest.approx(b / m - a / n)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_without_pairs_on_one_side_there_is_no_difference() -> None:
    found = length_bias([1.0], chosen=[1], rejected=[2])
    assert (found.longer.value, found.difference.value, found.difference.low) == (None, None, None)
