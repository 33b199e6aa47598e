"""Calibration by hand, against scikit-learn, and of probabilities that are known to be right."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from prefopt.errors import DataError
from prefopt.eval import calibration, wilson
from prefopt.eval.calibration import sigmoid


def test_outcomes_by_hand() -> None:
    # sure of chosen by 0.95 and 0.65, of rejected by 0.65 (so wrong) and by 0.55 (wrong); 0.5 is a tie
    found = calibration([0.95, 0.65, 0.35, 0.45, 0.5])
    assert (found.against, found.n, found.ties) == ("outcomes", 5, 1)
    assert [part.n for part in found.bins] == [1, 2, 0, 0, 1]
    assert [part.observed.value for part in found.bins] == [0.0, 0.5, None, None, 1.0]
    assert (found.bins[1].observed.low, found.bins[1].observed.high) == wilson(1, 2)
    assert found.bins[1].predicted == pytest.approx(0.65)
    # (0.55 - 0) + 2 * (0.65 - 0.5) + (1 - 0.95), over four pairs
    assert found.expected_error == pytest.approx((0.55 + 0.3 + 0.05) / 4)
    assert found.brier.value == pytest.approx((0.05**2 + 0.35**2 + 0.65**2 + 0.55**2 + 0.5**2) / 5)


def test_raters_by_hand() -> None:
    # the model is sure of chosen by 0.8, which 0.9 of the raters prefer, and of rejected by 0.8, which 0.4 prefer
    found = calibration([0.8, 0.2, 0.7], [0.9, 0.6, np.nan])
    assert (found.against, found.n) == ("raters", 2)
    assert [part.n for part in found.bins] == [0, 0, 0, 2, 0]
    assert found.bins[3].observed.value == pytest.approx((0.9 + 0.4) / 2)
    assert found.expected_error == pytest.approx(0.8 - 0.65)
    # a rater of the first votes for chosen with 0.9: 0.9 * 0.2^2 + 0.1 * 0.8^2; of the second 0.6 * 0.8^2 + 0.4 * 0.2^2
    assert found.brier.value == pytest.approx((0.9 * 0.04 + 0.1 * 0.64 + 0.6 * 0.64 + 0.4 * 0.04) / 2)


def test_which_completion_is_called_chosen_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    p, a = rng.random((2, 200))
    one, other = calibration(p, a), calibration(1 - p, 1 - a)
    assert one.expected_error == pytest.approx(other.expected_error)
    assert one.brier.value == pytest.approx(other.brier.value)


def test_many_pairs_against_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    p = rng.random(500)
    found = calibration(p)
    # scikit-learn's bins of 0.1 from 0.5 on: the side that the model prefers, and whether it is the chosen one
    observed, predicted = calibration_curve(p > 0.5, np.maximum(p, 1 - p), n_bins=10)
    assert [part.observed.value for part in found.bins] == pytest.approx(observed.tolist())
    assert [part.predicted for part in found.bins] == pytest.approx(predicted.tolist())
    assert found.brier.value == pytest.approx(brier_score_loss(np.ones(500), p, pos_label=1, labels=[0, 1]))
    a = rng.random(500)
    weighted = brier_score_loss([1] * 500 + [0] * 500, np.tile(p, 2), sample_weight=np.concatenate([a, 1 - a]))
    assert calibration(p, a).brier.value == pytest.approx(weighted)


def test_a_model_that_knows_how_divided_people_are_is_calibrated() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(4000)
    votes = rng.binomial(15, p) / 15
    assert calibration(p, votes).expected_error < 0.01
    assert calibration(p**3 / (p**3 + (1 - p) ** 3), votes).expected_error > 0.1, "too sure of itself"


def test_shares_outside_0_to_1_are_refused_and_nothing_has_no_error() -> None:
    with pytest.raises(DataError, match=r"share of raters is 15"):
        calibration([0.5], [15])
    assert calibration([]).expected_error is None


def test_sigma_of_large_margins_is_0_or_1() -> None:
    with np.errstate(all="raise", under="ignore"):
        found = sigmoid(np.array([-800.0, -1.0, 0.0, 1.0, 800.0]))
    assert found.tolist() == pytest.approx([0, 1 / (1 + np.e), 0.5, np.e / (1 + np.e), 1])
