"""One set of tests over the backends: `triton` runs on a GPU, or on the CPU under TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from prefopt.kernels.head import Head
from prefopt.kernels.logprobs import token_logprobs
from prefopt.kernels.tiles import Tiles, TorchTiles


class Tiled:
    """A backend with tiles of any size."""

    def __init__(self, name: str, interpreted: bool) -> None:
        self.name = name
        self.interpreted = interpreted
        """A kernel takes some 10 ms a row: small problems only. And storing in bfloat16 cuts digits off."""

    def needs_rounding_to(self, dtype: torch.dtype) -> None:
        if self.interpreted and dtype == torch.bfloat16:
            pytest.skip("Triton's interpreter does not round to bfloat16, it truncates")

    def __call__(self, rows: int, columns: int, block: int = 1):
        tiles = Tiles(rows, columns, block)
        if self.name == "torch":
            return TorchTiles(tiles)
        from prefopt.kernels.triton_tiles import TritonTiles

        return TritonTiles(tiles)

    def fused(self, hidden, weight, target):
        return token_logprobs(hidden, target, Head(weight), self(64, 512, 32))


@pytest.fixture(params=["torch", pytest.param("triton", marks=pytest.mark.triton)])
def tiled(request):
    """The backends in turn, with the device on which each computes as the default device."""
    if request.param == "torch":
        yield Tiled("torch", interpreted=False)
        return
    triton = pytest.importorskip("triton")
    if triton.knobs.runtime.interpret:
        yield Tiled("triton", interpreted=True)
        return
    if not torch.cuda.is_available():
        pytest.skip("Triton's kernels need a CUDA GPU, or TRITON_INTERPRET=1")
    torch.set_default_device("cuda")
    yield Tiled("triton", interpreted=False)
    torch.set_default_device(None)


@pytest.fixture
def fused(tiled):
    """Log-probs (N,) of `(hidden, weight, target)`, in small tiles."""
    return tiled.fused
