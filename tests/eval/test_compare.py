"""Two models on the same pairs: McNemar by hand and against statsmodels, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap
from statsmodels.stats.contingency_tables import mcnemar as reference_test

from prefopt.errors import DataError
from prefopt.eval import PairEvaluation, PairScores, compare_evaluations, contrast, mcnemar, pair_metrics


def evaluation(margins: np.ndarray, fingerprint: str = "f") -> PairEvaluation:
    policy = np.stack([margins - 50, np.full(len(margins), -50.0)], axis=1)
    scores = PairScores(policy, np.full_like(policy, -50), np.full(policy.shape, 9))
    return PairEvaluation(pair_metrics(scores, beta=0.5), None, (), None, scores, fingerprint)


def test_mcnemar_by_hand() -> None:
    # of 6 pairs one falls to a: 2 * (1 + 6) / 64
    assert mcnemar(1, 5) == pytest.approx(14 / 64)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert [mcnemar(0, 0), mcnemar(4, 4), mcnemar(4, 5)] == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.parametrize(("a", "b"), [(0, 7), (12, 30), (700, 912), (3, 4), (5000, 5300)])
def test_mcnemar_against_statsmodels(a: int, b: int) -> None:
    assert mcnemar(a, b) == pytest.approx(reference_test([[50, a], [b, 9]], exact=True).pvalue, rel=1e-7)


def test_a_contrast_by_hand() -> None:
    found = contrast([1, -1, 0, 2, 3], [2, 1, 1, -1, 0])
    assert (found.a.count, found.b.count) == (3, 3)  # a tie is not right
    assert (found.only_a, found.only_b, found.p) == (2, 2, 1.0)
    assert found.accuracy.value == 0.0
    assert found.margin.value == pytest.approx((1 + 2 + 1 - 3 - 3) / 5)


def test_the_interval_of_the_difference_against_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal([[0.2], [0.6]], size=(2, 400))
    found = contrast(a, b, resamples=9999)
    for ours, values in ((found.accuracy, (b > 0) - 1.0 * (a > 0)), (found.margin, b - a)):
        theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=1).confidence_interval
        width = theirs.high - theirs.low
        assert ours.value == pytest.approx(values.mean())
        assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)
        assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)


def test_the_better_one_is_named_whichever_comes_first() -> None:
    rng = np.random.default_rng(1)
    weak, strong = evaluation(rng.normal(0.1, 1, 300)), evaluation(rng.normal(1, 1, 300))
    found = compare_evaluations(weak, strong, ("weak", "strong"))
    assert [part.measure for part in found.contrasts] == ["reward", "logprob", "logprob_per_token"]
    assert found.verdict.startswith("strong prefers the chosen completion more often than weak by implicit reward")
    turned = compare_evaluations(strong, weak, ("strong", "weak"))
    assert turned.verdict == found.verdict
    margins = found.contrasts[0].margin
    assert margins.value == pytest.approx(0.5 * (strong.pairs.margins - weak.pairs.margins).mean())


def test_what_cannot_be_told_is_said() -> None:
    rng = np.random.default_rng(2)
    margins = rng.normal(0.5, 1, 200)
    found = compare_evaluations(evaluation(margins), evaluation(margins + rng.normal(0, 0.1, 200)), ("x", "y"))
    assert found.verdict.startswith("It can't be told which of x and y")
    one, other = evaluation(np.array([1.0, 1.0])), evaluation(np.array([1.0, -1.0]))
    assert "(1 pair is right with one of them only, p = 1)" in compare_evaluations(one, other).verdict


def test_a_model_without_reference_is_compared_by_log_prob() -> None:
    one = evaluation(np.array([1.0, -1.0]))
    bare = PairScores(one.pairs.policy, None, one.pairs.length)
    other = PairEvaluation(pair_metrics(bare), None, (), None, bare, "f")
    assert [part.measure for part in compare_evaluations(one, other).contrasts] == ["logprob", "logprob_per_token"]


def test_other_pairs_are_refused() -> None:
    with pytest.raises(DataError, match="measured on different pairs"):
        compare_evaluations(evaluation(np.ones(3)), evaluation(np.ones(3), "g"))
