"""Which backend of the fused linear log-prob computes, and why."""

from __future__ import annotations

import importlib.util
from typing import Literal, NamedTuple

import torch

from prefopt.kernels.head import Backend
from prefopt.kernels.tiles import TorchTiles

BackendName = Literal["auto", "triton", "torch", "oracle"]


class Recommendation(NamedTuple):
    """What `backend="auto"` takes."""

    name: Literal["triton", "torch"]
    reason: str


def recommend(device: torch.device, dtype: torch.dtype) -> Recommendation:
    """Return what computes best on `device` for tensors of `dtype`."""
    if device.type != "cuda":
        return Recommendation("torch", f"there are no kernels for tensors on {device.type}")
    absent = _absent(device, dtype)
    return Recommendation("torch", absent) if absent else Recommendation("triton", "the GPU has tensor cores for it")


def check(name: BackendName, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError when `name` can't compute on `device`."""
    if name == "triton" and (absent := _absent(device, dtype)):
        raise ValueError(f"backend is 'triton', but {absent}; use 'auto' or 'torch'.")


def choose(name: BackendName, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend of that name, which `check` has let through."""
    if name == "triton" or (name == "auto" and recommend(device, dtype).name == "triton"):
        from prefopt.kernels.triton_tiles import TritonTiles

        return TritonTiles()
    return TorchTiles()


def _absent(device: torch.device, dtype: torch.dtype) -> str:
    """Return why Triton's kernels can't compute here; empty when they can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if dtype == torch.float64:
        return "its kernels compute in float32 and hidden is float64"
    import triton

    if triton.knobs.runtime.interpret:
        return ""
    if device.type != "cuda":
        return f"hidden is on {device.type} and its kernels need a CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return f"Triton has no tensor-core code for compute capability {major}.{minor}, only from 8.0 on"
    return ""
