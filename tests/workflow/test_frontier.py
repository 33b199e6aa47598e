"""The frontier of finished runs: same prompts for all, kept point by point, one reference or a sentence."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from prefopt.errors import RecipeError, RunError
from prefopt.workflow.frontier import FrontierOptions, frontier_of_runs
from prefopt.workflow.generations import read_reward
from tests.toys import save_tiny_model

OPTIONS = FrontierOptions(samples_per_prompt=2, max_new_tokens=6, resamples=100)


def test_a_frontier_starts_at_the_reference_and_keeps_its_points(
    train: Callable[..., Path], prompts: str, reward: Path, tmp_path: Path
) -> None:
    runs = [train("lora: {r: 4}, dtype: float32"), train("lora: {r: 2}, dtype: float32")]
    said: list[str] = []
    found = frontier_of_runs(
        runs, reward=reward, prompts=prompts, out=tmp_path / "out", options=OPTIONS, say=said.append
    )
    start, *moved = found.points
    assert (start.label, start.kl.value, start.kl_log_ratio.value) == ("start", 0.0, 0.0)
    assert [point.run for point in moved] == [str(run) for run in runs]
    assert all(point.kl.value is not None and point.kl.value > 0 for point in moved)
    assert all(point.completions == 8 and point.kl.n == 4 for point in found.points)
    assert start.dominating, "nothing has less divergence than none"
    assert {point.loss for point in moved} == {"dpo"}
    assert {point.beta for point in moved} == {0.1}

    held = json.loads((tmp_path / "out" / "frontier.json").read_text())
    assert (held["kind"], held["prompts"], held["temperature"]) == ("frontier", 4, 1.0)
    assert held["points"] == [point.to_dict() for point in found.points]
    with (tmp_path / "out" / "frontier.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["kl"]) for row in rows] == [point.kl.value for point in found.points]
    assert (tmp_path / "out" / "frontier.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "out" / "frontier.svg").read_text()

    kept = sorted((tmp_path / "out" / "frontier_points").iterdir())
    assert len(kept) == 3
    kept[0].unlink()
    told: list[str] = []
    again = frontier_of_runs(
        runs, reward=reward, prompts=prompts, out=tmp_path / "out", options=OPTIONS, say=told.append
    )
    assert again == found
    assert sum("measured before" in line for line in told) == 2
    assert sum("sampling" in line for line in told) == 1
    other = FrontierOptions(samples_per_prompt=2, max_new_tokens=6, resamples=100, seed=1)
    told.clear()
    frontier_of_runs(runs[:1], reward=reward, prompts=prompts, out=tmp_path / "out", options=other, say=told.append)
    assert all("sampling" in line for line in told[:-1])
    assert told[-1].startswith("kept in"), "a reader is told where the figure lies"


def test_prompts_are_those_that_the_first_run_holds_out(
    train: Callable[..., Path], reward: Path, tmp_path: Path
) -> None:
    run = train("lora: {r: 4}, dtype: float32")
    runs = [run, run.parent / "." / ".." / run.parent.name / run.name]
    found = frontier_of_runs(runs, reward=reward, out=tmp_path, limit=3, options=OPTIONS)
    assert len(found.points) == 2, "a run that is named twice counts once"
    assert (found.prompts, found.points[0].completions) == (3, 6)


def test_runs_of_different_models_have_no_frontier(
    train: Callable[..., Path], prompts: str, reward: Path, tmp_path: Path
) -> None:
    other = save_tiny_model(tmp_path / "other", seed=5)
    runs = [train("lora: {r: 4}, dtype: float32"), train("lora: {r: 4}, dtype: float32", other)]
    with pytest.raises(RunError, match="different references"):
        frontier_of_runs(runs, reward=reward, prompts=prompts, out=tmp_path / "out", options=OPTIONS)
    with pytest.raises(RunError, match="is no run directory"):
        frontier_of_runs([tmp_path / "nowhere"], reward=reward, prompts=prompts, options=OPTIONS)


def test_full_fine_tuning_is_measured_against_the_weights_it_began_with(
    train: Callable[..., Path], prompts: str, reward: Path, tmp_path: Path
) -> None:
    run = train("lora: null, dtype: float32")
    found = frontier_of_runs([run], reward=reward, prompts=prompts, out=tmp_path, options=OPTIONS)
    assert [point.kl.value == 0 for point in found.points] == [True, False]


def test_what_samples_are_worth_must_be_said(train: Callable[..., Path], reward: Path) -> None:
    run = train("lora: {r: 4}, dtype: float32")
    with pytest.raises(RecipeError, match="--scorer"):
        read_reward(None, None, [run])
    with pytest.raises(RecipeError, match="both given"):
        read_reward("length", reward, [run])
    with pytest.raises(RecipeError, match="no_such"):
        read_reward("no_such", None, [run])
    assert list(read_reward("sentiment", None, []).scorers) == ["sentiment"]
    bare = reward.with_name("bare.yaml")
    bare.write_text(yaml.safe_dump(yaml.safe_load(reward.read_text())["score"]))
    assert read_reward(None, bare, []) == read_reward(None, reward, []), "a file may be the section, or have one"
