"""What a run shows on its way: pace, memory, samples and their divergence, loggers."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from transformers.integrations import integration_utils

from prefopt.errors import RecipeError
from prefopt.recipe import load_recipe
from prefopt.report import write_report
from prefopt.train import PreferenceArguments, arguments
from prefopt.train.pace import Pace, peak_memory
from prefopt.workflow import train_run
from tests.toys import pair_rows, write_rows


def test_the_pace_is_tokens_over_the_time_that_was_not_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = Pace()
    assert pace.take() == {}
    pace.start()
    clock[0] += 2
    pace.add(300)
    with pace.paused():
        clock[0] += 50
        with pace.paused():
            clock[0] += 50
    clock[0] += 1
    assert pace.take() == {"tokens_per_second": 100.0}
    clock[0] += 4
    pace.add(10)
    assert pace.take() == {"tokens_per_second": 2.5}


def test_the_peak_of_memory_grows_with_what_is_held() -> None:
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(2**27)  # 512 MiB, touched
    after = peak_memory(torch.device("cpu"))
    assert after >= before
    assert after >= held.numel() * 4


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run with evaluations on the way and alarms that can't but ring."""
    folder = tmp_path_factory.mktemp("running")
    write_rows(folder / "pairs.jsonl", pair_rows(24))
    write_rows(folder / "held_out.jsonl", pair_rows(4))
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: {tiny_model}, dtype: float32, lora: {{r: 4}}}}\n"
        "data: {train: pairs.jsonl, eval: held_out.jsonl}\n"
        "alarms: {window: 2, kl: 1.0e-9}\n"
        "eval: {samples: 2, samples_per_prompt: 2, max_new_tokens: 8, resamples: 100}\n"
        f"train: {{output_dir: {folder / 'run'}, examples_per_step: 8, learning_rate: 3.0e-2, num_train_epochs: 4,\n"
        "  eval_strategy: steps, eval_steps: 4, save_strategy: 'no', report_to: tensorboard}\n"
    )
    return train_run(load_recipe(recipe)).path


def test_an_evaluation_on_the_way_samples_and_measures_the_divergence(run: Path) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "tokens" in record]
    assert all(record["tokens_per_second"] > 0 and record["memory_bytes"] > 2**26 for record in steps)
    evaluated = {record["step"]: record for record in records if "eval_loss" in record}
    assert list(evaluated) == [4, 8, 12]
    assert all(record["eval_kl"] != 0 and math.isfinite(record["eval_kl_per_token"]) for record in evaluated.values())
    samples = [json.loads(line) for line in (run / "samples_during.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [4, 4, 8, 8, 12, 12]
    assert all(len(sample["completions"]) == 2 for sample in samples)
    before = json.loads((run / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples[:2]] == [sample["prompt"] for sample in before]


def test_alarms_stand_in_the_run_and_in_its_report(run: Path) -> None:
    alarms = [json.loads(line) for line in (run / "alarms.jsonl").read_text().splitlines()]
    kinds = [alarm["kind"] for alarm in alarms]
    assert "accuracy_pinned" in kinds
    assert "kl" in kinds
    assert len(set(kinds)) == len(kinds)
    page = write_report(run).read_text()
    assert all(f"At step {alarm['step']}: {alarm['sentence'][:40]}" in page for alarm in alarms)
    assert "On the way: 3 evaluations" in page
    assert "Divergence on samples" in page


def test_tensorboard_gets_the_numbers(run: Path) -> None:
    events = b"".join(path.read_bytes() for path in run.rglob("*tfevents*"))
    for tag in (b"train/loss", b"train/rewards/margins", b"train/tokens_per_second", b"eval/kl_per_token"):
        assert tag in events


def test_loggers_that_are_unknown_or_not_installed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"report_to names tensorbord.*did you mean 'tensorboard'"):
        PreferenceArguments(output_dir=str(tmp_path), report_to="tensorbord")
    monkeypatch.setattr(arguments, "get_available_reporting_integrations", lambda: [])
    assert "comet_ml" in integration_utils.INTEGRATION_TO_CALLBACK
    with pytest.raises(RecipeError, match="comet_ml, which is not installed: run pip install comet-ml"):
        PreferenceArguments(output_dir=str(tmp_path), report_to=["none", "comet_ml"])
