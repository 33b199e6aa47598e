"""Thinking is split off from answers, and what is broken is said to be."""

import pytest

from prefopt.rewards import ThinkingSection, make_attempt, opens_thinking

THINK = ThinkingSection()


@pytest.mark.parametrize(
    ("text", "answer", "thinking", "broken"),
    [
        ("<think>2 + 2</think>4", "4", "2 + 2", False),
        ("\n<think>\n2 + 2\n</think>\n\n4\n", "4\n", "2 + 2", False),
        ("<think></think>4", "4", "", False),
        ("4", "4", None, False),
        ("<think>it never ends", "", "it never ends", True),
        ("well <think>a</think>4", "4", "a", True),
        ("a</think>4", "4", "a", True),
        ("<think>a</think>4</think>5", "5", "a</think>4", True),
        ("<think>a<think>b</think>4", "4", "a<think>b", True),
        ("<think>a</think>4<think>b</think>5", "5", "a</think>4<think>b", True),
        ("</think>4<think>", "", "", True),
        ("<think>a</think>5<think>no, 7", "", "a", True),
    ],
)
def test_the_answer_is_what_stands_behind_the_thinking(
    text: str, answer: str, thinking: str | None, broken: bool
) -> None:
    attempt = make_attempt("x", text, thinking=THINK)
    assert (attempt.answer, attempt.thinking, attempt.broken, attempt.text) == (answer, thinking, broken, text)


@pytest.mark.parametrize(
    ("text", "answer", "thinking", "broken"),
    [
        ("2 + 2</think>4", "4", "2 + 2", False),
        ("2 + 2", "", "2 + 2", True),
        ("<think>2 + 2</think>4", "4", "<think>2 + 2", True),
    ],
)
def test_where_the_prompt_opened_the_thinking_the_text_begins_in_it(
    text: str, answer: str, thinking: str, broken: bool
) -> None:
    attempt = make_attempt("x", text, thinking=THINK, opened=True)
    assert (attempt.answer, attempt.thinking, attempt.broken) == (answer, thinking, broken)


def test_a_prompt_opens_thinking_where_it_ends_with_the_tag() -> None:
    assert opens_thinking("<|im_start|>assistant\n<think>\n", "<think>")
    assert not opens_thinking("<think>a</think> assistant\n", "<think>")


def test_missing_thinking_is_broken_only_where_it_is_required() -> None:
    attempt = make_attempt("x", "4", thinking=ThinkingSection(required=True))
    assert (attempt.answer, attempt.thinking, attempt.broken) == ("4", None, True)


def test_tags_are_those_of_the_recipe_and_without_a_section_all_is_answer() -> None:
    tags = ThinkingSection(open="[plan]", close="[done]")
    assert make_attempt("x", "[plan]a[done]b", thinking=tags).answer == "b"
    whole = make_attempt("x", "<think>a</think>b")
    assert (whole.answer, whole.thinking, whole.broken) == ("<think>a</think>b", None, False)
