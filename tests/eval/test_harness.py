"""The difference of two models' measures over the same documents, and what is said of it."""

import math
from statistics import mean

import numpy as np
import pytest

from prefopt.eval.harness import Comparison, Difference, Estimate, difference, harness_in_words


def compared(gap: Difference, *, better: bool | None = True, task: str = "arc") -> Comparison:
    base = Estimate(0.5, 0.1)
    return Comparison(task, "acc", "none", better, 20, 0, base, Estimate(0.5 + gap.value, 0.1), gap)


def test_a_difference_of_means_is_paired_over_the_documents_that_both_saw() -> None:
    base = {at: float(at % 2) for at in range(40)}
    tuned = dict.fromkeys(reversed(range(40)), 1.0)
    found = difference(Estimate(0.5, 0.08), Estimate(1.0, 0.0), (base, tuned))
    assert found.value == 0.5
    assert found.paired
    # Differences are 0 and 1 in equal parts: the standard error of their mean is 0.5 / sqrt(40).
    assert found.low == pytest.approx(0.5 - 1.96 * 0.5 / math.sqrt(40), abs=0.03)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.5 / math.sqrt(40), abs=0.03)


def test_pairing_sees_what_two_standard_errors_do_not() -> None:
    draw = np.random.default_rng(0)
    level = draw.normal(0, 10, 200)
    base, tuned = dict(enumerate(level)), dict(enumerate(level + 1 + draw.normal(0, 0.1, 200)))
    sides = [Estimate(float(np.mean(list(one.values()))), 10 / math.sqrt(200)) for one in (base, tuned)]
    paired, apart = difference(*sides, (base, tuned)), difference(*sides)
    assert paired.low is not None
    assert 0.97 < paired.low < 1 + 0.03
    assert (apart.paired, apart.value) == (False, paired.value)
    assert apart.high == pytest.approx(apart.value + 1.959964 * math.sqrt(2) * 10 / math.sqrt(200))
    assert apart.low == pytest.approx(apart.value - 1.959964 * math.sqrt(2) * 10 / math.sqrt(200))


def test_a_measure_that_is_no_mean_is_computed_of_every_draw_of_documents() -> None:
    def perplexity(items: list[float]) -> float:
        return math.exp(-mean(items))

    before, after = [-1.0, -2.0, -3.0, -4.0], [-0.5, -1.5, -2.5, -3.5]
    found = difference(
        Estimate(perplexity(before), None),
        Estimate(perplexity(after), None),
        (dict(enumerate(before)), dict(enumerate(after))),
        perplexity,
        resamples=4000,
    )
    assert found.value == pytest.approx(math.exp(2) - math.exp(2.5))
    assert found.paired
    # Of every draw, after is before * exp(-0.5): the ends are those of the mean of four of {1, 2, 3, 4}.
    assert found.low is not None
    assert found.high is not None
    assert math.exp(4) * (math.exp(-0.5) - 1) < found.low < math.exp(3) * (math.exp(-0.5) - 1)
    assert math.exp(2) * (math.exp(-0.5) - 1) < found.high < math.exp(1) * (math.exp(-0.5) - 1)


def test_without_documents_and_standard_errors_there_is_no_interval() -> None:
    found = difference(Estimate(0.1, None), Estimate(0.4, 0.1))
    assert found == Difference(pytest.approx(0.3), None, None, False)


def test_the_words_tell_what_the_intervals_show_and_no_more() -> None:
    words = harness_in_words(
        [
            compared(Difference(0.25, 0.1, 0.4, True)),
            compared(Difference(0.25, 0.1, 0.4, False), better=False, task="ppl"),
            compared(Difference(-0.1, -0.3, 0.1, True)),
            compared(Difference(0.1, None, None, False)),
        ]
    )
    assert words == (
        "arc acc rose from 0.500 to 0.750, for the better; the 95 % interval of the difference is +0.100 to +0.400.",
        "ppl acc rose from 0.500 to 0.750, for the worse; the 95 % interval of the difference is +0.100 to +0.400, "
        "not paired.",
        "Of 3 such intervals one in twenty leaves out 0 where nothing changed.",
        "In 1 of 3 measures the interval holds 0: these documents show no difference.",
        "1 of 4 measures have no standard error, and so no interval.",
    )
