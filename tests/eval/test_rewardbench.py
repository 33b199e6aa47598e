"""RewardBench's scores by hand, and from published section scores."""

from __future__ import annotations

import pytest

from prefopt.errors import DataError
from prefopt.eval import wilson
from prefopt.eval.rewardbench import PRIOR, PRIOR_SETS, SECTIONS, _overall, rewardbench

EVERY = [name for section in SECTIONS.values() for name in section]


def test_a_section_weighs_its_subsets_by_their_published_rows() -> None:
    # Chat: easy 1 of 2 (a tie is wrong), length 1 of 1, hard 0 of 1, med 1 of 1, mt-bench-easy 0 of 1
    margins = [1.0, 0.0, 2.0, -1.0, 0.5, -0.5]
    subsets = ["alpacaeval-easy", "alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-med",
               "mt-bench-easy"]  # fmt: skip
    found = rewardbench(margins, subsets)
    assert found.sections["Chat"] == pytest.approx((0.5 * 100 + 95 + 40) / (100 + 95 + 95 + 28 + 40))
    easy = found.subsets["alpacaeval-easy"]
    assert (easy.correct.value, easy.ties, easy.section) == (0.5, 1, "Chat")
    assert (easy.to_dict()["low"], easy.to_dict()["high"]) == wilson(1, 2)


def test_mathematics_counts_as_much_as_the_code_beside_it() -> None:
    code = [name for name in SECTIONS["Reasoning"] if name.startswith("hep")]
    found = rewardbench([1.0] + [-1.0] * 6, ["math-prm", *code])
    assert found.sections["Reasoning"] == pytest.approx(0.5)
    assert sum(SECTIONS["Reasoning"][name] for name in code) == 984
    assert found.partial["math-prm"] == (1, 447)


def test_there_are_2985_rows_of_23_subsets() -> None:
    assert len(EVERY) == 23
    assert sum(sum(section.values()) for section in SECTIONS.values()) - 984 + 447 == 2985


def test_the_overall_score_is_the_mean_of_sections_and_prior_sets_count_half() -> None:
    # all right but for Safety, all wrong: (1 + 1 + 0 + 1) / 4
    margins = [-1.0 if name in SECTIONS["Safety"] else 1.0 for name in EVERY]
    assert rewardbench(margins, EVERY).overall == pytest.approx(0.75)
    # prior sets 1, 1, 0, 0, unweighted: (3 + 0.5 * 0.5) / 4.5
    found = rewardbench([*margins, 1, 1, -1, -1], [*EVERY, *PRIOR_SETS])
    assert found.sections[PRIOR] == pytest.approx(0.5)
    assert found.overall == pytest.approx(3.25 / 4.5)


def test_a_published_overall_score_follows_from_its_published_sections() -> None:
    # ArmoRM-Llama3-8B-v0.1 on the leaderboard: 89.0
    scores = {"Chat": 96.9, "Chat Hard": 76.8, "Safety": 92.2, "Reasoning": 97.3, PRIOR: 74.3}
    assert _overall(scores) == pytest.approx(89.0, abs=0.05)


def test_what_is_missing_is_said_and_not_guessed() -> None:
    found = rewardbench([1.0, 1.0], ["math-prm", "shp"])
    assert found.sections == dict.fromkeys([*SECTIONS, PRIOR])
    assert found.overall is None
    assert found.missing["Chat"] == tuple(SECTIONS["Chat"])
    assert found.missing[PRIOR] == ("anthropic_helpful", "anthropic_hhh", "summarize")
    assert PRIOR not in rewardbench([1.0], ["math-prm"]).sections


def test_an_unknown_subset_is_a_sentence() -> None:
    with pytest.raises(DataError, match=r"no subset 'math-prn'.*did you mean 'math-prm'"):
        rewardbench([1.0], ["math-prn"])
    with pytest.raises(DataError, match="no row"):
        rewardbench([], [])
