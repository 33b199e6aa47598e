"""Tiny random causal language models, one an architecture, with dropout off and weights large enough to matter."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedModel,
    Qwen3Config,
)

VOCABULARY = 61
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}
_SIX = {"num_hidden_layers": 6}
_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [3.0, 2.0, 4.0, 2.5],
         "original_max_position_embeddings": 16}  # fmt: skip

SHARED: dict[str, Any] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "mistral": lambda: MistralConfig(**_SIZES, sliding_window=7),
    "qwen3": lambda: Qwen3Config(**_SIZES),
    "gemma2": lambda: Gemma2Config(**_SIZES, sliding_window=6, query_pre_attn_scalar=11, attn_logit_softcapping=2.0,
                                   final_logit_softcapping=3.0),
    "gemma3": lambda: Gemma3TextConfig(**_SIZES | _SIX, sliding_window=6, query_pre_attn_scalar=11,
                                       tie_word_embeddings=True),
    "gpt_oss": lambda: GptOssConfig(**_SIZES, sliding_window=6, num_local_experts=4, num_experts_per_tok=2,
                                    rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
    "gpt2": lambda: GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.0,
                               embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2),
}  # fmt: skip
"""Architectures that share prompts."""

FALLBACK: dict[str, Any] = {
    "mamba": lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, expand=2,
                                 time_step_rank=4),
    "falcon": lambda: FalconConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                   attention_dropout=0.0, hidden_dropout=0.0, bos_token_id=1, eos_token_id=2),
    "lfm2": lambda: Lfm2Config(**_SIZES, layer_types=["conv", "full_attention"], conv_L_cache=3),
    "llama4": lambda: Llama4TextConfig(**_SIZES | {"num_hidden_layers": 4}, intermediate_size_mlp=48,
                                       num_local_experts=2, attention_chunk_size=8),
    "phi3_longrope": lambda: Phi3Config(**_SIZES, original_max_position_embeddings=16, rope_parameters=dict(_LONG)),
    "llama_dynamic": lambda: LlamaConfig(**_SIZES | {"max_position_embeddings": 16},
                                         rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}),
}  # fmt: skip
"""Architectures that don't, because of what they are or of how long their rows are."""


def tiny_causal_lm(name: str, *, dtype: torch.dtype = torch.float64, seed: int = 0, **options: Any) -> PreTrainedModel:
    """Return a tiny random model of this architecture, in evaluation mode; `options` override its configuration."""
    config = (SHARED | FALLBACK)[name]()
    for key, value in options.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.set_experts_implementation("eager")  # the grouped product has no float64
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.data.normal_(0, 0.5 / weight.shape[-1] ** 0.5 * 2)
            elif not weight.any():
                weight.data.normal_(0, 0.3)  # biases and sinks start at zero and would hide a mistake
    return model.to(dtype).eval()


class InFloat64(TorchFunctionMode):
    """Turns every request for float32 into one for float64: norms, softmax and rotations cast to it in any model."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wider(x: Any) -> Any:
            return torch.float64 if x is torch.float32 else x

        if func is torch.Tensor.float:
            func = torch.Tensor.double
        return func(*map(wider, args), **{key: wider(value) for key, value in (kwargs or {}).items()})
