"""The human ceiling by hand, against a plain loop, and on raters whose agreement is known."""

from __future__ import annotations

import numpy as np
import pytest

from prefopt.errors import DataError
from prefopt.eval import human_agreement


def test_two_texts_by_hand() -> None:
    # a = 3, 1; b = 2, 0. One rater against the rest (which is the other rating of each text):
    #   (3, 2): vote +, rest 1 - 0 = + agree      (3, 0): vote +, rest 1 - 2 = - disagree
    #   (1, 2): vote -, rest 3 - 0 = + disagree   (1, 0): vote +, rest 3 - 2 = + agree
    found = human_agreement([[3, 1]], [[2, 0]])
    assert (found.agree.tolist(), found.disagree.tolist(), found.ties.tolist()) == ([2], [2], [0])
    assert found.share.tolist() == [0.5]


def test_ties_on_either_side_are_counted_apart() -> None:
    # (1, 1): own vote 0. (1, -1): rest 3 - 1 = + and vote +, agree. (3, 1): rest 1 - (-1) = + and vote +, agree.
    # (3, -1): rest 1 - 1 = 0, a tie.
    found = human_agreement([[1, 3]], [[1, -1]])
    assert (found.agree.tolist(), found.disagree.tolist(), found.ties.tolist()) == ([2], [0], [2])
    assert found.share.tolist() == [1.0]


def test_aligned_raters_are_compared_with_themselves() -> None:
    # rater 0: 3 > 2, rest 1 > 0 agree; rater 1: 1 > 0, rest 3 > 2 agree
    found = human_agreement([[3, 1]], [[2, 0]], aligned=True)
    assert (found.agree.tolist(), found.disagree.tolist()) == ([2], [0])


@pytest.mark.parametrize("aligned", [False, True])
def test_ragged_ratings_against_a_plain_loop(aligned: bool) -> None:
    rng = np.random.default_rng(0)
    first = [rng.integers(-4, 5, n).tolist() for n in rng.integers(2, 9, 40)]
    second = [rng.integers(-4, 5, len(a) if aligned else n).tolist()
              for a, n in zip(first, rng.integers(2, 9, 40), strict=True)]  # fmt: skip
    found = human_agreement(first, second, aligned=aligned)
    for p, (a, b) in enumerate(zip(first, second, strict=True)):
        counts = {1: 0, -1: 0, 0: 0}
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                if aligned and i != j:
                    continue
                rest_a, rest_b = a[:i] + a[i + 1 :], b[:j] + b[j + 1 :]
                # whole numbers, so that a tie is one: sum_a / (n - 1) against sum_b / (m - 1)
                rest = np.sign(sum(rest_a) * len(rest_b) - sum(rest_b) * len(rest_a))
                counts[int(np.sign(x - y) * rest)] += 1
        assert (found.agree[p], found.disagree[p], found.ties[p]) == (counts[1], counts[-1], counts[0])


def test_the_order_of_the_two_texts_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.integers(-4, 5, (2, 20, 6)).tolist()
    one, other = human_agreement(a, b), human_agreement(b, a)
    assert one.agree.tolist() == other.agree.tolist()
    assert one.ties.tolist() == other.ties.tolist()


def test_the_ceiling_is_what_independent_raters_agree_on() -> None:
    # ratings are +1 with 0.9 for the better text and -1 with 0.9 for the worse one, else 0: with many raters the rest
    # always prefers the better; one rater never prefers the worse, and ties with 0.01
    rng = np.random.default_rng(2)
    better, worse = np.where(rng.random((2, 300, 15)) < 0.9, [[[1]], [[-1]]], 0)
    found = human_agreement(better.tolist(), worse.tolist())
    assert found.ceiling().value == 1.0
    assert found.to_dict()["tie_share"] == pytest.approx(0.01, abs=0.003)


def test_all_ties_have_no_share_and_no_ceiling() -> None:
    found = human_agreement([[1, 1]], [[1, 1]])
    assert np.isnan(found.share).all()
    assert found.ceiling().value is None


@pytest.mark.parametrize(
    ("first", "second", "aligned", "words"),
    [
        ([[1, 2]], [], False, "both texts of a pair: got 1 and 0"),
        ([[1, 2], [1]], [[1, 2], [1, 2]], False, "Pair 1 has 1 and 2 ratings"),
        ([[1, 2, 3]], [[1, 2]], True, "Pair 0 has 3 and 2 ratings"),
    ],
)
def test_ratings_that_cannot_be_compared_are_refused(
    first: list[list[float]], second: list[list[float]], aligned: bool, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        human_agreement(first, second, aligned=aligned)
