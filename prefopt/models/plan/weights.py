"""What lies in memory through a whole run: weights, what trains of them, its gradients, and the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

QUANTIZED = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
"""Bytes a weight of a quantized layer takes: 4 bits and a float32 scale for 64 of them, or 8 bits."""
DOUBLE_QUANT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""With the scales in 8 bits too, and a float32 for 256 of them."""
_STATES: dict[str, float] = {"adamw": 2, "adam": 2, "lion": 1, "ademamix": 3, "rmsprop": 1, "adagrad": 1, "sgd": 0}
"""Numbers that an optimizer keeps a weight; others are taken for Adam's two."""
_BLOCK, _LEAST = 256, 4096
"""bitsandbytes: weights that share a scale of their 8-bit state, and the smallest tensor whose state is 8-bit."""


@dataclass(frozen=True)
class Weights:
    """Counts of parameters, and bytes."""

    parameters: int
    trainable: int
    frozen_bytes: int
    trainable_bytes: int
    """Of the weights that train; their gradients take as much."""
    optimizer_bytes: int
    dense_bytes: int = 0
    """The largest layer that is stored in few bits, as the matrix that it is while it is used."""


def weigh(
    model: nn.Module, *, optimizer: str, quantization: str | None = None, double_quant: bool = False,
    skipped: Iterable[str] = (),
) -> Weights:  # fmt: skip
    """Count the model's weights, adapters included, as they would lie in memory.

    Args:
        model: on any device; meta will do.
        optimizer: name of transformers, such as "adamw_torch_fused".
        quantization: nf4, fp4 or int8: how the frozen linear layers are stored, all but the head.
        double_quant: whether scales are quantized too.
        skipped: names of modules that stay as they are.
    """
    packed = _packed(model, tuple(skipped)) if quantization else {}
    each = DOUBLE_QUANT if double_quant and quantization != "int8" else QUANTIZED.get(quantization or "", 0.0)
    frozen = trainable = optimized = dense = 0
    count = learned = 0
    for parameter in {id(p): p for p in model.parameters()}.values():
        size = parameter.numel() * parameter.itemsize
        count += parameter.numel()
        if parameter.requires_grad:
            learned += parameter.numel()
            trainable += size
            optimized += optimizer_bytes(optimizer, parameter.numel(), parameter.dtype, parameter.shape)
        elif id(parameter) in packed:
            frozen += int(parameter.numel() * each)
            dense = max(dense, size)
        else:
            frozen += size
    return Weights(count, learned, frozen, trainable, optimized, dense)


def optimizer_bytes(name: str, count: int, dtype: torch.dtype, shape: Iterable[int] = ()) -> int:
    """Return the bytes of state that the optimizer keeps for a tensor of `count` weights."""
    if "adafactor" in name:
        rows = list(shape)
        return 4 * (sum(rows[-2:]) if len(rows) > 1 else count)
    states = next((n for known, n in _STATES.items() if known in name), 2)
    if "8bit" in name and count >= _LEAST:
        return int(count * states * (1 + 4 / _BLOCK))
    return int(count * states * (4 if "8bit" in name else dtype.itemsize))


def _packed(model: nn.Module, skipped: tuple[str, ...]) -> dict[int, Any]:
    """Return the weights that quantization packs: of frozen linear layers, but not of the head and its kin."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    kept = {id(p) for p in head.parameters()} if head is not None else set()
    found: dict[int, Any] = {}
    for name, module in model.named_modules():
        named = any(part in name.split(".") for part in skipped) or ".lora_" in f".{name}"
        if isinstance(module, nn.Linear) and not named and not module.weight.requires_grad:
            found[id(module.weight)] = module.weight
    return {key: weight for key, weight in found.items() if key not in kept}
