"""Win rates: hand arithmetic, statsmodels' logistic fit, exact symmetry, and data that no fit without bound stands."""

import math

import numpy as np
import pytest

from prefopt.errors import DataError
from prefopt.eval import wilson
from prefopt.eval.winrate import both_orders, win_rate


def _drawn(n: int, *, theta: float, phi: float, seed: int = 0, ties: bool = False):
    draw = np.random.default_rng(seed)
    a, b = draw.integers(5, 60, n).astype(float), draw.integers(5, 40, n).astype(float)
    bent = np.tanh((a - b) / (a - b).std())
    won = (draw.random(n) < 1 / (1 + np.exp(-(theta + phi * bent)))).astype(float)
    if ties:
        won[draw.random(n) < 0.2] = 0.5
    return won, a, b, bent


def test_the_fit_is_that_of_statsmodels() -> None:
    sm = pytest.importorskip("statsmodels.api")
    won, a, b, bent = _drawn(400, theta=0.4, phi=1.2, ties=True)
    found = win_rate(won, a, b, range(400), resamples=100)
    fit = sm.GLM(won, np.column_stack([np.ones(400), bent]), family=sm.families.Binomial()).fit()
    assert found.length_controlled.value == pytest.approx(1 / (1 + math.exp(-fit.params[0])), abs=1e-5)
    assert found.length_effect == pytest.approx(fit.params[1], abs=1e-4)
    assert found.raw.value == pytest.approx(won.mean())
    assert found.length_controlled.value < found.raw.value, "A's are longer, and longer ones win"


def test_raw_rates_are_means_over_prompts_with_ties_half() -> None:
    nan = math.nan
    won = [1, 1, 0, 0.5, nan, 1]
    found = win_rate(won, [3, 5, 7, 9, 11, 1], [3, 5, 7, 9, 11, 1], ["p", "p", "p", "q", "q", "r"], resamples=100)
    assert found.raw.value == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert (found.wins_a, found.wins_b, found.ties, found.failed, found.prompts) == (3, 1, 1, 1, 3)
    assert found.length_a.value == found.length_b.value == pytest.approx((5 + 10 + 1) / 3)
    # Equal lengths say nothing: what is left is the raw rate, up to the ridge.
    assert found.length_effect is None
    assert found.length_controlled.value == pytest.approx(found.raw.value, abs=1e-3)


def test_swapping_the_two_gives_the_rest_to_one() -> None:
    won, a, b, _ = _drawn(120, theta=-0.5, phi=0.8, ties=True)
    won[5] = math.nan
    prompts = [at // 3 for at in range(120)]
    here, there = win_rate(won, a, b, prompts, resamples=300), win_rate(1 - won, b, a, prompts, resamples=300)
    for one, other in ((here.raw, there.raw), (here.length_controlled, there.length_controlled)):
        assert None not in (one.value, one.low, one.high, other.value, other.low, other.high)
        assert one.value + other.value == pytest.approx(1, abs=1e-9)
        assert one.low + other.high == pytest.approx(1, abs=1e-9)
        assert one.low < one.value < one.high
    assert here.length_effect == pytest.approx(there.length_effect, abs=1e-9)
    assert (here.wins_a, here.wins_b) == (there.wins_b, there.wins_a)


def test_data_that_length_or_one_side_decides_wholly_has_finite_rates() -> None:
    a, b = np.array([9.0, 8, 7, 1, 2, 3] * 10), np.array([1.0, 2, 3, 9, 8, 7] * 10)
    longer = win_rate((a > b).astype(float), a, b, range(60), resamples=100)
    assert longer.length_controlled.value == pytest.approx(0.5, abs=1e-9)
    assert longer.length_effect is not None
    assert 3 < longer.length_effect < 100
    every = win_rate(np.ones(60), a, b, range(60), resamples=100)
    assert every.length_controlled.value is not None
    assert 0.999 < every.length_controlled.value < 1
    assert every.raw.value == 1


def test_a_judge_that_likes_what_stands_first_is_found_out() -> None:
    nan = math.nan
    #        agree A  agree B  biased  biased  A+tie  tie  failed
    first = [1, 0, 1, 1, 1, 0.5, nan]
    second = [1, 0, 0, 0, 0.5, 0.5, 1]
    outcome, position = both_orders(first, second)
    np.testing.assert_array_equal(outcome, [1, 0, 0.5, 0.5, 1, 0.5, nan])
    assert (position.agree.count, position.agree.n) == (2, 4)
    # First in the first order is A (1), in the second B (0): 4 of 5 verdicts, and 3 of 5; of 6 comparisons.
    assert (position.first.value, position.first.n) == (0.7, 6)
    assert (position.first.low, position.first.high) == pytest.approx(wilson(4.2, 6)), (
        "two verdicts of one comparison are no two"
    )


def test_what_is_no_outcome_is_refused() -> None:
    with pytest.raises(DataError, match="neither 1"):
        win_rate([2.0], [1], [1], ["p"])
    with pytest.raises(DataError, match="No comparison has a verdict"):
        win_rate([math.nan], [1], [1], ["p"])
    with pytest.raises(DataError, match="every comparison"):
        win_rate([1.0, 0.0], [1], [1, 2], ["p", "q"])
