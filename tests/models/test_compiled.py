"""Compiled decoder layers give the gradients of plain ones, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.models.compiled import want_compiled, wants_compiled
from tests.models.loading import gpt2, load
from tests.models.stepping import distance, shake, step


def agrees(model: Path, backend: str, **options: object) -> None:
    policy, tokenizer = load(model, **options)
    _, expected = step(shake(policy), tokenizer, loss="simpo")
    want_compiled(policy, torch.device("cpu"), backend=backend)
    torch._dynamo.utils.counters.clear()
    assert distance(step(policy, tokenizer, loss="simpo")[1], expected) < 1e-5
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 10, "nothing was compiled"
    assert all(module._compiled_call_impl is None for module in policy.modules())


def test_a_compiled_step_has_the_gradients_of_a_plain_one(tmp_path: Path) -> None:
    agrees(gpt2(tmp_path, positions=256), "aot_eager", lora={"r": 2, "target_modules": ["c_attn"]})


@pytest.mark.soak
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("options", [{}, {"quantization": "nf4"}, {"lora": None}], ids=["lora", "qlora", "full"])
def test_every_policy_compiles(tiny_model: Path, backend: str, options: dict[str, object]) -> None:
    agrees(tiny_model, backend, **options)


def test_without_a_compiler_it_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wants_compiled(load(tiny_model, compile=True)[0]) == "inductor"
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RecipeError, match=r"install g\+\+, or leave model\.compile out"):
        load(tiny_model, compile=True)
