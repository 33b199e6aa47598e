"""The parts of a causal language model: the backbone that makes hidden states, and the head that makes logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedConfig

from prefopt.errors import ModelError
from prefopt.kernels import Head
from prefopt.kernels.attention import CALLS
from prefopt.models.states import Reduction, States
from prefopt.records import Layout

_QUANTIZED = ("Params4bit", "Int8Params")


class CausalModel:
    """A causal language model seen as backbone and head; the wrapped modules stay where they are.

    Raises:
        ModelError: for an encoder-decoder, a vision or audio model, prompt tuning, or a model without the two parts.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.causal = _unwrapped(model)
        self.name = type(self.causal).__name__
        config: Any = self.causal.config
        self.config = config
        self._check_kind()
        backbone: Any = self.causal.base_model
        if backbone is self.causal:  # Llama 4 names its text model otherwise than its prefix says
            backbone = getattr(self.causal, "model", self.causal)
        if backbone is self.causal or self.causal.get_output_embeddings() is None:
            raise ModelError(
                f"{self.name} has no backbone with a language model head behind it: load the model with "
                "AutoModelForCausalLM."
            )
        self.backbone: Any = backbone
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.scale = _logit_scale(config)
        self._dynamic: list[Any] = [m for m in backbone.modules() if "dynamic" in str(getattr(m, "rope_type", ""))]

    def _check_kind(self) -> None:
        if getattr(self.config, "is_encoder_decoder", False):
            raise ModelError(f"{self.name} is an encoder-decoder model; prefopt scores causal language models only.")
        other = [key for key in ("vision_config", "audio_config") if getattr(self.config, key, None) is not None]
        if other or getattr(self.causal, "main_input_name", "input_ids") != "input_ids":
            raise ModelError(
                f"{self.name} reads more than text ({', '.join(other) or self.causal.main_input_name}); prefopt scores "
                "text-only causal language models: load its language model by itself."
            )
        capacity = [key for key, value in vars(self.config).items() if "capacity" in key and value]
        if capacity:
            raise ModelError(
                f"{self.name} routes tokens to experts of limited capacity ({capacity[0]}), so a completion's log-prob "
                "depends on the other tokens of its batch; preference optimization needs one that doesn't."
            )

    def hidden(self, **inputs: Any) -> Tensor:
        """Run the backbone without a cache and return its hidden states, (R, T, H).

        Dynamic RoPE forgets first what it learnt from longer rows: a row's numbers don't depend on those before it.
        """
        for rope in self._dynamic:
            rope.inv_freq = rope.original_inv_freq.to(rope.inv_freq.device)
            rope.max_seq_len_cached = rope.original_max_seq_len
        hidden: Tensor = self.backbone(use_cache=False, **inputs)[0]
        return hidden

    def shared_hidden(self, tokens: Tensor, position: Tensor, layout: Layout) -> Tensor:
        """Run a row of shared prompts, tokens and position (1, T), through the backbone: (1, T, H).

        Raises:
            ModelError: when not every layer used the shared-prompt attention, so that completions saw each other.
        """
        before = layout.plans.get(CALLS, 0)
        hidden = self.hidden(input_ids=tokens, position_ids=position, layout=layout)
        calls, layers = layout.plans.get(CALLS, 0) - before, self.config.num_hidden_layers
        if calls != layers:
            raise ModelError(
                f"only {calls} of the {layers} layers of {self.name} used the shared-prompt attention; score it in "
                "unshared rows."
            )
        return hidden

    def score(
        self, hidden: Tensor, target: Tensor, segment: Tensor, num_segments: int, reduction: Reduction = "sum"
    ) -> Tensor:
        """Return what `kernels.sequence_logprobs` does for `hidden` (N, H), with this model's head."""
        return self.states(hidden).logprobs(target, segment, num_segments, reduction)

    @property
    def head_weight(self) -> Tensor:
        """(V, H), the weight that logits are made with, without low-rank adapters."""
        module = self._head_module()
        weight: Tensor = (module.base_layer if isinstance(module, BaseTunerLayer) else module).weight
        return weight

    def head_parameters(self) -> list[nn.Parameter]:
        """Return what logits are made with: weight and bias, and the adapter of a LoRA head."""
        return list(self._head_module().parameters())

    def _head_module(self) -> Any:
        """Return the module that makes logits; of one that trains as a copy beside an adapter, the copy in use."""
        module = self.causal.get_output_embeddings()
        if isinstance(module, ModulesToSaveWrapper):
            unused = module.disable_adapters or not module.active_adapters
            return module.original_module if unused else module.modules_to_save[module.active_adapters[0]]
        return module

    def states(self, hidden: Tensor) -> States:
        """Return what the log-probs of `hidden` (N, H) are computed from, as the model would compute its logits.

        Raises:
            ModelError: when the head is quantized or has an adapter that is not plain LoRA.
        """
        module = self._head_module()
        lora: list[tuple[Any, Any, Any, float]] = []
        if isinstance(module, BaseTunerLayer):
            module, lora = self._adapted(module)
        weight = getattr(module, "weight", None)
        if not isinstance(module, nn.Linear) or type(weight).__name__ in _QUANTIZED:
            raise ModelError(
                f"the head of {self.name} is a {type(module).__name__} whose weight is no plain matrix"
                f"{' (quantized)' if type(weight).__name__ in _QUANTIZED else ''}; leave the head unquantized."
            )
        assert isinstance(weight, Tensor)
        dtype, device = weight.dtype, hidden.device.type
        if dtype == torch.float32 and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        # A low-rank update of the head as more columns: exact, and no (V, H) product is formed.
        states = hidden
        for dropout, down, up, scaling in lora:
            inner = nn.functional.linear(dropout(states), down.weight.to(dtype)) * scaling
            hidden = torch.cat([hidden, inner], -1)
            weight = torch.cat([weight, up.weight.to(dtype)], -1)
        bias = None if module.bias is None else module.bias.to(dtype)
        return States(hidden, Head(weight, bias, self.scale, self.softcap))

    def _adapted(self, layer: BaseTunerLayer) -> tuple[Any, list[tuple[Any, Any, Any, float]]]:
        base: Any = layer.base_layer
        if layer.disable_adapters or layer.merged:
            return base, []
        names = [name for name in layer.active_adapters if name in getattr(layer, "lora_A", {})]
        plain = isinstance(layer, LoraLayer) and not any(
            name in layer.lora_variant or layer.lora_bias.get(name) for name in names
        )
        if not plain:
            raise ModelError(
                f"the head of {self.name} has an adapter of kind {type(layer).__module__}.{type(layer).__name__}, "
                "whose logits can't be computed by parts: leave lm_head out of model.lora.target_modules."
            )
        return base, [(layer.lora_dropout[n], layer.lora_A[n], layer.lora_B[n], layer.scaling[n]) for n in names]

    @contextmanager
    def attention(self, name: str) -> Iterator[None]:
        """Use the attention implementation of this name inside, in every part of the model, and put it back."""
        found = {id(self.config): self.config, id(self.backbone.config): self.backbone.config}
        for module in self.causal.modules():
            if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
                found[id(config)] = config
        before = [(config, config._attn_implementation_internal) for config in found.values()]
        try:
            for config, _ in before:
                config._attn_implementation_internal = name
            yield
        finally:
            for config, implementation in before:
                config._attn_implementation_internal = implementation


def _unwrapped(model: nn.Module) -> Any:
    if not isinstance(model, PeftModel):
        return model
    for name, config in model.peft_config.items():
        if config.is_prompt_learning:
            raise ModelError(
                f"the adapter '{name}' is of kind {config.peft_type}, which adds tokens to the prompt; prefopt "
                "computes with adapters of weights only, such as LoRA."
            )
    return model.get_base_model()


def _logit_scale(config: Any) -> float:
    """Return what the model multiplies its logits with: each architecture has its own name for it."""
    for key, power in (("logits_scaling", -1), ("logit_scale", 1), ("lm_head_multiplier", 1)):
        if isinstance(factor := getattr(config, key, None), int | float):  # Granite, Cohere, Falcon-H1
            return float(factor) ** power
    return 1.0
