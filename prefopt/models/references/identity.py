"""What a reference's log-probs are a function of besides the tokens: its weights by content, and how it computes."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from prefopt.kernels.backends import recommend
from prefopt.models.packed import PackedModel
from prefopt.models.quantization import quantized_layers

COMPUTED_AS = 1
"""Raised whenever the same reference gives other log-probs than before, so that what was kept is not used."""
_CHUNK = 1 << 26
"""Bytes of a tensor that are read at once."""
_IDLE = frozenset(
    {"_name_or_path", "transformers_version", "architectures", "auto_map", "dtype", "torch_dtype", "use_cache",
     "bos_token_id", "eos_token_id", "pad_token_id", "_attn_implementation", "attn_implementation",
     "output_attentions", "output_hidden_states", "return_dict"}
)  # fmt: skip
"""Fields of a model's configuration that change no number here: tensors say their dtype themselves."""
_REMOTE = "transformers_modules"
"""Package that transformers puts code in which comes with a model."""
_IDLE_ADAPTER = frozenset({"base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"})


@dataclass(frozen=True, eq=False)
class Identity:
    """Of one reference on one machine's software: equal identities give equal log-probs, up to rounding of layouts."""

    setting: dict[str, Any]
    """How it computes; JSON-able."""
    about: str
    """What it is, for people."""
    tensors: Callable[[], Iterable[tuple[str, Tensor]]]
    """Gives every weight that it computes with, by name."""
    known_weights: str | None = None
    """`weights_key`, where it was found out before."""

    @cached_property
    def setting_key(self) -> str:
        """Of `setting`, 32 hexadecimal digits."""
        return _hex(json.dumps(self.setting, sort_keys=True))

    @cached_property
    def weights_key(self) -> str:
        """Of the weights' content, 32 hexadecimal digits; read when first asked for."""
        return digest(self.tensors()) if self.known_weights is None else self.known_weights

    def key(self, autocast: torch.dtype | None) -> str:
        """Return the key of all of it, computed with autocast to a dtype or without."""
        return _hex(f"{self.setting_key} {self.weights_key} {autocast or ''}")


def identity_of(packed: PackedModel, kind: str, *, adapter: bool) -> Identity | None:
    """Return the identity of a model that computes a reference; None when its weights can't be read here.

    Args:
        packed: the model that computes.
        kind: of the reference.
        adapter: whether its adapter, if it has one, is part of the reference.
    """
    model = packed.model
    if any(p.device.type == "meta" or hasattr(p, "full_tensor") for p in model.parameters()):
        return None  # offloaded, or a process' part of a sharded tensor
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    weight, admission = packed.head_weight, packed.admission
    config = {key: value for key, value in causal.config.to_dict().items() if key not in _IDLE}
    rows = "one row" if admission.one_row else f"rows, {causal.config._attn_implementation}"
    backend = recommend(weight.device, weight.dtype).name
    dtype = str(weight.dtype).removeprefix("torch.")
    setting = {
        "computed as": COMPUTED_AS,
        "kind": kind,
        "architecture": type(causal).__name__,
        "config": config,
        "adapter": _adapter(model) if adapter and isinstance(model, PeftModel) else None,
        "attention": "shared prompts" if admission.shared else rows,
        "device": weight.device.type,
        "dtype": dtype,
        "backend": backend,
        "precision": torch.get_float32_matmul_precision(),
        "versions": software(["triton"] * (backend == "triton") + ["bitsandbytes"] * any(quantized_layers(model))),
    }
    if code := _remote_code(model):
        setting["code"] = code
    name = getattr(causal, "name_or_path", "") or type(causal).__name__
    about = f"{name}, {kind}, {dtype} on {weight.device.type}"
    # As it would come back from a file: there keys are text, and sorted as text.
    return Identity(
        json.loads(json.dumps(setting, default=_jsonable)), about, lambda: weights_of(model, adapter=adapter)
    )


def weights_of(model: nn.Module, *, adapter: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by the names they have without adapters; those of adapters where `adapter` says so.

    A 4- or 8-bit weight comes with what turns it into numbers again.
    """
    wrappers = [
        (f"{name}.", "base_layer" if isinstance(module, BaseTunerLayer) else "original_module")
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)
    ]
    own = dict(wrappers)
    quantized = dict(quantized_layers(model))
    learnt = {f"{name}.inv_freq" for name, module in model.named_modules() if hasattr(module, "original_inv_freq")}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name in learnt:  # dynamic RoPE: follows the longest row so far, and starts again from its original
            continue
        plain = name if adapter else _plain(name, own)
        if plain is None:
            continue
        yield plain, tensor
        for part, value in _scales(quantized.get(name.removesuffix(".weight"))).items():
            yield f"{plain}.{part}", value


def _scales(layer: Any) -> dict[str, Tensor]:
    """Return what turns a quantized layer's weight into numbers; nothing of another layer."""
    if layer is None:
        return {}
    if (state := getattr(layer.weight, "quant_state", None)) is not None:
        found: dict[str, Tensor] = state.as_dict(packed=True)
        return found
    # bitsandbytes moves the scale after a first use.
    return {"SCB": layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB}


def _plain(name: str, wrappers: dict[str, str]) -> str | None:
    """Return a weight's name without the wrappers around it; None for one that a wrapper brought."""
    parts = name.split(".")
    kept, at = [], 0
    while at < len(parts):
        kept.append(parts[at])
        at += 1
        if (inner := wrappers.get(".".join((*parts[:at], "")))) is not None:
            if parts[at] != inner:
                return None
            at += 1
    return ".".join(kept).removeprefix("base_model.model.")


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return 32 hexadecimal digits of tensors' names, dtypes, shapes and bytes, in whatever order they come."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        parts = sorted(pool.map(_digest_one, tensors))
    return _hex("".join(parts))


def _digest_one(named: tuple[str, Tensor]) -> str:
    name, tensor = named
    tensor = tensor.detach().as_subclass(Tensor)
    found = hashlib.blake2b(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=16)
    flat = tensor.reshape(-1).view(torch.uint8)
    for start in range(0, flat.numel(), _CHUNK):
        found.update(flat[start : start + _CHUNK].cpu().numpy().data)
    return found.hexdigest()


def _adapter(model: PeftModel) -> dict[str, Any]:
    """Return the settings of the adapters in use."""
    active = [model.active_adapter] if isinstance(model.active_adapter, str) else list(model.active_adapter)
    return {
        name: {
            key: value for key, value in sorted(model.peft_config[name].to_dict().items()) if key not in _IDLE_ADAPTER
        }
        for name in active
    }


def _jsonable(value: object) -> object:
    """Return what JSON has for a value that it can't hold; sets have no order of their own."""
    return sorted(value, key=str) if isinstance(value, set | frozenset) else str(value)


def _remote_code(model: nn.Module) -> list[list[str]]:
    """Return names and contents' keys of the source files that came with a model; none of what transformers has."""
    own = {type(module).__module__ for module in model.modules()}
    found = [sys.modules[name].__file__ for name in own if name.partition(".")[0] == _REMOTE and name in sys.modules]
    folders = {Path(file).parent for file in found if file is not None}  # what the files import lies beside them
    return sorted(
        [path.name, hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()]
        for folder in folders
        for path in folder.glob("*.py")
    )


def software(besides: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of what computes log-probs, and of further packages that are here."""
    found = {name: importlib.metadata.version(name) for name in ("prefopt", "torch", "transformers", "peft")}
    for name in besides:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _hex(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
