"""`train.token_budget: auto`: tried on the device, at most the longest step, and written down for a resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import prefopt
from prefopt.losses import build
from prefopt.recipe import load_recipe
from prefopt.train import PreferenceArguments, PreferenceTrainer, TrainConfig
from prefopt.train import budget as budget_module
from prefopt.train.budget import rounded_down, try_budget
from prefopt.workflow import train_run
from tests.toys import pair_rows, write_rows


def make_trainer(folder: Path, model: Path, loss: str = "dpo", reference: Any = "auto") -> PreferenceTrainer:
    policy, tokenizer = prefopt.load_policy(str(model), dtype="float32", lora={"r": 4})
    data = prefopt.load_preferences(pair_rows(16), tokenizer)
    args = PreferenceArguments(output_dir=str(folder), examples_per_step=8, save_strategy="no")
    return PreferenceTrainer(policy, data, build(loss), reference, args, tokenizer=tokenizer)


def test_few_sizes_are_proposed() -> None:
    assert [rounded_down(n) for n in (1, 1500, 1536, 2047, 2048, 3000, 3072, 5000)] == [
        1, 1024, 1536, 1536, 2048, 2048, 3072, 4096,
    ]  # fmt: skip


@pytest.mark.parametrize("loss", ["dpo", "bco"])
def test_a_trial_goes_down_until_a_pack_passes_and_leaves_nothing_behind(
    tmp_path: Path, tiny_model: Path, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, loss)
    groups, tried = trainer.feed.plan.groups(0, 0), []
    own = budget_module.run_step

    def step(policy, reference, loss, packs, **options):
        result = own(policy, reference, loss, packs, **options)  # out of memory only when gradients are there
        [pack] = packs
        tried.append(pack.tokens.numel())
        if tried[-1] > 300:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return result

    monkeypatch.setattr(budget_module, "run_step", step)
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    memory = {name: buffer.clone() for name, buffer in trainer.loss_module.state_dict().items()}
    random = torch.get_rng_state()
    found = try_budget(trainer, groups, 2048)
    assert found <= 300 < found / 0.7
    assert tried == sorted(tried, reverse=True)
    assert tried[-1] <= found
    assert all(p.grad is None for p in trainer.model.parameters())
    assert all(torch.equal(p, weights[name]) for name, p in trainer.model.named_parameters())
    assert all(torch.equal(buffer, memory[name]) for name, buffer in trainer.loss_module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_other_errors_of_a_trial_are_not_swallowed(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object, **__: object) -> None:
        raise RuntimeError("shapes don't match")

    trainer = make_trainer(tmp_path, tiny_model)
    monkeypatch.setattr(budget_module, "run_step", step)
    with pytest.raises(RuntimeError, match="shapes"):
        try_budget(trainer, trainer.feed.plan.groups(0, 0), 100)


def recipe_of(folder: Path, model: Path, budget: str):
    write_rows(folder / "pairs.jsonl", pair_rows(16))
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {{name: {model}, dtype: float32}}\ndata: {{train: pairs.jsonl}}\n"
        f"train: {{output_dir: {folder}/{budget}, max_steps: 2, examples_per_step: 8, token_budget: {budget}, "
        "save_steps: 1, learning_rate: 1e-2}\n"
    )
    return load_recipe(path)


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in record]


def test_a_run_finds_its_budget_writes_it_down_and_comes_to_the_same(tmp_path: Path, tiny_model: Path) -> None:
    train_run(recipe_of(tmp_path, tiny_model, "auto"))
    found = load_recipe(tmp_path / "auto" / "recipe.yaml").train.token_budget
    # This machine holds a whole step of a tiny model, and more than that has no point.
    longest = prefopt.load_preferences(pair_rows(16), prefopt.load_policy(str(tiny_model))[1])
    sizes = sorted(longest.prompt_lengths + longest.completion_lengths.sum(axis=1))
    assert found == sum(sizes[-8:])
    # A resume of the same recipe goes on with it.
    train_run(recipe_of(tmp_path, tiny_model, "auto"), resume=True)
    assert load_recipe(tmp_path / "auto" / "recipe.yaml").train.token_budget == found
    train_run(recipe_of(tmp_path, tiny_model, "100"))
    assert losses(tmp_path / "auto") == pytest.approx(losses(tmp_path / "100"), rel=1e-4)


def test_auto_is_a_word_of_the_recipe_and_nothing_else_is() -> None:
    assert TrainConfig(output_dir="run", token_budget="auto").arguments().token_budget == 4096
    with pytest.raises(ValueError, match="token_budget"):
        TrainConfig(output_dir="run", token_budget="most")


def test_a_trial_keeps_nothing_in_the_reference_cache(tmp_path: Path, tiny_model: Path) -> None:
    wanted = {"cache": True, "cache_dir": tmp_path / "cache"}
    trainer = make_trainer(tmp_path, tiny_model, reference=wanted)
    try_budget(trainer, trainer.feed.plan.groups(0, 0), 512)
    assert trainer.reference.counts.computed == 0
    assert [used.completions for used in trainer.reference.store.usage()] in ([], [0])
