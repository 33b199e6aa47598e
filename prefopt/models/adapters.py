"""Adapters: make one, go on with one, switch it off for a moment."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from prefopt.errors import ModelError
from prefopt.models.config import LoraSection
from prefopt.models.dtypes import DTYPES
from prefopt.models.peft_section import LORA_REFUSED, OVER_QUANTIZED, PeftSection, why_not
from prefopt.models.quantization import misread, quantized_layers
from prefopt.models.source import Source

_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` that subtract what the adapter starts as from the base weights."""
_NEEDS_DATA = ("corda", "eva", "lora_ga")
"""Those that PEFT computes from data, which must be done by hand before training."""
_SVD_SEED = 0
"""What randomised inits of the base weights draw from: an adapter is loaded on the base that it was trained on."""
_WITH_EMBEDDINGS = "prefopt_with_embeddings"
"""Attribute of a model whose adapter replaced embeddings of the base when it was loaded: says so in words."""


def new_adapter(model: Any, section: LoraSection | PeftSection, *, seed: int) -> Any:
    """Return `model` with a new adapter; a LoRA adapter changes nothing until it is trained.

    Args:
        model: the frozen base model.
        section: the recipe's `model.lora` or `model.peft`.
        seed: of the adapter's random half; the global random state is left as it was.

    Raises:
        ModelError: when PEFT refuses the settings, or no module of the model matches.
    """
    try:
        config = section.build() if isinstance(section, PeftSection) else _lora_config(section)
        with torch.random.fork_rng(devices=_cuda_devices(model)), _quiet():
            torch.manual_seed(_SVD_SEED if _draws_base(config) else seed)
            peft_model = get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError, ImportError, RuntimeError) as error:
        name = "peft" if isinstance(section, PeftSection) else "lora"
        raise ModelError(f"model.{name} does not fit this model: {error}") from error
    _check_reads_weights(peft_model)
    settle_dtype(peft_model, "auto" if isinstance(section, PeftSection) else section.dtype)
    return peft_model


def _draws_base(config: Any) -> bool:
    return str(getattr(config, "init_lora_weights", "")).startswith("pissa_niter")


def _lora_config(section: LoraSection) -> LoraConfig:
    start = str(section.passthrough().get("init_lora_weights", "")).lower()
    if start in _NEEDS_DATA:
        raise ModelError(
            f"model.lora.init_lora_weights: {start} is computed from data before training, which prefopt doesn't do: "
            "write pissa or olora, which need the weights alone, or leave it out."
        )
    targets = section.target_modules
    return LoraConfig(
        r=section.r,
        lora_alpha=cast(int, section.alpha),  # PEFT divides by it and takes a float as well
        lora_dropout=section.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        task_type="CAUSAL_LM",
        **section.passthrough(),
    )


def _check_reads_weights(model: Any) -> None:
    """Refuse DoRA where bitsandbytes would give it other weights than those the layers multiply with."""
    if getattr(model.peft_config[model.active_adapter], "use_dora", False) and misread(model):
        raise ModelError(
            "model.lora.use_dora: DoRA reads the quantized weights by bitsandbytes, which on a CPU misreads rows that "
            "are no multiple of 64: leave use_dora out, or write model.quantization: int8."
        )


def load_adapter(model: Any, source: Source, dtype: str, *, trainable: bool) -> Any:
    """Return `model` with the adapter saved at `source`, every weight of which must have its place.

    Raises:
        ModelError: when the adapter was made for another architecture or size, or its file is damaged.
    """
    try:
        config = PeftConfig.from_pretrained(str(source.folder))
        _check_kind(config, source.name, quantized=any(quantized_layers(model)))
        with torch.random.fork_rng(devices=_cuda_devices(model)), _quiet():
            torch.manual_seed(_SVD_SEED)
            peft_model = PeftModel.from_pretrained(
                model, str(source.folder), config=config, is_trainable=trainable, use_safetensors=True
            )
        with safe_open(source.folder / "adapter_model.safetensors", framework="pt") as file:
            saved = set(file.keys())
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the adapter {source.name} does not fit the model: {reason}") from error
    needed = set(get_peft_model_state_dict(peft_model, save_embedding_layers=False))
    allowed = set(get_peft_model_state_dict(peft_model, save_embedding_layers=True)) if saved - needed else needed
    if wrong := (saved - allowed) | (needed - saved):
        where = "is missing in it" if min(wrong) in needed else "has no place in the model"
        raise ModelError(
            f"the adapter {source.name} does not fit the model: {len(wrong)} of its weights do not match, for example "
            f"{min(wrong)} {where}. Was it trained on {config.base_model_name_or_path}?"
        )
    if embeddings := sorted(saved - needed):
        setattr(peft_model, _WITH_EMBEDDINGS, f"the adapter brought embeddings of its own ({embeddings[0]})")
    _check_reads_weights(peft_model)
    settle_dtype(peft_model, dtype)
    return peft_model


def _check_kind(config: Any, name: str, *, quantized: bool) -> None:
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if wrong := why_not(kind):
        raise ModelError(f"the adapter {name} can't be used: {wrong}.")
    for field, reason in LORA_REFUSED.items():
        if kind == "LORA" and getattr(config, field, None) is not None:
            raise ModelError(f"the adapter {name} can't be used: its {field} is set, and {reason}.")
    if quantized and kind not in OVER_QUANTIZED | {"LORA"}:
        raise ModelError(
            f"the adapter {name} is of kind {kind}, which computes with the weights themselves: leave out "
            "model.quantization."
        )


def save_weights(model: Any, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the adapter, or a model without one, as safetensors; of weights in parts, `weights` are the whole ones.

    Embeddings go along when the adapter was loaded with some. Left to itself, PEFT would ask the Hub whether the
    base model's vocabulary was changed; here it never is.
    """
    options = {"save_embedding_layers": _WITH_EMBEDDINGS in vars(model)} if isinstance(model, PeftModel) else {}
    model.save_pretrained(str(folder), state_dict=weights, **options)


def copy_weights(model: Any, folder: Path) -> None:
    """Copy the weights that `save_weights` wrote into a model as it stands, whose dtype and device they take.

    Raises:
        ModelError: the folder holds weights of another adapter or model, or none that can be read.
    """
    try:
        files = sorted(folder.glob("*.safetensors"))
        found = {name: weight for file in files for name, weight in load_file(file).items()}
        if isinstance(model, PeftModel):
            result = set_peft_model_state_dict(model, found, adapter_name=model.active_adapter)
            own = get_peft_model_state_dict(model, save_embedding_layers=_WITH_EMBEDDINGS in vars(model))
            unfit = [*result.unexpected_keys, *sorted(own.keys() - found.keys())]
        else:
            shared = model.all_tied_weights_keys  # of each tied weight one name is saved
            missing, unexpected = model.load_state_dict(found, strict=False)
            unfit = [*unexpected, *(name for name in missing if name not in shared)]
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"the weights in {folder} do not fit the model: {reason}") from error
    if unfit or not found:
        what = f"{unfit[0]}, ... have no counterpart" if unfit else "there are none"
        raise ModelError(f"the weights in {folder} do not fit the model: {what}.")


@contextmanager
def adapter_disabled(model: Any) -> Iterator[None]:
    """The base model inside, the model with its adapter afterwards, also when the work inside fails.

    Raises:
        ModelError: when the model has no adapter, or has it merged into its weights.
    """
    if not isinstance(model, PeftModel):
        raise ModelError("the model has no adapter that could be switched off.")
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ModelError("the adapter is merged into the model's weights and can't be switched off: unmerge it first.")
    # PEFT's own `disable_adapter` changes requires_grad of every adapter weight, also of frozen ones, and takes 0.1 s
    # for a small model; this runs around every pack.
    before = [(layer, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer, disabled in before:
            layer._disable_adapters = disabled


def adapter_changes_nothing(model: Any) -> bool:
    """Whether the model computes the same with its adapter as without, as a new LoRA adapter does.

    True only where that is certain: every weight that trains is LoRA's, and of each pair one is zero.
    """
    if not isinstance(model, PeftModel):
        return False
    certain: set[int] = set()
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            if isinstance(layer, BaseTunerLayer):  # of another kind
                return False
            continue
        if layer.lora_variant:  # DoRA and its kin have more weights, which may have moved
            return False
        for a, b in ((layer.lora_A, layer.lora_B), (layer.lora_embedding_B, layer.lora_embedding_A)):
            for name in b:
                last = _parameters(b[name])
                if any(bool(parameter.detach().any()) for parameter in last):
                    return False
                certain.update(map(id, [*last, *_parameters(a[name])]))
    return all(id(parameter) in certain for parameter in model.parameters() if parameter.requires_grad)


def base_is_original(model: Any) -> str | None:
    """Return why the model without its adapter is not the model that was loaded, or None when it is."""
    if isinstance(brought := vars(model).get(_WITH_EMBEDDINGS), str):
        return brought
    config = model.peft_config[model.active_adapter]
    start = getattr(config, "init_lora_weights", True)
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        return f"init_lora_weights '{start}' changes the base weights"
    if getattr(config, "kasa_config", None) is not None:
        return "kasa_config changes the base weights"
    if getattr(config, "bias", "none") != "none":
        return f"bias '{config.bias}' trains biases of the base model"
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep PEFT's warnings about what is checked here, and about names that transformers 5 changed, to itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Found missing adapter keys", category=UserWarning)
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False", category=UserWarning)
        yield


def _parameters(entry: nn.Module | nn.Parameter) -> list[nn.Parameter]:
    return [entry] if isinstance(entry, nn.Parameter) else list(entry.parameters())


def _cuda_devices(model: Any) -> list[int]:
    found = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    return sorted(device.index for device in found)


class _ComputesInInputDtype(nn.Linear):
    """A float32 matrix that multiplies in its input's dtype.

    PEFT would cast every activation to float32 instead, which costs a tenth of a step; casting the few weights
    costs nothing, and the optimizer still sees and updates all their bits.
    """

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


def settle_dtype(model: Any, dtype: str) -> None:
    """Store the adapter in `dtype` and let it compute in the base model's."""
    store = torch.float32 if dtype == "auto" else DTYPES[dtype]
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for pair in (layer.lora_A, layer.lora_B):
            for name, linear in pair.items():
                linear.to(store)
                # DoRA and its kin use the matrices themselves, so they keep PEFT's way.
                if type(linear) is nn.Linear and name not in layer.lora_variant:
                    linear.__class__ = _ComputesInInputDtype
                    layer.cast_input_dtype_enabled = False
        for parameter in (*layer.lora_embedding_A.values(), *layer.lora_embedding_B.values()):
            parameter.data = parameter.data.to(store)
