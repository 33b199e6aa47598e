"""`prefopt reward train`: it learns, goes on after a kill to the bit, and makes a classifier that anybody can load."""

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefopt.data import tokenize_rows
from prefopt.errors import ModelError, RecipeError
from prefopt.recipe import load_recipe
from prefopt.rewards import RewardConfig, build_scorer, make_attempt
from prefopt.workflow import rewardbench_run
from prefopt.workflow.directory import evaluation_json
from prefopt.workflow.reward import RewardRun, train_reward
from tests.models.loading import edit
from tests.toys import list_rows, pair_rows, write_rows

RECIPE = """
model: {{name: {model}, dtype: float32, device: cpu, lora: {{r: 4, alpha: 8}}}}
data: {{train: {folder}/pairs.jsonl, eval: {folder}/held.jsonl}}
train:
  output_dir: {folder}/{run}
  examples_per_step: 8
  token_budget: 600
  learning_rate: 1e-2
  num_train_epochs: 4
  save_strategy: steps
  save_steps: 2
  bf16: false
eval: {{resamples: 100}}
"""


def recipe_file(folder: Path, model: Path, run: str = "run") -> Path:
    write_rows(folder / "pairs.jsonl", pair_rows(24))
    write_rows(folder / "held.jsonl", pair_rows(20, seed=5))
    path = folder / f"{run}.yaml"
    path.write_text(RECIPE.format(model=model, folder=folder, run=run))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> RewardRun:
    folder = tmp_path_factory.mktemp("reward")
    return train_reward(load_recipe(recipe_file(folder, tiny_model)))


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_learns_which_completion_is_chosen(finished: RewardRun) -> None:
    logged = [record for record in records(finished.path) if "loss" in record]
    assert logged[0]["loss"] == pytest.approx(math.log(2), abs=0.3)
    assert logged[-1]["loss"] < 0.3
    assert not any(name.startswith("logps") for record in logged for name in record)
    assert finished.evaluation is not None
    found = finished.evaluation.accuracy
    assert (found.n, found.value) == (20, 1.0)
    assert found.low == pytest.approx(20 / (20 + 1.96**2), abs=1e-4)  # Wilson's, of 20 of 20
    kept = json.loads((finished.path / "eval/after.json").read_text())
    assert kept == evaluation_json("reward", finished.evaluation.to_dict())
    assert finished.evaluation.margin.value is not None
    assert finished.evaluation.margin.value > 0


def test_what_is_saved_gives_the_rewards_of_training_by_transformers_and_by_the_scorer(finished: RewardRun) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(finished.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.model)
    rows = pair_rows(20, seed=5)
    margins = []
    for example in tokenize_rows(rows, tokenizer):
        with torch.no_grad():
            chosen, rejected = (
                float(model(input_ids=torch.tensor([[*example.prompt, *completion]])).logits[0, 0])
                for completion in example.completions
            )
        margins.append(chosen - rejected)
    assert finished.evaluation is not None
    assert sum(margins) / len(margins) == pytest.approx(finished.evaluation.margin.value, abs=1e-4)

    config = RewardConfig.model_validate(
        {"kind": "model", "name": str(finished.model), "dtype": "float32", "device": "cpu"}
    )
    scorer = build_scorer(config)
    scores: list[Any] = scorer.score(
        [
            make_attempt(tuple(row["prompt"]), row[side][0]["content"])  # type: ignore[arg-type,index]
            for row in rows
            for side in ("chosen", "rejected")
        ]
    )
    assert [a - b for a, b in zip(scores[::2], scores[1::2], strict=True)] == pytest.approx(margins, abs=1e-4)


def test_padding_behind_a_text_does_not_change_its_reward(finished: RewardRun) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(finished.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(finished.model)
    [example] = tokenize_rows(pair_rows(1), tokenizer)
    ids = [*example.prompt, *example.completions[0]]
    assert ids[-1] != model.config.pad_token_id
    padded = [*ids, *[model.config.pad_token_id] * 9]
    with torch.no_grad():
        alone, beside = (float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in (ids, padded))
    assert beside == pytest.approx(alone, abs=1e-5)


def test_killed_and_resumed_it_ends_with_the_bits_of_an_uninterrupted_run(
    finished: RewardRun, tmp_path: Path, tiny_model: Path
) -> None:
    path = recipe_file(tmp_path, tiny_model)
    command = [sys.executable, "-m", "tests.train.killed", "optimizer step", "6", "reward", "train", str(path)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run/reward_model").exists()
    resumed = train_reward(load_recipe(tmp_path / "run/recipe.yaml"), resume=True)
    for name in ("reward_adapter/adapter_model.safetensors", "reward_adapter/reward_head.safetensors",
                 "reward_model/model.safetensors"):  # fmt: skip
        ours, theirs = load_file(resumed.path / name), load_file(finished.path / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def test_of_lists_the_best_is_compared_with_the_worst(tmp_path: Path, tiny_model: Path) -> None:
    path = recipe_file(tmp_path, tiny_model)
    write_rows(tmp_path / "pairs.jsonl", list_rows(8))
    write_rows(tmp_path / "held.jsonl", list_rows(6))
    found = train_reward(load_recipe(path, ["train.max_steps=1"])).evaluation
    assert found is not None
    assert found.accuracy.n == 6


def test_a_quantized_model_makes_a_plain_classifier(tmp_path: Path, tiny_model: Path) -> None:
    path = recipe_file(tmp_path, tiny_model)
    made = train_reward(load_recipe(path, ["train.max_steps=2", "model.quantization=int8"]))
    model = AutoModelForSequenceClassification.from_pretrained(made.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(made.model)
    margins = []
    for example in tokenize_rows(pair_rows(20, seed=5), tokenizer):
        with torch.no_grad():
            a, b = (
                float(model(input_ids=torch.tensor([[*example.prompt, *c]])).logits[0, 0]) for c in example.completions
            )
        margins.append(a - b)
    assert made.evaluation is not None
    assert sum(margins) / len(margins) == pytest.approx(made.evaluation.margin.value, abs=1e-3)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["loss=ipo"], "the section loss is for policies"),
        (["reference=frozen_copy"], "the section reference is for policies"),
        (["data.streaming=true", "train.max_steps=2"], "trained on data in memory"),
        (["model.lora=null"], "a reward model trains an adapter and its head"),
        (["train.token_budget=auto"], "write a number of tokens"),
        (["train.shard_weights=true"], "trained by one process"),
    ],
)
def test_what_a_reward_model_has_not_is_refused(
    tmp_path: Path, tiny_model: Path, overrides: list[str], told: str
) -> None:
    path = recipe_file(tmp_path, tiny_model)
    with pytest.raises(RecipeError, match=told):
        train_reward(load_recipe(path, overrides))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_that_can_only_pad_with_the_end_of_a_turn_is_refused(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefopt.workflow.reward.padding_token", lambda tokenizer: "<|im_end|>")
    with pytest.raises(ModelError, match="has no token to pad with but"):
        train_reward(load_recipe(recipe_file(tmp_path, tiny_model)))


def test_a_model_whose_padding_is_the_end_of_a_turn_gets_another(
    tmp_path: Path, tiny_model: Path, finished: RewardRun
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    edit(folder / "tokenizer_config.json", pad_token="<|im_end|>")
    edit(folder / "config.json", pad_token_id=2)
    made = train_reward(load_recipe(recipe_file(tmp_path, folder)))
    assert made.evaluation == finished.evaluation
    assert json.loads((made.model / "config.json").read_text())["pad_token_id"] == 0


def test_a_reward_model_is_scored_by_rewardbenchs_protocol(finished: RewardRun, tmp_path: Path) -> None:
    bench = [
        {"prompt": row["prompt"][0]["content"], "subset": "shp"}
        | {side: row[side][0]["content"] for side in ("chosen", "rejected")}
        for row in pair_rows(6, seed=8)
    ]
    bench[0] |= {"chosen": bench[0]["rejected"], "rejected": bench[0]["chosen"]}
    found = rewardbench_run(finished.path, str(write_rows(tmp_path / "bench.jsonl", bench)))
    assert found.mode == "reward model"
    assert (found.scores.subsets["shp"].correct.count, found.scores.subsets["shp"].correct.n) == (5, 6)
    assert json.loads((finished.path / "eval/rewardbench.json").read_text())["mode"] == "reward model"
