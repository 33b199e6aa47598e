"""What the last layer leaves out for tokens that nobody reads, and that nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from prefopt.data import assemble
from prefopt.kernels.shapes import rounded
from prefopt.models.narrowed import narrowed
from prefopt.models.packed import PackedModel
from prefopt.records import Group, Layout, Pack
from tests.models.test_packed import separate_logprobs
from tests.models.tiny import SHARED, tiny_causal_lm

GATED = sorted(set(SHARED) - {"gpt2", "gpt_oss"})
"""Architectures whose MLP is Llama's kind; GPT-2 has no gate and GPT-OSS experts."""


def text(length: int, seed: int) -> tuple[int, ...]:
    drawn = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(3, 60, (length,), generator=drawn).tolist())


GROUPS = [
    Group(text(40, 0), (text(9, 1), text(6, 2)), ((0, 1),)),
    Group(text(30, 3), (text(5, 4),)),
    Group(text(70, 5), (text(1, 6), text(2, 7))),
]
READ = (1 + 8 + 5) + (1 + 4) + (1 + 0 + 1)
"""A prompt's last token and all but the last of each completion."""


def scored(model: Any, pack: Pack) -> tuple[Tensor, Tensor, int]:
    """Log-probs, gradients and flops of the forward pass."""
    packed = PackedModel(model)
    model.zero_grad()
    with packed.attached():
        with FlopCounterMode(display=False) as counter:
            logprobs = packed.logprobs(pack)
        logprobs.sum().backward()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logprobs.detach(), gradients, counter.get_total_flops()


def runs_ours(model: Any) -> int:
    """How many modules run another forward than their class's."""
    return sum("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", GATED)
def test_the_last_mlp_computes_what_is_read_and_numbers_and_gradients_stay(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_causal_lm(name)
    narrow = scored(model, assemble(GROUPS, shared=True))
    assert not runs_ours(model)
    monkeypatch.setattr("prefopt.models.narrowed._read", lambda layout, x: None)
    whole = scored(model, assemble(GROUPS, shared=True))
    torch.testing.assert_close(narrow[0], whole[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(narrow[1], whole[1], rtol=1e-8, atol=1e-10)
    skipped = sum(group.tokens - len(group.completions) for group in GROUPS) - READ
    assert whole[2] - narrow[2] == 2 * skipped * 3 * model.config.hidden_size * model.config.intermediate_size


def test_where_new_sizes_are_slow_the_mlp_computes_some_tokens_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal_lm("llama")
    exact = scored(model, assemble(GROUPS, shared=True))
    monkeypatch.setattr("prefopt.models.narrowed.compiles_by_shape", lambda device, dtype: True)
    more = scored(model, assemble(GROUPS, shared=True))
    torch.testing.assert_close(more[:2], exact[:2], rtol=1e-8, atol=1e-10)
    added = 3 * model.config.hidden_size * model.config.intermediate_size
    assert more[2] - exact[2] == 2 * (rounded(READ) - READ) * added


def test_rows_side_by_side_and_prompts_alone_are_computed_whole() -> None:
    model = tiny_causal_lm("llama")
    rows = assemble(GROUPS, shared=False)
    shared = scored(model, assemble(GROUPS, shared=True))
    for ours, theirs in zip(scored(model, rows)[:2], shared[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=2e-6)  # norms compute in float32
    packed = PackedModel(model)
    x = torch.randint(3, 60, (1, 12))
    with packed.attached(), torch.no_grad():
        hidden = packed._causal.shared_hidden(x, torch.arange(12)[None], Layout.of([(12, ())]))
    with torch.no_grad():
        torch.testing.assert_close(hidden, model.base_model(x).last_hidden_state, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_with_adapters_numbers_and_gradients_are_those_of_completions_apart(checkpoints: bool) -> None:
    torch.manual_seed(1)
    config = LoraConfig(r=3, init_lora_weights=False, target_modules="all-linear")
    model: Any = get_peft_model(tiny_causal_lm("llama").requires_grad_(False), config).double()
    if checkpoints:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    pack = assemble(GROUPS, shared=True)
    logprobs, gradients, _ = scored(model, pack)
    assert [key for layout, *_ in pack.layout.plans.values() for key in layout.plans if key[0] == "read"]  # type: ignore[union-attr]
    model.zero_grad()
    apart = torch.stack(list(separate_logprobs(model, GROUPS).values()))
    apart.sum().backward()
    torch.testing.assert_close(logprobs, apart.detach(), rtol=1e-6, atol=1e-6)
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert float((gradients - expected).norm() / expected.norm()) < 1e-6  # norms compute in float32


class MlpFirst(LlamaDecoderLayer):
    """Attends to what the MLP has made: what it gives for any token may be read."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]


@pytest.mark.parametrize("checkpoints", [False, True])
def test_an_mlp_before_the_attention_is_computed_whole(checkpoints: bool) -> None:
    model = tiny_causal_lm("llama")
    model.model.layers[-1].__class__ = MlpFirst
    if checkpoints:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    packed = PackedModel(model)
    found = []
    with packed.attached():
        for _ in range(2):
            model.zero_grad()
            logprobs = packed.logprobs(assemble(GROUPS, shared=True))
            logprobs.sum().backward()
            found.append((logprobs.detach(), model.model.embed_tokens.weight.grad.clone()))
    model.zero_grad()
    apart = torch.stack(list(separate_logprobs(model, GROUPS).values()))
    apart.sum().backward()
    for logprobs, gradient in found:
        torch.testing.assert_close(logprobs, apart.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, model.model.embed_tokens.weight.grad, rtol=1e-6, atol=1e-6)


def test_a_model_that_is_watched_or_has_no_such_layers_is_left_alone() -> None:
    watched, short = tiny_causal_lm("llama"), tiny_causal_lm("llama")
    watched.model.layers[-1].mlp.register_forward_hook(lambda module, args, out: None)
    short.config.num_hidden_layers += 1
    for model in (watched, short, tiny_causal_lm("gpt2"), tiny_causal_lm("gpt_oss")):
        with narrowed(model):
            assert not runs_ours(model)
    model = tiny_causal_lm("llama")
    with pytest.raises(RuntimeError, match="inside"), narrowed(model):
        assert runs_ours(model) == 2
        raise RuntimeError("inside")
    assert not runs_ours(model)
