import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaForCausalLM, StableLmConfig, StableLmForCausalLM, T5Config, T5ForConditionalGeneration

from prefopt.errors import ModelError
from prefopt.models import admission
from prefopt.models.admission import admit
from prefopt.models.packed import PackedModel
from tests.models.tiny import _SIZES, SHARED, tiny_causal_lm


def settings_of(model: nn.Module) -> list[object]:
    """Everything of a model that a probe could leave changed."""
    found: list[object] = [str(torch.get_rng_state().tolist())]
    for name, module in model.named_modules():
        found.append((name, module.training, getattr(module, "sliding_window", None), len(module._forward_hooks)))
        if (config := getattr(module, "config", None)) is not None:
            found += [str(config), config._attn_implementation]
    found += [(name, p.requires_grad, p.dtype, p.data_ptr(), p.grad) for name, p in model.named_parameters()]
    return found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHARED)
def test_known_architectures_share_prompts_without_a_warning(name: str, dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = admit(tiny_causal_lm(name, dtype=dtype))
    assert found.shared
    assert not found.one_row


@pytest.mark.parametrize(
    ("name", "reason", "one_row"),
    [
        ("mamba", "it carries a state from token to token", False),
        ("falcon", "its attention can't be replaced", False),
        ("lfm2", "it has layers of type conv", False),
        ("llama4", "it has layers of type chunked_attention", False),
        ("phi3_longrope", r"its position encoding \(longrope RoPE\) depends on the longest sequence", True),
        ("llama_dynamic", r"its position encoding \(dynamic RoPE\) depends on the longest sequence", True),
    ],
)
def test_other_architectures_are_refused_with_one_warning_that_says_why(name: str, reason: str, one_row: bool) -> None:
    model = tiny_causal_lm(name)
    with pytest.warns(UserWarning, match=reason) as warned:
        found = admit(model)
    assert len(warned) == 1
    assert not found.shared
    assert found.one_row == one_row
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert admit(model) == found


def stablelm() -> Any:
    torch.manual_seed(0)
    return StableLmForCausalLM(StableLmConfig(**_SIZES)).eval()


@pytest.mark.parametrize(
    "model",
    [
        stablelm,
        *(
            lambda name=name: tiny_causal_lm(name, dtype=torch.float32)
            for name in ("mamba", "falcon", "lfm2", "llama4")
        ),
    ],
    ids=["stablelm", "mamba", "falcon", "lfm2", "llama4"],
)
def test_the_probe_alone_refuses_what_the_gate_would_miss(
    model: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_gate", lambda causal: None)
    with pytest.warns(UserWarning, match="a probe of shared prompts"):
        found = admit(model())
    assert not found.shared


class Mixing(nn.Module):
    """A layer in which tokens see each other beside the attention."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.inner(hidden)
        return out + 0.3 * out.mean(1, keepdim=True)


def test_a_model_whose_tokens_meet_outside_of_attention_is_refused_and_kept_to_single_rows() -> None:
    model: Any = tiny_causal_lm("llama")
    model.model.norm = Mixing(model.model.norm)
    with pytest.warns(UserWarning, match="a probe of shared prompts deviated by"):
        found = admit(model)
    assert not found.shared
    assert found.one_row


@pytest.mark.parametrize("name", ["mistral", "gemma3", "gpt_oss", "gpt2"])
def test_a_probe_leaves_no_trace(name: str) -> None:
    model: Any = tiny_causal_lm(name, dtype=torch.float32)
    for key in ("attn_pdrop", "resid_pdrop", "attention_dropout"):
        if hasattr(model.config, key):
            setattr(model.config, key, 0.5)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.train()
    next(model.children()).eval()  # a mixed state must come back as it was
    next(model.parameters()).requires_grad_(False)
    before = settings_of(model)
    assert admit(model).shared
    assert settings_of(model) == before


def test_a_probe_that_fails_leaves_no_trace_either(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_causal_lm("mistral", dtype=torch.float32)
    before = settings_of(model)

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(admission._Probe, "_check_head", fail)
    with pytest.raises(KeyboardInterrupt):
        admit(model)
    assert settings_of(model) == before


def test_the_sliding_window_matters_to_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an attention that forgets the window, a window of 100 looks right until the probe shrinks it."""
    from prefopt.kernels import attention

    plan = attention._plan
    monkeypatch.setattr(attention, "_plan", lambda layout, q, k, window, sinks: plan(layout, q, k, None, sinks))
    with pytest.warns(UserWarning, match="deviated by"):
        assert not admit(tiny_causal_lm("mistral", sliding_window=100)).shared


def test_answers_are_remembered_until_dtype_or_adapter_change(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[torch.dtype] = []
    probe = admission._Probe.admission
    monkeypatch.setattr(admission._Probe, "admission", lambda self, *a: probed.append(self.dtype) or probe(self, *a))
    model: Any = tiny_causal_lm("llama", dtype=torch.float32)
    assert admit(model) == admit(model)
    admit(model.double())
    assert probed == [torch.float32, torch.float64]
    adapted = get_peft_model(model, LoraConfig(r=2))
    admit(adapted)
    PackedModel(adapted)
    assert len(probed) == 3


def test_a_model_with_an_adapter_is_probed_with_it() -> None:
    adapted = get_peft_model(tiny_causal_lm("qwen3"), LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.5))
    before = settings_of(adapted)
    assert admit(adapted).shared
    assert settings_of(adapted) == before


class Doubled(LlamaForCausalLM):
    """Makes its logits in a way that no part of it tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_logits_that_backbone_and_head_do_not_explain_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"Doubled makes its logits in a way of its own: .* nats"):
        admit(Doubled(SHARED["llama"]()).double().eval())


def test_an_encoder_decoder_is_refused() -> None:
    config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        admit(T5ForConditionalGeneration(config))


def test_a_model_that_sees_is_refused() -> None:
    model: Any = tiny_causal_lm("llama")
    model.config.vision_config = {"hidden_size": 8}
    with pytest.raises(ModelError, match=r"LlamaForCausalLM reads more than text \(vision_config\)"):
        admit(model)


def test_experts_of_limited_capacity_are_refused() -> None:
    with pytest.raises(ModelError, match=r"routes tokens to experts of limited capacity \(expert_capacity\)"):
        admit(tiny_causal_lm("gpt_oss", expert_capacity=64))


def test_a_model_without_head_is_refused() -> None:
    model: Any = tiny_causal_lm("llama")
    with pytest.raises(ModelError, match="LlamaModel has no backbone with a language model head"):
        admit(model.model)


def test_prompt_tuning_is_refused() -> None:
    tuned = get_peft_model(tiny_causal_lm("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match=r"PROMPT_TUNING, which adds tokens to the prompt"):
        admit(tuned)


@pytest.mark.parametrize(("options", "kind"), [({"use_dora": True}, "lora"), ({"lora_bias": True}, "lora")])
def test_an_adapter_on_the_head_that_is_not_plain_lora_is_refused_by_name(options: dict[str, Any], kind: str) -> None:
    adapted = get_peft_model(tiny_causal_lm("llama"), LoraConfig(r=2, target_modules=["lm_head"], **options))
    with pytest.raises(ModelError, match=rf"the head of LlamaForCausalLM has an adapter of kind peft\.tuners\.{kind}"):
        admit(adapted)


def test_a_quantized_head_is_refused_by_name() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model: Any = tiny_causal_lm("llama", dtype=torch.float32)
    model.lm_head = bitsandbytes.nn.Linear4bit(32, model.config.vocab_size, bias=False, quant_type="nf4")
    model.to("cpu")
    with pytest.raises(ModelError, match=r"the head of LlamaForCausalLM is a Linear4bit .*\(quantized\)"):
        admit(model)
