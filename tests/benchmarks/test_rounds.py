"""The benchmark of rounds: answers are right and held out, and runs end in a table."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import rounds


@pytest.mark.parametrize("thinking", [False, True])
def test_every_question_is_asked_once_and_none_is_shown_as_an_example(thinking: bool) -> None:
    rows = list(rounds.task_rows(170, thinking=thinking, seed=0))
    examples = {message["content"] for row in rows for message in row["prompt"][:-1] if message["role"] == "user"}
    asked = [row["prompt"][-1]["content"] for row in rows]
    assert len(examples) == rounds.SHOTS
    assert len({tuple(sorted(numbers(question))) for question in asked}) == 170
    assert not examples & set(asked)
    for row, question in zip(rows, asked, strict=True):
        assert int(row["answer"]) == max(numbers(question))
    question, answer = (message["content"] for message in rows[0]["prompt"][:2])
    first, second, third = numbers(question)
    thought = f"<think>{first}, {second}: {max(first, second)}. {max(first, second)}, {third}: "
    assert answer.startswith(thought) == thinking
    assert answer.split()[-1] == str(max(numbers(question)))


def numbers(question: str) -> list[int]:
    return [int(word) for word in re.findall(r"\d+", question)]


def point(kl: float, reward: float, **more: float) -> dict[str, object]:
    def value(number: float) -> dict[str, float]:
        return {"value": number, "low": number - 0.125, "high": number + 0.125}

    return {"kl": value(kl), "reward": value(reward), **{key: value(one) for key, one in more.items()}}


def test_a_run_that_failed_is_a_line_that_says_why() -> None:
    lines = rounds.table({"largest: irpo": [point(3, 0.7)], "nf4: irpo": "no disk"})
    assert lines[2] == "| largest: irpo | 0 |  | 3.00 [2.88, 3.12] |  |"
    assert lines[3] == "| nf4: irpo | no disk | | | |"


def test_a_gain_says_whether_its_intervals_are_apart() -> None:
    found = {"largest: irpo": [point(0, 0, **{"pass@1": 0.25}), point(1, 1, **{"pass@1": 0.75})],
             "largest: imitation": [point(0, 0, **{"pass@1": 0.25}), point(1, 1, **{"pass@1": 0.375})]}  # fmt: skip
    assert rounds.table(found)[-2:] == [
        "largest: irpo: +50.0 points of pass@1, 95 % intervals apart.",
        "largest: imitation: +12.5 points of pass@1, 95 % intervals not apart.",
    ]


@pytest.mark.soak
def test_runs_of_a_tiny_model_end_in_a_table_and_are_not_done_again(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"rounds": 1, "prompts": 4, "held-out": 2, "n": 4, "eval-n": 2, "steps": 2}
    sizes = [word for name, size in few.items() for word in (f"--{name}", str(size))]
    small = ["--model", str(tiny_model), "--out", str(tmp_path), "--only", "largest", "thinking", *sizes]
    code = rounds.main(small)
    *_, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)["runs"]
    assert list(found) == ["largest: irpo", "largest: imitation", "thinking: irpo", "thinking: imitation"]
    # Bytes at random are hardly ever a number: then there is nothing to train on.
    assert code == 1
    assert "selected nothing" in str(found["largest: irpo"])
    rounds.main(small)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["runs"] == found
