"""Win rates of finished runs: by a scorer, by a judge behind a real endpoint, and what is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prefopt.errors import ModelError, RecipeError
from prefopt.workflow.winrate import WinrateOptions, winrate_of
from tests.rewards.test_judge import Server, grade

OPTIONS = WinrateOptions(samples_per_prompt=2, max_new_tokens=6, resamples=100)


def test_a_model_against_its_copy_ties_and_a_run_writes_its_rate(
    train: Callable[..., Path], tiny_model: Path, prompts: str, reward: Path, tmp_path: Path
) -> None:
    run = train("lora: {r: 4}, dtype: float32")
    twin = shutil.copytree(tiny_model, tmp_path / "twin")
    same = winrate_of(str(tiny_model), str(twin), reward=reward, prompts=prompts, options=OPTIONS)
    assert (same.found.ties, same.found.raw.value) == (8, 0.5)
    assert same.found.length_controlled.value == pytest.approx(0.5)

    here = winrate_of(str(run), str(tiny_model), reward=reward, prompts=prompts, options=OPTIONS)
    held = json.loads((run / "eval" / "winrate.json").read_text())
    assert (held["kind"], held["prompts"], held["samples_per_prompt"]) == ("winrate", 4, 2)
    assert held["raw"] == here.found.raw.to_dict()
    there = winrate_of(str(tiny_model), str(run), reward=reward, prompts=prompts, options=OPTIONS)
    assert here.found.raw.value is not None
    assert there.found.raw.value == pytest.approx(1 - here.found.raw.value)
    assert (here.found.wins_a, here.found.wins_b) == (there.found.wins_b, there.found.wins_a)
    assert here.found.ties < 8

    rows = [json.loads(line) for line in (run / "eval" / "winrate_samples.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [f"say {n}" for n in range(4) for _ in range(2)]
    assert [row["score_a"] for row in rows] == [sum(c.isalpha() for c in row["a"]) for row in rows]
    won = [(row["score_a"] > row["score_b"]) + (row["score_a"] == row["score_b"]) / 2 for row in rows]
    assert [row["outcome"] for row in rows] == won
    assert sum(won) / 8 == here.found.raw.value


def test_what_is_missing_is_told_before_anything_is_sampled(tiny_model: Path, prompts: str, reward: Path) -> None:
    said: list[str] = []
    with pytest.raises(ModelError, match="nowhere/model"):
        winrate_of(str(tiny_model), "nowhere/model", reward=reward, prompts=prompts, say=said.append)
    assert said == []


def test_a_judge_sees_both_orders_and_its_love_of_the_first_cancels(
    train: Callable[..., Path], tiny_model: Path, prompts: str, tmp_path: Path
) -> None:
    run = train("lora: {r: 4}, dtype: float32")
    server = Server(lambda number, body: grade("1"))
    try:
        judge = tmp_path / "judge.yaml"
        judge.write_text(f"enabled: true\nendpoint: {server.address}\nmodel: tiny\n")
        found = winrate_of(
            str(run), str(tiny_model), judge=judge, prompts=prompts, out=tmp_path / "judged.json", options=OPTIONS
        )
    finally:
        server.close()
    assert found.found.ties == 8
    assert found.position is not None
    assert found.position.first.value == 1.0
    assert found.position.agree.count == 0
    questions = [body["messages"][0]["content"] for body in server.asked]
    assert len(questions) == 2 * found.position.agree.n, "equal answers are not asked about"
    assert all("First answer:" in text and "say " in text for text in questions)
    assert json.loads((tmp_path / "judged.json").read_text())["position"]["first"]["value"] == 1.0


def test_one_model_is_not_compared_with_itself(tiny_model: Path, prompts: str, reward: Path, tmp_path: Path) -> None:
    (tmp_path / "same").symlink_to(tiny_model)
    for other in (tiny_model, tiny_model / ".." / tiny_model.name, tmp_path / "same"):
        with pytest.raises(RecipeError, match="are one, which writes the same text"):
            winrate_of(str(tiny_model), str(other), reward=reward, prompts=prompts)
    with pytest.raises(RecipeError, match="are one, which writes the same text"):
        winrate_of("org/model", "org/model", reward=reward, prompts=prompts)


def test_what_compares_is_said_once(tiny_model: Path, prompts: str, reward: Path, tmp_path: Path) -> None:
    both = {"prompts": prompts, "options": OPTIONS}
    with pytest.raises(RecipeError, match="leave --scorer and --reward out"):
        winrate_of(str(tiny_model), "org/other", judge=reward, reward=reward, **both)
    with pytest.raises(RecipeError, match="--reward FILE"):
        winrate_of(str(tiny_model), "org/other", scorer="length", **both)
    with pytest.raises(RecipeError, match=r"gone\.yaml can't be read: No such file"):
        winrate_of(str(tiny_model), "org/other", reward=tmp_path / "gone.yaml", **both)
    with pytest.raises(RecipeError, match="Nothing says"):
        winrate_of(str(tiny_model), "org/other", **both)
    with pytest.raises(RecipeError, match=r"judge\.yaml.*enabled"):
        (tmp_path / "judge.yaml").write_text("endpoint: http://localhost:1/v1\nmodel: m\n")
        winrate_of(str(tiny_model), "org/other", judge=tmp_path / "judge.yaml", **both)
    with pytest.raises(RecipeError, match="name some by --prompts"):
        winrate_of(str(tiny_model), "org/other", reward=reward, options=OPTIONS)
