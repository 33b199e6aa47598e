"""The sum of scorers: weights, bounds, broken thinking, and scorers that fail."""

from pathlib import Path

import pytest

from prefopt.errors import RecipeError
from prefopt.rewards import ScoreFailure, ThinkingSection, make_attempt
from tests.rewards.attempts import Sampled, one, said, scorer

LENGTH = {"kind": "length", "target": 2, "penalty": 0.25, "floor": -1}


def own(folder: Path, body: str, **more: object) -> dict[str, object]:
    path = folder / "own.py"
    path.write_text(body)
    return {"kind": "python", "function": f"{path}:f", **more}


def test_the_total_is_the_sum_of_weight_times_score() -> None:
    mixed = scorer({"scorers": {"right": {"kind": "exact", "weight": 2}, "short": {**LENGTH, "weight": 0.5}}})
    totals, parts = mixed.score_parts([said("a b c", "a b c"), said("a b", "no")])
    # right: 1, 0; words 3 and 2 of 2: -0.25, 0
    assert totals == [2 * 1 + 0.5 * -0.25, 0.0]
    assert parts == {"right": [1.0, 0.0], "short": [-0.25, 0.0]}
    assert (mixed.low, mixed.high) == (-0.5, 2.0)


def test_a_score_can_be_moved_from_its_bounds_to_0_and_1() -> None:
    mixed = scorer({"scorers": {"short": {**LENGTH, "scale": "bounds", "weight": 3}}})
    assert mixed.score([said("a b c")]) == [3 * 0.75]
    assert (mixed.low, mixed.high) == (0.0, 3.0)


def test_a_negative_weight_turns_the_bounds_round() -> None:
    mixed = scorer({"scorers": {"a": {"kind": "exact", "weight": -2}, "b": {"kind": "exact"}}})
    assert (mixed.low, mixed.high) == (-2.0, 1.0)


def test_bounds_are_unknown_where_one_scorer_has_none() -> None:
    mixed = scorer({"scorers": {"a": {"kind": "exact"}, "b": {"kind": "implicit"}}})
    assert (mixed.low, mixed.high) == (None, None)
    with pytest.raises(RecipeError, match="whose kind implicit has no bounds: leave scale out"):
        scorer({"kind": "implicit", "scale": "bounds"})


def test_a_total_never_lies_beyond_its_bounds_by_rounding() -> None:
    parts = {str(weight): {"kind": "exact", "weight": weight} for weight in (0.1, 0.2, 0.3, 1e16, 0.7, 1e-3)}
    mixed = scorer({"scorers": parts})
    assert mixed.score([said("a", "a")]) == [mixed.high]


def test_the_implicit_reward_is_beta_times_the_log_ratio() -> None:
    assert one({"kind": "implicit", "beta": 0.5}, said("a", rollout=Sampled(policy=-7.0, reference=-9.0))) == 1.0
    assert "no log-prob under a reference" in one("implicit", said("a", rollout=Sampled(reference=None)))
    assert "was not sampled here" in one("implicit", said("a"))


@pytest.mark.parametrize(
    ("rule", "score"),
    [("as_it_is", 1.0), (-0.5, -0.5), ("fail", ScoreFailure("thinking: it is broken."))],
)
def test_broken_thinking_is_scored_by_the_rule(rule: object, score: object) -> None:
    thinking = {"if_broken": rule}
    mixed = scorer({"kind": "exact", "thinking": thinking})
    broken = make_attempt("x", "a</think>4", row={"answer": "4"}, thinking=ThinkingSection.model_validate(thinking))
    whole = make_attempt("x", "<think>a</think>4", row={"answer": "4"}, thinking=ThinkingSection())
    assert mixed.score([broken, whole]) == [score, 1.0]
    assert mixed.low == (-0.5 if rule == -0.5 else 0.0)


def test_a_scorer_that_raises_marks_the_completion_and_no_other(tmp_path: Path) -> None:
    section = own(tmp_path, "def f(attempt):\n    return 1 / len(attempt.answer)\n")
    assert scorer(section).score([said("ab"), said(""), said("abcd")]) == [
        0.5,
        ScoreFailure("python: ZeroDivisionError: division by zero"),
        0.25,
    ]


def test_a_function_that_asks_to_exit_ends_no_run(tmp_path: Path) -> None:
    assert "SystemExit: 3" in one(own(tmp_path, "import sys\ndef f(attempt):\n    sys.exit(3)\n"), said("a"))


def test_a_sum_beyond_all_numbers_is_a_failure() -> None:
    parts = {str(number): {"kind": "exact", "weight": 1.7e308} for number in range(2)}
    assert "the weighted sum is inf" in one({"scorers": parts}, said("a", "a"))


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("float('nan')", "it returned nan, which is no score"),
        ("float('inf')", "it returned inf, which is no score"),
        ("None", "it returned NoneType, which is no score"),
        ("'x'", "it returned str, which is no score"),
        ("3", "it returned 3, above its highest score 1"),
        ("-3", "it returned -3, below its lowest score 0"),
    ],
)
def test_what_is_no_score_within_the_bounds_is_a_failure(tmp_path: Path, value: str, told: str) -> None:
    section = own(tmp_path, f"def f(attempt):\n    return {value}\n", low=0, high=1)
    assert told in one(section, said("a"))


def test_a_failure_of_one_scorer_is_that_of_the_total_unless_it_has_no_weight(tmp_path: Path) -> None:
    bad = own(tmp_path, "def f(attempt):\n    raise KeyError('x')\n")
    [score] = scorer({"scorers": {"a": {"kind": "exact"}, "b": bad}}).score([said("a", "a")])
    assert score == ScoreFailure("python: KeyError: 'x'")
    totals, parts = scorer({"scorers": {"a": {"kind": "exact"}, "b": {**bad, "weight": 0}}}).score_parts(
        [said("a", "a")]
    )
    assert totals == [1.0]
    assert parts["b"] == [ScoreFailure("python: KeyError: 'x'")]


def test_a_function_sees_prompt_row_thinking_and_text(tmp_path: Path) -> None:
    body = (
        "def f(a):\n    return (a.prompt, a.row, a.thinking, a.answer, a.text) == ('p', {'x': 1}, 't', 'z', a.text)\n"
    )
    attempt = make_attempt("p", "<think>t</think>z", row={"x": 1}, thinking=ThinkingSection())
    assert one(own(tmp_path, body), attempt) == 1.0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("def g(a):\n    return 1\n", "has no function 'f': it has g"),
        ("import nothing_like_this\n", "fails: ModuleNotFoundError"),
        (None, "can't be read: No such file"),
    ],
)
def test_a_file_that_has_no_such_function_fails_before_anything_is_scored(
    tmp_path: Path, body: str | None, told: str
) -> None:
    section = own(tmp_path, body or "")
    if body is None:
        (tmp_path / "own.py").unlink()
    with pytest.raises(RecipeError, match=told):
        scorer(section)


def test_a_file_that_was_changed_is_run_anew(tmp_path: Path) -> None:
    assert one(own(tmp_path, "def f(attempt):\n    return 1\n"), said("a")) == 1.0
    assert one(own(tmp_path, "def f(attempt):\n    return 2\n"), said("a")) == 2.0
