"""Area under the ROC curve by hand and against scikit-learn; its interval by hand and where variance is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from prefopt.eval import auc, wilson


def test_three_pairs_by_hand() -> None:
    # of the rejected 2, 0, 1 the chosen 3 beats three, 1 beats one and ties one, 2 beats two and ties one: 7 of 9
    assert auc([3, 1, 2], [2, 0, 1]).value == pytest.approx(7 / 9)


def test_the_interval_of_three_pairs_by_hand() -> None:
    # shares of rejected below each chosen 1, 1/2, 5/6; shares of chosen above each rejected 1/2 (one above, one
    # equal), 1, 5/6: sums 1.5, 1.5, 5/3, each less twice the area
    found = auc([3, 1, 2], [2, 0, 1])
    deviations = [1.5 - 14 / 9, 1.5 - 14 / 9, 5 / 3 - 14 / 9]
    error = math.sqrt(sum(d * d for d in deviations) / 6)
    odds, half = math.log(7 / 2), 1.959963984540054 * error / (7 / 9 * 2 / 9)
    assert found.low == pytest.approx(1 / (1 + math.exp(half - odds)))
    assert found.high == pytest.approx(1 / (1 + math.exp(-half - odds)))


@pytest.mark.parametrize("decimals", [0, 6])
def test_many_pairs_against_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = np.round(rng.normal([[0.4], [0]], size=(2, 300)), decimals)
    expected = roc_auc_score([1] * 300 + [0] * 300, [*chosen, *rejected])
    assert auc(chosen, rejected).value == pytest.approx(expected, abs=1e-12)


def test_a_perfect_area_still_has_an_interval_and_a_model_without_opinion_is_a_half() -> None:
    assert auc([2, 3], [0, 1]).to_dict() == {"n": 2, "value": 1.0, "low": wilson(2, 2)[0], "high": 1.0}
    assert auc([0, 0], [0, 0]).value == 0.5
    assert auc([], []).value is None
    assert (auc([1], [1]).low, auc([1], [1]).high) == (0.0, 1.0)
