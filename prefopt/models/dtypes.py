"""Which precision and device 'auto' stands for on this machine."""

from __future__ import annotations

import torch

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def resolve_device(name: str) -> torch.device:
    """Return the device that `name` names; 'auto' is the current accelerator, or the CPU where there is none."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def computes_bfloat16_fast(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 there, rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0) or torch.version.hip is not None
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16"))
    return False


def resolve_dtype(name: str, device: torch.device, *, weights_train: bool) -> torch.dtype:
    """Return the dtype that `name` names; 'auto' is bfloat16 for frozen weights where that is fast, else float32."""
    if name != "auto":
        return DTYPES[name]
    return torch.bfloat16 if not weights_train and computes_bfloat16_fast(device) else torch.float32
