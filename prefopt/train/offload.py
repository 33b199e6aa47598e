"""Keep what the backward pass needs in the computer's memory instead of the accelerator's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 1 << 20
"""Bytes; a smaller tensor costs more to move than it frees."""


@contextmanager
def offloaded(model: nn.Module, *, smallest: int = SMALLEST) -> Iterator[None]:
    """Within, activations that a forward pass saves are moved to the CPU, and back when its backward pass needs them.

    Weights, which lie on the device anyway, stay there. The numbers are the same bits.

    Args:
        model: whose weights are told from activations.
        smallest: bytes of the smallest tensor that is moved.
    """
    weights = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}

    def keep(tensor: Tensor) -> Any:
        if tensor.nbytes < smallest or tensor.untyped_storage().data_ptr() in weights:
            return tensor
        # On a GPU through pinned memory, without waiting: what comes back is queued behind what left.
        pinned = tensor.device.type == "cuda"
        away = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
        return _Away(away.copy_(tensor.detach(), non_blocking=pinned), tensor.device)

    with torch.autograd.graph.saved_tensors_hooks(keep, _back):
        yield


class _Away:
    def __init__(self, tensor: Tensor, device: torch.device) -> None:
        self.tensor, self.device = tensor, device


def _back(kept: Any) -> Tensor:
    if isinstance(kept, _Away):
        return kept.tensor.to(kept.device, non_blocking=True)
    assert isinstance(kept, Tensor)
    return kept


def forward_context(model: nn.Module, autocast: Callable[[], Any], *, offload: bool) -> Callable[[], Any]:
    """Return the context for each forward pass of a step: mixed precision, and offloading where it is asked for."""
    if not offload:
        return autocast

    @contextmanager
    def both() -> Iterator[None]:
        with autocast(), offloaded(model):
            yield

    return both
