"""The last layer's MLP, computed only where somebody reads what it gives: from each prompt's last token on.

What predicts a completion, or stands for all of it, are the states of its own tokens and of its prompt's last. All
attention needs the prompt's other tokens too, but behind the last attention nothing does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from prefopt.kernels.shapes import compiles_by_shape, rounded
from prefopt.models.fused import Forward, is_gated
from prefopt.records import Layout


@contextmanager
def narrowed(model: nn.Module) -> Iterator[None]:
    """Within, the last layer's MLP, if it is of Llama's kind, skips the tokens of a shared-prompt row that none reads.

    Their last states are then without the MLP's part. Afterwards the model is as it was.
    """
    found = last_mlp(model)
    if found is None:
        yield
        return
    last = _LastMLP(*found)
    with _running(last.attention, last.attended), _running(last.mlp, last.part):
        yield


class _LastMLP:
    """Hands the layout of a row from the last layer's attention on to its MLP, where activations are recomputed too."""

    def __init__(self, attention: nn.Module, mlp: nn.Module) -> None:
        self.attention, self.mlp = attention, mlp
        self._attend, self._whole = attention.forward, mlp.forward
        self._layout: Layout | None = None
        self._behind: bool | None = None  # whether the MLP comes behind the attention: the first call of both tells

    def attended(self, *args: Any, **kwargs: Any) -> Any:
        """What the attention's forward becomes."""
        if self._behind is None:
            self._behind = True
        out = self._attend(*args, **kwargs)
        self._layout = kwargs.get("layout") if self._behind else None
        return out

    def part(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the MLP's forward becomes."""
        if self._behind is None:
            self._behind = False
        layout, self._layout = self._layout, None
        rows = None if layout is None or args or kwargs else _read(layout, x)
        if rows is None:
            whole: Tensor = self._whole(x, *args, **kwargs)
            return whole
        out = self._whole(x[0].index_select(0, rows)[None])[0]
        return out.new_zeros(x.shape[1], out.shape[1]).index_copy(0, rows, out)[None]


@contextmanager
def _running(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Within, calling the module runs `forward`."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


def last_mlp(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Return the last layer's attention and MLP; None where it isn't certain which, or somebody watches the MLP."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or len(layers) != getattr(getattr(model, "config", None), "num_hidden_layers", None):
        return None
    attention = getattr(layers[-1], "self_attn", None)
    mlps = [child for child in layers[-1].children() if is_gated(child)]
    watched = any(mlp._forward_hooks or mlp._forward_pre_hooks or mlp._backward_hooks for mlp in mlps)
    return (attention, mlps[0]) if isinstance(attention, nn.Module) and len(mlps) == 1 and not watched else None


def unread(layout: Layout) -> int:
    """Return for how many tokens of a row nobody reads what the last MLP would give."""
    return int((~_is_read(layout)).sum())


def _is_read(layout: Layout) -> NDArray[np.bool_]:
    """(T,): each prompt's last token, and all behind it; of a prompt without completions every token."""
    read = np.zeros(layout.tokens, dtype=bool)
    for group in layout.groups:
        first = group.start + max(0, group.prompt - 1) if group.completions else group.start
        read[first : group.stop] = True
    return read


def _read(layout: Layout, x: Tensor) -> Tensor | None:
    """Return which tokens of the row x (1, T, H) to compute, (tokens,) int64 ascending; None for all.

    Where products of new sizes are slow, some tokens more, so that sizes come again.
    """
    if x.shape[:2] != (1, layout.tokens):
        return None
    few = compiles_by_shape(x.device, x.dtype)
    name = ("read", x.device, few)
    if name not in layout.plans:
        read = _is_read(layout)
        count = int(read.sum())
        count = rounded(count) if few else count
        rows = np.sort(np.argsort(~read, kind="stable")[:count])
        layout.plans[name] = torch.tensor(rows, device=x.device) if count < layout.tokens else None
    found: Tensor | None = layout.plans[name]
    return found
