"""DeepSpeed's ZeRO comes to what one process does without it; what its configuration can't mean here is refused."""

import json
import os
import re
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.recipe import load_recipe
from prefopt.train import PreferenceArguments, arguments
from tests.toys import pair_rows, write_rows
from tests.train import ranked_runs, ranked_zero
from tests.train.launch import together
from tests.train.test_resume import losses, weights

installed = pytest.mark.skipif(
    find_spec("deepspeed") is None,
    reason="DeepSpeed is not installed: pip install -e '.[deepspeed]'",
)
STAGE_2 = {"zero_optimization": {"stage": 2}}


@pytest.fixture(scope="module")
def three(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What three ranks came to, who did everything here in one start: see `ranked_zero`."""
    folder = tmp_path_factory.mktemp("zero")
    # The first start of DeepSpeed on a machine compiles.
    for rank in together(3, "tests.train.ranked_zero", str(tiny_model), str(folder), timeout=900, cpu=False):
        assert rank.returncode == 0, rank.stderr
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(3)]


@installed
@pytest.mark.parametrize("case", ranked_zero.CASES)
def test_three_processes_with_zero_train_what_one_does_without(case: str, three, tiny_model, tmp_path: Path) -> None:
    alone = ranked_zero.run(case, tiny_model, tmp_path, engine=False)
    moved = torch.cat([(a - b).flatten() for a, b in zip(alone["weights"], alone["start"], strict=True)])
    assert moved.norm() > 1e-2
    for rank in three:
        ours = rank[case]
        assert ours["optimizer"] == "DeepSpeedZeroOptimizer", "accelerate leaves the engine out without a word"
        off = torch.cat([(a - b).flatten() for a, b in zip(ours["weights"], alone["weights"], strict=True)])
        # AdamW divides by the gradient's size, so where that is 1e-9 its rounding is seen.
        assert off.norm() < (1e-6 if "full" in case else 1e-3) * moved.norm()
        assert len(ours["logs"]) == len(alone["logs"])
        for log, expected in zip(ours["logs"], alone["logs"], strict=True):
            assert log == pytest.approx(expected, rel=1e-4, abs=2e-5)
    for a, b in zip(three[0][case]["weights"], three[2][case]["weights"], strict=True):
        assert torch.equal(a, b), "ranks hold the same bits"


@installed
def test_all_ranks_begin_a_step_anew_when_one_runs_out_of_memory(three) -> None:
    limits = {rank["out of memory"]["limit"] for rank in three}
    assert len(limits) == 1
    assert 0 < limits.pop() <= ranked_runs.ROOM


@installed
def test_a_failure_on_one_rank_ends_all_of_them_with_its_sentence(three) -> None:
    assert [rank["failure"] for rank in three] == [
        "OtherRankError: process 1 of 3 failed: the disk is on fire",
        "PrefoptError: the disk is on fire",
        "OtherRankError: process 1 of 3 failed: the disk is on fire",
    ]


RECIPE = """
model: {{name: {model}, dtype: {dtype}, lora: {lora}}}
data: {{train: {data}, max_length: 256}}
loss: dpo
train:
  output_dir: {run}
  examples_per_step: 8
  token_budget: 400
  max_steps: 7
  learning_rate: 5e-3
  save_strategy: steps
  save_steps: 2
  deepspeed: {zero}
"""


def recipe_for(folder: Path, model: Path, run: str, dtype: str = "float32", lora: str = "{r: 4}") -> Path:
    data = write_rows(folder / "pairs.jsonl", pair_rows(60))
    (folder / "zero.json").write_text(json.dumps(STAGE_2 | {"train_batch_size": "auto"}))
    path, about = folder / f"{run}.yaml", {"dtype": dtype, "lora": lora, "zero": "zero.json"}
    path.write_text(RECIPE.format(model=model, data=data, run=folder / run, **about))
    return path


def train(recipe: Path, *extra: str, world: int = 2, module: tuple[str, ...] = ("prefopt",)) -> list[Any]:
    return together(world, *module, "train", str(recipe), *extra, cpu=False)


@installed
@pytest.mark.parametrize(
    ("dtype", "lora"),
    [("bfloat16", "{r: 4}"), ("float32", "null"), pytest.param("bfloat16", "null", marks=pytest.mark.soak)],
)
def test_a_killed_run_goes_on_to_the_same_bits_with_as_many_processes_alone(
    dtype: str, lora: str, tiny_model: Path, tmp_path: Path
) -> None:
    whole, killed = (recipe_for(tmp_path, tiny_model, name, dtype, lora) for name in ("whole", "killed"))
    for rank in train(whole):
        assert rank.returncode == 0, rank.stderr
    # The engine calls its optimizer once when it is made and then for each group of weights.
    fifth = "10" if lora == "null" else "6"
    for rank in train(killed, module=("tests.train.killed", "optimizer step", fifth)):
        assert rank.returncode == -signal.SIGKILL, rank.stderr
    assert max((tmp_path / "killed").glob("checkpoint-*")).name == "checkpoint-4"
    if lora != "null":
        for rank in train(killed, "--resume", world=3):
            assert "was written by 2 processes with train.deepspeed, and this run goes on by 3" in rank.stderr
        (alone,) = train(killed, "--resume", world=1)
        assert "was written by 2 processes with train.deepspeed, and this run goes on without" in alone.stderr
    for rank in train(killed, "--resume"):
        assert rank.returncode == 0, rank.stderr
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 7


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As one of two processes that are to load DeepSpeed, which is there."""
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(arguments, "find_spec", lambda name: name)
    return monkeypatch


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        ({}, {}, "no zero_optimization"),
        ({"zero_optimization": {"stage": 3}}, {}, "stage 3.*train.shard_weights: true"),
        ({"zero_optimization": {"stage": 0}}, {}, "stage is 0; it must be 1 or 2"),
        ({"zero_optimization": {"stage": 2, "overlap_com": True}}, {}, "overlap_com.*did you mean.*overlap_comm"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, {}, "offload_optimizer"),
        (STAGE_2 | {"gradient_clipping": 0.5}, {}, "gradient_clipping.*train.max_grad_norm"),
        (STAGE_2 | {"train_batch_size": 32}, {}, "train_batch_size.*train.examples_per_step"),
        (STAGE_2 | {"gradient_accumulation_steps": 4}, {}, "gradient_accumulation_steps.*train.token_budget"),
        (STAGE_2 | {"optimizer": {"type": "AdamW"}}, {}, "optimizer.*train.optim"),
        (STAGE_2 | {"bf16": {"enabled": True}}, {}, "bf16.*model.dtype: bfloat16"),
        (STAGE_2 | {"gradient_predivide_factor": 2}, {}, "gradient_predivide_factor.*not known"),
        (STAGE_2, {"shard_weights": True}, "train.deepspeed and train.shard_weights"),
        (STAGE_2, {"bf16": True}, "train.bf16 is true.*model.dtype"),
        (STAGE_2, {"use_cpu": True}, "train.use_cpu or ACCELERATE_USE_CPU"),
        ("nowhere.json", {}, "nowhere.json, which can't be read"),
    ],
)
def test_what_the_engine_would_do_to_a_step_is_refused(
    config: Any, options: dict[str, Any], said: str, launched: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=re.compile(said, re.DOTALL)):
        PreferenceArguments(output_dir=str(tmp_path), deepspeed=config, **options)


def test_an_optimizer_that_knows_no_parts_is_refused(launched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launched.setattr("prefopt.train.arguments.TrainingArguments.__post_init__", lambda self: None)
    with pytest.raises(RecipeError, match=r"adafactor and train\.deepspeed is set"):
        PreferenceArguments(output_dir=str(tmp_path), deepspeed=STAGE_2, optim="adafactor")


def test_it_is_said_when_the_package_is_missing(launched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launched.setattr(arguments, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"prefopt\[deepspeed\].*train\.shard_weights"):
        PreferenceArguments(output_dir=str(tmp_path), deepspeed=STAGE_2)


def test_what_the_recipe_says_is_filled_in(launched: pytest.MonkeyPatch, tmp_path: Path) -> None:
    launched.setattr("prefopt.train.arguments.TrainingArguments.__post_init__", lambda self: None)
    launched.setattr("prefopt.train.arguments.PreferenceArguments.device", torch.device("cpu"))
    launched.setattr("prefopt.train.arguments.PreferenceArguments.n_gpu", 0)
    given = STAGE_2 | {"train_batch_size": "auto", "gradient_clipping": "auto", "bf16": {"enabled": "auto"}}
    found = PreferenceArguments(output_dir=str(tmp_path), deepspeed=given, max_grad_norm=0.5).deepspeed
    filled = {"gradient_clipping": 0.5, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}
    assert found == STAGE_2 | filled


def test_one_process_has_nothing_to_share_out(tmp_path: Path, tiny_model: Path) -> None:
    assert os.environ.get("WORLD_SIZE", "1") == "1"
    assert PreferenceArguments(output_dir=str(tmp_path), deepspeed=STAGE_2).deepspeed is None
    recipe = load_recipe(recipe_for(tmp_path, tiny_model, "alone"))
    assert recipe.train.model_extra == {**recipe.train.model_extra, "deepspeed": str(tmp_path / "zero.json")}
    assert recipe.train.arguments().deepspeed is None
