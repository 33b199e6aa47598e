"""Verifiers of text, numbers and mathematics, by hand."""

import importlib.util
from fractions import Fraction

import pytest

from prefopt.errors import RecipeError
from prefopt.rewards import ScoreFailure
from prefopt.rewards.numbers import numbers_in
from tests.rewards.attempts import Sampled, one, said, scorer


def test_exact_folds_white_space_and_case_only_where_asked() -> None:
    assert one("exact", said(" a\n b ", "a b")) == 1.0
    assert one("exact", said("A", "a")) == 0.0
    assert one({"kind": "exact", "ignore_case": True}, said("A", "a")) == 1.0
    assert one("exact", said("b", ["a", "b"])) == 1.0
    assert one("exact", said("4", 4)) == 1.0
    assert one("exact", said("4", 4.0)) == 1.0, "whole numbers come as floats from many a writer"


def test_a_row_without_the_right_answer_is_a_failure_that_names_the_column() -> None:
    assert one("exact", said("a", answr="a")) == (
        "exact: the row has no column 'answer'; it has answr; did you mean 'answr'?"
    )
    assert "must be text, a number or a list" in one("exact", said("a", {"x": 1}))
    assert "must be text, a number or a list" in one("exact", said("a", []))


@pytest.mark.parametrize(
    ("section", "answer", "score"),
    [
        ({"pattern": r"Answer: (\w+)"}, "Answer: a. Answer: b", 1.0),
        ({"pattern": r"Answer: (\w+)", "which": "first"}, "Answer: a. Answer: b", 0.0),
        ({"pattern": r"Answer: (\w+)"}, "b", 0.0),
        ({"pattern": r"\b[ab]\b"}, "a b", 1.0),
        ({"pattern": r"answer: (B)", "ignore_case": True}, "Answer: b", 1.0),
        ({"pattern": r"x(\w+)?"}, "x", 0.0),
        ({"pattern": r"^\{.*\}$", "column": None}, "{1}", 1.0),
        ({"pattern": r"^\{.*\}$", "column": None}, "1", 0.0),
    ],
)
def test_regex_compares_its_group(section: dict[str, object], answer: str, score: float) -> None:
    assert one({"kind": "regex", **section}, said(answer, "b")) == score


def test_a_search_that_grows_exponentially_ends_at_its_time_limit() -> None:
    section = {"kind": "regex", "pattern": r"^(a|a)*$", "timeout": 0.2}
    slow, plain = scorer(section).score([said("a" * 60 + "b", "a"), said("a", "a")])
    assert slow == ScoreFailure("regex: the search took longer than 0.2 seconds.")
    assert plain == 1.0


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4 and -4", ["4", "-4"]),
        ("1,234,567.", ["1234567"]),
        ("1,234.5", ["2469/2"]),
        ("3,4,5", ["3", "4", "5"]),
        ("1,23", ["1", "23"]),
        ("$5.00 -$6 $-7 €8", ["5", "-6", "-7", "8"]),
        ("3/4 of it", ["3/4"]),
        ("-3/4", ["-3/4"]),
        ("1 3/4 cups", ["7/4"]),
        ("-1 3/4", ["-7/4"]),
        ("3 5/4", ["3", "5/4"]),
        ("2/3/2024", ["2", "3", "2024"]),
        ("1/0", ["1", "0"]),
        ("10-5", ["10", "5"]),
        ("(2)-3", ["2", "3"]),
        ("2 - 5", ["2", "5"]),
        ("x=-5", ["-5"]),
        ("−7", ["-7"]),
        (".5 0.5.", ["1/2", "1/2"]),
        ("1e-3 2E2", ["1/1000", "200"]),
        ("5 × 10^8 or 3\\times 10^{-2}", ["500000000", "3/100"]),
        ("15 m^2 at 9:30, 3:4, 2^10", ["15"]),
        ("10%-20%", ["10", "20"]),
        ("x2 v1.5 a_3", []),
        ("10cm 5th", ["10", "5"]),
        ("**12** \\boxed{7}", ["12", "7"]),
        ("1e999999999 " + "9" * 5000, []),
        ("٣ ²", []),
        ("", []),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, found: list[str]) -> None:
    assert [number.value for number in numbers_in(text)] == [Fraction(value) for value in found]


@pytest.mark.parametrize(
    ("section", "answer", "right", "score"),
    [
        ({}, "3 and 4 make 7", "7", 1.0),
        ({}, "7 is 3 and 4", "7", 0.0),
        ({}, "1,200", "so #### 1200", 1.0),
        ({}, "0.5", "1/2", 1.0),
        ({}, "0.3333", "1/3", 0.0),
        ({"tolerance": 1e-3}, "0.3333", "1/3", 1.0),
        ({"relative": 0.01}, "101", "100", 1.0),
        ({"relative": 0.01}, "101.1", "100", 0.0),
        ({"relative": 0.01}, "-101", "-100", 1.0),
        ({}, "50%", "0.5", 1.0),
        ({}, "50%", "50", 1.0),
        ({}, "50", "50%", 1.0),
        ({}, "0.5", "50 \\%", 1.0),
        ({}, "5", "50%", 0.0),
        ({}, "1%", "100%", 0.0),
        ({}, "50%", "0.5%", 0.0),
        ({}, "50 %", "50%", 1.0),
        ({}, "7", 7.0, 1.0),
        ({}, "none", "7", 0.0),
        ({"after": "####"}, "7 is #### 8", "8", 1.0),
        ({"after": "####"}, "it is 8", "8", 0.0),
        ({"tolerance": 0.1}, "0.4", 0.3, 1.0),
    ],
)
def test_the_last_number_is_compared(section: dict[str, object], answer: str, right: object, score: float) -> None:
    assert one({"kind": "numeric", **section}, said(answer, right)) == score


def test_a_row_whose_answer_has_no_number_is_a_failure() -> None:
    assert one("numeric", said("7", "seven")) == "numeric: the row's 'answer' has no number in it: 'seven'."


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs the extra math")
def test_mathematics_is_compared_by_its_value() -> None:
    math = scorer({"kind": "math", "timeout": 100})
    attempts = [
        said("so it is $1 + x^2$", "x^2+1"),
        said("\\boxed{\\frac{2}{4}}", "1/2"),
        said("it is 0.5", "\\frac{1}{2}"),
        said("it is 0.6", "1/2"),
        said("no idea", "1/2"),
        said("5", ""),
    ]
    *scores, unread = math.score(attempts)
    assert scores == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert "is no expression that math-verify reads" in str(unread)


@pytest.mark.parametrize(("kind", "package"), [("math", "math_verify"), ("sentiment", "vaderSentiment")])
def test_a_package_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, kind: str, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    with pytest.raises(RecipeError, match=rf"pip install 'prefopt\[{kind}\]'"):
        scorer(kind)


@pytest.mark.parametrize(
    ("section", "text", "score"),
    [
        ({}, "a b c d", 0.0),
        ({}, "a b c", -0.25),
        ({}, "a " * 7, -0.75),
        ({}, "a " * 70, -1.0),
        ({"side": "longer"}, "a", 0.0),
        ({"side": "shorter"}, "a " * 70, 0.0),
        ({"side": "shorter"}, "a", -0.75),
        ({"unit": "characters"}, "abc", -0.25),
        ({"unit": "tokens", "of": "text"}, "a", -0.25),
    ],
)
def test_length_costs_by_the_distance_from_its_target(section: dict[str, object], text: str, score: float) -> None:
    section = {"kind": "length", "target": 4, "penalty": 0.25, **section}
    assert one(section, said(text, rollout=Sampled(token_ids=(1, 2, 3)))) == score


def test_tokens_need_a_rollout() -> None:
    assert "no token ids" in one({"kind": "length", "target": 4, "unit": "tokens", "of": "text"}, said("a"))


@pytest.mark.skipif(importlib.util.find_spec("vaderSentiment") is None, reason="needs the extra sentiment")
def test_sentiment_is_vaders_compound_score() -> None:
    # What the package's README states for its first example.
    assert one("sentiment", said("VADER is smart, handsome, and funny.")) == 0.8316
    assert one("sentiment", said("The book was good.")) == 0.4404
    assert one("sentiment", said("")) == 0.0
