"""Checks of hidden states and heads, shared by what takes them; an error is a sentence that names the argument."""

from __future__ import annotations

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_OPAQUE = ("Params4bit", "Int8Params", "DTensor")


def check_head(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    names: tuple[str, str, str] = ("hidden", "weight", "bias"),
) -> None:
    """Raise ValueError unless a head (V, H) and its bias (V,) can be applied to hidden states (N, H).

    `names` are what the caller calls these.
    """
    named = [(name, x) for name, x in zip(names, (hidden, weight, bias), strict=True) if x is not None]
    for name, x in named:
        _check_values(name, x)
        if x.dtype != hidden.dtype:
            raise ValueError(
                f"{name} has dtype {dtype_name(x)} but {names[0]} has {dtype_name(hidden)}; cast one to the other."
            )
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{names[0]} has shape {tuple(hidden.shape)} and {names[1]} {tuple(weight.shape)}; they must be (N, H) and "
            "(V, H) with the same H."
        )
    if weight.shape[0] == 0:
        raise ValueError(f"{names[1]} has no rows; the vocabulary must hold at least one token.")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{names[2]} has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},), one entry a token."
        )
    for name, x in named:
        check_device(name, x, names[0], hidden)


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device} but {other_name} is on {other.device}; move them together.")


def dtype_name(x: Tensor) -> str:
    """Return a dtype as a person writes it."""
    return str(x.dtype).removeprefix("torch.")


def _check_values(name: str, x: Tensor) -> None:
    kind = type(x).__name__
    if kind in _OPAQUE or "Quantized" in kind or x.is_quantized:
        what = "sharded" if kind == "DTensor" else "quantized"
        raise ValueError(
            f"{name} is a {what} tensor ({kind}), which has no plain values to multiply with; gather or dequantize "
            "it first, or keep the head out of quantization."
        )
    if x.dtype not in _DTYPES:
        raise ValueError(
            f"{name} has dtype {dtype_name(x)}; it must be bfloat16, float16, float32 or float64, so a head stored in "
            "another form (quantized weights are integers) must be dequantized first."
        )
