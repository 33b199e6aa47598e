"""What saves memory changes no number: checkpointing, offloading; 8-bit optimizers stay close and resume bitwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import prefopt
from prefopt.errors import RecipeError
from prefopt.losses import build
from prefopt.train import PreferenceArguments, PreferenceTrainer
from prefopt.train.offload import offloaded
from tests.models.loading import load
from tests.models.stepping import distance, shake, step
from tests.toys import pair_rows


@pytest.mark.parametrize("loss", ["dpo", "kto", "aot"])
@pytest.mark.parametrize("options", [{}, {"quantization": "nf4"}, {"lora": None}], ids=["lora", "qlora", "full"])
def test_checkpointed_activations_give_the_same_gradients_also_in_two_passes(
    tiny_model: Path, loss: str, options: dict[str, Any]
) -> None:
    policy, tokenizer = load(tiny_model, **options)
    _, expected = step(shake(policy, std=0.02), tokenizer, loss=loss, budget=150)
    base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    base.activation_checkpointing_enable({"use_reentrant": False})
    assert distance(step(policy, tokenizer, loss=loss, budget=150)[1], expected) <= 1e-6


@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}, {"lora": None}], ids=["lora", "qlora", "full"])
def test_offloaded_activations_give_the_same_bits_and_weights_stay(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    policy, tokenizer = load(tiny_model, **options)
    _, expected = step(shake(policy), tokenizer, budget=150)
    moved: list[torch.Size] = []
    away = torch.empty

    def empty(*args: Any, **kwargs: Any) -> torch.Tensor:
        found = away(*args, **kwargs)
        if "pin_memory" in kwargs:
            moved.append(found.shape)
        return found

    monkeypatch.setattr(torch, "empty", empty)
    _, found = step(policy, tokenizer, budget=150, autocast=lambda: offloaded(policy, smallest=1))
    assert torch.equal(found, expected)
    assert len(moved) > 20
    assert not set(moved) & {torch.Size((259, 32)), torch.Size((64, 32)), torch.Size((32, 64))}


def test_offloading_on_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"this run is on the CPU; leave it out"):
        PreferenceArguments(output_dir=str(tmp_path), activation_offload=True, use_cpu=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_offloading_on_a_gpu_changes_no_bit(tiny_model: Path) -> None:
    policy, tokenizer = load(tiny_model, device="cuda")
    _, expected = step(shake(policy), tokenizer)
    _, found = step(policy, tokenizer, autocast=lambda: offloaded(policy, smallest=1))
    assert torch.equal(found, expected)


def trained(folder: Path, model: Path, optim: str, *, resume: bool = False) -> list[torch.Tensor]:
    policy, tokenizer = load(model, lora=None)
    args = PreferenceArguments(
        output_dir=str(folder), examples_per_step=4, max_steps=6, learning_rate=1e-3, save_steps=3, optim=optim
    )
    data = prefopt.load_preferences(pair_rows(8), tokenizer)
    trainer = PreferenceTrainer(policy, data, build("dpo"), "auto", args, tokenizer=tokenizer)
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    states = [value for state in trainer.optimizer.optimizer.state.values() for value in state.values()]
    assert any(v.dtype == torch.uint8 for v in states if isinstance(v, torch.Tensor)) == (optim != "adamw_torch")
    return [p.detach().clone() for p in policy.parameters()]


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_an_optimizer_in_eight_bits_stays_close_to_adamw_and_resumes_bitwise(
    tmp_path: Path, tiny_model: Path, optim: str
) -> None:
    start = [p.detach() for p in load(tiny_model, lora=None)[0].parameters()]
    whole = trained(tmp_path / "whole", tiny_model, optim)
    resumed = trained(tmp_path / "whole", tiny_model, optim, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))
    exact = trained(tmp_path / "exact", tiny_model, "adamw_torch")
    flat = [torch.cat([(p - s).flatten() for p, s in zip(ps, start, strict=True)]) for ps in (whole, exact)]
    assert distance(flat[0], flat[1]) < 0.1
