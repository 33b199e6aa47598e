"""One set of tests over the backends: `triton` runs on a GPU, or on the CPU under TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch

from prefopt.kernels import backends
from prefopt.kernels.head import Head
from prefopt.kernels.logprobs import token_logprobs


class Tiled:
    """A backend; called with sizes, the text that `token_logprobs` takes for it with tiles of those sizes."""

    def __init__(self, name: str, interpreted: bool) -> None:
        self.name = name
        self.interpreted = interpreted
        """A kernel takes some 10 ms a row: small problems only. And storing in bfloat16 cuts digits off."""

    def needs_rounding_to(self, dtype: torch.dtype) -> None:
        if self.interpreted and dtype == torch.bfloat16:
            pytest.skip("Triton's interpreter does not round to bfloat16, it truncates")

    def __call__(self, rows: int, columns: int, block: int = 1):
        return f"{self.name} {rows} {columns} {block}"

    def make(self, rows: int, columns: int, block: int = 1):
        """The backend itself, which knows its device from what it is given."""
        return backends.choose(self(rows, columns, block), torch.device("cpu"), torch.float32)

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
