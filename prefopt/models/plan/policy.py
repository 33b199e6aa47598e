"""The policy that a recipe's `model` section describes, from its configuration alone: no weights are read."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from peft import PeftConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig

from prefopt.errors import ModelError
from prefopt.models.adapters import adapter_changes_nothing, new_adapter, settle_dtype
from prefopt.models.config import ModelConfig
from prefopt.models.gguf import packaged_gguf
from prefopt.models.plan.imagined import ImaginedModel, layer_kinds, of_layers, on_meta
from prefopt.models.plan.passes import Passes, PassOptions, for_layers, trace_passes
from prefopt.models.plan.weights import Weights, weigh
from prefopt.models.policy import check_architecture, drop_dropout, freeze
from prefopt.models.references import AdapterOff
from prefopt.models.source import Source, find_adapter, find_model
from prefopt.models.tokenizer import load_tokenizer
from prefopt.records import Group


@dataclass(frozen=True)
class PlannedPolicy:
    """A policy that is only planned."""

    settings: Any
    """Its configuration, of transformers."""
    config: ModelConfig
    dtype: torch.dtype
    """Of the weights."""
    gpu: bool
    """Whether it is planned for a GPU."""
    checkpointing: bool = False
    """Activation checkpointing."""

    @classmethod
    def of(cls, config: ModelConfig, dtype: torch.dtype, *, gpu: bool, checkpointing: bool = False) -> PlannedPolicy:
        """Read the configuration that `config` names: a folder with a config.json will do.

        Raises:
            ModelError: there is none, or it is of no causal language model.
        """
        return cls(read_settings(config), config, dtype, gpu, checkpointing)

    def with_(self, **changes: Any) -> PlannedPolicy:
        """Return the same policy with other fields, or other fields of its `config`."""
        own = {name: value for name, value in changes.items() if name in ("dtype", "checkpointing", "gpu")}
        section = {name: value for name, value in changes.items() if name not in own}
        return replace(self, config=self.config.model_copy(update=section), **own)

    @property
    def trains_all(self) -> bool:
        """Whether there is no adapter."""
        return self.config.lora is None

    def weights(self, optimizer: str) -> Weights:
        """Weigh the whole model."""
        model, stored = self._model(self._kinds), self.config.quantization
        if stored is None:
            return weigh(model, optimizer=optimizer)
        return weigh(
            model,
            optimizer=optimizer,
            quantization=stored.type,
            double_quant=stored.double_quant,
            skipped=stored.skip_modules,
        )

    def passes(self, groups: Sequence[Group], options: PassOptions, *, reference: bool) -> Passes:
        """Trace a pack of these groups.

        Args:
            groups: any tokens; their lengths count.
            options: how the passes go.
            reference: whether the frozen model runs too, as the policy does.
        """

        def trace(kinds: Sequence[Any]) -> Passes:
            model = ImaginedModel(self._model(kinds), gpu=self.gpu)
            frozen = _Frozen(model) if reference else None
            return trace_passes(model, frozen, groups, options)

        try:
            return for_layers(self._kinds, trace)
        except (RuntimeError, NotImplementedError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise ModelError(
                f"{self.config.name} can't be planned: its code asks for numbers, or for an operator, that tensors "
                f"without data don't have ({reason}). A run of it needs no plan: write train.token_budget as a number."
            ) from error

    @cached_property
    def shares_prompts(self) -> bool:
        """Whether completions of a pack share their prompt."""
        return ImaginedModel(self._model(self._kinds[:1]), gpu=self.gpu).admission.shared

    @cached_property
    def starts_as_base(self) -> bool:
        """Whether the policy is at first the model without its adapter, which can then be its reference."""
        if self.config.lora is None or self.config.adapter is not None or self.config.peft is not None:
            return False
        if self.config.lora.passthrough().get("init_lora_weights", True) not in (True, "gaussian"):
            return False  # no half of the adapter starts as zeros
        model = self._model(self._kinds)
        for layer in model.modules():
            if isinstance(layer, LoraLayer):
                for half in (layer.lora_B, layer.lora_embedding_A):
                    _begin_with_zeros(half)
        return adapter_changes_nothing(model)

    @property
    def _kinds(self) -> list[str | None]:
        return layer_kinds(self.settings)

    def _model(self, kinds: Sequence[Any]) -> Any:
        with _quiet():
            settings = of_layers(self.settings, kinds)
            model = on_meta(settings, self.dtype, trust_remote_code=self.config.trust_remote_code)
            with torch.device("meta"):
                model = self._adapted(model)
            model.train()
            if self.checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
        return model

    def _adapted(self, model: Any) -> Any:
        if self.config.lora is None:
            model.requires_grad_(True)
            freeze(model, self.config.freeze)
            return model
        if self.config.adapter is None:
            return new_adapter(model, self.config.peft or self.config.lora, seed=0)
        found = PeftConfig.from_pretrained(str(find_adapter(self.config.adapter).folder))
        adapted = get_peft_model(model, found)
        settle_dtype(adapted, self.config.lora.dtype)
        return adapted


def _begin_with_zeros(part: nn.Module) -> None:
    """Replace weights without data by ones that can be looked at: a zero each, whatever their shape."""
    for module in part.modules():
        for name in module._parameters:
            module._parameters[name] = nn.Parameter(torch.zeros(1))


class _Frozen(AdapterOff):
    """The policy without gradient, with its adapter off where it has one."""

    def __init__(self, model: ImaginedModel) -> None:
        super().__init__(model, "planned", starts_equal=False)
        self._adapter = hasattr(model.model, "peft_config")

    @torch.no_grad()
    def logprobs(self, pack: Any, reduction: Any = "sum") -> Any:
        return super().logprobs(pack, reduction) if self._adapter else self._policy.logprobs(pack, reduction)


def read_settings(config: ModelConfig) -> Any:
    """Return the configuration of the model that the section names. Raises `ModelError` when there is none."""
    folder = _folder(config)
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(f"the configuration of {config.name} can't be read: {reason}.") from error
    check_architecture(settings, config.name)
    if not config.dropout:
        drop_dropout(settings)
    return settings


def planned_tokenizer(config: ModelConfig) -> Any:
    """Return the tokenizer of the model that the section names, whose weights need not be here."""
    return load_tokenizer(config, Source(config.name, _folder(config)), rows=sys.maxsize)


def _folder(config: ModelConfig) -> Path:
    name, path = config.name, Path(config.name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{name} has no config.json, and a plan is made from that: name a model's directory.")
        return path
    if name.endswith(".gguf") or (config.revision is None and packaged_gguf(name)):
        cache = Path(constants.HF_HOME) / "prefopt"
        return find_model(name, revision=None, remote_code=False, dtype="bfloat16", cache=cache).folder
    try:
        return Path(huggingface_hub.hf_hub_download(name, "config.json", revision=config.revision)).parent
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HFValidationError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"the configuration of {name} is not on this machine and the Hugging Face Hub has none or can't be "
            "reached: name a directory with the model's config.json."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what is said of weights, which a plan has none of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def settings_of(values: dict[str, Any]) -> Any:
    """Return the configuration that a config.json with these values holds."""
    own = dict(values)
    return AutoConfig.for_model(own.pop("model_type"), **json.loads(json.dumps(own)))
