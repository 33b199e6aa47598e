"""Which backend of the fused linear log-prob computes, and why."""

from __future__ import annotations

import functools
import importlib.util
import logging
from typing import Literal, NamedTuple, get_args

import torch

from prefopt.errors import nearest
from prefopt.kernels.head import Backend, Head
from prefopt.kernels.tiles import TorchTiles
from prefopt.kernels.workspace import Tiles

_log = logging.getLogger(__name__)

BackendName = Literal["auto", "triton", "fused", "torch", "oracle"]


class Recommendation(NamedTuple):
    """What `backend="auto"` takes."""

    name: Literal["triton", "torch"]
    reason: str


def recommend(device: torch.device, dtype: torch.dtype) -> Recommendation:
    """Return what computes best on `device` for tensors of `dtype`.

    Never "fused": its logits are not rounded to 16 bits as the vendor's products round them, so a reference scored by
    it would differ from the same policy scored with its gradient, and DPO would not start at exactly log 2.
    """
    if device.type != "cuda":
        return Recommendation("torch", f"there are no kernels for tensors on {device.type}")
    absent = _absent(device, dtype)
    return Recommendation("torch", absent) if absent else Recommendation("triton", "its kernels run on this GPU")


def check(name: BackendName, device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError when `name` is none or can't compute on `device`."""
    if name not in get_args(BackendName):
        *names, last = (repr(known) for known in get_args(BackendName))
        hint = nearest(name, get_args(BackendName))
        raise ValueError(f"backend is {name!r}; it must be {', '.join(names)} or {last}{hint}.")
    if not torch.compiler.is_compiling():  # a compiled graph asks when it runs
        _check_here(name, device, dtype)


def _check_here(name: str, device: torch.device, dtype: torch.dtype) -> None:
    if name in ("triton", "fused") and (absent := _absent(device, dtype)):
        raise ValueError(f"backend is {name!r}, but {absent}; use 'auto' or 'torch'.")


def scores_alone(asked: str) -> ValueError:
    """Return the error for asking "fused" for more than it has."""
    return ValueError(
        f"backend is 'fused', which gives scores alone, and was asked for {asked}; use 'auto' or 'triton'."
    )


def resolve(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """Return `name`, or for "auto" what is recommended."""
    return recommend(device, dtype).name if name == "auto" else name


def choose(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend of that name; raise ValueError when it can't compute on `device`.

    In tests the size of its tiles may follow: "torch 64 512 32" for rows, columns and block.
    """
    name, *sizes = name.split()
    _check_here(name, device, dtype)
    name, tiles = resolve(name, device, dtype), Tiles(*map(int, sizes)) if sizes else None
    if name == "fused":
        from prefopt.kernels.triton_fused import FusedScores

        return FusedScores()
    if name == "triton":
        from prefopt.kernels.triton_tiles import TritonTiles

        return TritonTiles(tiles)
    return TorchTiles(tiles)


@functools.cache
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
    return _fails_to_launch(device)


@functools.cache
def _fails_to_launch(device: torch.device) -> str:
    """Try the kernels once on `device`; return why they don't run, empty when they do."""
    from prefopt.kernels.triton_tiles import TritonTiles

    try:
        with torch.no_grad(), torch.cuda.device(device):
            x = torch.ones(2, 16, device=device, dtype=torch.bfloat16)
            TritonTiles().score_with_direction(x, torch.zeros(2, dtype=torch.long, device=device), Head(x))
            torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001  (a compiler or driver fails in many ways; torch computes without it)
        lines = str(error).splitlines() or ["no message"]
        _log.warning("Triton's kernels don't run on %s, torch computes instead: %s", device, lines[0])
        return f"its kernels don't run here ({type(error).__name__}: {lines[0]}); Triton needs a C compiler"
    return ""
