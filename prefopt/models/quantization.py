"""Frozen weights in 4 or 8 bits: how they are loaded, made safe on a CPU, and read back as plain matrices."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.quantizers.base import get_keys_to_not_convert

from prefopt.errors import ModelError
from prefopt.models.config import QuantizationSection
from prefopt.models.dtypes import DTYPES

QUANTIZED = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)


def load_options(
    section: QuantizationSection,
    settings: Any,
    dtype: torch.dtype,
    device: torch.device,
    kind: Any = AutoModelForCausalLM,
) -> dict[str, Any]:
    """Return what `from_pretrained` takes to load a model of these `settings` quantized.

    Args:
        section: the recipe's `model.quantization`.
        settings: the model's configuration.
        dtype: of what stays unquantized.
        device: where it loads; quantized weights can't be moved afterwards.
        kind: what makes the model of its settings.
    """
    skip = list(section.skip_modules)
    if skip:  # names of one's own take the place of the usual ones, so those go along
        with torch.device("meta"):
            skip += get_keys_to_not_convert(kind.from_config(settings))
    if section.type == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=skip or None)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=section.type,
            bnb_4bit_use_double_quant=section.double_quant,
            bnb_4bit_compute_dtype=dtype if section.compute_dtype == "auto" else DTYPES[section.compute_dtype],
            llm_int8_skip_modules=skip or None,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def check_plain(folder: Path, name: str) -> None:
    """Raise `ModelError` for a model whose files hold quantized weights already."""
    found = json.loads((folder / "config.json").read_text()).get("quantization_config")
    if found is not None:
        raise ModelError(
            f"{name} holds weights that are quantized already ({found.get('quant_method', 'of an unknown kind')}): "
            "name the model that it was made from, and write model.quantization to quantize that as it loads."
        )


def settle(model: nn.Module, name: str) -> None:
    """Make the quantized layers of a model that was just loaded compute what they should.

    Raises:
        ModelError: when nothing of the model was quantized, or its head was.
    """
    layers = [module for module in model.modules() if isinstance(module, QUANTIZED)]
    if not layers:
        raise ModelError(
            f"nothing of {name} can be quantized: it has no plain linear layers besides its head and those that "
            "model.quantization.skip_modules names."
        )
    for layer in layers:
        if isinstance(layer, bnb.nn.Linear8bitLt):
            layer.__class__ = Int8Linear
        elif layer.weight.device.type == "cpu":
            layer.__class__ = CpuLinear4bit
            layer.support_avx512bf16_for_cpu = False


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of each layer whose weight is quantized."""
    for name, module in model.named_modules():
        if isinstance(module, QUANTIZED):
            yield name, module


def dense_weight(layer: Any) -> Tensor:
    """Return the (O, I) weight that a quantized layer multiplies with: int8 in float32, 4 bits in what they were."""
    if not isinstance(layer, bnb.nn.Linear4bit):
        scale = _int8_scale(layer).to(torch.float32)
        return layer.weight.data.to(torch.float32) * (scale[:, None] / 127)
    packed, state = layer.weight.data, layer.weight.quant_state
    if packed.device.type == "cpu":
        # On a CPU bitsandbytes takes the scales of other blocks where a row is no whole number of them: as one long
        # row the same numbers are read rightly.
        state = copy.copy(state)
        state.shape = torch.Size((1, state.shape.numel()))
    dense: Tensor = bnb.functional.dequantize_4bit(packed, state)
    return dense.view(layer.weight.quant_state.shape)


def misread(model: nn.Module) -> bool:
    """Whether bitsandbytes itself would read some weight of the model otherwise than `dense_weight` does."""
    return any(isinstance(layer, CpuLinear4bit) and layer.in_features % 64 for _, layer in quantized_layers(model))


def multiplies_in(layer: Any, dtype: torch.dtype) -> bool:
    """Whether the quantized layer computes in this dtype when its input is of it."""
    return not isinstance(layer, bnb.nn.Linear4bit) or layer.compute_dtype in (None, dtype)


class CpuLinear4bit(bnb.nn.Linear4bit):
    """A 4-bit layer whose weight is unpacked for each product.

    On some CPUs bitsandbytes' own layer repacks its weight in the first evaluation, for a faster product, and every
    gradient that is computed with it afterwards is wrong.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _product(self, x.to(self.compute_dtype or x.dtype)).to(x.dtype)


class Int8Linear(bnb.nn.Linear8bitLt):
    """A layer whose weight is 8-bit integers with a scale for each output, and whose product is of plain numbers.

    bitsandbytes' own layer rounds its input to 8 bits as well. Then a token's result jumps with the last bit of its
    input, so that log-probs would depend on how completions are packed, and the gradient is of another function.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _product(self, x)


def _product(layer: Any, x: Tensor) -> Tensor:
    out: Tensor = _StoredProduct.apply(x, layer)
    return out if layer.bias is None else out + layer.bias.to(x.dtype)


class _StoredProduct(torch.autograd.Function):
    """`x W^T` with a frozen W that is unpacked in each direction rather than kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any) -> Tensor:
        ctx.layer = layer
        return F.linear(x, dense_weight(layer).to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ dense_weight(ctx.layer).to(grad.dtype), None


def _int8_scale(layer: Any) -> Tensor:
    """Return the largest absolute weight of each output, (O,) float32; bitsandbytes moves it after a first use."""
    scale: Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return scale
