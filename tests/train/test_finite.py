"""A step that is NaN or infinite: its rows are named and saved, and the weights are those of the step before."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prefopt
from prefopt.data import assemble
from prefopt.data.layout import contents
from prefopt.errors import RunError
from prefopt.losses import build
from prefopt.models.packed import PackedModel
from prefopt.records import Group, Pack
from prefopt.train import PreferenceArguments, PreferenceTrainer
from prefopt.train.finite import is_finite
from tests.toys import pair_rows, write_rows

GROUPS = [Group((1, 2, 3), ((4, 5), (6,))), Group((7,), ((8, 9, 10),))]


@pytest.mark.parametrize("shared", [True, False])
def test_the_contents_of_a_pack_are_the_groups_it_was_made_from(shared: bool) -> None:
    expected = [(group.prompt, completion) for group in GROUPS for completion in group.completions]
    assert contents(assemble(GROUPS, shared=shared)) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_found_among_all_gradients(value: float) -> None:
    parameters = [nn.Parameter(torch.zeros(5)) for _ in range(3)]
    parameters[0].grad, parameters[2].grad = torch.full((5,), 1e38), torch.ones(5)
    assert is_finite(1.0, parameters)
    assert not is_finite(value, parameters)
    assert parameters[2].grad is not None
    parameters[2].grad[3] = value
    assert not is_finite(1.0, parameters)


def make_trainer(folder: Path, model: Path, rule: str, *, steps: int = 3, loss: str = "dpo") -> PreferenceTrainer:
    policy, tokenizer = prefopt.load_policy(str(model), dtype="float32", lora={"r": 4})
    folder.mkdir(exist_ok=True)
    path = folder / "pairs.jsonl"
    write_rows(path, pair_rows(24))
    data = prefopt.load_preferences(str(path), tokenizer)
    args = PreferenceArguments(
        output_dir=str(folder), examples_per_step=8, learning_rate=1e-2, max_steps=steps, token_budget=300,
        save_strategy="no", weight_decay=0.1, lr_scheduler_type="constant", non_finite=rule,
    )  # fmt: skip
    return PreferenceTrainer(policy, data, build(loss), "auto", args, tokenizer=tokenizer)


def weights(trainer: PreferenceTrainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def break_row(monkeypatch: pytest.MonkeyPatch, trainer: PreferenceTrainer, step: int) -> str:
    """Let the log-probs of one row's chosen completion be NaN; return where the row came from."""
    example = trainer.data[trainer.feed.plan.examples(0, step)[2]]  # type: ignore[union-attr, index]
    original = PackedModel.logprobs

    def broken(self: PackedModel, pack: Pack, reduction: object = "sum") -> Tensor:
        values = original(self, pack)
        mine = [c == (example.prompt, example.completions[0]) for c in contents(pack)]
        return torch.where(torch.tensor(mine), math.nan, values)

    monkeypatch.setattr(PackedModel, "logprobs", broken)
    return example.source


def test_the_run_stops_with_the_row_named_and_saved(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, "stop")
    source = break_row(monkeypatch, trainer, 0)
    before = weights(trainer)
    assert source.startswith(str(tmp_path / "pairs.jsonl"))
    with pytest.raises(RunError, match=rf"step 1: log-probs are NaN .* 1 completions \({source}\)"):
        trainer.train()
    after = weights(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    (row,) = (json.loads(line) for line in (tmp_path / "non_finite.jsonl").read_text().splitlines())
    assert row["source"] == source
    assert (row["policy"], row["reference"]) == ("nan", "nan")
    number = int(source.rsplit(":", 1)[1])
    written = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[number - 1])
    assert written["chosen"][-1]["content"] in row["completion_text"]


def test_a_skipped_step_changes_neither_weights_nor_moments_and_counts_in_no_mean(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, "skip", steps=3)
    break_row(monkeypatch, trainer, 1)
    with pytest.warns(UserWarning, match="step 2: log-probs are NaN .* skipped"):
        output = trainer.train()
    first, second, third = [r for r in trainer.state.log_history if "tokens" in r]
    assert "loss" not in second
    assert second["skipped_steps"] == third["skipped_steps"] == 1
    assert second["grad_norm"] == 0
    assert output.training_loss == pytest.approx((first["loss"] + third["loss"]) / 2)
    # A run in which the second step never was: the same two steps give the same weights.
    found = weights(trainer)
    monkeypatch.undo()
    twin = make_trainer(tmp_path / "twin", tiny_model, "stop", steps=2)
    plan, original = twin.feed.plan, type(twin.feed.plan).examples  # type: ignore[union-attr]
    monkeypatch.setattr(type(plan), "examples", lambda self, epoch, index: original(self, epoch, [0, 2, 1][index]))
    twin.train()
    expected = weights(twin)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_gradient_alone_that_is_not_finite_blames_all_rows_of_the_step(tmp_path: Path, tiny_model: Path) -> None:
    trainer = make_trainer(tmp_path, tiny_model, "stop")
    parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
    parameter.register_hook(lambda grad: torch.full_like(grad, math.inf))
    with pytest.raises(RunError, match="log-probs are finite, but not the loss or gradient, for 16 completions"):
        trainer.train()
    assert len((tmp_path / "non_finite.jsonl").read_text().splitlines()) == 16


def test_what_a_loss_remembers_stays_as_it_was_before_a_skipped_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, tiny_model, "skip", steps=3, loss="bco")
    break_row(monkeypatch, trainer, 1)
    with pytest.warns(UserWarning, match="step 2: .* skipped"):
        trainer.train()
    records = [r for r in trainer.state.log_history if "tokens" in r]
    assert [("loss" in r, r.get("skipped_steps", 0)) for r in records] == [(True, 0), (False, 1), (True, 1)]
    assert all(bool(torch.isfinite(buffer).all()) for buffer in trainer.loss_module.state_dict().values())
