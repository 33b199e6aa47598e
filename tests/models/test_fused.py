"""Which layers of a model are replaced, that they compute the same, and that nothing is left behind."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from prefopt.models import fused as room
from prefopt.models.adapters import adapter_disabled
from prefopt.models.fused import ROTATE, fused
from tests.models.tiny import SHARED, tiny_causal_lm


def with_lora(name: str, **options: Any) -> Any:
    torch.manual_seed(1)
    base = tiny_causal_lm(name, dtype=torch.float32).requires_grad_(False)
    return get_peft_model(base, LoraConfig(r=3, init_lora_weights=False, target_modules="all-linear", **options))


def replaced(model: nn.Module) -> set[str]:
    """Names of the classes whose instances run our forward."""
    return {type(module).__name__ for module in model.modules() if "forward" in vars(module)}


def output_and_gradients(model: Any) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    logits = model(torch.tensor([[5, 6, 7, 8, 9]])).logits
    logits.square().mean().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", SHARED)
def test_a_model_computes_the_same_within_and_is_itself_afterwards(name: str) -> None:
    model = with_lora(name)
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    rotations = {file.__name__: getattr(file, ROTATE) for file in files if hasattr(file, ROTATE)}
    plain = output_and_gradients(model)
    with fused(model):
        assert "Linear" in replaced(model) or name == "gpt2"  # GPT-2's layers are no nn.Linear
        within = output_and_gradients(model)
        with adapter_disabled(model), torch.no_grad():
            off = model(torch.tensor([[5, 6, 7]])).logits
    assert not replaced(model)
    assert all(getattr(sys.modules[file], ROTATE) is function for file, function in rotations.items())
    for ours, theirs in zip(within, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with adapter_disabled(model), torch.no_grad():
        torch.testing.assert_close(off, model(torch.tensor([[5, 6, 7]])).logits, rtol=1e-4, atol=1e-5)


def test_llamas_norm_and_rotation_are_replaced_and_gemmas_norm_is_not() -> None:
    llama, gemma = tiny_causal_lm("llama").requires_grad_(False), tiny_causal_lm("gemma2").requires_grad_(False)
    own = sys.modules["transformers.models.llama.modeling_llama"].apply_rotary_pos_emb
    with fused(llama), fused(gemma):
        assert replaced(llama) == {"LlamaRMSNorm", "LlamaMLP"}
        assert replaced(gemma) == {"Gemma2MLP"}
        assert sys.modules["transformers.models.llama.modeling_llama"].apply_rotary_pos_emb.own is own


def test_a_norm_is_known_by_what_it_computes() -> None:
    class PlainRMSNorm(LlamaRMSNorm):
        pass

    class CentredRMSNorm(LlamaRMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(-1, keepdim=True))

    model = nn.ModuleList([PlainRMSNorm(8), CentredRMSNorm(8), Gemma2RMSNorm(8)]).requires_grad_(False)
    with fused(model):
        assert replaced(model) == {"PlainRMSNorm"}


def test_a_norm_that_trains_is_left_alone() -> None:
    model = nn.ModuleList([LlamaRMSNorm(8)])
    with fused(model):
        assert not replaced(model)


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3"])
def test_a_gated_mlp_without_gradients_computes_its_own_numbers_to_the_bit(name: str) -> None:
    model = tiny_causal_lm(name, dtype=torch.bfloat16).requires_grad_(False)
    gated = [module for module in model.modules() if type(module).__name__.endswith("MLP")]
    state = torch.get_rng_state()
    for mlp in gated:
        x = torch.randn(2, 5, model.config.hidden_size, generator=torch.Generator().manual_seed(3)).bfloat16()
        with torch.no_grad():
            plain = mlp(x)
            with fused(model):
                assert "forward" in vars(mlp)
                torch.testing.assert_close(mlp(x), plain, rtol=0, atol=0)
    assert gated
    assert torch.equal(torch.get_rng_state(), state)


def test_an_mlp_whose_parts_are_watched_or_that_computes_another_thing_is_left_alone() -> None:
    class ClampedMLP(LlamaMLP):
        def forward(self, x: Tensor) -> Tensor:
            return self.down_proj((self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(max=0.1))

    class AskingMLP(LlamaMLP):
        def forward(self, x: Tensor, more: Tensor) -> Tensor:
            return super().forward(x) + more

    config = tiny_causal_lm("llama").config
    watched, plain = LlamaMLP(config), LlamaMLP(config)
    watched.gate_proj.register_forward_hook(lambda module, args, out: None)
    model = nn.ModuleList([ClampedMLP(config), AskingMLP(config), plain, watched]).requires_grad_(False)
    with fused(model):
        assert [module for module in model.modules() if "forward" in vars(module)] == [plain]


@pytest.mark.parametrize("change", [
    {"use_dora": True}, {"lora_dropout": 0.1}, {"lora_bias": True},
])  # fmt: skip
def test_only_plain_lora_is_replaced(change: dict[str, Any]) -> None:
    model = with_lora("llama", **change)
    with fused(model):
        assert "Linear" not in replaced(model)


def test_a_layer_with_a_hook_or_several_adapters_or_merged_is_left_alone() -> None:
    model = with_lora("llama")
    layers = [m for m in model.modules() if type(m) is room.LoraLinear]
    layers[0].base_layer.register_forward_hook(lambda module, args, out: out)
    layers[1].merge()
    layers[2].forward = layers[2].forward  # as accelerate hangs its hooks
    with fused(model):
        untouched = [layer for layer in layers if "forward" not in vars(layer)]
        assert untouched == layers[:2]
    assert "forward" in vars(layers[2])


def test_contexts_nest_and_the_inner_one_leaves_the_outer_ones_layers() -> None:
    model = with_lora("llama")
    with fused(model):
        outer = replaced(model)
        with fused(model):
            assert replaced(model) == outer
        assert replaced(model) == outer
    assert not replaced(model)


def test_everything_is_put_back_when_the_work_inside_fails() -> None:
    model = with_lora("llama")
    with pytest.raises(ZeroDivisionError), fused(model):
        raise ZeroDivisionError
    assert not replaced(model)


def test_under_autocast_the_layers_compute_as_their_own() -> None:
    model = with_lora("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        plain = model(torch.tensor([[5, 6, 7]])).logits
        with fused(model):
            torch.testing.assert_close(model(torch.tensor([[5, 6, 7]])).logits, plain, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_gives_the_same_gradients(reentrant: bool) -> None:
    model = with_lora("llama")
    plain = output_and_gradients(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    with fused(model):
        within = output_and_gradients(model)
    for ours, theirs in zip(within, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
