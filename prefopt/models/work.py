"""The products that a step of training can't do without: what its FLOP/s are counted by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from prefopt.models.narrowed import last_mlp, unread
from prefopt.models.packed import PackedModel
from prefopt.records import Layout, Pack


@dataclass(frozen=True)
class Work:
    """FLOPs of matrix products, nothing for recomputing, padding, casts, masked keys or states that nobody reads.

    The gradient of every layer's input is counted, also the first layer's, where some of it may not be needed.
    """

    forward: float
    """Of a token through the layers."""
    backward: float
    head_forward: float
    """Of a scored token."""
    head_backward: float
    attention: float
    """Of a query and a key that it looks at, forward; twice that backward."""
    windows: tuple[int | None, ...]
    """Of each layer: how many keys a query looks at, at most."""
    last_forward: float
    """Of a token through the last layer's MLP, which a shared prompt needs for its last token alone."""
    last_backward: float
    ends: bool
    """Whether the state of a completion's last token is read."""

    @classmethod
    def of(cls, policy: PackedModel) -> Work | None:
        """Return the work of a policy; None for a mixture of experts, whose work depends on the routing."""
        config = policy.config
        if any(parameter.ndim == 3 for parameter in policy.backbone.parameters()):
            return None
        forward, backward = _products(policy.backbone)
        last = last_mlp(policy.model)
        last_forward, last_backward = (0.0, 0.0) if last is None else _products(last[1])
        head = 2.0 * policy.head_weight.numel()
        return cls(
            forward=forward,
            backward=backward,
            head_forward=head,
            head_backward=2 * head if policy.trains_head else head,
            attention=4.0 * config.num_attention_heads * _head_size(config),
            windows=layer_windows(config),
            last_forward=last_forward,
            last_backward=last_backward,
            ends=policy.reads_last,
        )

    def flops(self, pack: Pack, *, reference: bool) -> float:
        """Return what a pack takes forward and backward, with the forward pass of a reference of the same shape."""
        forwards = 2 if reference else 1
        lengths = () if pack.mask is None else pack.mask.sum(1).tolist()
        layout = pack.layout or Layout.of((length, ()) for length in lengths)
        layout = layout if self.ends else layout.without_ends()
        pairs = sum(layout.attended(window) for window in self.windows)
        return (
            layout.tokens * (forwards * self.forward + self.backward)
            - unread(layout) * (forwards * self.last_forward + self.last_backward)
            + pack.target.numel() * (forwards * self.head_forward + self.head_backward)
            + pairs * self.attention * (forwards + 2)
        )


def _products(module: nn.Module) -> tuple[float, float]:
    """Return the FLOPs of a token through the module's linear layers, forward and backward."""
    layers: list[Any] = [m for m in module.modules() if isinstance(m, nn.Linear | Conv1D)]
    sizes = [(_size(layer), any(p.requires_grad for p in layer.parameters())) for layer in layers]
    return sum(2.0 * size for size, _ in sizes), sum((4.0 if trains else 2.0) * size for size, trains in sizes)


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """Return the window of every decoder layer; None for one that looks at everything before it."""
    kinds = getattr(config, "layer_types", None) or [None] * config.num_hidden_layers
    return tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds)


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _size(layer: Any) -> int:
    # A quantized weight is stored otherwise than it multiplies.
    return int(layer.weight.numel() if isinstance(layer, Conv1D) else layer.in_features * layer.out_features)
